"""Predict weights with a BatchNorm or a constant folded in, bit for bit where a formula gives every bit.

In inference a BatchNorm multiplies a channel by s = gamma / sqrt(variance + epsilon), then adds
beta - mean * s. A tool that folds it stores weights * s, and the sum as a bias. Tools round s differently,
but a whole channel shares one s: one of the few floats near the float64 result gives every weight of the
channel to the last bit. If no float does, the channel is not the source's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from checks.audit.folding_formulas import (
    BatchNorm,
    Multiplication,
    factor_formulas,
    multiplications,
    rounding_margin,
    summand_formulas,
)
from checks.core.types import Array
from converter.casting import FLOAT32

Mask = NDArray[np.bool_]

OTHER_EPSILONS = (1e-5, 1e-6, 1e-8, 1e-4, 1e-2, 0.0)
"""Wrong epsilons: those of other frameworks, such as the 1e-5 of PyTorch and ONNX, and slips."""

KNOWN_SHARE = 0.9
"""Share of the values of a tensor or channel that identifies the formula in use. A formula that rounds in
another way still gives two thirds of them."""

_SAMPLE = 16  # largest weights of a channel, which identify its factor


@dataclass(frozen=True, slots=True)
class Prediction:
    """The values that a folded tensor should have.

    Attributes:
        values: The values by the formula that fits best, in the shape and dtype of the port's tensor.
        exact: Computes the exact values, in float64. A tensor that has `values` to the last bit needs none.
        margin: Computes the bound on the rounding error of each value, in float64.
        is_unique: Whether the formula gives no other values. Otherwise several factors fit, which differ in
            some last bits; `values` then agree with the port's wherever one of the factors does.
    """

    values: Array
    exact: Callable[[], Array]
    margin: Callable[[], Array]
    is_unique: bool = True


@dataclass(frozen=True, slots=True)
class FoldedKernel:
    """The prediction of a kernel with a factor folded in, and the factors that fit it.

    Attributes:
        kernel: The prediction.
        factors: The candidates for the factor, or divisor, of each channel: (candidates, channels).
        fits: Whether a candidate gives most of the channel: (candidates, channels).
        divides: Whether the candidates are divisors.
    """

    kernel: Prediction
    factors: Array
    fits: Mask
    divides: bool


def fold_kernel(actual: Array, weights: Array, norm: BatchNorm, divisor: float = 1.0) -> FoldedKernel:
    """Predict a kernel with a factor folded into each channel.

    Args:
        actual: The port's kernel, (channels, ...), float32 or half precision.
        weights: The source's kernel in the same layout, float32.
        norm: The BatchNorm.
        divisor: Divides the factors, as in `FoldedStandardisation`.
    """
    rows, stored = weights.reshape(len(weights), -1), actual.reshape(len(weights), -1)
    multiplication, factors, fits = _find_factors(rows, stored, norm, divisor)
    values = multiplication.multiply(rows, _pick(factors, fits.argmax(axis=0))[:, None])
    # In half precision several factors may give the sample; the whole channel decides between them.
    for channel in np.flatnonzero(fits.sum(axis=0) > 1):
        places = np.flatnonzero(fits[:, channel])
        products = multiplication.multiply(rows[channel][None], factors[places, channel][:, None])
        misses = (products != stored[channel]).sum(axis=1)
        fits[places, channel] = misses == misses.min()
        values[channel] = products[misses.argmin()]
    # A channel that no factor gives leaves the factor of its bias open.
    fits[:, (values == stored).mean(axis=1) < KNOWN_SHARE] = True

    def exact() -> Array:
        return (rows.astype(np.float64) * (norm.factor() / divisor)[:, None]).reshape(actual.shape)

    def margin() -> Array:
        return rounding_margin(np.abs(exact()), actual.dtype)

    prediction = Prediction(values.reshape(actual.shape), exact, margin)
    return FoldedKernel(prediction, factors, fits, multiplication.divides)


def fold_bias(actual: Array, norm: BatchNorm, folded: FoldedKernel) -> Prediction:
    """Predict the bias beside a folded kernel, with the factors that fit the kernel.

    Args:
        actual: The port's bias, (channels,).
        norm: The BatchNorm.
        folded: The result of `fold_kernel` for the kernel.
    """
    return _closest_summand(actual, norm, folded.factors, folded.fits, divides=folded.divides)


def fold_offset(actual: Array, weights: Array, norm: BatchNorm, offset: float) -> Prediction:
    """Predict a bias that also holds a constant subtracted from the image; its last bits follow no formula.

    Args:
        actual: The port's bias, (channels,).
        weights: The source's kernel, (channels, ...).
        norm: The BatchNorm.
        offset: The constant, in the units of the network's input.
    """
    rows = weights.reshape(len(weights), -1).astype(np.float64) * norm.factor()[:, None]
    exact = norm.summand() - offset * rows.sum(axis=1)
    size = norm.size_of_summand() + abs(offset) * np.abs(rows).sum(axis=1)
    margin = rounding_margin(size, actual.dtype)
    return Prediction(exact.astype(actual.dtype), lambda: exact, lambda: margin, is_unique=False)


def fold_scale(weights: Array, scale: float, dtype: np.dtype) -> Prediction:
    """Predict a tensor with a constant folded in, rounded to float32.

    Args:
        weights: The source's tensor, float32.
        scale: The constant.
        dtype: The dtype of the port's tensor.
    """
    factor = np.float32(scale)
    return Prediction(
        (weights * factor).astype(dtype),
        lambda: weights.astype(np.float64) * factor,
        lambda: np.zeros(weights.shape),
    )


def fold_affine(scale: Array, shift: Array, norm: BatchNorm) -> tuple[Prediction, Prediction]:
    """Predict a factor and a summand that are stored beside the weights, each (channels,).

    Some tools take the root by the processor's own estimate, which no formula gives to the last bit. In that
    case the summand decides, because it holds the product of the mean and the factor.
    """
    exact = norm.factor()
    candidates = Multiplication(FLOAT32, scale.dtype, divides=False).candidates(norm)
    stored = candidates.astype(scale.dtype)
    agrees = _agreement(shift, norm, candidates)
    formulas = np.stack([formula.astype(scale.dtype) for formula in factor_formulas(norm)])
    by_formula = formulas[(formulas == scale).sum(axis=1).argmax()]
    # A factor that agrees with its own summand is kept. Otherwise the summand decides, or the best formula.
    confirmed = (stored == scale) & agrees
    chosen = np.where(confirmed.any(axis=0), confirmed.argmax(axis=0), agrees.argmax(axis=0))
    values = np.where(agrees.any(axis=0), _pick(stored, chosen), by_formula)
    is_unique = bool((by_formula == values).all())
    margin = rounding_margin(np.abs(exact), scale.dtype)
    factor = Prediction(values, lambda: exact, lambda: margin, is_unique=is_unique)
    fits = stored == values
    return factor, _closest_summand(shift, norm, candidates, np.where(fits.any(axis=0), fits, agrees))


def find_epsilon(actual: Array, weights: Array, norm: BatchNorm) -> float | None:
    """Find the wrong epsilon in a folded kernel, one of `OTHER_EPSILONS`; None if none of them fits.

    Args:
        actual: The port's kernel, (channels, ...).
        weights: The source's kernel in the same layout.
        norm: The BatchNorm.
    """
    rows = weights.reshape(len(weights), -1)
    stored = actual.reshape(len(weights), -1)

    def fits(factor: Array, channels: slice) -> bool:
        exact = rows[channels].astype(np.float64) * factor[channels][:, None]
        gap = np.abs(stored[channels].astype(np.float64) - exact)
        return bool((gap <= rounding_margin(np.abs(exact), actual.dtype)).all())

    for epsilon in OTHER_EPSILONS:
        factor = norm.factor(epsilon)
        if fits(factor, slice(1)) and fits(factor, slice(None)):  # the first channel refutes most of them
            return epsilon
    return None


def _find_factors(
    rows: Array, stored: Array, norm: BatchNorm, divisor: float
) -> tuple[Multiplication, Array, Mask]:
    """Find the way to multiply that gives most of the largest weights.

    Args:
        rows: The source's weights, (channels, weights).
        stored: The port's weights, of the same shape.
        norm: The BatchNorm.
        divisor: Divides the factors.

    Returns:
        The way, its candidates for the factors, and whether a candidate gives most of a channel's sample.
    """
    largest = np.argpartition(-np.abs(rows), min(_SAMPLE, rows.shape[1]) - 1, axis=1)[:, :_SAMPLE]
    sample, expected = (np.take_along_axis(array, largest, 1) for array in (rows, stored))
    best: tuple[int, Multiplication, Array, Mask] | None = None
    for multiplication in multiplications(stored.dtype):
        factors = multiplication.candidates(norm, divisor)
        hits = (multiplication.multiply(sample[None], factors[:, :, None]) == expected[None]).sum(axis=2)
        most = hits.max(axis=0)
        if best is None or most.sum() > best[0]:
            best = int(most.sum()), multiplication, factors, hits == most
    assert best is not None
    return best[1:]


def _agreement(shift: Array, norm: BatchNorm, candidates: Array) -> Mask:
    """Mark the factors from which some formula gives the stored summand: (candidates, channels)."""
    agrees = np.zeros(candidates.shape, np.bool_)
    for sums in summand_formulas(norm, candidates, shift.dtype):
        for part in np.split(sums, len(sums) // len(candidates)):
            agrees |= part == shift
    return agrees


def _closest_summand(
    actual: Array, norm: BatchNorm, factors: Array, fits: Mask, *, divides: bool = False
) -> Prediction:
    """Predict beta - mean * s by the formula that gives most of a bias, with factors s that fit."""
    best: tuple[int, Array, bool] | None = None
    for sums in summand_formulas(norm, factors, actual.dtype, divides=divides):
        allowed = np.tile(fits, (len(sums) // len(fits), 1))
        hit = (sums == actual) & allowed
        # If no factor gives the stored value, the first factor that fits gives the expected one.
        place = np.where(hit.any(axis=0), hit.argmax(axis=0), (allowed & ~np.isnan(sums)).argmax(axis=0))
        values = _pick(sums, place)
        score = int((values == actual).sum())
        if best is None or score > best[0]:
            same = (sums == values) | ~allowed | np.isnan(sums)
            best = score, values, bool(same.all())
    assert best is not None
    _, values, is_unique = best
    margin = rounding_margin(norm.size_of_summand(), actual.dtype)
    return Prediction(values, norm.summand, lambda: margin, is_unique=is_unique)


def _pick(candidates: Array, places: Array) -> Array:
    """Pick a candidate for each channel: (candidates, channels) to (channels,)."""
    return np.asarray(np.take_along_axis(candidates, places[None], 0)[0])
