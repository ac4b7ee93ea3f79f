"""Read the scales of a TFLite file, and write its operations on integers as nodes that quantise.

An operation of TFLite on integers takes integers and gives integers, each tensor with a scale and a zero
point. It stands for three steps: its inputs become numbers, the operation computes a number, and the number
becomes an integer. Written as three nodes it is audited as ONNX's format QDQ is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from checks.audit.graphs.graph import Node, Op
from checks.audit.quantisation import Quantisation, QuantisedTensor
from checks.core.types import Array

Stated = Mapping[str, Quantisation | None]
"""Tensor to the scale and zero point that the file states; None if they are of an unknown kind."""

_CONSTANTS = ("int8", "uint8", "int32")
_ACTIVATIONS = ("int8", "uint8")


def has_scale(tensor: Any) -> bool:
    """Return True if the file states a scale for a tensor."""
    stated = tensor.quantization
    return stated is not None and stated.scale is not None and len(stated.scale) > 0


def read_quantisation(tensor: Any, dtype: str, *, is_constant: bool) -> Quantisation | None:
    """Read the scales and zero points of a tensor; None if they are of an unknown kind.

    An activation has one scale; a constant may have one for each channel.

    Args:
        tensor: A `TensorT` for which `has_scale` is true.
        dtype: Its dtype.
        is_constant: Whether the file holds its values.
    """
    stated = tensor.quantization
    scale = np.asarray(stated.scale, np.float32)
    zero_point = np.zeros(scale.shape, np.int64) if stated.zeroPoint is None else np.asarray(stated.zeroPoint)
    if dtype not in (_CONSTANTS if is_constant else _ACTIVATIONS) or scale.shape != zero_point.shape:
        return None
    info = np.iinfo(dtype)
    if not (np.isfinite(scale).all() and (scale > 0).all() and (is_constant or scale.size == 1)):
        return None
    if (zero_point < info.min).any() or (zero_point > info.max).any():
        return None
    shape = () if scale.size == 1 else scale.shape
    axis = int(stated.quantizedDimension)
    return Quantisation(scale.reshape(shape), zero_point.astype(dtype).reshape(shape), axis)


def dequantise_constants(constants: dict[str, Array], stated: Stated) -> dict[str, QuantisedTensor]:
    """Put the numbers of quantised constants in the place of their integers, which are returned."""
    quantised = {}
    for name, quantisation in stated.items():
        array = constants.get(name)
        if array is not None and quantisation is not None and quantisation.fits(array):
            quantised[name] = QuantisedTensor(name, array, quantisation)
            constants[name] = quantised[name].dequantise().astype(np.float32)
    return quantised


def write_as_quantising(
    nodes: Sequence[Node], stated: Stated, constants: dict[str, Array], quantised: dict[str, QuantisedTensor]
) -> Iterator[Node]:
    """Write every operation on integers as one on numbers, with nodes that dequantise and quantise.

    The tensors of the file keep their names. The numbers that the file does not have are called
    `NAME exact`, before they are quantised, and `NAME dequantised`.

    Args:
        nodes: The operations of the file.
        stated: The scales of its tensors.
        constants: Its constants; the output of an operation that dequantises one is added.
        quantised: Those that are quantised, likewise.
    """
    dequantised: set[str] = set()

    def is_activation(name: str) -> bool:
        return name in stated and name not in constants

    def quantising(kind: str, taken: str, given: str, integers: str) -> Node:
        quantisation = stated[integers]
        op: Op = "other" if quantisation is None else "same"
        return Node(op, kind, (taken,), given, quantisation=quantisation)

    for node in nodes:
        if node.dequantises:
            name = node.inputs[0]
            if name in quantised:
                constants[node.output], quantised[node.output] = constants[name], quantised[name]
            is_constant = not is_activation(name)
            yield node if is_constant else quantising("DEQUANTIZE", name, node.output, name)
            continue
        for name in node.inputs:
            if is_activation(name) and name not in dequantised:
                dequantised.add(name)
                yield quantising("DEQUANTIZE", name, f"{name} dequantised", name)
        inputs = tuple(f"{name} dequantised" if is_activation(name) else name for name in node.inputs)
        if not is_activation(node.output):
            yield replace(node, inputs=inputs)
        elif node.quantises:
            yield quantising("QUANTIZE", inputs[0], node.output, node.output)
        else:
            exact = f"{node.output} exact"
            yield replace(node, inputs=inputs, output=exact)
            yield quantising("QUANTIZE", exact, node.output, node.output)
