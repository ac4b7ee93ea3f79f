"""Read a frozen TensorFlow graph (.pb) whose BatchNorms a transform has folded away as a `Graph`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from checks.audit.graphs.graph import Graph, Node, Op, Value, Window
from checks.audit.graphs.tensorflow_session import ARITHMETIC
from checks.audit.port_layers import printable
from checks.core.types import Array
from converter.errors import SourceError
from converter.formats.limits import MAX_TENSORS, check_claims, read_whole
from converter.formats.source import TensorInfo
from converter.formats.tensorflow.data_types import numpy_dtype, shape_of
from converter.formats.tensorflow.find_proto_fields import ProtoError, ProtoScanner
from converter.formats.tensorflow.graph_def import MAX_FIELDS, MOST_BYTES, GraphNodes, NameTwiceError
from converter.formats.tensorflow.protos import GraphDef
from converter.layouts import FULLY_CONNECTED, Layout

_FIRST_BYTE = b"\x0a"  # the tag of the first node
_KERNEL = Layout("HWIO->HWIO", (0, 1, 2, 3))
_MATRIX = Layout("IO->IO", (0, 1))
_OPS: Mapping[str, Op] = {
    "Conv2D": "conv",
    "MatMul": "dense",
    **dict.fromkeys(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), "batch_norm"),
    **dict.fromkeys(("Add", "AddV2", "BiasAdd"), "add"),
    "Sub": "subtract",
    "Mul": "multiply",
    **dict.fromkeys(("Div", "RealDiv"), "divide"),
    "Relu": "relu",
    **dict.fromkeys(("Concat", "ConcatV2"), "concat"),
    "MaxPool": "max_pool",
    **dict.fromkeys(("AvgPool", "Mean"), "mean"),
    # The first input of a Merge is the branch without training.
    **dict.fromkeys(
        (
            "Cast", "ExpandDims", "Identity", "Merge", "Reshape", "Slice", "Squeeze", "StopGradient",
            "StridedSlice", "Switch",
        ),
        "same",
    ),
}  # fmt: skip
_VALUES = {
    "float32": "float_val", "float64": "double_val", "int32": "int_val", "int64": "int64_val",
    "bool": "bool_val",
}  # fmt: skip
"""The fields of TensorProto that list elements outside tensor_content."""

FED = frozenset({"phase_train", "batch_size"})
"""Placeholders beside the images, which `facenet_tf.frozen` feeds."""


def is_folded_graph(path: Path, head: bytes) -> bool:
    """Return True if a file is a GraphDef whose BatchNorms are folded: most convolutions have none.

    Other frozen graphs have their weights under the names of variables, by which they are audited. Quantised
    ones are left to `converter.formats.tensorflow.frozen_graph`, which names them.
    """
    if not head.startswith(_FIRST_BYTE):
        return False
    try:
        nodes = _scan(read_whole(path, MOST_BYTES, "over 2 GiB"))
    except (ProtoError, NameTwiceError):
        return False
    return nodes.has_folded_batch_norms and not nodes.quantised


def _scan(content: bytes) -> GraphNodes:
    nodes = GraphNodes()
    nodes.scan(ProtoScanner(content, MAX_FIELDS), 0, len(content))
    return nodes


def read_folded_graph(path: Path) -> Graph:
    """Read a frozen graph.

    Raises:
        SourceError: The file is damaged, or holds operations that are not arithmetic, so that it may not run.
    """
    content = read_whole(path, MOST_BYTES, "over 2 GiB, which no GraphDef can be")
    try:
        others = sorted(set(_scan(content).ops) - ARITHMETIC)
        if others:
            names = printable(", ".join(others[:5]))
            problem = f"it holds the operations {names}, not only arithmetic, and is not run"
            raise SourceError(path, problem, next_step="Freeze it again, for inference alone")
        return _graph(path, GraphDef.FromString(content), len(content))
    except SourceError:
        raise
    except Exception as error:  # protobuf and NumPy raise any exception on damage
        raise SourceError(
            path, "not a readable frozen graph: damaged or cut off", next_step="Freeze it again"
        ) from error


def _graph(path: Path, definition: Any, size: int) -> Graph:
    constants: dict[str, Array] = {}
    claims: dict[str, TensorInfo] = {}
    inputs, nodes = [], []
    for node in definition.node:
        names = [name.removesuffix(":0") for name in node.input if not name.startswith("^")]
        if node.op == "Const":
            array = _constant(path, node, claims, size)
            if array is not None:
                constants[node.name] = array
        elif node.op in ("Placeholder", "PlaceholderWithDefault"):
            if node.name not in FED:
                inputs.append(_value(node))
        elif node.op == "Identity" and names[0] in constants:
            constants[node.name] = constants[names[0]]
        else:
            nodes.append(_node(node, names))
    taken = {name for node in nodes for name in node.inputs}
    outputs = tuple(Value(node.output, (), "unknown") for node in nodes if node.output not in taken)
    if not inputs or not outputs:
        raise ValueError("no input or no output")
    convolutions = [node for node in definition.node if node.op == "Conv2D"]
    channels_last = all(node.attr["data_format"].s != b"NCHW" for node in convolutions)
    return Graph(
        path, (path,), "TensorFlow graph with folded BatchNorms", f"a graph of {len(nodes)} operations",
        tuple(nodes), constants, tuple(inputs), outputs, channels_last,
    )  # fmt: skip


def _constant(path: Path, node: Any, claims: dict[str, TensorInfo], size: int) -> Array | None:
    """Decode a constant; None for strings and the like. `claims` holds the constants so far."""
    proto = node.attr["value"].tensor
    try:
        dtype = numpy_dtype(proto.dtype)
        claims[node.name] = info = TensorInfo(dtype, shape_of(proto.tensor_shape, dtype))
    except ValueError:
        return None
    if dtype.hasobject:
        return None
    check_claims(path, claims, size)
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(info.shape)
    values = np.array(getattr(proto, _VALUES[dtype.name]), dtype) if dtype.name in _VALUES else None
    if values is None or values.size > info.size:
        return None
    # In TensorFlow the last value fills the rest of the array; an empty list means zeros.
    array = np.full(info.size, values[-1] if values.size else 0, dtype)
    array[: values.size] = values
    return array.reshape(info.shape)


def _value(node: Any) -> Value:
    shape = node.attr["shape"].shape
    extents = tuple(dim.size if dim.size > 0 else None for dim in shape.dim[:MAX_TENSORS])
    try:
        dtype = str(numpy_dtype(node.attr["dtype"].type))
    except ValueError:
        dtype = "unknown"
    return Value(node.name, extents, dtype)


def _node(node: Any, inputs: list[str]) -> Node:
    op = _OPS.get(node.op, "other")
    layout, window = None, None
    if op == "concat":
        inputs = inputs[:-1] if node.op == "ConcatV2" else inputs[1:]  # the axis
    elif op == "conv":
        layout = _KERNEL
    elif op == "dense":
        layout = FULLY_CONNECTED if node.attr["transpose_b"].b else _MATRIX
        op = "other" if node.attr["transpose_a"].b else op
    if op == "batch_norm" and node.attr["is_training"].b:
        op = "other"
    if op in ("conv", "max_pool"):
        window = _window(node.attr)
    epsilon = node.attr["epsilon"].f if op == "batch_norm" else None
    return Node(op, node.op, tuple(inputs), node.name, window=window, epsilon=epsilon, layout=layout)


def _window(attributes: Any) -> Window:
    first = 2 if attributes["data_format"].s == b"NCHW" else 1

    def pair(name: str) -> tuple[int, int] | None:
        extents = list(attributes[name].list.i)
        return (extents[first], extents[first + 1]) if len(extents) == 4 else None

    padding: Any = attributes["padding"].s.decode(errors="replace")
    if padding == "EXPLICIT":
        pads = list(attributes["explicit_paddings"].list.i)[2 * first : 2 * first + 4]
        padding = (pads[0], pads[1]), (pads[2], pads[3])
    return Window(pair("strides") or (1, 1), padding, pair("ksize"), pair("dilations") or (1, 1))
