"""Distances between two arrays: L2, cosine, ULP."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from checks.core.types import Array

_BLOCK = 1 << 16  # elements whose squares stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of an array from a reference of the same dtype and shape.

    Attributes:
        max_abs: Largest absolute difference.
        relative_l2: L2 norm of the difference over L2 norm of the reference.
        cosine: Smallest cosine between an image's activations and their reference.
        max_ulp: Largest difference in units in the last place: the number of floats between. Infinite if a
            value is not finite on one side.
        median_ulp: Median of the same.
        ulp_histogram: Distribution of the same, as `ulp_histogram` counts it.
    """

    max_abs: float
    relative_l2: float
    cosine: float
    max_ulp: float
    median_ulp: float
    ulp_histogram: tuple[int, ...] = ()


def figure(value: float, form: str = ".1e") -> str:
    """Format a distance or a ratio; an infinite one is of a value that is not finite, or of another shape."""
    return f"{value:{form}}" if math.isfinite(value) else "not finite"


def exact_value(value: float) -> str:
    """Format a value of a tensor so that no float32 is written like another one."""
    if math.isnan(value):
        return "NaN"
    return f"{value:.9g}".replace("inf", "infinity")


@np.errstate(over="ignore", invalid="ignore")  # a NaN or an infinity is infinitely far
def l2_norm(array: Array) -> float:
    """Euclidean norm of all elements in float64; infinite if an element is not finite."""
    # Not numpy.linalg.norm, whose sum runs on as many threads as there are cores.
    values = array.ravel(order="K")
    blocks = (values[start : start + _BLOCK] for start in range(0, values.size, _BLOCK))
    norm = math.sqrt(sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks))
    return norm if math.isfinite(norm) else math.inf


@np.errstate(over="ignore", invalid="ignore")  # a NaN or an infinity is infinitely far
def relative_l2(array: Array, reference: Array) -> float:
    """L2 norm of `array - reference` over that of `reference`, computed in float64.

    Zero if both are equal; infinite if only the reference vanishes, or if an array holds a NaN.
    """
    exact = _float64(reference)
    return _relative_length(_float64(array) - exact, exact)


def _relative_length(gap: Array, reference: Array) -> float:
    """L2 norm of `gap` over that of `reference`, as `relative_l2` gives it; both float64."""
    distance = l2_norm(gap)
    if distance == 0.0:
        return 0.0
    norm = l2_norm(reference)
    return distance / norm if norm and math.isfinite(distance) else math.inf


def _float64(array: Array) -> Array:
    return array.astype(np.float64, copy=False)


def ulp_distance(array: Array, reference: Array) -> Array:
    """Count for each element the steps of its dtype between the two arrays; -0.0 and 0.0 are the same.

    Args:
        array: float16, bfloat16, float32 or float64.
        reference: The same dtype and shape.

    Returns:
        float64 array of the same shape: exact up to 2**53 steps. Infinite where a value is not finite and the
        other has other bits: there are no steps between them.
    """
    first, second = _ordered(array), _ordered(reference)
    gap = np.maximum(first, second) - np.minimum(first, second)
    # A gap that is too large for a signed integer has wrapped around; as an unsigned one it is exact.
    steps = np.asarray(gap.view(f"u{gap.itemsize}").astype(np.float64))
    if not (np.isfinite(array).all() and np.isfinite(reference).all()):
        finite = np.isfinite(array) & np.isfinite(reference)
        steps[~finite & (first != second)] = np.inf
    return steps


def ulp_histogram(steps: Array) -> tuple[int, ...]:
    """Count elements by their distance in steps.

    Args:
        steps: As `ulp_distance` gives them.

    Returns:
        The number of elements that are 0, 1, 2, 3-4, 5-8, 9-16, ... steps apart, up to the last count that is
        above 0. Elements that are infinitely far apart are not counted.
    """
    return _histogram_of_sorted(np.sort(steps, axis=None))


_MOST_STEPS = (0.0, *(2.0**power for power in range(65)))  # of each count of a histogram


def _histogram_of_sorted(steps: Array) -> tuple[int, ...]:
    counts = np.diff(np.searchsorted(steps, _MOST_STEPS, side="right"), prepend=0)
    return tuple(np.trim_zeros(counts, "b").tolist())


def _ordered(array: Array) -> Array:
    """The place of each float among all floats of its dtype, counted from zero, as an integer of its size."""
    # IEEE 754: a float is a sign and a magnitude, and magnitudes sort as the values do.
    kind = np.dtype(f"i{array.dtype.itemsize}")
    # A scalar has no bits to view.
    bits = np.ascontiguousarray(array).reshape(array.shape).view(kind)
    return np.where(bits < 0, np.iinfo(kind).min - bits, bits)


@np.errstate(over="ignore", invalid="ignore")  # a NaN or an infinity is infinitely far
def cosine(array: Array, reference: Array) -> float:
    """Smallest cosine between corresponding rows (first axis), in float64; two zero rows have cosine one."""
    rows = _float64(array).reshape(len(array), -1)
    expected = _float64(reference).reshape(len(reference), -1)
    lengths = np.sqrt(np.square(rows).sum(axis=1) * np.square(expected).sum(axis=1))
    products = (rows * expected).sum(axis=1)
    both_zero = ~rows.any(axis=1) & ~expected.any(axis=1)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return float(np.where(both_zero, 1.0, np.clip(cosines, -1.0, 1.0)).min())


@np.errstate(over="ignore", invalid="ignore")  # a NaN or an infinity is infinitely far
def difference(array: Array, reference: Array) -> Difference:
    """Measure an array against a reference of the same dtype and shape.

    Raises:
        ValueError: The dtypes or shapes differ.
    """
    if array.dtype != reference.dtype or array.shape != reference.shape:
        raise ValueError(
            f"{array.dtype} {array.shape} cannot be measured against {reference.dtype} {reference.shape}"
        )
    actual, expected = _float64(array), _float64(reference)
    gap = actual - expected
    largest = float(np.abs(gap).max())
    # One sort is faster than a maximum, a median and a histogram.
    steps = np.sort(ulp_distance(array, reference), axis=None)
    middle = steps[(steps.size - 1) // 2 : steps.size // 2 + 1]
    return Difference(
        max_abs=largest if math.isfinite(largest) else math.inf,
        relative_l2=_relative_length(gap, expected),
        cosine=cosine(actual, expected),
        max_ulp=float(steps[-1]),
        median_ulp=float(middle.mean()),
        ulp_histogram=_histogram_of_sorted(steps),
    )
