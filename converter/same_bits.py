"""Equality of arrays down to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def same_bits(actual: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Compare dtype, shape and bits of two arrays: -0.0 differs from 0.0, a NaN equals itself."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    return np.array_equal(_bits(actual), _bits(expected))


def differing_bits(actual: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the elements of two arrays of one dtype and shape whose bits differ, as `same_bits` does."""
    return np.asarray(_bits(actual) != _bits(expected)).reshape(actual.shape)


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    bits = f"u{array.itemsize}" if array.itemsize in (1, 2, 4, 8) else "u1"
    return np.ascontiguousarray(array).reshape(-1).view(bits)
