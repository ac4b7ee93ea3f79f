"""Compare layers with a factor folded in: a BatchNorm in or beside the weights, or a residual scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from checks.audit.compare_one_tensor import FLOATS, compare_with_prediction, compare_with_source, uncompared
from checks.audit.folded_standardisation import FoldedStandardisation, standardisation_of_first_layer
from checks.audit.folding_formulas import BatchNorm
from checks.audit.port_layers import PortTensor, Role
from checks.audit.predict_folding import (
    KNOWN_SHARE,
    FoldedKernel,
    Prediction,
    find_epsilon,
    fold_affine,
    fold_bias,
    fold_kernel,
    fold_offset,
    fold_scale,
)
from checks.audit.result import TensorResult
from checks.audit.source_weights import SourceWeights
from checks.core.network import residual_scale
from checks.core.types import Array
from converter.layer_map import Layer

Tensors = Mapping[Role, PortTensor]


def compare_batch_norm_beside(
    layer: Layer, tensors: Tensors, source: SourceWeights
) -> Iterator[TensorResult]:
    """Compare a layer whose BatchNorm is stored as a product and a sum beside the weights.

    Args:
        layer: The layer.
        tensors: The port's tensors of it: weights and scale, with or without biases and shift.
        source: The source.
    """
    yield compare_with_source(tensors["weights"], layer.scope, "weights", source)
    if "biases" in tensors:
        place = source.place_of_batch_norm(layer.scope)
        yield uncompared(
            tensors["biases"], place, "extra", "a bias before the scale and the shift of its BatchNorm"
        )
    yield from compare_scale_and_shift(layer, tensors, source)


def compare_scale_and_shift(layer: Layer, tensors: Tensors, source: SourceWeights) -> Iterator[TensorResult]:
    """Compare the product and the sum that a BatchNorm is stored as; the arguments are as above."""
    norm, place, scale = (
        source.batch_norm(layer.scope),
        source.place_of_batch_norm(layer.scope),
        tensors["scale"],
    )
    stored = [tensors[role] for role in ("scale", "shift") if role in tensors]
    # Converters leave out a sum with zeros, as of a BatchNorm that was not trained.
    shift = tensors.get("shift") or replace(scale, array=np.zeros_like(scale.array))
    if "shift" not in tensors and (norm.beta.any() or norm.mean.any()):
        yield uncompared(scale, place, "differs", "a scale without a shift")
    elif _fits(scale, norm.beta) and _fits(shift, norm.beta):
        predictions = fold_affine(scale.array, shift.array, norm)
        for tensor, prediction in zip(stored, predictions, strict=False):
            yield compare_with_prediction(tensor, prediction, place, "BatchNorm beside the weights")
    else:
        for tensor in stored:
            yield uncompared(tensor, place, "differs", _shape_problem(tensor, norm.beta.shape))


def compare_batch_norm_folded(
    layer: Layer, tensors: Tensors, source: SourceWeights
) -> Iterator[TensorResult]:
    """Compare a layer whose BatchNorm is folded into the weights and a bias.

    Args:
        layer: The layer.
        tensors: The port's tensors of it: weights, with or without biases or a shift.
        source: The source.
    """
    kernel, bias = tensors["weights"], tensors.get("biases") or tensors.get("shift")
    expected, norm = _source_kernel(layer, source), source.batch_norm(layer.scope)
    bias_place = source.place_of_batch_norm(layer.scope)
    if "biases" in tensors and "shift" in tensors:
        yield uncompared(tensors["shift"], bias_place, "extra", "a second bias")
    actual = kernel.channels_first()
    if actual is None or actual.shape != expected.shape or actual.dtype not in FLOATS:
        yield _misshapen_kernel(kernel, layer, source)
        return
    fold = standardisation_of_first_layer(tensors, source) if layer.inputs == 3 else FoldedStandardisation()
    detail = "BatchNorm folded in"
    if not fold.is_identity:
        detail = f"BatchNorm and the standardisation x / {fold.divisor:g} - {fold.offset:g} folded in"
    folded = fold_kernel(actual, expected, norm, fold.divisor)
    result = compare_with_prediction(
        kernel, _as_stored(folded.kernel, kernel), source.place(layer.scope, "weights"), detail
    )
    most_differ = result.differing > (1 - KNOWN_SHARE) * result.values
    if result.status == "differs" and most_differ and not result.not_finite and source.broken is None:
        result = replace(result, detail=_explain_other_factor(layer, actual, expected, norm) or result.detail)
    yield result
    if bias is not None and _fits(bias, norm.beta):
        prediction = _fold_bias(bias.array, expected, norm, fold, folded)
        yield compare_with_prediction(bias, prediction, bias_place, detail)
    elif bias is not None:
        yield uncompared(bias, bias_place, "differs", _shape_problem(bias, norm.beta.shape))


def holds_residual_scale(layer: Layer, tensors: Tensors, source: SourceWeights, *, in_graph: bool) -> bool:
    """Return True if the weights of a residual block's last convolution seem to hold the residual scale.

    Args:
        layer: The convolution.
        tensors: The port's tensors of it.
        source: The source.
        in_graph: Whether the port is a graph, which must hold the scale somewhere.
    """
    scale = residual_scale(layer.scope)
    if scale == 1.0 or "factor" in tensors or not {"weights", "biases"} <= set(tensors):
        return False
    expected, actual = _source_kernel(layer, source), tensors["weights"].channels_first()
    if actual is None or actual.shape != expected.shape or actual.dtype not in FLOATS:
        return False
    expected_size, actual_size = _typical_size(expected), _typical_size(actual)
    if expected_size is None or actual_size is None:  # no finite value to compare
        return in_graph and expected_size is actual_size
    return expected_size > 0 and abs(actual_size / expected_size - scale) < abs(1 - scale) / 2


def _typical_size(weights: Array) -> float | None:
    """The median of the finite magnitudes, which a damaged value does not move; None without one.

    Of some 4,000 weights, at the same places in equal shapes.
    """
    sample = weights.reshape(-1)[:: max(1, weights.size >> 12)]
    finite = sample[np.isfinite(sample)].astype(np.float32)
    return float(np.sort(np.abs(finite))[finite.size // 2]) if finite.size else None


def compare_scaled_residual(layer: Layer, tensors: Tensors, source: SourceWeights) -> Iterator[TensorResult]:
    """Compare the last convolution of a residual block with the residual scale folded in.

    Args:
        layer: The convolution.
        tensors: The port's tensors of it: weights and biases.
        source: The source.
    """
    scale = residual_scale(layer.scope)
    detail = f"residual scale {scale:g} folded in"
    kernel, bias = tensors["weights"], tensors["biases"]
    biases = source.tensor(layer.scope, "biases")
    assert biases is not None
    prediction = fold_scale(_source_kernel(layer, source), scale, kernel.array.dtype)
    yield compare_with_prediction(
        kernel, _as_stored(prediction, kernel), source.place(layer.scope, "weights"), detail
    )
    place = source.place(layer.scope, "biases")
    if _fits(bias, biases):
        prediction = fold_scale(biases, scale, bias.array.dtype)
        yield compare_with_prediction(bias, prediction, place, detail)
    else:
        yield uncompared(bias, place, "differs", _shape_problem(bias, biases.shape))


def _source_kernel(layer: Layer, source: SourceWeights) -> Array:
    """The source's weights of a layer, with the output channel first."""
    return source.state_dict.tensors[source.place(layer.scope, "weights").key]


def _as_stored(prediction: Prediction, kernel: PortTensor) -> Prediction:
    """Bring the prediction of a kernel into the port's layout."""
    return replace(
        prediction,
        values=kernel.as_stored(prediction.values),
        exact=lambda: kernel.as_stored(prediction.exact()),
        margin=lambda: kernel.as_stored(prediction.margin()),
    )


def _fold_bias(
    bias: Array, weights: Array, norm: BatchNorm, fold: FoldedStandardisation, folded: FoldedKernel
) -> Prediction:
    if fold.is_identity:
        return fold_bias(bias, norm, folded)
    return fold_offset(bias, weights, norm, fold.offset)


def _explain_other_factor(layer: Layer, actual: Array, expected: Array, norm: BatchNorm) -> str:
    """Explain why most of a folded kernel differs: another epsilon, or BGR images; empty if neither does."""
    epsilon = find_epsilon(actual, expected, norm)
    if epsilon is not None:
        return f"folded with an epsilon of {epsilon:g}"
    if layer.inputs == 3:
        reversed_input = np.ascontiguousarray(expected[:, ::-1])
        values = fold_kernel(actual, reversed_input, norm).kernel.values
        if np.mean(values == actual) >= KNOWN_SHARE:
            return "its input channels are reversed, for BGR images"
    return ""


def _misshapen_kernel(kernel: PortTensor, layer: Layer, source: SourceWeights) -> TensorResult:
    weights = source.tensor(layer.scope, "weights")
    assert weights is not None
    same_rank = weights.ndim == kernel.array.ndim == len(kernel.layout.permutation)
    shape = kernel.layout.shape(weights.shape) if same_rank else weights.shape
    return uncompared(kernel, source.place(layer.scope, "weights"), "differs", _shape_problem(kernel, shape))


def _shape_problem(tensor: PortTensor, shape: tuple[int, ...]) -> str:
    return f"{tensor.array.dtype} {tensor.array.shape}, expected {shape}"


def _fits(tensor: PortTensor, expected: Array) -> bool:
    return tensor.array.shape == expected.shape and tensor.array.dtype in FLOATS
