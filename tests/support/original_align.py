"""The original authors' crops: `align_dataset_mtcnn.py` of davidsandberg/facenet, from a pinned package.

TensorFlow and scipy's old `misc`, which it imports, are replaced here; the detector is the caller's. What is
left is the original's: the choice of a face, its margin, truncation, and the calls that resample.
"""

from __future__ import annotations

import contextlib
import io
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Detect = Callable[[np.ndarray], np.ndarray]
"""A function from a photograph to (n, 5): boxes and scores."""


def align_as_original(package: Path, folder: Path, out: Path, detect: Detect, *options: str) -> None:
    """Have the original crop the photographs of a folder for each person, as PNG.

    Args:
        package: The wheel of facenet 1.0.5.
        folder: The photographs.
        out: The folder for the crops.
        detect: The detector.
        options: Of the original's command line.
    """
    with zipfile.ZipFile(package) as archive:
        source = archive.read("facenet/src/align/align_dataset_mtcnn.py").decode()
    stubs = _stubs(detect)
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        module = types.ModuleType("align_dataset_mtcnn")
        module.__file__ = str(package)
        exec(compile(source, "align_dataset_mtcnn.py", "exec"), module.__dict__)
        module.sleep = lambda seconds: None
        with contextlib.redirect_stdout(io.StringIO()):
            module.main(module.parse_arguments([str(folder), str(out), *options]))
    finally:
        for name, replaced in before.items():
            if replaced is None:
                del sys.modules[name]
            else:
                sys.modules[name] = replaced


def _stubs(detect: Detect) -> dict[str, types.ModuleType]:
    names = ("scipy", "tensorflow", "facenet", "facenet.src", "facenet.src.align")
    stubs: dict[str, Any] = {name: types.ModuleType(name) for name in names}
    # scipy 1.1, scipy/misc/pilutil.py: imresize resizes an 8-bit image by Pillow's filter of this name.
    stubs["scipy"].misc = types.SimpleNamespace(
        imread=lambda path: np.asarray(Image.open(path)),
        imresize=lambda array, size, interp: np.asarray(
            Image.fromarray(array).resize(size[::-1], Image.Resampling[interp.upper()])
        ),
        imsave=lambda path, array: Image.fromarray(array).save(path),
    )
    session = contextlib.nullcontext()
    session.as_default = contextlib.nullcontext
    stubs["tensorflow"].Graph = lambda: types.SimpleNamespace(as_default=contextlib.nullcontext)
    stubs["tensorflow"].GPUOptions = stubs["tensorflow"].ConfigProto = dict
    stubs["tensorflow"].Session = lambda config: session
    stubs["facenet.src"].facenet = types.SimpleNamespace(
        store_revision_info=lambda *arguments: None,
        get_dataset=lambda folder: [
            types.SimpleNamespace(name=person.name, image_paths=sorted(map(str, person.iterdir())))
            for person in sorted(Path(folder).iterdir())
        ],
        to_rgb=lambda image: np.repeat(image[:, :, None], 3, axis=2),
    )
    stubs["facenet.src.align"].detect_face = types.SimpleNamespace(
        create_mtcnn=lambda session, path: (None, None, None),
        detect_face=lambda image, *arguments: (detect(image), None),
    )
    return stubs
