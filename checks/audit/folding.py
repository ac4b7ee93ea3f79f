"""BatchNorm and constant factors folded into weights: what folding gives, bit for bit where it can be told.

A BatchNorm in inference multiplies a channel by s = gamma / sqrt(variance + epsilon) and adds
beta - mean * s. Whoever folds it stores weights * s, and that sum as a bias. How s itself is rounded differs
from tool to tool, but one s serves a whole channel: among the few floats beside the float64 result there is
one that gives every weight of the channel to the last bit, or the channel is not what it claims to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from checks.core import thresholds
from converter.casting import HALVES

Array = NDArray[Any]

EPSILON = 0.001
"""Added to the variance: `batch_norm_params` in davidsandberg/facenet, src/train_softmax.py."""

OTHER_EPSILONS = (1e-5, 1e-3, 1e-6, 1e-8, 1e-4, 1e-2, 0.0)
"""Defaults of other frameworks and slips: PyTorch's and ONNX's 1e-5, Keras's 1e-3."""

KNOWN_SHARE = 0.9
"""Of a tensor's values, or a channel's: where a formula gives so many, it is the one that was used. A formula
that rounds otherwise gives two thirds of them as well."""

_REACH = 4  # floats on either side of the exact factor; a sum, a root and a quotient round by two or three
_SAMPLE = 16  # weights of a channel, the largest, that tell its factor


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """The float32 tensors of one BatchNorm, each (channels,)."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array

    def factor(self, epsilon: float = EPSILON) -> Array:
        """What it multiplies by in inference, in float64; infinite where the root has nothing in it."""
        root = np.sqrt(np.maximum(self.variance.astype(np.float64) + epsilon, 0.0))
        with np.errstate(divide="ignore"):
            return np.asarray(self.gamma / root)

    def summand(self, epsilon: float = EPSILON) -> Array:
        """What it adds in inference, in float64."""
        return np.asarray(self.beta - self.mean * self.factor(epsilon))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a folded tensor should be.

    Attributes:
        values: In the shape and dtype of the tensor that was found: what the formula that fits best gives.
        exact: In float64: what is right.
        margin: In float64: how far from `exact` rounding may lead.
        told: Whether `values` are the only ones that the formula gives; otherwise several are as good in some
            places, what was found among them, and nothing tells each last bit.
    """

    values: Array
    exact: Array
    margin: Array
    told: bool = True


@dataclass(frozen=True, slots=True)
class FoldedChannels:
    """What a kernel with a factor folded into it should be, and which factors fit it.

    Attributes:
        kernel: As in `Prediction`.
        factors: (candidates, channels): the candidates for each channel's factor, or divisor.
        fits: (candidates, channels): which give all the weights that were looked at.
        divides: Whether they are divisors.
    """

    kernel: Prediction
    factors: Array
    fits: NDArray[np.bool_]
    divides: bool


def fold_kernel(found: Array, weights: Array, factor: Array) -> FoldedChannels:
    """Find the factors of a kernel's channels.

    Args:
        found: The port's kernel, (channels, ...), float32 or half precision.
        weights: The source's in the same layout, float32.
        factor: (channels,), float64: what each channel should be multiplied by.
    """
    channels = len(weights)
    rows, stored = weights.reshape(channels, -1), found.reshape(channels, -1)
    largest = np.argsort(-np.abs(rows), axis=1)[:, :_SAMPLE]
    sample, wanted = (np.take_along_axis(array, largest, 1) for array in (rows, stored))
    best: tuple[float, Array, NDArray[np.bool_], _Fold] | None = None
    for fold in _folds(found.dtype):
        factors = fold.candidates(factor)
        hits = fold.multiply(sample[None], factors[:, :, None]) == wanted[None]
        counts = hits.sum(axis=2)
        score = float(counts.max(axis=0).sum())
        if best is None or score > best[0]:
            best = score, factors, counts == counts.max(axis=0), fold
    assert best is not None
    _, factors, fits, fold = best
    chosen = fits.argmax(axis=0)
    values = fold.multiply(rows, _pick(factors, chosen)[:, None])
    # In half precision several factors may give the sample; the whole channel then tells.
    for channel in np.flatnonzero(fits.sum(axis=0) > 1):
        places = np.flatnonzero(fits[:, channel])
        tried = fold.multiply(rows[channel][None], factors[places, channel][:, None])
        misses = (tried != stored[channel]).sum(axis=1)
        fits[places, channel] = misses == misses.min()
        values[channel] = tried[misses.argmin()]
    # A channel that no factor gives says nothing of the bias beside it.
    fits[:, (values == stored).mean(axis=1) < KNOWN_SHARE] = True
    values = values.reshape(found.shape)
    exact = (rows.astype(np.float64) * factor[:, None]).reshape(found.shape)
    return FoldedChannels(
        Prediction(values, exact, _margin(np.abs(exact), found.dtype)), factors, fits, fold.divides
    )


def fold_bias(found: Array, norm: BatchNorm, folded: FoldedChannels) -> Prediction:
    """What the bias beside a folded kernel should be, with the same factors.

    Args:
        found: The port's bias, (channels,).
        norm: The BatchNorm.
        folded: What `fold_kernel` gave for the kernel.
    """
    return _closest(found, norm, folded.factors, folded.fits, divides=folded.divides)


def fold_offset(found: Array, weights: Array, norm: BatchNorm, offset: float) -> Prediction:
    """What a bias should be that took in a constant subtracted from the image, by no formula that is known.

    Args:
        found: The port's bias, (channels,).
        weights: The source's kernel, (channels, ...).
        norm: The BatchNorm.
        offset: The constant, in units of what the network takes.
    """
    rows = weights.reshape(len(weights), -1).astype(np.float64) * norm.factor()[:, None]
    exact = norm.summand() - offset * rows.sum(axis=1)
    size = np.abs(norm.beta.astype(np.float64)) + np.abs(norm.mean * norm.factor())
    size = size + abs(offset) * np.abs(rows).sum(axis=1)
    return Prediction(exact.astype(found.dtype), exact, _margin(size, found.dtype), told=False)


def fold_affine(scale: Array, shift: Array, norm: BatchNorm) -> tuple[Prediction, Prediction]:
    """What a factor and a summand that are stored by themselves should be, each (channels,).

    Some code takes the root by a processor's own estimate, which no formula gives to the last bit. There the
    summand tells: it holds the product of the mean and the factor that was used.
    """
    exact = norm.factor()
    candidates = _Fold(np.dtype(np.float32), scale.dtype, divides=False).candidates(exact)
    stored = candidates.astype(scale.dtype)
    sums = list(_summands(norm, candidates, shift.dtype))
    agree = np.logical_or.reduce(
        [part == shift for total in sums for part in np.split(total, len(total) // len(candidates))]
    )
    likely = np.stack([formula.astype(scale.dtype) for formula in _scale_formulas(norm)])
    formula = likely[(likely == scale).sum(axis=1).argmax()]
    # A factor that its own summand bears out is right; else what the summand says, or the likeliest formula.
    found = (stored == scale) & agree
    chosen = np.where(found.any(axis=0), found.argmax(axis=0), agree.argmax(axis=0))
    values = np.where(agree.any(axis=0), _pick(stored, chosen), formula)
    fits = stored == values
    summand = _closest(shift, norm, candidates, np.where(fits.any(axis=0), fits, agree))
    margin = _margin(np.abs(exact), scale.dtype)
    return Prediction(values, exact, margin, told=bool((formula == values).all())), summand


def find_epsilon(found: Array, weights: Array, norm: BatchNorm) -> float | None:
    """The epsilon, other than the right one, that a kernel was folded with; None where none of those known.

    Args:
        found: The port's kernel, (channels, ...).
        weights: The source's in the same layout.
        norm: The BatchNorm.
    """
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    stored = found.reshape(len(weights), -1).astype(np.float64)
    for epsilon in OTHER_EPSILONS:
        exact = rows * norm.factor(epsilon)[:, None]
        if epsilon != EPSILON and (np.abs(stored - exact) <= _margin(np.abs(exact), found.dtype)).all():
            return epsilon
    return None


def _closest(
    found: Array, norm: BatchNorm, factors: Array, fits: NDArray[np.bool_], *, divides: bool = False
) -> Prediction:
    """Of the ways to round beta - mean * s the one that gives most of a bias, each s a factor that fits."""
    exact = norm.summand()
    best: tuple[int, Array, bool] | None = None
    for sums in _summands(norm, factors, found.dtype, divides=divides):
        allowed = np.tile(fits, (len(sums) // len(fits), 1))
        hit = (sums == found) & allowed
        # Where none gives the stored value, the first factor that fits says what it should have been.
        place = np.where(hit.any(axis=0), hit.argmax(axis=0), (allowed & ~np.isnan(sums)).argmax(axis=0))
        values = _pick(sums, place)
        score = int((values == found).sum())
        if best is None or score > best[0]:
            same = (sums == values) | ~allowed | np.isnan(sums)
            best = score, values, bool(same.all())
    assert best is not None
    size = np.abs(norm.beta.astype(np.float64)) + np.abs(norm.mean * norm.factor())
    return Prediction(best[1], exact, _margin(size, found.dtype), told=best[2])


def _summands(norm: BatchNorm, factors: Array, dtype: np.dtype, *, divides: bool = False) -> Iterator[Array]:
    """What is added beside every candidate factor, by every way of rounding it.

    What is yielded has a row for each candidate, or several times as many rows; NaN is no way.
    """
    beta, mean = norm.beta[None], norm.mean[None]
    with np.errstate(all="ignore"):
        if divides:
            yield (beta - mean / factors).astype(dtype)
            factors = (1 / factors).astype(factors.dtype)
        yield (beta - mean * factors).astype(dtype)
        fused = beta.astype(np.float64) - mean.astype(np.float64) * factors.astype(np.float64)
        yield fused.astype(np.float32).astype(dtype)
        # A gamma and a root that are multiplied one after the other; the root is a float near s / gamma.
        gamma = norm.gamma[None]
        around = (factors.astype(np.float32) / gamma).astype(np.float32)
        roots = [(around.view(np.int32) + step).view(np.float32) for step in (0, 1, -1, 2, -2)]
        sums = [
            np.where(gamma * root == factors, beta - mean * root * gamma, np.float32(np.nan))
            for root in roots
        ]
        yield np.concatenate(sums).astype(dtype)
        if dtype in HALVES:
            low = [array.astype(dtype) for array in (beta, mean, factors)]
            yield low[0] - low[1] * low[2]


def _pick(candidates: Array, places: Array) -> Array:
    """For each channel the candidate at its place: (candidates, channels) to (channels,)."""
    return np.asarray(np.take_along_axis(candidates, places[None], 0)[0])


@dataclass(frozen=True, slots=True)
class _Fold:
    """A way to multiply: the precision that it is done in, then what is stored; or a division instead."""

    inner: np.dtype
    stored: np.dtype
    divides: bool

    def candidates(self, factor: Array) -> Array:
        """Floats of the inner precision around each factor, or around its reciprocal."""
        with np.errstate(all="ignore"):
            middle = (1.0 / factor if self.divides else factor).astype(self.inner)
        bits = middle.view(f"i{self.inner.itemsize}")
        return np.stack([(bits + step).view(self.inner) for step in _steps()])

    def multiply(self, weights: Array, factors: Array) -> Array:
        """The products as they are stored."""
        with np.errstate(all="ignore"):
            operand = weights.astype(self.inner)
            product = operand / factors if self.divides else operand * factors
            return np.asarray(product.astype(self.stored))


def _steps() -> list[int]:
    """0, then 1, -1, 2, -2, ...: the likeliest first."""
    return [0, *(sign * step for step in range(1, _REACH + 1) for sign in (1, -1))]


def _folds(stored: np.dtype) -> Iterator[_Fold]:
    single = np.dtype(np.float32)
    yield _Fold(single, stored, divides=False)
    if stored in HALVES:
        yield _Fold(stored, stored, divides=False)
    else:
        yield _Fold(single, stored, divides=True)


def _scale_formulas(norm: BatchNorm) -> Iterator[Array]:
    """Gamma / sqrt(variance + epsilon) as float32 code computes it."""
    single, double = np.float32, np.float64
    total = norm.variance + single(EPSILON)
    with np.errstate(all="ignore"):
        yield norm.gamma / np.sqrt(total)
        yield norm.gamma * (single(1) / np.sqrt(total))
        yield (norm.gamma / np.sqrt(total.astype(double))).astype(single)
        yield norm.factor().astype(single)
        low = [array.astype(np.float16) for array in (norm.gamma, norm.variance)]
        yield low[0] / np.sqrt(low[1] + np.float16(EPSILON))


def _margin(size: Array, dtype: np.dtype) -> Array:
    """How far rounding may lead from a value of this size that is stored in this dtype."""
    margin = thresholds.FOLDED_ROUNDINGS * thresholds.UNIT_ROUNDOFF * size
    if dtype in HALVES:
        half: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
        # Below the smallest normal number the steps no longer shrink.
        margin = margin + np.maximum(float(half.eps) * size, float(half.smallest_subnormal)) * 2
    return np.asarray(margin)
