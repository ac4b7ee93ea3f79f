"""The original authors' detector: `detect_face` of davidsandberg/facenet.

The code and the weights are those of the pinned package yale-dhlab-facenet. Its code is the original's but
for `imresample`, which is put back here as the original has it. Two lines are as TensorFlow 2 wants them.
"""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.package_index import extract

_TURNS = {
    "turned left": Image.Transpose.ROTATE_90,
    "upside down": Image.Transpose.ROTATE_180,
    "turned right": Image.Transpose.ROTATE_270,
}
VARIANTS = ("as it is", "half", "double", *_TURNS)


def vary(photograph: Path, variant: str) -> np.ndarray:
    """Read a photograph, and give a variant of it: (height, width, 3), uint8."""
    with Image.open(photograph) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    if variant == "half":
        image = image.resize((width // 2, height // 2))
    elif variant == "double":
        image = image.resize((width * 2, height * 2))
    elif variant in _TURNS:
        image = image.transpose(_TURNS[variant])
    return np.asarray(image)


def unpack_detector(archive: Path, folder: Path) -> None:
    """Unpack the original's code and weights from the package yale-dhlab-facenet, for `run_original`."""
    (folder / "model").mkdir()
    (code,) = extract(archive, folder, "/crop/detect_face.py")
    code.rename(folder / "detect_face.py")
    for weights in extract(archive, folder / "model", "/crop/model/det"):
        weights.rename(weights.with_name(weights.name.partition("-")[2]))


def run_original(jobs: list[tuple[Path, str]], package: Path, out: Path) -> None:
    """Have the original find the faces of variants of photographs.

    Args:
        jobs: Photographs and variants.
        package: A folder that `unpack_detector` filled.
        out: The file for `read_results`.
    """
    from facenet_tf.session import legacy_graph, tf1

    detector = _load_detector(package)
    results = []
    with legacy_graph(), tf1.Session() as session:
        networks = detector.create_mtcnn(session, str(package))
        for photograph, variant in jobs:
            image = vary(photograph, variant)
            boxes, points = detector.detect_face(image, 20, *networks, [0.6, 0.7, 0.7], 0.709)
            places = np.reshape(points, (2, 5, -1)).transpose(2, 1, 0) if len(boxes) else np.zeros((0, 5, 2))
            results.append((boxes.tolist(), places.tolist()))
    out.write_text(json.dumps(results))


def read_results(out: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read the boxes with scores (n, 5) and the landmarks (n, 5, 2) of each job."""
    return [
        (np.array(boxes).reshape(-1, 5), np.array(points).reshape(-1, 5, 2))
        for boxes, points in json.loads(out.read_text())
    ]


def _load_detector(package: Path) -> types.ModuleType:
    import cv2

    source = (package / "detect_face.py").read_text()
    source = source.replace("import tensorflow as tf", "import tensorflow.compat.v1 as tf")
    source = source.replace("from scipy import misc\n", "")
    source = source.replace(
        "input_shape[-1].value", "input_shape[-1]"
    )  # a size is a number since TensorFlow 2
    module = types.ModuleType("detect_face")
    exec(compile(source, "detect_face.py", "exec"), module.__dict__)
    module.imresample = lambda image, size: cv2.resize(
        image, (size[1], size[0]), interpolation=cv2.INTER_AREA
    )
    return module
