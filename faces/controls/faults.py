"""The catalog of faults: what ports get wrong between a photograph and a decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from checks.controls.faults.change_port import attributes_set
from checks.core.inputs import prewhiten, standardise
from checks.core.types import Array
from faces import crops, images, model
from faces.crops import CropMethod
from faces.detect import cascade
from faces.detect.cascade import Boxes
from faces.detect.result import Box, Face
from faces.distance import Floats, arc_cosine
from faces.evaluate import measure, protocol
from faces.evaluate.protocol import Fold, Indices, Pairs

StageName = Literal["photograph", "detector", "crop", "standardisation", "distance", "protocol"]
"""The stages from a photograph to a decision, in their order."""


@dataclass(frozen=True, slots=True)
class PathFault:
    """A fault: one function or constant of `faces` that is replaced.

    Attributes:
        name: A short name, which `--only` takes.
        stage: The stage that is wrong.
        description: What is wrong, a clause.
        owner: The module in which it is replaced.
        attribute: Its name there.
        change: From the attribute to what takes its place.
    """

    name: str
    stage: StageName
    description: str
    owner: ModuleType
    attribute: str
    change: Callable[[Any], Any]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Plant the fault, while open."""
        changed = self.change(getattr(self.owner, self.attribute))
        with attributes_set(self.owner, **{self.attribute: changed}):
            yield


def _instead(value: Any) -> Callable[[Any], Any]:
    """Replace an attribute, whatever it is."""
    return lambda _: value


def _entry(name: str, function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Replace the function of a name in a mapping."""
    return lambda functions: {**functions, name: function}


def _bilinear(image: Array, height: int, width: int) -> Array:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def _floor_size(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(cascade.WINDOW, int(height * scale)), max(cascade.WINDOW, int(width * scale))


def _area_without_one(boxes: Boxes) -> Floats:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _exchange_offsets(windows_above: Callable[..., Boxes]) -> Callable[..., Boxes]:
    def exchanged(probabilities: Array, offsets: Array, scale: float, threshold: float) -> Boxes:
        return windows_above(probabilities, offsets[[1, 0, 3, 2]], scale, threshold)

    return exchanged


def _square_rounded(boxes: Boxes) -> Boxes:
    squared = boxes.copy()
    sides = boxes[:, 2:4] - boxes[:, :2]
    squared[:, :2] += (sides - sides.max(axis=1, keepdims=True)) * 0.5
    squared[:, 2:4] = squared[:, :2] + sides.max(axis=1, keepdims=True)
    squared[:, :4] = np.round(squared[:, :4])
    return squared


def _margin_of_the_crop(box: Box, method: CropMethod) -> Box:
    left, top, right, bottom = box
    share = 44 / (182 - 44) / 2  # facenet-pytorch's: 44 of the crop's 182 pixels
    across, down = (right - left) * share, (bottom - top) * share
    return left - across, top - down, right + across, bottom + down


def _largest(faces: Sequence[Face], width: int, height: int, method: CropMethod) -> int:
    left, top, right, bottom = np.array([face.box for face in faces]).T
    return int(np.argmax((right - left) * (bottom - top)))


def _round_box(cut_out: Callable[..., Array]) -> Callable[..., Array]:
    return lambda photograph, box, size: cut_out(photograph, tuple(map(round, box)), size)


def _cut_out_by_opencv(photograph: NDArray[np.uint8], box: Box, size: int) -> Array:
    height, width = photograph.shape[:2]
    left, top = (int(max(side, 0)) for side in box[:2])
    right, bottom = int(min(box[2], width)), int(min(box[3], height))
    return cv2.resize(photograph[top:bottom, left:right], (size, size), interpolation=cv2.INTER_LINEAR)


def _whiten_channels(pixels: Array) -> Array:
    values = pixels.astype(np.float64)
    deviations = np.maximum(values.std(axis=(1, 2), keepdims=True), 1 / np.sqrt(values[0].size))
    whitened: Array = (values - values.mean(axis=(1, 2), keepdims=True)) / deviations
    return whitened.astype(np.float32)


def _exchange_channels(standardisations: Any) -> Any:
    def exchanged(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return lambda pixels: function(pixels[..., ::-1])

    return {name: exchanged(function) for name, function in standardisations.items()}


def _cosine(first: Floats, second: Floats) -> Floats:
    distances: Floats = 1 - np.sum(first * second, axis=1)
    return distances


def _euclidean(first: Floats, second: Floats) -> Floats:
    distances: Floats = np.linalg.norm(first - second, axis=1)
    return distances


def _shuffle_folds(split_folds: Callable[..., tuple[Fold, ...]]) -> Callable[..., tuple[Fold, ...]]:
    def shuffled(pairs: int, folds: int) -> tuple[Fold, ...]:
        order = np.random.default_rng(0).permutation(pairs)
        return tuple(
            Fold(np.sort(order[fold.train]), np.sort(order[fold.test])) for fold in split_folds(pairs, folds)
        )

    return shuffled


def _train_on_all(split_folds: Callable[..., tuple[Fold, ...]]) -> Callable[..., tuple[Fold, ...]]:
    return lambda pairs, folds: tuple(Fold(np.arange(pairs), fold.test) for fold in split_folds(pairs, folds))


def _mean_of_all(embeddings: Array, pairs: Pairs, chosen: Indices) -> Floats:
    mean: Floats = embeddings.mean(axis=0, dtype=np.float64)
    return mean


def _next_threshold(different: Floats, far: float) -> float:
    shares = np.searchsorted(np.sort(different), protocol.FAR_THRESHOLDS) / len(different)
    return float(protocol.FAR_THRESHOLDS[np.argmax(shares >= far)])


FAULTS: tuple[PathFault, ...] = (
    PathFault(
        "bgr-photograph",
        "photograph",
        "photographs are read in BGR, as cv2.imread gives them",
        images,
        "read_photograph",
        lambda read: lambda file: read(file)[..., ::-1],
    ),
    PathFault(
        "bilinear-for-area",
        "detector",
        "the pyramid and the crops are resampled bilinearly, not by the areas of pixels",
        cascade,
        "resample",
        _instead(_bilinear),
    ),
    PathFault(
        "floor-for-ceil",
        "detector",
        "the sizes of the pyramid's levels are rounded down, not up",
        cascade,
        "level_size",
        _instead(_floor_size),
    ),
    PathFault(
        "areas-without-one",
        "detector",
        "the areas of boxes in suppressions lack the original's +1",
        cascade,
        "_area",
        _instead(_area_without_one),
    ),
    PathFault(
        "crops-transposed",
        "detector",
        "x and y are exchanged in the crops for R-Net and O-Net",
        cascade,
        "crop",
        lambda crop: lambda photograph, box, size: crop(photograph, box, size).transpose(1, 0, 2),
    ),
    PathFault(
        "offsets-transposed",
        "detector",
        "x and y are exchanged in the offsets of P-Net",
        cascade,
        "windows_above",
        _exchange_offsets,
    ),
    PathFault(
        "bgr-detector",
        "detector",
        "the three networks are given BGR",
        cascade,
        "standardise",
        lambda standardise: lambda pixels: standardise(pixels[..., ::-1]),
    ),
    PathFault(
        "detector-divisor",
        "detector",
        "pixels are divided by 127.5 for the three networks, not by 128",
        cascade,
        "standardise",
        lambda standardise: lambda pixels: standardise(pixels) * np.float32(128 / 127.5),
    ),
    PathFault(
        "round-for-truncate",
        "detector",
        "the sides of square boxes are rounded, not cut off",
        cascade,
        "square",
        _instead(_square_rounded),
    ),
    PathFault(
        "margin-of-the-crop",
        "crop",
        "the margin is 44 of the crop's pixels, as in facenet-pytorch, not of the photograph's",
        crops,
        "add_margin",
        _instead(_margin_of_the_crop),
    ),
    PathFault(
        "largest-face",
        "crop",
        "of several faces the largest is taken, whatever its distance from the centre",
        crops,
        "choose_face",
        _instead(_largest),
    ),
    PathFault(
        "box-rounded",
        "crop",
        "the sides of the box are rounded, not cut off",
        crops,
        "cut_out",
        _round_box,
    ),
    PathFault(
        "opencv-for-pillow",
        "crop",
        "the crop is resampled by OpenCV's bilinear filter, which does not average when it shrinks",
        crops,
        "cut_out",
        _instead(_cut_out_by_opencv),
    ),
    PathFault(
        "prewhiten-for-fixed",
        "standardisation",
        "images are prewhitened for a network of (x - 127.5) / 128",
        model,
        "STANDARDISATIONS",
        _entry("fixed", prewhiten),
    ),
    PathFault(
        "fixed-for-prewhiten",
        "standardisation",
        "(x - 127.5) / 128 for a network of prewhitened images",
        model,
        "STANDARDISATIONS",
        _entry("per-image", standardise),
    ),
    PathFault(
        "another-divisor",
        "standardisation",
        "(x - 127.5) / 127.5 for (x - 127.5) / 128",
        model,
        "STANDARDISATIONS",
        _entry("fixed", lambda pixels: standardise(pixels) * np.float32(128 / 127.5)),
    ),
    PathFault(
        "channels-whitened",
        "standardisation",
        "each channel is prewhitened by itself, not the image",
        model,
        "STANDARDISATIONS",
        _entry("per-image", _whiten_channels),
    ),
    PathFault(
        "bgr-for-rgb",
        "standardisation",
        "the network is given BGR",
        model,
        "STANDARDISATIONS",
        _exchange_channels,
    ),
    PathFault(
        "cosine-for-squared-distance",
        "distance",
        "1 - cosine for the squared Euclidean distance, which is twice as much",
        protocol,
        "DISTANCES",
        _entry("squared-euclidean", _cosine),
    ),
    PathFault(
        "root-of-squared-distance",
        "distance",
        "the Euclidean distance for its square",
        protocol,
        "DISTANCES",
        _entry("squared-euclidean", _euclidean),
    ),
    PathFault(
        "angle-not-over-pi",
        "distance",
        "the angle in radians for its share of pi",
        protocol,
        "DISTANCES",
        _entry("arc-cosine", lambda first, second: np.pi * arc_cosine(first, second)),
    ),
    PathFault(
        "folds-shuffled",
        "protocol",
        "the pairs are shuffled before they are cut into folds",
        measure,
        "split_folds",
        _shuffle_folds,
    ),
    PathFault(
        "threshold-on-tested-pairs",
        "protocol",
        "the threshold of a fold is chosen on all pairs, those of the fold too",
        measure,
        "split_folds",
        _train_on_all,
    ),
    PathFault(
        "mean-not-subtracted",
        "protocol",
        "the mean of the embeddings is not subtracted where the option asks for it",
        protocol,
        "pair_mean",
        _instead(lambda embeddings, pairs, chosen: np.zeros(embeddings.shape[1])),
    ),
    PathFault(
        "mean-of-all-embeddings",
        "protocol",
        "the mean is that of all embeddings, not of the other folds' pairs",
        protocol,
        "pair_mean",
        _instead(_mean_of_all),
    ),
    PathFault(
        "thresholds-by-0.02",
        "protocol",
        "the accuracy is measured at thresholds by 0.02, not by 0.01",
        protocol,
        "ACCURACY_THRESHOLDS",
        _instead(np.arange(0, 4, 0.02)),
    ),
    PathFault(
        "rates-by-0.01",
        "protocol",
        "the threshold of a false accept rate is looked for by 0.01, not by 0.001",
        protocol,
        "FAR_THRESHOLDS",
        _instead(np.arange(0, 4, 0.01)),
    ),
    PathFault(
        "rates-not-interpolated",
        "protocol",
        "the next threshold is taken for a false accept rate, not one interpolated",
        protocol,
        "threshold_at_far",
        _instead(_next_threshold),
    ),
)
"""Every fault, in the order of the stages."""
