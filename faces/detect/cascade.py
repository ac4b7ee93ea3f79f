"""The arithmetic of facenet's detector between its three networks.

Written from the algorithm of davidsandberg/facenet, `src/align/detect_face.py`. What looks like a slip there
is kept where boxes depend on it.

Boxes are float64 rows (left, top, right, bottom, ...); the right and bottom pixels belong to them. The
algorithm comes from MATLAB, where the first pixel is 1. facenet uses the boxes as if it were 0, and so does
everything here that comes after the cascade.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import RequirementError

try:
    import cv2
except ModuleNotFoundError:
    raise RequirementError(
        "the detector needs opencv-python-headless, not installed here: pip install 'facenet-port[faces]'."
    ) from None

WINDOW = 12
"""P-Net's window in pixels; the shorter side of the smallest level of a pyramid."""
_STRIDE = 2  # pixels between two windows of P-Net
_NMS_BLOCK = 128  # boxes whose overlaps with all others are computed at once; fewer if these are many
_NMS_OVERLAPS = 1 << 20  # overlaps that are computed at once

Boxes = NDArray[np.float64]


def pyramid_scales(height: int, width: int, smallest_face: float, factor: float) -> list[float]:
    """Compute the scales at which P-Net sees a photograph, the largest first.

    Args:
        height: Of the photograph, in pixels.
        width: Likewise.
        smallest_face: Side of the smallest face in pixels, which the largest scale brings to P-Net's window.
        factor: Ratio of two scales that follow each other, below 1.
    """
    largest = WINDOW / smallest_face
    shorter_side = min(height, width) * largest
    scales: list[float] = []
    while shorter_side >= WINDOW:
        scales.append(float(largest * np.power(factor, len(scales))))
        shorter_side *= factor
    return scales


def level_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Compute the height and width of a level of a photograph's pyramid."""
    return int(np.ceil(height * scale)), int(np.ceil(width * scale))


def resample(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resample an image by the areas of its pixels; the dtype stays."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def standardise(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Standardise pixels of 0 to 255 as MTCNN was trained: (x - 127.5) / 128."""
    exact = np.float32 if pixels.dtype == np.uint8 else np.float64  # of whole numbers float32 rounds none
    standardised: NDArray[Any] = np.subtract(pixels, 127.5, dtype=exact)
    standardised *= 0.0078125
    return standardised.astype(np.float32, copy=False)


def windows_above(
    probabilities: NDArray[np.float32], offsets: NDArray[np.float32], scale: float, threshold: float
) -> Boxes:
    """Turn P-Net's maps of one level into boxes of the photograph.

    Args:
        probabilities: (height, width), of a face.
        offsets: (4, height, width), of left, top, right and bottom, in window sizes.
        scale: Of the level.
        threshold: Smallest probability of a box.

    Returns:
        (n, 9): box, probability, offsets; column by column, from the left.
    """
    columns, rows = np.nonzero(threshold <= probabilities.T)
    corner = _STRIDE * np.stack([columns, rows], axis=1)
    # A lone window takes the offsets of its mirror image: the original flips the map when there is one.
    offset_columns = probabilities.shape[1] - 1 - columns if len(columns) == 1 else columns
    return np.hstack(
        [
            np.fix((corner + 1) / scale),
            np.fix((corner + WINDOW) / scale),
            probabilities[rows, columns, None],
            offsets[:, rows, offset_columns].T,
        ]
    )


def suppress(boxes: Boxes, limit: float, *, of_smaller: bool = False) -> NDArray[np.intp]:
    """Drop each box that overlaps one of higher score (non-maximum suppression).

    Args:
        boxes: (n, 5 or more): box, score, anything.
        limit: The largest overlap that is kept.
        of_smaller: Whether an overlap is a share of the smaller area, instead of the union.

    Returns:
        The indices of the boxes that stay, by falling score.
    """
    # Scores tie at 1.0, and NumPy's sort is not stable: this very call breaks ties as the original does.
    waiting = np.argsort(boxes[:, 4])[::-1]
    kept: list[NDArray[np.intp]] = []
    while waiting.size:
        block = waiting[: min(_NMS_BLOCK, max(1, _NMS_OVERLAPS // waiting.size))]
        excessive = ~(_overlaps(boxes[block], boxes[waiting], of_smaller) <= limit)
        alive = np.ones(waiting.size, bool)
        picked = []
        for position in range(block.size):
            if alive[position]:
                picked.append(position)
                alive &= ~excessive[position]
        alive[: block.size] = False
        kept.append(block[picked])
        waiting = waiting[alive]
    return np.concatenate(kept) if kept else np.zeros(0, np.intp)


def _overlaps(some: Boxes, others: Boxes, of_smaller: bool) -> NDArray[np.float64]:
    """Compute the overlap of every one of `some` with every one of `others`: (len(some), len(others))."""
    area, other_area = _area(some)[:, None], _area(others)
    left, top, right, bottom = (
        pick(some[:, side, None], others[:, side])
        for side, pick in enumerate((np.maximum, np.maximum, np.minimum, np.minimum))
    )
    common = np.maximum(0.0, right - left + 1) * np.maximum(0.0, bottom - top + 1)
    whole = np.minimum(area, other_area) if of_smaller else area + other_area - common
    overlaps: NDArray[np.float64] = common / whole
    return overlaps


def _area(boxes: Boxes) -> NDArray[np.float64]:
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def move(boxes: Boxes, offsets: NDArray[np.floating[Any]], *, added: int = 1) -> Boxes:
    """Move the sides of boxes by a network's offsets.

    Args:
        boxes: (n, 4 or more); columns after the box stay.
        offsets: (n, 4), in sizes of the box.
        added: Pixels added to a side to give its size. P-Net's boxes take 0, the others 1.
    """
    moved = boxes.copy()
    width = boxes[:, 2] - boxes[:, 0] + added
    height = boxes[:, 3] - boxes[:, 1] + added
    moved[:, :4] += offsets * np.stack([width, height, width, height], axis=1)
    return moved


def square(boxes: Boxes) -> Boxes:
    """Make boxes square around their centres, then cut their sides off to whole pixels, towards zero."""
    squared = boxes.copy()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    side = np.maximum(width, height)
    squared[:, 0] = boxes[:, 0] + width * 0.5 - side * 0.5
    squared[:, 1] = boxes[:, 1] + height * 0.5 - side * 0.5
    squared[:, 2:4] = squared[:, :2] + side[:, None]
    squared[:, :4] = np.fix(squared[:, :4])
    return squared


def crop(photograph: NDArray[np.uint8], box: Boxes, size: int) -> NDArray[np.float64]:
    """Cut a box of whole pixels out of a photograph, black beyond its edges, and resample it for a network.

    Args:
        photograph: (height, width, 3).
        box: (4 or more), as `square` gives it.
        size: Height and width of the result.

    Returns:
        (size, size, 3), of 0 to 255.
    """
    left, top, right, bottom = map(int, box[:4].tolist())
    inside = photograph[max(top, 1) - 1 : max(bottom, 0), max(left, 1) - 1 : max(right, 0)]
    height, width = bottom - top + 1, right - left + 1
    if inside.shape[:2] == (height, width):  # most are, and need no black
        padded = inside.astype(np.float64)
    else:
        padded = np.zeros((height, width, 3))
        down, across = max(1 - top, 0), max(1 - left, 0)
        padded[down : down + inside.shape[0], across : across + inside.shape[1]] = inside
    return resample(padded, size, size)


def place_landmarks(boxes: Boxes, places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn O-Net's landmarks into points of the photograph: (n, 5, 2), each x and y.

    Args:
        boxes: (n, 4 or more), the boxes of O-Net's crops.
        places: (n, 10), five x and then five y, in box sizes.
    """
    sides = boxes[:, None, 2:4] - boxes[:, None, :2] + 1
    shares = places.reshape(-1, 2, 5).transpose(0, 2, 1)
    return (sides * shares + boxes[:, None, :2] - 1).astype(np.float32)
