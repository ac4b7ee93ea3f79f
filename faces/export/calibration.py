"""The faces that a quantisation is calibrated on, and those that its audit embeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
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
from converter.hub.photographs import calibration_photographs, describe_photographs
from faces.crops import FaceImage, read_face
from faces.dataset import LabelledFace
from faces.dataset import find_faces as find_labelled
from faces.detect.detector import FaceDetector
from faces.evaluate.embed_faces import find_faces
from faces.export.interface import Interface
from faces.export.result import Precision

MOST_FACES = 200
"""So many faces are read at most, spread evenly: more change the ranges little."""

LEAST_FACES = 10
"""So many faces are needed: of fewer, the ranges let single faces slip, and the audit has one or none."""

_HELD_OUT = 4
"""Every fourth face is kept for the audit. The ranges of MinMax hold every face that they come from."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The faces that a quantisation is calibrated on.

    Attributes:
        images: The faces as the graph takes them: pixels if it standardises them itself, (N, H, W, 3) in
            uint8, otherwise standardised images in float32, (N, 3, H, W) or, of TFLite, (N, H, W, 3).
        faces: The other faces, which the audit embeds.
        description: A clause on the faces that it is calibrated on, without a path.
    """

    images: NDArray[Any]
    faces: Faces
    description: str


def in_batches(images: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    """Yield batches of exactly this size; where the last one lacks images, it repeats the last of them."""
    places = np.arange(-(-len(images) // size) * size).clip(max=len(images) - 1).reshape(-1, size)
    return (images[batch] for batch in places)


def plan_calibration(
    interface: Interface,
    precision: Precision,
    source: str | Path | None,
    *,
    offline: bool = False,
    say: Say = lambda _: None,
) -> Calibration | None:
    """Read the faces to calibrate on, standardise them as the weights need it, and hold some out.

    Args:
        interface: The interface of the graph.
        precision: The precision of the export; for any other than int8 there is nothing to calibrate.
        source: As for `read_calibration`.
        offline: Never download.
        say: Progress callback.

    Raises:
        UsageError: Faces are given for another precision, or the standardisation is not known.
        SourceError, RequirementError: As for `read_calibration`.
    """
    if precision != "int8":
        if source is not None:
            raise UsageError("--calibrate is for --precision int8. Leave it out.")
        return None
    if interface.standardisation == NOT_STATED:
        raise UsageError(
            "int8 is calibrated on faces, and nothing tells how those of these weights are standardised. "
            "Give --standardise fixed, (x - 127.5) / 128 as for the published models of 2018, or per-image."
        )
    pixels, people, description = read_calibration(source, offline=offline, say=say)
    images = (prewhiten if interface.standardisation == PER_IMAGE else standardise)(pixels)
    if interface.channels_last:
        fed = fit_size(images if interface.baked is None else pixels, *interface.shape[1:3])
    else:
        fed = fit_size(images, *interface.shape[2:]).transpose(0, 3, 1, 2)
    is_held = np.arange(len(pixels)) % _HELD_OUT == _HELD_OUT - 1
    held = Faces(pixels[is_held], images[is_held], tuple(np.array(people)[is_held].tolist()))
    calibrated = counted(int((~is_held).sum()), "face")
    return Calibration(np.ascontiguousarray(fed[~is_held]), held, f"{calibrated} of {description}")


def read_calibration(
    source: str | Path | None,
    *,
    offline: bool = False,
    say: Say = lambda _: None,
) -> tuple[NDArray[np.uint8], tuple[str, ...], str]:
    """Read faces; those of photographs are found and cropped in memory.

    Args:
        source: A table or folder of faces, as for `faces.dataset.FaceDataset`, or a folder of photographs.
            None takes the photographs of `converter.hub.photographs`.
        offline: Never download.
        say: Progress callback.

    Returns:
        (N, 160, 160, 3), RGB; the person of each face, empty if it is not known; and a clause on the images,
        without a path.

    Raises:
        UsageError: There is no such folder or table.
        SourceError: It holds fewer than `LEAST_FACES` faces, or a file cannot be used.
        RequirementError: The photographs or the weights of the detector cannot be downloaded.
    """

    def downloading(received: int, total: int | None) -> None:
        say(f"downloading photographs to calibrate on: {received >> 20} MB")

    def finding(done: int, total: int | None) -> None:
        say(f"finding the faces to calibrate on: {done} of {total}")

    if source is None:
        photographs = calibration_photographs(offline=offline, progress=downloading)
        labelled: Sequence[LabelledFace] = [
            LabelledFace(FaceImage(file), person, 0) for file, person in photographs.items()
        ]
        of = describe_photographs()
    else:
        labelled = find_labelled(Path(source), with_split=False)
        of = "images that were given"
    if len(labelled) > MOST_FACES:
        labelled = [labelled[place] for place in np.linspace(0, len(labelled) - 1, MOST_FACES).astype(int)]
    images = [each.image for each in labelled]
    found = find_faces(images, "scaled", lambda: FaceDetector(offline=offline), finding)
    faces = [(face, each.person) for face, each in zip(found, labelled, strict=True) if face is not None]
    crops: dict[bytes, tuple[NDArray[np.uint8], str]] = {}
    for face, person in faces:
        crop = read_face(face, "scaled")
        crops.setdefault(sha256(crop.tobytes()).digest(), (crop, person))  # a copy shows no other range
    if len(crops) < LEAST_FACES:
        where = Path(source) if source is not None else images[0].file.parent
        problem = f"it has {counted(len(crops), 'different face')} to calibrate on, fewer than {LEAST_FACES}"
        raise SourceError(where, problem, next_step="Give more photographs with faces, or crops of faces")
    pixels, people = zip(*crops.values(), strict=True)
    return np.stack(pixels), people, of
