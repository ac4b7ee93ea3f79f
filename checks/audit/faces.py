"""Crops of faces: read from a folder, embedded by the source, and compared with a port's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from checks.audit.result import FacesRun
from checks.core.activations import run_pytorch
from checks.core.inputs import IMAGE_SIZE, prewhiten, standardise
from checks.core.network import EMBEDDINGS
from checks.core.photographs import find_photographs, read_photograph
from checks.core.types import Array
from converter.errors import SourceError
from converter.hub.catalog_entry import PER_IMAGE
from reference import InceptionResnetV1

_BATCH = 16
_CROP_SIZES = (IMAGE_SIZE, 182)  # of `facenet-port align`, by `--crop scaled` and `--crop facenet`


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """Crops of faces.

    Attributes:
        pixels: (N, 160, 160, 3), uint8, RGB.
        images: The same standardised as the source was trained, float32.
        people: The name of the folder of each.
    """

    pixels: Array
    images: Array
    people: tuple[str, ...]


def read_faces(folder: Path, standardisation: str) -> Faces:
    """Read the crops of a folder and its subfolders, as `facenet-port align` writes them.

    Args:
        folder: The folder.
        standardisation: The standardisation in the training of the source, as the catalog names it.

    Raises:
        UsageError: There is no such folder.
        SourceError: It holds no images, or one that cannot be read or is no crop.
    """
    files = find_photographs(folder, wanted="the folder of crops that `facenet-port align` writes")
    pixels = np.stack([_read_crop(file) for file in files])
    images = (prewhiten if standardisation == PER_IMAGE else standardise)(pixels)
    return Faces(pixels, images, tuple(file.parent.name for file in files))


def _read_crop(file: Path) -> Array:
    """Read a crop, (160, 160, 3): of a larger one its centre."""
    pixels = read_photograph(file)
    side = pixels.shape[0]
    if pixels.shape[1] != side or side not in _CROP_SIZES:
        problem = f"this is no crop of a face: {pixels.shape[1]}x{side} pixels, not 160x160"
        raise SourceError(file, problem, next_step="Crop the faces first: facenet-port align FOLDER CROPS")
    edge = (side - IMAGE_SIZE) // 2
    return np.asarray(pixels[edge : edge + IMAGE_SIZE, edge : edge + IMAGE_SIZE])


def compare_faces(
    embeddings: Array, source: InceptionResnetV1, images: Array, people: Sequence[str]
) -> FacesRun:
    """Compare a port's embeddings of faces with the source's, by cosine and by what they decide.

    Args:
        embeddings: The port's embeddings, (N, E), of length one.
        source: The network with the source's weights.
        images: The N faces that they were computed from, standardised: (N, H, W, 3).
        people: The person of each.
    """
    parts = [
        run_pytorch(source, images[start : start + _BATCH], (EMBEDDINGS,))[EMBEDDINGS]
        for start in range(0, len(images), _BATCH)
    ]
    expected = np.concatenate(parts)
    cosines = (embeddings * expected).sum(axis=1)
    found = FacesRun(len(cosines), float(cosines.min()), float(cosines.mean()))
    pairs = np.array(list(combinations(range(len(cosines)), 2))).reshape(-1, 2)
    same = np.array([people[first] == people[second] for first, second in pairs], np.bool_)
    if not same.any() or same.all():
        return found
    ours, theirs = (
        np.square(rows[pairs[:, 0]] - rows[pairs[:, 1]]).sum(axis=1) for rows in (embeddings, expected)
    )
    threshold = _best_threshold(theirs, same)
    decided, by_source = ours < threshold, theirs < threshold
    return FacesRun(
        len(cosines), found.cosine, found.mean_cosine,
        people=len(set(people)),
        pairs=len(pairs),
        otherwise=int((decided != by_source).sum()),
        threshold=threshold,
        accuracy=(float((decided == same).mean()), float((by_source == same).mean())),
    )  # fmt: skip


def _best_threshold(distances: Array, same: Array) -> float:
    """The squared distance below which most pairs are of one person, and above which most are not."""
    order = np.argsort(distances)
    below = np.concatenate([[0], np.cumsum(same[order])])
    right = below + (len(same) - same.sum() - (np.arange(len(same) + 1) - below))
    place = int(right.argmax())
    ends = np.concatenate([[0.0], distances[order], [4.0]])
    return float((ends[place] + ends[place + 1]) / 2)
