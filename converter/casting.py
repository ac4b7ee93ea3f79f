"""Casts of weights to float32, with a measure of their effect on each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.counts import counted

FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = (np.dtype(np.float16), BFLOAT16)
"""Half precisions, whose values float32 holds exactly."""

CASTABLE = (*HALVES, np.dtype(np.float64))
"""Dtypes that are cast to float32; weights of any other dtype are refused."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Effect of the cast of one tensor to float32.

    Attributes:
        dtype: NumPy name of the original dtype.
        elements: Number of elements.
        changed: Number of elements whose bits differ when cast back; 0 for half precisions.
        largest_relative_error: Largest |cast - value| / |value| over the finite elements. At most 2^-24 in
            float32's normal range, up to 1 below it.
    """

    dtype: str
    elements: int
    changed: int
    largest_relative_error: float


def to_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Cast an array to float32.

    float16 and bfloat16 are widened exactly, and float64 is rounded to the nearest float32, ties to even
    (IEEE 754). Infinities and the sign of a zero stay. A NaN stays a NaN of the same sign: from a half
    precision it keeps its whole payload, from float64 the leading 22 bits, and becomes quiet. Processors
    treat signalling NaNs differently, so this function sets the bits itself.

    Args:
        array: float32, or of a dtype in `CASTABLE`.

    Returns:
        The array itself if it is float32, otherwise a new array of the same shape in C order.

    Raises:
        OverflowError: Finite values are beyond float32's range; the message counts them.
        TypeError: The dtype is another one.
    """
    if array.dtype == FLOAT32:
        return array
    if array.dtype not in CASTABLE:
        raise TypeError(f"{array.dtype} is not cast to float32")
    with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaNs are handled below
        cast = array.astype(FLOAT32, order="C")
    finite = np.isfinite(cast)
    if not finite.all():
        _settle_special_values(array, cast, ~finite)
    return cast


def _settle_special_values(
    array: NDArray[Any], cast: NDArray[np.float32], special: NDArray[np.bool_]
) -> None:
    """Refuse values that the cast made infinite, and give NaNs the bits that `to_float32` promises."""
    original = array[special]
    with np.errstate(invalid="ignore"):
        overflown = original[np.isfinite(original)]
        nan = np.isnan(original)
    if overflown.size:
        largest = max(overflown.tolist(), key=abs)
        are = "is" if overflown.size == 1 else "are"
        raise OverflowError(
            f"{overflown.size} of {counted(array.size, 'value')} {are} beyond float32, the largest is "
            f"{largest:g}"
        )
    bits = original.view(f"u{original.itemsize}")
    if array.dtype == np.float16:
        wide = bits.astype(np.uint32)
        payloads = (wide & 0x8000) << 16 | 0x7F800000 | (wide & 0x3FF) << 13
    elif array.dtype == np.float64:
        payloads = (bits >> 32 & 0x80000000 | 0x7FC00000 | bits >> 29 & 0x3FFFFF).astype(np.uint32)
    else:
        payloads = bits.astype(np.uint32) << 16
    cast[special] = np.where(nan, payloads, cast[special].view(np.uint32)).astype(np.uint32).view(FLOAT32)


def measure_cast(array: NDArray[Any], cast: NDArray[np.float32]) -> Cast:
    """Measure the effect of `to_float32` on an array.

    Args:
        array: The original, of a dtype in `CASTABLE`.
        cast: The result of `to_float32`.
    """
    if array.dtype in HALVES:
        return Cast(array.dtype.name, array.size, 0, 0.0)
    with np.errstate(invalid="ignore"):
        back = cast.astype(np.float64).reshape(-1)
    before = np.ascontiguousarray(array).reshape(-1)
    changed = back.view(np.uint64) != before.view(np.uint64)
    was, became = before[changed], back[changed]
    finite = np.isfinite(was)  # the other changed values are NaNs that lost bits of their payload
    errors = np.abs(became[finite] - was[finite]) / np.abs(was[finite])
    return Cast(array.dtype.name, array.size, int(changed.sum()), float(errors.max(initial=0.0)))


def state_casts(casts: Mapping[str, Cast]) -> tuple[str, ...]:
    """Describe casts, a sentence for each dtype.

    Args:
        casts: Tensor name to the effect of its cast.
    """
    return tuple(
        _state_dtype(dtype, {name: cast for name, cast in casts.items() if cast.dtype == dtype})
        for dtype in dict.fromkeys(cast.dtype for cast in casts.values())
    )


def _state_dtype(dtype: str, casts: Mapping[str, Cast]) -> str:
    what = f"{counted(len(casts), 'tensor')} of {dtype}"
    elements = _sum(cast.elements for cast in casts.values())
    if dtype != "float64":
        return f"{what} widened to float32, which holds each of the {elements} values exactly"
    head = f"{what} rounded to the nearest float32"
    changed = _sum(cast.changed for cast in casts.values())
    if changed == "0":
        return f"{head}: none of the {elements} values changed"
    worst = max(casts, key=lambda name: casts[name].largest_relative_error)
    error = casts[worst].largest_relative_error
    return f"{head}: {changed} of {elements} values changed, by {error:.1e} of the value at most ({worst})"


def _sum(counts: Iterable[int]) -> str:
    return f"{sum(counts):,}"
