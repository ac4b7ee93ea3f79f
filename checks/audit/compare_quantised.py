"""Compare the layers of a graph of integers: every integer must be the nearest to the source's value.

The integer of a value x is clip(round(x / scale) + zero point), by the stated scale, and of two that are
equally near the even one. x is the source's value, with the BatchNorm folded in where the graph holds none,
computed in float64. A tool quantises a float32 number within `FOLDED_ROUNDINGS` of it. So where x lies that
close to the middle of two integers, either is right; such ties are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from checks.audit.compare_folded_layers import compare_scale_and_shift, holds_residual_scale
from checks.audit.compare_one_tensor import (
    compare_exactly,
    compare_with_prediction,
    find_wrong_rule,
    uncompared,
)
from checks.audit.folded_standardisation import (
    NOTHING_FOLDED,
    FoldedStandardisation,
    standardisation_of_first_layer,
)
from checks.audit.folding_formulas import BatchNorm, rounding_margin
from checks.audit.port_layers import PortTensor, Role
from checks.audit.predict_folding import OTHER_EPSILONS, Prediction
from checks.audit.quantisation import Quantisation, QuantisedTensor
from checks.audit.result import TensorQuantisation, TensorResult
from checks.audit.source_weights import SourceWeights, TensorPlace
from checks.core.network import residual_scale
from checks.core.types import Array
from converter.casting import FLOAT32
from converter.layer_map import Layer
from converter.layouts import CONVOLUTION, FULLY_CONNECTED

Tensors = Mapping[Role, PortTensor]

_BIAS = np.iinfo(np.int32).max


def is_quantised(tensors: Tensors) -> bool:
    """Return True if a tensor of a layer is stored as integers."""
    return any(tensor.quantised is not None for tensor in tensors.values())


def compare_quantised_layer(layer: Layer, tensors: Tensors, source: SourceWeights) -> Iterator[TensorResult]:
    """Compare the tensors of a layer of which some are integers.

    Args:
        layer: The layer.
        tensors: The port's tensors of it.
        source: The source.
    """
    rest = dict(tensors)
    if _has_float_norm_beside(layer, tensors):
        yield from compare_scale_and_shift(layer, tensors, source)
        rest = {role: tensor for role, tensor in tensors.items() if role not in ("scale", "shift")}
    for role, tensor in rest.items():
        expected = _expect(layer, role, tensors, source)
        if expected is None:
            yield uncompared(tensor, source.place(layer.scope, role), "extra", "the layer has no such tensor")
        elif tensor.array.shape != expected.values.shape:
            detail = f"shape {tensor.array.shape}, expected {expected.values.shape}"
            yield uncompared(tensor, expected.place, "differs", detail)
        elif tensor.quantised is None:
            yield _compare_float(tensor, expected)
        else:
            result = _compare_integers(tensor, tensor.quantised, expected)
            if role == "weights":
                result = _judge_scales(result, tensors, expected)
                result = _explain(result, layer, tensor.quantised, tensor, source, expected)
            yield _with_bias_scale(result, tensors) if role == "biases" else result


def _has_float_norm_beside(layer: Layer, tensors: Tensors) -> bool:
    """Return True if a BatchNorm stands beside the weights as a product and a sum that are not quantised."""
    beside = [tensors[role] for role in ("scale", "shift") if role in tensors]
    is_norm = layer.batch_norm and "moving_variance" not in tensors and "scale" in tensors
    return is_norm and all(tensor.quantised is None for tensor in beside)


@dataclass(frozen=True, slots=True, eq=False)
class _Expected:
    """The values of a tensor by the source.

    Attributes:
        values: The exact values, float64, in the port's layout.
        size: The magnitude of the terms that a value is the sum of.
        place: The place of the tensor in the network.
        folded: The factors that are folded in, a clause; empty without any.
    """

    values: Array
    size: Array
    place: TensorPlace
    folded: str = ""


def _expect(layer: Layer, role: Role, tensors: Tensors, source: SourceWeights) -> _Expected | None:
    """Compute the values of a tensor from the source's; None if the layer has no such tensor."""
    scope = layer.scope
    has_norm = layer.batch_norm and "moving_variance" not in tensors
    is_folded = has_norm and "scale" not in tensors
    norm_place = source.place_of_batch_norm(scope)
    if role in ("scale", "shift", "biases") and has_norm:
        norm = source.batch_norm(scope)
        if role == "scale":
            return _Expected(norm.factor(), np.abs(norm.factor()), norm_place)
        return _expect_bias(layer, tensors, source)
    if role == "factor":
        number = np.full(tensors[role].array.shape, residual_scale(scope))
        return _Expected(number, number, TensorPlace(source.place(scope, "weights").stage))
    stored = source.tensor(scope, role)
    if stored is None or (role == "gamma" and role not in tensors):
        return None
    place, values, folded = source.place(scope, role), stored.astype(np.float64), ""
    if role == "weights":
        values = (CONVOLUTION if values.ndim == 4 else FULLY_CONNECTED).apply(values)
        if is_folded:
            fold, folded = _find_standardisation(layer, tensors, source)
            values = _fold(values, source.batch_norm(scope)) / fold.divisor
    if role in ("weights", "biases") and not layer.batch_norm:
        scale = residual_scale(scope)
        if holds_residual_scale(layer, tensors, source, in_graph=True):
            values, folded = values * np.float32(scale), f"residual scale {scale:g} folded in"
    if role == "weights":
        values = tensors[role].as_stored(values)
    return _Expected(values, np.abs(values), place, folded)


def _find_standardisation(
    layer: Layer, tensors: Tensors, source: SourceWeights
) -> tuple[FoldedStandardisation, str]:
    """Find the standardisation that the first layer holds, with a clause on what is folded in."""
    fold = standardisation_of_first_layer(tensors, source) if layer.inputs == 3 else NOTHING_FOLDED
    also = "" if fold.is_identity else f" and the standardisation x / {fold.divisor:g} - {fold.offset:g}"
    return fold, f"BatchNorm{also} folded in"


def _expect_bias(layer: Layer, tensors: Tensors, source: SourceWeights) -> _Expected:
    """Compute a bias that holds a BatchNorm, and of the first layer the offset of a standardisation."""
    norm, place = source.batch_norm(layer.scope), source.place_of_batch_norm(layer.scope)
    values, size = norm.summand(), norm.size_of_summand()
    fold, folded = _find_standardisation(layer, tensors, source)
    if fold.offset:
        weights = source.tensor(layer.scope, "weights")
        assert weights is not None
        products = weights.reshape(-1, weights.shape[-1]) * norm.factor()
        values = values - fold.offset * products.sum(axis=0)
        size = size + fold.offset * np.abs(products).sum(axis=0)
    return _Expected(values, size, place, folded)


def _fold(weights: Array, norm: BatchNorm, epsilon: float | None = None) -> Array:
    factor = norm.factor() if epsilon is None else norm.factor(epsilon)
    return np.asarray(weights * factor.reshape(-1, *[1] * (weights.ndim - 1)))


def _compare_float(tensor: PortTensor, expected: _Expected) -> TensorResult:
    """Compare a tensor that is not quantised."""
    if not expected.folded:
        as_source = tensor.layout.inverse.apply(expected.values.astype(np.float32))
        return compare_exactly(tensor, as_source, expected.place)
    margin = rounding_margin(expected.size, FLOAT32)
    nearest = expected.values.astype(tensor.array.dtype)
    prediction = Prediction(nearest, lambda: expected.values, lambda: margin, is_unique=False)
    return compare_with_prediction(tensor, prediction, expected.place, expected.folded)


def _compare_integers(tensor: PortTensor, quantised: QuantisedTensor, expected: _Expected) -> TensorResult:
    """Compare integers with the nearest to the exact values."""
    quantisation = quantised.quantisation
    rank = expected.values.ndim
    actual = quantised.integers.astype(np.int64)
    nearest = quantisation.quantise(expected.values)
    steps = quantisation.steps(expected.values)
    scale = quantisation.along(quantisation.scale.astype(np.float64), rank)
    scales = np.broadcast_to(scale, actual.shape)

    def margin(places: Array) -> Array:
        return np.asarray(rounding_margin(expected.size[places], FLOAT32) / scales[places])

    within = np.clip(steps, quantisation.lowest, quantisation.highest)
    beyond_half = np.abs(actual - within) - 0.5
    off = ~(beyond_half <= 0.0)  # few, so that few margins are computed
    # A zero and its integer are exact.
    excess = beyond_half[off] / np.maximum(margin(off), np.finfo(np.float64).tiny)
    differs = actual != nearest
    wrong = np.zeros(actual.shape, np.bool_)
    wrong[off] = excess > 1.0
    outside = np.abs(steps - within) - 0.5
    clipped = outside > 0.0
    zero_point = quantisation.along(quantisation.zero_point, rank).astype(np.int64)
    middle = (quantisation.lowest + quantisation.highest + 1) // 2
    result = replace(
        uncompared(tensor, expected.place, "quantised"),
        dtype=str(quantised.integers.dtype),
        differing=int(wrong.sum()),
        detail=expected.folded,
        quantisation=TensorQuantisation(
            scales=quantisation.scale.size,
            is_symmetric=bool((zero_point == middle).all()),
            largest=int(np.abs(actual - zero_point).max(initial=0)),
            ties=int((differs & ~wrong).sum()),
            excess=float(excess.max(initial=0.0)),
            clipped=int((outside[clipped] > margin(clipped)).sum()),
        ),
    )
    if not wrong.any():
        return result
    gap = np.abs(actual - nearest) * wrong
    index = np.unravel_index(int(gap.argmax()), gap.shape)
    return replace(
        result,
        status="differs",
        detail="",  # what is folded in is no cause
        max_abs=float(gap[index]),
        max_ulp=int(gap.max()),
        index=tuple(map(int, index)),
        actual=float(actual[index]),
        expected=float(nearest[index]),
    )


def _judge_scales(result: TensorResult, tensors: Tensors, expected: _Expected) -> TensorResult:
    """Compare each scale of the weights with the smallest that holds the channel and its bias."""
    quantised, found = tensors["weights"].quantised, result.quantisation
    assert quantised is not None and found is not None
    quantisation = quantised.quantisation
    rank = expected.values.ndim
    axes = tuple(axis for axis in range(rank) if axis != quantisation.axis % rank)
    axes = axes if quantisation.is_per_channel else tuple(range(rank))
    zero_point = quantisation.zero_point.reshape(-1).astype(np.int64)
    # Symmetric weights do not use -128. onnxruntime's reduce_range takes 7 bits, up to 64.
    bits = 64 if found.bits == 7 else quantisation.highest - zero_point
    above = expected.values.max(axis=axes).reshape(-1) / bits
    below = -expected.values.min(axis=axes).reshape(-1) / np.minimum(zero_point - quantisation.lowest, bits)
    smallest = np.maximum(np.maximum(above, below), 0.0)
    scale = quantisation.scale.reshape(-1).astype(np.float64)
    smallest = np.maximum(smallest, _smallest_for_bias(tensors, scale))
    with np.errstate(divide="ignore"):
        lost = np.where(smallest > 0, np.log2(scale / smallest), 0.0)
    one = bool(quantisation.is_per_channel and (scale == scale[0]).all())
    return replace(result, quantisation=replace(found, lost=float(lost.max()), is_one_scale=one))


def _smallest_for_bias(tensors: Tensors, scale: Array) -> Array:
    """The smallest scales of the weights with which the bias fits into 32 bits."""
    bias = tensors.get("biases")
    if bias is None or bias.quantised is None:
        return np.zeros_like(scale)
    bias_scale = bias.quantised.quantisation.scale.reshape(-1).astype(np.float64)
    if bias_scale.size != scale.size or not np.isfinite(bias.array).all():
        return np.zeros_like(scale)
    needed = np.abs(bias.array.astype(np.float64)) / _BIAS
    needed = needed if needed.size == scale.size else needed.max(initial=0.0)
    return np.asarray(needed / (bias_scale / scale))


def _with_bias_scale(result: TensorResult, tensors: Tensors) -> TensorResult:
    """Compare the scales of a bias with the product of the scales of the input and of the weights."""
    bias, weights = tensors["biases"].quantised, tensors["weights"].quantised
    input_scale = tensors["weights"].input_scale
    found = result.quantisation
    if bias is None or weights is None or input_scale is None or found is None:
        return result
    scale = bias.quantisation.scale.reshape(-1).astype(np.float64)
    product = weights.quantisation.scale.reshape(-1).astype(np.float64) * input_scale
    gap = float(np.abs(scale / product - 1.0).max()) if scale.size == product.size else np.inf
    return replace(result, quantisation=replace(found, bias_scale=gap))


def _explain(
    result: TensorResult,
    layer: Layer,
    quantised: QuantisedTensor,
    tensor: PortTensor,
    source: SourceWeights,
    expected: _Expected,
) -> TensorResult:
    """Name the cause that explains most weights of a tensor, if it explains more than the right rule does."""
    if result.is_faithful:
        return result
    actual = quantised.integers.astype(np.int64)
    rules = _wrong_rules(layer, quantised.quantisation, tensor, source, expected)
    cause = find_wrong_rule(actual, actual.size - result.differing, rules)
    return replace(result, detail="; ".join(filter(None, (cause, result.detail))))


def _wrong_rules(
    layer: Layer,
    quantisation: Quantisation,
    tensor: PortTensor,
    source: SourceWeights,
    expected: _Expected,
) -> Iterator[tuple[str, Array]]:
    """Yield a clause on each known wrong rule, with the integers that it gives for the weights."""
    steps, nearest = quantisation.steps(expected.values), quantisation.quantise(expected.values)
    zero_point = quantisation.along(quantisation.zero_point, steps.ndim).astype(np.int64)
    yield "rounded down, not to the nearest", np.floor(steps)
    yield "rounded towards zero, not to the nearest", np.trunc(steps - zero_point) + zero_point
    for offset, direction in ((1, "higher"), (-1, "lower")):
        shifted = np.clip(nearest + offset, quantisation.lowest, quantisation.highest)
        yield f"quantised with a zero point that is 1 {direction}", shifted
    if layer.inputs == 3:
        reversed_inputs = quantisation.quantise(_reverse_inputs(tensor, expected.values))
        yield "its input channels are reversed, for BGR images", reversed_inputs
    if layer.batch_norm and expected.folded:
        weights = source.tensor(layer.scope, "weights")
        assert weights is not None
        rows = (CONVOLUTION if weights.ndim == 4 else FULLY_CONNECTED).apply(weights).astype(np.float64)
        for epsilon in OTHER_EPSILONS:
            other = tensor.as_stored(_fold(rows, source.batch_norm(layer.scope), epsilon))
            yield f"folded with an epsilon of {epsilon:g}", quantisation.quantise(other)


def _reverse_inputs(tensor: PortTensor, values: Array) -> Array:
    """Reverse the order of the input channels of a kernel in the port's layout."""
    return np.asarray(tensor.layout.apply(tensor.layout.inverse.apply(values)[:, :, ::-1]))
