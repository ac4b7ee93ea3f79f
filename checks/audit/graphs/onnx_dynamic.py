"""Read the layers of an ONNX graph by onnxruntime's `quantize_dynamic`, which are several nodes each.

DynamicQuantizeLinear turns the input of a layer into integers, by a scale from the values at hand.
ConvInteger or MatMulInteger sums products of integers. A Cast and a Mul by the product of both scales give
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from checks.audit.quantisation import Quantisation, QuantisedTensor
from checks.core.types import Array

_LAYERS = {"ConvInteger": ("Conv", 0), "MatMulInteger": ("MatMul", 1)}
"""Kind of a node to the kind of the layer, and the axis of the channels of its weights."""


def join_dynamic_layers(
    nodes: Sequence[Any], constants: dict[str, Array], quantised: dict[str, QuantisedTensor]
) -> list[Any]:
    """Put one node in the place of those of a layer, with the numbers that its weights stand for.

    A layer that is written in another way stays as it is.

    Args:
        nodes: The nodes of the file.
        constants: Its constants; the numbers of weights take the place of integers.
        quantised: The constants that are quantised; the weights are added.
    """
    producers = {name: node for node in nodes for name in node.output}
    consumers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    joined: dict[str, Any] = {}
    sums: set[str] = set()
    for node in nodes:
        if node.op_type not in _LAYERS:
            continue
        before = producers.get(node.input[0])
        end = _find_end(node, before, producers, consumers, constants)
        tensor = None if end is None else _read_weights(node, constants, constants.get(end[1]))
        if before is None or end is None or tensor is None:
            continue
        quantised[tensor.name], constants[tensor.name] = tensor, tensor.dequantise().astype(np.float32)
        layer = type(node)()
        layer.CopyFrom(node)
        layer.op_type = _LAYERS[node.op_type][0]
        del layer.input[:], layer.output[:]
        layer.input.extend([before.input[0], tensor.name])
        layer.output.append(end[0])
        joined[end[0]] = layer
        sums.add(node.output[0])
    kept = [node for node in nodes if not sums.intersection(node.output)]
    taken = {name for node in kept for name in node.input}
    return [
        joined.get(node.output[0], node) if node.output else node
        for node in kept
        if node.op_type != "DynamicQuantizeLinear" or node.output[0] in taken
    ]


def _find_end(
    node: Any,
    before: Any,
    producers: dict[str, Any],
    consumers: dict[str, list[Any]],
    constants: dict[str, Array],
) -> tuple[str, str] | None:
    """Find the numbers that a layer gives, and the scale of its weights; None if it is written otherwise."""
    if before is None or before.op_type != "DynamicQuantizeLinear" or len(node.input) < 3:
        return None
    if [node.input[0], node.input[2]] != [before.output[0], before.output[2]]:
        return None
    casts = consumers.get(node.output[0], [])
    products = consumers.get(casts[0].output[0], []) if [each.op_type for each in casts] == ["Cast"] else []
    if [each.op_type for each in products] != ["Mul"]:
        return None
    (product,) = products
    scales = next((name for name in product.input if name != casts[0].output[0]), "")
    factor = producers.get(scales)
    if factor is None or factor.op_type != "Mul" or before.output[1] not in factor.input:
        return None
    weights = next((name for name in factor.input if name != before.output[1]), "")
    return (product.output[0], weights) if weights in constants else None


def _read_weights(node: Any, constants: dict[str, Array], scale: Array | None) -> QuantisedTensor | None:
    """Read the weights of a layer; None if they are no constant integers with scales that fit."""
    name = node.input[1]
    integers = constants.get(name)
    if integers is None or scale is None or str(integers.dtype) not in ("int8", "uint8"):
        return None
    stated = constants.get(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    zero_point = np.zeros(1, integers.dtype) if stated is None else stated
    if zero_point.dtype != integers.dtype or scale.dtype != np.float32 or scale.size == 0:
        return None
    if not (np.isfinite(scale).all() and (scale > 0).all() and zero_point.size in (1, scale.size)):
        return None
    shape = () if scale.size == 1 else (scale.size,)
    zero_points = np.broadcast_to(zero_point.reshape(-1), (scale.size,)).reshape(shape)
    quantisation = Quantisation(scale.reshape(shape), zero_points, _LAYERS[node.op_type][1])
    return QuantisedTensor(name, integers, quantisation) if quantisation.fits(integers) else None
