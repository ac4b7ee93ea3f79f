"""TFLite files, read into a neutral graph."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.audit.graphs.graph import Graph, Node, Op, Value, Window
from converter.casting import HALVES
from converter.errors import SourceError
from converter.formats.limits import MAX_TENSORS, check_claims, read_whole
from converter.formats.source import TensorInfo
from converter.layouts import FULLY_CONNECTED, Layout

Array = NDArray[Any]

_MAGIC = b"TFL3"  # schema.fbs of TensorFlow Lite: file_identifier, at byte 4
_MOST_REFERENCES = 10 * MAX_TENSORS  # this network has 2,000
_MOST_SIGNATURES = 8
_MOST_BYTES = 2**31 - 1  # a flatbuffer's own limit
_KERNEL = Layout("HWIO->OHWI", (3, 0, 1, 2))
_DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8"}
"""schema.fbs: TensorType, those whose elements NumPy has."""

_OPS: Mapping[str, Op] = {
    "CONV_2D": "conv",
    "FULLY_CONNECTED": "dense",
    "ADD": "add",
    "SUB": "subtract",
    "MUL": "multiply",
    "DIV": "divide",
    "RELU": "relu",
    "CONCATENATION": "concat",
    "MAX_POOL_2D": "max_pool",
    "AVERAGE_POOL_2D": "mean",
    "MEAN": "mean",
    **dict.fromkeys(
        ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "STRIDED_SLICE", "TRANSPOSE", "DEQUANTIZE", "CAST"), "same"
    ),
}  # fmt: skip
_NOTHING = np.empty(0)
_RELU = 1  # schema.fbs: ActivationFunctionType.RELU
_SAME = 0  # schema.fbs: Padding.SAME


def is_ours(path: Path) -> bool:
    """Whether a file is a TFLite model, told by its identifier or, where it has none, its ending."""
    with path.open("rb") as file:
        return file.read(8)[4:] == _MAGIC or path.suffix.lower() == ".tflite"


def read(path: Path) -> Graph:
    """Read a TFLite file.

    Raises:
        SourceError: It is not TFLite, damaged, or holds more than one graph.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = read_whole(path, _MOST_BYTES, "over 2 GiB, which no TFLite file can be")
    try:
        if content[4:8] != _MAGIC:
            raise ValueError("no TFL3")
        root = schema.Model.GetRootAs(content, 0)
        _check_size(root)
        model = schema.ModelT.InitFromObj(root)
        (graph,) = model.subgraphs
        names = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
        tensors = [_name(tensor, number) for number, tensor in enumerate(graph.tensors)]
        constants = {
            name: array
            for name, tensor in zip(tensors, graph.tensors, strict=True)
            if (array := _constant(path, name, tensor, model.buffers, len(content))) is not None
        }
        described = {name: TensorInfo(array.dtype, array.shape) for name, array in constants.items()}
        check_claims(path, described, len(content))
        nodes = [_node(operator, model.operatorCodes, names, tensors) for operator in graph.operators]
        inputs, outputs = (
            tuple(_port(tensors[number], graph.tensors[number]) for number in numbers)
            for numbers in (graph.inputs, graph.outputs)
        )
        description = (model.description or b"").decode(errors="replace")
    except SourceError:
        raise
    except Exception as error:  # damage leads the generated code anywhere
        raise SourceError(
            path,
            "not a readable TFLite file: damaged, cut off, or something else",
            next_step="Convert it again",
        ) from error
    for node in nodes:
        if node.kind == "DEQUANTIZE" and constants.get(node.inputs[0], _NOTHING).dtype in HALVES:
            constants[node.output] = constants[node.inputs[0]]  # as it is stored: widening changes no value
    title = (
        f"the graph {(graph.name or b'main').decode(errors='replace')!r} ({description or 'no description'})"
    )
    return Graph(
        path, (path,), "TFLite graph", title, tuple(nodes), constants, inputs, outputs, channels_last=True
    )


def _check_size(model: Any) -> None:
    """Count what a model has before an object is made of each: its references may share what they refer to.

    Raises:
        ValueError: It has more than any graph that is audited, or several graphs.
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
    """A tensor's name with its number behind it: names need not differ."""
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


def _port(name: str, tensor: Any) -> Value:
    told = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = tuple(None if extent < 1 else int(extent) for extent in (told if told is not None else ()))
    return Value(name, shape, _DTYPES.get(tensor.type, "unknown"))


def _node(operator: Any, codes: Sequence[Any], names: Mapping[int, str], tensors: Sequence[str]) -> Node:
    code = codes[operator.opcodeIndex]
    # Before version 3a the code was a byte of its own.
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
        axis=getattr(options, "axis", None) if op == "concat" else None,
    )  # fmt: skip


def runtime() -> str:
    """The name and version of what runs these files."""
    return f"LiteRT {importlib.metadata.version('ai-edge-litert')}"
