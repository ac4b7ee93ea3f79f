"""Equality of arrays down to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def same_bits(actual: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Compare dtype, shape and bits of two arrays: -0.0 differs from 0.0, a NaN equals itself."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    bits = f"u{actual.itemsize}" if actual.itemsize in (1, 2, 4, 8) else "u1"
    one, other = (np.ascontiguousarray(array).reshape(-1).view(bits) for array in (actual, expected))
    return np.array_equal(one, other)
