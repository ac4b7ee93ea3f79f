"""The distance of two embeddings, as davidsandberg/facenet measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Distance = Literal["squared-euclidean", "arc-cosine"]


def squared_euclidean(first: Floats, second: Floats) -> Floats:
    """Sum the squared differences of each row: (N, E) twice to (N,), 0 to 4 for embeddings of length one."""
    distances: Floats = np.sum(np.square(first - second), axis=1)
    return distances


def arc_cosine(first: Floats, second: Floats) -> Floats:
    """Compute the angle of each row over pi: (N, E) twice to (N,), 0 to 1.

    The cosine is clipped to -1 and 1. The original gives NaN where rounding carries it further, as for an
    image and itself.
    """
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = np.sum(first * second, axis=1) / norms
    angles: Floats = np.arccos(np.clip(cosines, -1.0, 1.0))
    return angles / np.pi


DISTANCES: Mapping[Distance, Callable[[Floats, Floats], Floats]] = {
    "squared-euclidean": squared_euclidean,
    "arc-cosine": arc_cosine,
}
"""The distances 0 and 1 of `distance` in facenet's `src/facenet.py`."""
