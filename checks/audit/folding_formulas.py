"""The formulas by which tools fold a BatchNorm, with their rounding, and bounds on the rounding error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from checks.core import thresholds
from checks.core.network import EPSILON
from checks.core.types import Array
from converter.casting import FLOAT32, HALVES

_REACH = 4  # floats on either side of the exact factor; tools round to two or three floats off


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """The float32 tensors of one BatchNorm, each (channels,)."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array

    def factor(self, epsilon: float = EPSILON) -> Array:
        """The factor in inference, in float64; infinite where variance + epsilon is not positive."""
        root = np.sqrt(np.maximum(self.variance.astype(np.float64) + epsilon, 0.0))
        with np.errstate(divide="ignore"):
            return np.asarray(self.gamma / root)

    def factor_of_rounded_sum(self) -> Array:
        """The factor with variance + epsilon rounded to float32 first, in float64."""
        with np.errstate(all="ignore"):
            return np.asarray(self.gamma / np.sqrt((self.variance + np.float32(EPSILON)).astype(np.float64)))

    def summand(self) -> Array:
        """The summand in inference, in float64."""
        return np.asarray(self.beta - self.mean * self.factor())

    def size_of_summand(self) -> Array:
        """The magnitude of the terms of the summand, in float64; its rounding error is relative to it."""
        return np.asarray(np.abs(self.beta.astype(np.float64)) + np.abs(self.mean * self.factor()))


@dataclass(frozen=True, slots=True)
class Multiplication:
    """A way to multiply weights by a factor.

    Attributes:
        inner: The dtype of the multiplication.
        stored: The dtype of the stored product.
        divides: Whether the tool divides by the reciprocal of the factor instead.
    """

    inner: np.dtype
    stored: np.dtype
    divides: bool

    def candidates(self, norm: BatchNorm, divisor: float = 1.0) -> Array:
        """List the floats around each factor, or its reciprocal, likeliest first: (candidates, channels).

        Args:
            norm: The BatchNorm.
            divisor: Divides the factors, as in `FoldedStandardisation`.
        """
        if self.inner == np.float64:
            return norm.factor_of_rounded_sum()[None] / divisor
        factor = norm.factor() / divisor
        with np.errstate(all="ignore"):
            middle = (1.0 / factor if self.divides else factor).astype(self.inner)
        bits = middle.view(f"i{self.inner.itemsize}")
        steps = [0, *(sign * step for step in range(1, _REACH + 1) for sign in (1, -1))]
        return np.stack([(bits + step).view(self.inner) for step in steps])

    def multiply(self, weights: Array, factors: Array) -> Array:
        """Compute the products as they are stored."""
        with np.errstate(all="ignore"):
            operand = weights.astype(self.inner)
            product = operand / factors if self.divides else operand * factors
            return np.asarray(product.astype(self.stored))


def multiplications(stored: np.dtype) -> Iterator[Multiplication]:
    """Yield every known way to compute a kernel of a dtype."""
    yield Multiplication(FLOAT32, stored, divides=False)
    if stored in HALVES:
        yield Multiplication(stored, stored, divides=False)
    else:
        yield Multiplication(FLOAT32, stored, divides=True)
        # fold_batch_norms of TensorFlow's optimize_for_inference_lib.
        yield Multiplication(np.dtype(np.float64), stored, divides=False)


def factor_formulas(norm: BatchNorm) -> Iterator[Array]:
    """Compute gamma / sqrt(variance + epsilon) in every known way, in float32 or float16."""
    total = norm.variance + np.float32(EPSILON)
    with np.errstate(all="ignore"):
        yield norm.gamma / np.sqrt(total)
        yield norm.gamma * (np.float32(1) / np.sqrt(total))
        yield norm.factor_of_rounded_sum().astype(np.float32)
        yield norm.factor().astype(np.float32)
        gamma, variance = norm.gamma.astype(np.float16), norm.variance.astype(np.float16)
        yield gamma / np.sqrt(variance + np.float16(EPSILON))


def summand_formulas(
    norm: BatchNorm, factors: Array, dtype: np.dtype, *, divides: bool = False
) -> Iterator[Array]:
    """Compute beta - mean * factor in every known way, for every candidate of the factor.

    Args:
        norm: The BatchNorm.
        factors: (candidates, channels).
        dtype: The dtype in which the sum is stored.
        divides: Whether the candidates are reciprocals of factors.

    Yields:
        Sums of n ways, concatenated: (n * candidates, channels). NaN: the way cannot give the candidate.
    """
    beta, mean, gamma = norm.beta[None], norm.mean[None], norm.gamma[None]
    with np.errstate(all="ignore"):
        if divides:
            yield (beta - mean / factors).astype(dtype)
            factors = (1 / factors).astype(factors.dtype)
        yield (beta - mean * factors).astype(dtype)
        fused = beta.astype(np.float64) - mean.astype(np.float64) * factors.astype(np.float64)
        yield fused.astype(np.float32).astype(dtype)
        # Multiply by gamma and the reciprocal root in turn; the root is a float near factor / gamma.
        root = (factors.astype(np.float32) / gamma).astype(np.float32)
        roots = [(root.view(np.int32) + step).view(np.float32) for step in (0, 1, -1, 2, -2)]
        sums = [
            np.where(gamma * root == factors, beta - mean * root * gamma, np.float32(np.nan))
            for root in roots
        ]
        yield np.concatenate(sums).astype(dtype)
        if dtype in HALVES:
            yield beta.astype(dtype) - mean.astype(dtype) * factors.astype(dtype)


def rounding_margin(size: Array, dtype: np.dtype) -> Array:
    """Bound the rounding error of a value.

    Args:
        size: The magnitude of the value, or of the terms of a sum.
        dtype: The dtype of the stored value.
    """
    margin = thresholds.FOLDED_ROUNDINGS * thresholds.UNIT_ROUNDOFF * size
    if dtype in HALVES:
        half: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
        # The steps between subnormal numbers are constant.
        margin = margin + np.maximum(float(half.eps) * size, float(half.smallest_subnormal)) * 2
    return np.asarray(margin)
