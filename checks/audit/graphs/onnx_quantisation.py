"""Read the QuantizeLinear and DequantizeLinear nodes of an ONNX file: the format that is called QDQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from checks.audit.graphs.graph import Node
from checks.audit.quantisation import Quantisation, QuantisedTensor
from checks.core.types import Array

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"

_DOMAINS = ("", "ai.onnx", "com.microsoft")
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")
_SIGNED_OUTPUTS = ("conv", "dense", "batch_norm", "add")


def is_quantisation(node: Any) -> bool:
    """Return True if a node of the file quantises or dequantises."""
    return node.op_type in (QUANTISE, DEQUANTISE) and node.domain in _DOMAINS


def read_quantisation(
    node: Any, attributes: Mapping[str, Any], constants: Mapping[str, Array]
) -> Quantisation | None:
    """Read the scale and the zero point of a node; None if they are no constants, or of an unknown kind.

    An activation has one scale; a constant may have one for each channel.
    """
    names = [name for name in node.input[1:] if name]
    if not names or any(name not in constants for name in names) or attributes.get("block_size", 0):
        return None
    scale = np.asarray(constants[names[0]])
    stored = constants.get(node.input[0])
    dtype = np.dtype(np.uint8) if stored is None else stored.dtype
    zero_point = constants[names[1]] if len(names) > 1 else np.zeros(scale.shape, dtype)
    if scale.dtype != np.float32 or str(zero_point.dtype) not in _INTEGERS or scale.ndim > 1:
        return None
    if zero_point.size != scale.size or not (np.isfinite(scale).all() and (scale > 0).all()):
        return None
    if scale.size == 1:
        scale = scale.reshape(())
    elif stored is None:
        return None
    return Quantisation(scale, zero_point.reshape(scale.shape), attributes.get("axis", 1))


def dequantise_constants(nodes: Sequence[Any], constants: dict[str, Array]) -> dict[str, QuantisedTensor]:
    """Add to the constants the numbers of those that are quantised; return the integers by the same names.

    A file may also hold a number, with a node that quantises it when the graph runs.
    """
    import onnx

    quantised: dict[str, QuantisedTensor] = {}
    names: dict[str, str] = {}
    for node in nodes:
        if not is_quantisation(node) or node.input[0] not in constants:
            continue
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        quantisation, array = read_quantisation(node, attributes, constants), constants[node.input[0]]
        if quantisation is None or not quantisation.fits(array):
            continue
        if node.op_type == QUANTISE:
            names[node.output[0]] = node.input[0]
            constants[node.output[0]] = quantisation.quantise(array).astype(quantisation.zero_point.dtype)
        elif array.dtype == quantisation.zero_point.dtype:
            tensor = QuantisedTensor(names.get(node.input[0], node.input[0]), array, quantisation)
            quantised[node.output[0]] = tensor
            constants[node.output[0]] = tensor.dequantise().astype(np.float32)
    return quantised


def mark_relus(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Mark the nodes that quantise the output of a layer to integers that stand for no negative number.

    Such a node clips what is below zero, as a ReLU does. onnxruntime's quantize_static removes the ReLU then.
    """
    producers = {node.output: node for node in nodes}

    def mark(node: Node) -> Node:
        before = producers.get(node.inputs[0]) if node.quantises and node.inputs else None
        if node.quantisation is None or before is None or before.op not in _SIGNED_OUTPUTS or before.relu:
            return node
        clips = bool((node.quantisation.zero_point == node.quantisation.lowest).all())
        return replace(node, op="relu") if clips else node

    return tuple(map(mark, nodes))
