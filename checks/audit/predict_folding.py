"""Predict weights with a BatchNorm or a constant folded in, bit for bit where a formula decides every bit.

In inference a BatchNorm multiplies a channel by s = gamma / sqrt(variance + epsilon), then adds
beta - mean * s. A tool that folds it stores weights * s, and the sum as a bias. Tools round s differently,
but one s serves a whole channel: one of the few floats beside the float64 result gives every weight of the
channel to the last bit. Where none does, the channel is not what it claims to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
from converter.casting import FLOAT32

Array = NDArray[Any]
Mask = NDArray[np.bool_]

OTHER_EPSILONS = (1e-5, 1e-6, 1e-8, 1e-4, 1e-2, 0.0)
"""Epsilons of other frameworks, such as PyTorch's and ONNX's 1e-5, and slips."""

KNOWN_SHARE = 0.9
"""A formula that gives this share of a tensor's values, or of a channel's, is the one that was used. A
formula that rounds in another way still gives two thirds of them."""

_SAMPLE = 16  # weights of a channel, the largest, that its factor is found from


@dataclass(frozen=True, slots=True)
class Prediction:
    """The values that a folded tensor should have.

    Attributes:
        values: By the formula that fits best, in the shape and dtype of the port's tensor.
        exact: In float64.
        margin: How far rounding may lead from `exact`, in float64.
        is_unique: Whether `values` are the only ones that the formula gives. Otherwise several factors fit,
            and some last bits are not decided; `values` are then those of the port where they are among
            them.
    """

    values: Array
    exact: Array
    margin: Array
    is_unique: bool = True


@dataclass(frozen=True, slots=True)
class FoldedKernel:
    """The values that a kernel with a factor folded in should have, and the factors that fit it.

    Attributes:
        kernel: The values.
        factors: (candidates, channels): the candidates for each channel's factor, or divisor.
        fits: (candidates, channels): the candidates that give most of the channel.
        divides: Whether they are divisors.
    """

    kernel: Prediction
    factors: Array
    fits: Mask
    divides: bool


def fold_kernel(actual: Array, weights: Array, factor: Array) -> FoldedKernel:
    """Predict a kernel with a factor folded into each channel.

    Args:
        actual: The port's kernel, (channels, ...), float32 or half precision.
        weights: The source's in the same layout, float32.
        factor: (channels,), float64: the exact factors.
    """
    rows, stored = weights.reshape(len(weights), -1), actual.reshape(len(weights), -1)
    multiplication, factors, fits = _find_factors(rows, stored, factor)
    values = multiplication.multiply(rows, _pick(factors, fits.argmax(axis=0))[:, None])
    # In half precision several factors may give the sample: the whole channel decides.
    for channel in np.flatnonzero(fits.sum(axis=0) > 1):
        places = np.flatnonzero(fits[:, channel])
        tried = multiplication.multiply(rows[channel][None], factors[places, channel][:, None])
        misses = (tried != stored[channel]).sum(axis=1)
        fits[places, channel] = misses == misses.min()
        values[channel] = tried[misses.argmin()]
    # A channel that no factor gives says nothing about the bias beside it.
    fits[:, (values == stored).mean(axis=1) < KNOWN_SHARE] = True
    exact = (rows.astype(np.float64) * factor[:, None]).reshape(actual.shape)
    margin = rounding_margin(np.abs(exact), actual.dtype)
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
    """Predict a bias that also holds a constant subtracted from the image; no formula gives its last bits.

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
    return Prediction(exact.astype(actual.dtype), exact, margin, is_unique=False)


def fold_scale(weights: Array, scale: float, dtype: np.dtype) -> Prediction:
    """Predict a tensor with one constant folded in: the float32 nearest to it serves the whole tensor.

    Args:
        weights: The source's tensor, float32.
        scale: The constant.
        dtype: The dtype of the port's tensor.
    """
    factor = np.float32(scale)
    exact = weights.astype(np.float64) * factor
    return Prediction((weights * factor).astype(dtype), exact, np.zeros_like(exact))


def fold_affine(scale: Array, shift: Array, norm: BatchNorm) -> tuple[Prediction, Prediction]:
    """Predict a factor and a summand that are stored beside the weights, each (channels,).

    Some code takes the root by the processor's own estimate, which no formula gives to the last bit. There
    the summand decides: it holds the product of the mean and the factor that was used.
    """
    exact = norm.factor()
    candidates = Multiplication(FLOAT32, scale.dtype, divides=False).candidates(exact)
    stored = candidates.astype(scale.dtype)
    agrees = _agreement(shift, norm, candidates)
    formulas = np.stack([formula.astype(scale.dtype) for formula in factor_formulas(norm)])
    by_formula = formulas[(formulas == scale).sum(axis=1).argmax()]
    # A factor with which its own summand agrees is right. Else the summand decides, or the likeliest formula.
    confirmed = (stored == scale) & agrees
    chosen = np.where(confirmed.any(axis=0), confirmed.argmax(axis=0), agrees.argmax(axis=0))
    values = np.where(agrees.any(axis=0), _pick(stored, chosen), by_formula)
    is_unique = bool((by_formula == values).all())
    factor = Prediction(values, exact, rounding_margin(np.abs(exact), scale.dtype), is_unique=is_unique)
    fits = stored == values
    return factor, _closest_summand(shift, norm, candidates, np.where(fits.any(axis=0), fits, agrees))


def find_epsilon(actual: Array, weights: Array, norm: BatchNorm) -> float | None:
    """Find the wrong epsilon that a kernel was folded with; None where it is none of `OTHER_EPSILONS`.

    Args:
        actual: The port's kernel, (channels, ...).
        weights: The source's in the same layout.
        norm: The BatchNorm.
    """
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    stored = actual.reshape(len(weights), -1).astype(np.float64)
    for epsilon in OTHER_EPSILONS:
        exact = rows * norm.factor(epsilon)[:, None]
        if (np.abs(stored - exact) <= rounding_margin(np.abs(exact), actual.dtype)).all():
            return epsilon
    return None


def _find_factors(rows: Array, stored: Array, factor: Array) -> tuple[Multiplication, Array, Mask]:
    """Find the way to multiply that gives most of the largest weights.

    Args:
        rows: The source's weights, (channels, weights).
        stored: The port's, of the same shape.
        factor: (channels,), float64: the exact factors.

    Returns:
        The way, its candidates for each channel's factor, and those that give most of the channel's sample.
    """
    largest = np.argsort(-np.abs(rows), axis=1)[:, :_SAMPLE]
    sample, wanted = (np.take_along_axis(array, largest, 1) for array in (rows, stored))
    best: tuple[int, Multiplication, Array, Mask] | None = None
    for multiplication in multiplications(stored.dtype):
        factors = multiplication.candidates(factor)
        hits = (multiplication.multiply(sample[None], factors[:, :, None]) == wanted[None]).sum(axis=2)
        most = hits.max(axis=0)
        if best is None or most.sum() > best[0]:
            best = int(most.sum()), multiplication, factors, hits == most
    assert best is not None
    return best[1:]


def _agreement(shift: Array, norm: BatchNorm, candidates: Array) -> Mask:
    """Which candidates of a factor some formula turns into the stored summand: (candidates, channels)."""
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
        # Where none gives the stored value, the first factor that fits gives what it should have been.
        place = np.where(hit.any(axis=0), hit.argmax(axis=0), (allowed & ~np.isnan(sums)).argmax(axis=0))
        values = _pick(sums, place)
        score = int((values == actual).sum())
        if best is None or score > best[0]:
            same = (sums == values) | ~allowed | np.isnan(sums)
            best = score, values, bool(same.all())
    assert best is not None
    _, values, is_unique = best
    margin = rounding_margin(norm.size_of_summand(), actual.dtype)
    return Prediction(values, norm.summand(), margin, is_unique=is_unique)


def _pick(candidates: Array, places: Array) -> Array:
    """Pick a candidate for each channel: (candidates, channels) to (channels,)."""
    return np.asarray(np.take_along_axis(candidates, places[None], 0)[0])
