"""Read a TFLite file as a `Graph`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from checks.audit.graphs.graph import Graph, Node, Op, Value, Window
from checks.audit.graphs.onnx_quantisation import mark_relus
from checks.audit.graphs.tflite_quantisation import (
    dequantise_constants,
    has_scale,
    read_quantisation,
    write_as_quantising,
)
from checks.core.types import Array
from converter.casting import HALVES
from converter.errors import SourceError
from converter.formats import neighbours
from converter.formats.limits import MAX_TENSORS, check_claims, read_whole
from converter.formats.source import TensorInfo
from converter.layouts import FULLY_CONNECTED, Layout

_MOST_REFERENCES = 10 * MAX_TENSORS  # this network has 2,000
_MOST_SIGNATURES = 8
_MOST_BYTES = 2**31 - 1  # a flatbuffer's own limit
_KERNEL = Layout("HWIO->OHWI", (3, 0, 1, 2))
_DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8"}
"""schema.fbs: the TensorTypes that NumPy has."""

_OPS: Mapping[str, Op] = {
    "CONV_2D": "conv",
    "FULLY_CONNECTED": "dense",
    "ADD": "add",
    "SUB": "subtract",
    "MUL": "multiply",
    "DIV": "divide",
    "RELU": "relu",
    "PRELU": "prelu",
    "CONCATENATION": "concat",
    "MAX_POOL_2D": "max_pool",
    "AVERAGE_POOL_2D": "mean",
    "MEAN": "mean",
    **dict.fromkeys(
        ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "STRIDED_SLICE", "TRANSPOSE", "DEQUANTIZE", "CAST"), "same"
    ),
}  # fmt: skip
_NOTHING = np.empty(0)
_METADATA = b"facenet-port"  # facenet_tf.lite.METADATA, which is not imported: it loads TensorFlow
_RELU = 1  # schema.fbs: ActivationFunctionType.RELU
_SAME = 0  # schema.fbs: Padding.SAME


def is_tflite(path: Path, head: bytes) -> bool:
    """Return True if a file is a TFLite model, by its identifier, or else by its ending."""
    return neighbours.is_tflite(head) or path.suffix.lower() == ".tflite"


def read_tflite(path: Path) -> Graph:
    """Read a TFLite file.

    Raises:
        SourceError: The file is not TFLite, is damaged, or holds more than one graph.
    """
    content = read_whole(path, _MOST_BYTES, "over 2 GiB, which no TFLite file can be")
    try:
        return _graph(path, content)
    except SourceError:
        raise
    except Exception as error:  # the generated code raises any exception on damage
        raise SourceError(
            path,
            "not a readable TFLite file: damaged, cut off, or another format",
            next_step="Convert it again",
        ) from error


def _graph(path: Path, content: bytes) -> Graph:
    from ai_edge_litert import schema_py_generated as schema

    if not neighbours.is_tflite(content):
        raise ValueError("no TFL3")
    root = schema.Model.GetRootAs(content, 0)
    _check_size(root)
    model = schema.ModelT.InitFromObj(root)
    (graph,) = model.subgraphs
    tensors = [_name(tensor, number) for number, tensor in enumerate(graph.tensors)]
    constants = {
        name: array
        for name, tensor in zip(tensors, graph.tensors, strict=True)
        if (array := _constant(path, name, tensor, model.buffers, len(content))) is not None
    }
    check_claims(
        path, {name: TensorInfo(array.dtype, array.shape) for name, array in constants.items()}, len(content)
    )
    kinds = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
    stated = {
        name: read_quantisation(tensor, _DTYPES.get(tensor.type, "unknown"), is_constant=name in constants)
        for name, tensor in zip(tensors, graph.tensors, strict=True)
        if has_scale(tensor)
    }
    quantised = dequantise_constants(constants, stated)
    dtypes = [_DTYPES.get(tensor.type, "unknown") for tensor in graph.tensors]
    written = [
        _keep_values(
            _node(operator, model.operatorCodes, kinds, tensors), dtypes[operator.outputs[0]], constants
        )
        for operator in graph.operators
    ]
    nodes = mark_relus(list(write_as_quantising(written, stated, constants, quantised)))
    for node in nodes:
        if node.dequantises and constants.get(node.inputs[0], _NOTHING).dtype in HALVES:
            constants[node.output] = constants[node.inputs[0]]  # as stored: widening changes no value
    inputs, outputs = (
        tuple(_value(tensors[number], graph.tensors[number]) for number in numbers)
        for numbers in (graph.inputs, graph.outputs)
    )
    name = (graph.name or b"main").decode(errors="replace")
    description = (model.description or b"no description").decode(errors="replace")
    title = f"the graph {name!r} ({description})"
    return Graph(
        path, (path,), "TFLite graph", title, nodes, constants, inputs, outputs, channels_last=True,
        metadata=_metadata(model), quantised=quantised,
    )  # fmt: skip


def _metadata(model: Any) -> Mapping[str, str]:
    """Read the entry that `facenet_tf.lite` writes."""
    for entry in model.metadata or ():
        if entry.name == _METADATA:
            stated = json.loads(bytes(model.buffers[entry.buffer].data))
            return {str(key): str(value) for key, value in stated.items()}
    return {}


def _check_size(model: Any) -> None:
    """Count a model's parts before an object is created for each: many references may point to one part.

    Raises:
        ValueError: The model has more parts than any graph of this network, or several graphs.
    """
    graph = model.Subgraphs(0)
    if model.SubgraphsLength() != 1 or model.SignatureDefsLength() > _MOST_SIGNATURES:
        raise ValueError("several graphs")
    counts = [
        model.BuffersLength(), model.OperatorCodesLength(), model.MetadataLength(), graph.TensorsLength(),
        graph.OperatorsLength(), graph.InputsLength(), graph.OutputsLength(),
    ]  # fmt: skip
    for number in range(min(graph.OperatorsLength(), MAX_TENSORS)):
        operator = graph.Operators(number)
        counts.append(operator.InputsLength() + operator.OutputsLength() + operator.IntermediatesLength())
    if max(counts) > MAX_TENSORS or sum(counts) > _MOST_REFERENCES:
        raise ValueError("too many tensors or operations")


def _name(tensor: Any, number: int) -> str:
    """Join a tensor's name and number, because names may repeat."""
    return f"{(tensor.name or b'').decode(errors='replace')}#{number}"


def _constant(path: Path, name: str, tensor: Any, buffers: Sequence[Any], size: int) -> Array | None:
    data = buffers[tensor.buffer].data
    if data is None or len(data) == 0 or tensor.type not in _DTYPES:
        return None
    dtype = np.dtype(_DTYPES[tensor.type])
    shape = tuple(int(extent) for extent in (tensor.shape if tensor.shape is not None else ()))
    check_claims(path, {name: TensorInfo(dtype, shape)}, size)
    raw = np.asarray(data, np.uint8)
    if raw.size != TensorInfo(dtype, shape).nbytes:
        raise SourceError(path, "its data does not have its dtype and shape", tensor=name)
    return raw.view(dtype).reshape(shape)


def _value(name: str, tensor: Any) -> Value:
    extents = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = tuple(None if extent < 1 else int(extent) for extent in (extents if extents is not None else ()))
    return Value(name, shape, _DTYPES.get(tensor.type, "unknown"))


def _keep_values(node: Node, dtype: str, constants: Mapping[str, Array]) -> Node:
    """Return a node; its operation is "other" if it casts to integers, or slices by other steps than 1.

    Args:
        node: The node as the table of operations has it.
        dtype: The dtype of its output.
        constants: The graph's constants.
    """
    is_changed = node.kind == "CAST" and not dtype.startswith("float")
    if node.kind == "STRIDED_SLICE":
        strides = constants.get(node.inputs[3]) if len(node.inputs) > 3 else None
        is_changed = strides is None or bool((strides != 1).any())
    return replace(node, op="other") if is_changed else node


def _node(operator: Any, codes: Sequence[Any], names: Mapping[int, str], tensors: Sequence[str]) -> Node:
    code = codes[operator.opcodeIndex]
    # Before version 3a the code was in a byte of its own.
    kind = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")
    op = _OPS.get(kind, "other")
    options = operator.builtinOptions
    inputs = tuple(tensors[number] if number >= 0 else "" for number in operator.inputs)
    window = None
    if op == "conv":
        window = Window(
            (options.strideH, options.strideW), "SAME" if options.padding == _SAME else "VALID",
            dilations=(options.dilationHFactor, options.dilationWFactor),
        )  # fmt: skip
    elif kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
        window = Window(
            (options.strideH, options.strideW), "SAME" if options.padding == _SAME else "VALID",
            (options.filterHeight, options.filterWidth),
        )  # fmt: skip
    activation = getattr(options, "fusedActivationFunction", 0)
    if activation not in (0, _RELU):
        op = "other"
    return Node(
        op, kind, inputs, tensors[operator.outputs[0]], activation == _RELU, window,
        layout=_KERNEL if op == "conv" else FULLY_CONNECTED if op == "dense" else None,
    )  # fmt: skip
