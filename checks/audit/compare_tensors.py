"""Compare every tensor of a port with the source's, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from checks.audit.compare_folded_layers import (
    compare_batch_norm_beside,
    compare_batch_norm_folded,
    compare_scaled_residual,
    holds_residual_scale,
)
from checks.audit.compare_one_tensor import compare_with_source, measure, uncompared
from checks.audit.compare_quantised import compare_quantised_layer, is_quantised
from checks.audit.port_layers import PortTensor, PortWeights, Role
from checks.audit.result import TensorResult
from checks.audit.source_weights import SourceWeights, TensorPlace, variable_name
from checks.core.network import LOGITS, network_layers, residual_scale, short_name, stage_of
from converter.counts import counted
from converter.layer_map import Layer
from converter.same_bits import same_bits

Tensors = Mapping[Role, PortTensor]
Names = Mapping[Role, str]


@np.errstate(all="ignore")  # NaNs and infinities of either side are compared, not warned of
def compare_tensors(port: PortWeights, source: SourceWeights) -> tuple[TensorResult, ...]:
    """Compare every tensor of a port with the source's.

    Returns:
        The results in the order of the network, then those for tensors that belong to no layer.
    """
    results: list[TensorResult] = []
    for layer in network_layers(source.variant):
        tensors = port.layers.get(layer.scope, {})
        if not tensors and layer.scope == LOGITS:
            continue  # the classifier is optional; the judgement mentions it
        results += _compare_layer(layer, tensors, port.names.get(layer.scope, {}), source)
    if source.variant.num_classes is None:
        for tensor in port.layers.get(LOGITS, {}).values():
            detail = "the source has no classifier"
            results.append(uncompared(tensor, TensorPlace(LOGITS), "not judged", detail))
    return (*results, *port.leftovers)


def _compare_layer(
    layer: Layer, tensors: Tensors, names: Names, source: SourceWeights
) -> Iterator[TensorResult]:
    """Compare the tensors of a layer, as stored or folded.

    Args:
        layer: The layer.
        tensors: The port's tensors of it.
        names: The names of its tensors in this format; empty for a graph.
        source: The source.
    """
    has_batch_norm = not layer.batch_norm or "moving_variance" in tensors
    if is_quantised(tensors):
        yield from compare_quantised_layer(layer, tensors, source)
    elif not has_batch_norm and {"weights", "scale"} <= set(tensors):
        yield from compare_batch_norm_beside(layer, tensors, source)
    elif not has_batch_norm and "weights" in tensors and {"biases", "shift"} & set(tensors):
        yield from compare_batch_norm_folded(layer, tensors, source)
    elif not layer.batch_norm and holds_residual_scale(layer, tensors, source, in_graph=not names):
        yield from compare_scaled_residual(layer, tensors, source)
    else:
        yield from _compare_as_stored(layer, tensors, names, source)


def _compare_as_stored(
    layer: Layer, tensors: Tensors, names: Names, source: SourceWeights
) -> Iterator[TensorResult]:
    """Compare the tensors of a layer without folding."""
    is_from_graph = bool(tensors) and not names
    if is_from_graph and not layer.batch_norm and "factor" not in tensors:
        yield from _missing_residual_scale(layer)
    for role in _required_roles(layer, names, source):
        if role not in tensors:
            name = names.get(role) or f"{short_name(layer.scope)}/{role}"
            yield _missing(name, source.place(layer.scope, role))
    for role, tensor in tensors.items():
        yield _compare_tensor(layer, role, tensor, source)


def _required_roles(layer: Layer, names: Names, source: SourceWeights) -> list[Role]:
    """List the tensors that a layer must have; a gamma only if PyTorch or the source has one."""
    if not layer.batch_norm:
        return ["weights", "biases"]
    roles: list[Role] = ["weights", "beta", "moving_mean", "moving_variance"]
    if "counter" in names or variable_name(layer.scope, "gamma") in source.tensors:
        roles.insert(1, "gamma")
    return roles


def _compare_tensor(layer: Layer, role: Role, tensor: PortTensor, source: SourceWeights) -> TensorResult:
    if role == "counter":
        return _compare_counter(tensor, TensorPlace(stage_of(layer.scope)))
    if role == "factor":
        return _compare_residual_scale(tensor, layer)
    return compare_with_source(tensor, layer.scope, role, source)


def _compare_counter(tensor: PortTensor, place: TensorPlace) -> TensorResult:
    """Compare PyTorch's count of batches, which must be zero."""
    if tensor.array.size != 1:
        return uncompared(tensor, place, "differs", f"shape {tensor.array.shape}, expected one number")
    count = tensor.array.reshape(-1)[0]
    if count == 0:
        return uncompared(tensor, place, "equal")
    return uncompared(tensor, place, "differs", f"counts {counted(count, 'batch', 'batches')}, expected 0")


def _compare_residual_scale(tensor: PortTensor, layer: Layer) -> TensorResult:
    """Compare the scale of a residual."""
    scale = residual_scale(layer.scope)
    expected = np.full(tensor.array.shape, scale).astype(tensor.array.dtype)
    place = TensorPlace(stage_of(layer.scope))
    if same_bits(tensor.array, expected):
        return measure(tensor, expected, place, "equal")
    actual = float(tensor.array.reshape(-1)[0])
    return measure(tensor, expected, place, "differs", f"residual scale {actual:g}, expected {scale:g}")


def _missing_residual_scale(layer: Layer) -> Iterator[TensorResult]:
    """Report that a graph does not multiply by a residual scale that the network has."""
    scale = residual_scale(layer.scope)
    if scale != 1.0:
        block = short_name(layer.scope.rpartition("/")[0])
        place = TensorPlace(stage_of(layer.scope))
        yield _missing(f"{block}, the residual scale of {scale:g}", place)


def _missing(name: str, place: TensorPlace) -> TensorResult:
    return TensorResult(name, place.variable, place.stage, "", "", (), "missing", key=place.key)
