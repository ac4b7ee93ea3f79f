"""Read an ONNX file as a `Graph`; its weights may lie in files beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from checks.audit.graphs.graph import Graph, Node, Op, Value, Window
from checks.audit.graphs.onnx_dynamic import join_dynamic_layers
from checks.audit.graphs.onnx_quantisation import (
    dequantise_constants,
    is_quantisation,
    mark_relus,
    read_quantisation,
)
from checks.core.types import Array
from converter.errors import SourceError
from converter.formats import neighbours
from converter.formats.limits import MAX_TENSORS, check_claims, open_regular, read_whole
from converter.formats.source import TensorInfo
from converter.formats.tensorflow.find_proto_fields import BYTES, ProtoScanner
from converter.layouts import CONVOLUTION, FULLY_CONNECTED, Layout

_MOST_BYTES = 2**31 - 1  # protobuf's own limit for a message
_MOST_FIELDS = 100_000  # nodes, initialisers and the like; a graph of this network has under 2,000
_GRAPH_FIELD = 7  # onnx.proto: ModelProto.graph
_EXTERNAL = 1  # onnx.proto: TensorProto.DataLocation.EXTERNAL
_FULLY_CONNECTED_AS_TENSORFLOW = Layout("IO->IO", (0, 1))
_OPS: Mapping[str, Op] = {
    "Conv": "conv",
    "Relu": "relu",
    "PRelu": "prelu",
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "Div": "divide",
    "Concat": "concat",
    "MaxPool": "max_pool",
    "GlobalAveragePool": "mean",
    "ReduceMean": "mean",
    "AveragePool": "mean",
    "BatchNormalization": "batch_norm",
    "Gemm": "dense",
    "MatMul": "dense",
    **dict.fromkeys(
        (
            "Cast", "Dropout", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose",
            "Unsqueeze",
        ),
        "same",
    ),
}  # fmt: skip


def is_onnx(path: Path, head: bytes) -> bool:
    """Return True if a file is an ONNX model, by its first bytes, or else by its ending."""
    return neighbours.is_onnx(head) or (path.suffix.lower() == ".onnx" and not neighbours.is_tflite(head))


def read_onnx(path: Path) -> Graph:
    """Read an ONNX file.

    Raises:
        SourceError: The file is not ONNX or is damaged, or the files with its weights cannot be read.
    """
    model, files = load_onnx(path)
    with _damage(path):
        return _graph(path, model, files)


def load_onnx(path: Path) -> tuple[Any, tuple[Path, ...]]:
    """Load an ONNX file with the weights from the files beside it, so that a runtime opens no other file.

    Returns:
        The `onnx.ModelProto`, and the files.

    Raises:
        SourceError: As for `read_onnx`.
    """
    import onnx

    content = read_whole(path, _MOST_BYTES, "over 2 GiB, which no ONNX file can be")
    with _damage(path):
        _check_size(content)
        model = onnx.ModelProto.FromString(content)
        if not model.graph.node or not model.graph.input or not model.graph.output:
            raise ValueError("no graph")
        _check_names(model.graph)
        files = [path]
        claimed: dict[str, TensorInfo] = {}
        for tensor in _tensors(path, model):
            if tensor.data_location == _EXTERNAL:
                tensor.raw_data = _read_external(path, tensor, files, claimed)
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
        return model, tuple(files)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn every exception into a `SourceError`."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # the library raises any exception on damage, and on a malformed node
        raise SourceError(
            path, "not a readable ONNX file: damaged, cut off, or another format", next_step="Export it again"
        ) from error


def _check_size(content: bytes) -> None:
    """Count nodes and initialisers before the library creates an object for each.

    Raises:
        ProtoError: The content is not a ModelProto, or has more parts than any graph of this network.
    """
    scanner = ProtoScanner(content, _MOST_FIELDS)
    for field in scanner.fields(0, len(content)):
        if field.number == _GRAPH_FIELD and field.wire_type == BYTES:
            for _ in scanner.fields(field.start, field.stop):
                pass


def _check_names(graph: Any) -> None:
    """Refuse names that are no UTF-8, which the library returns as bytes.

    Raises:
        ValueError: There is such a name.
    """
    named = (*graph.initializer, *graph.input, *graph.output, *graph.node)
    names = [each.name for each in named]
    for node in graph.node:
        names += (node.op_type, node.domain, *node.input, *node.output)
    if any(isinstance(name, bytes) for name in names):
        raise ValueError("a name is no text")


def _graph(path: Path, model: Any, files: tuple[Path, ...]) -> Graph:
    graph = model.graph
    constants = dict(_constants(path, model))
    inputs = tuple(_value(value) for value in graph.input if value.name not in constants)
    title = f"the graph {graph.name!r} of {model.producer_name or 'an unnamed producer'}"
    quantised = dequantise_constants(graph.node, constants)
    _fold_constants(graph.node, constants)
    joined = join_dynamic_layers(graph.node, constants, quantised)
    nodes = [node for node in joined if not _is_constant(node, constants)]
    return Graph(
        path, files, "ONNX graph", f"{title} {model.producer_version}".rstrip(),
        mark_relus([_node(node, constants) for node in nodes]),
        constants, inputs, tuple(_value(value) for value in graph.output), channels_last=False,
        metadata={entry.key: entry.value for entry in model.metadata_props},
        quantised=quantised,
    )  # fmt: skip


def _is_constant(node: Any, constants: Mapping[str, Array]) -> bool:
    """Return True if a node is a constant, or only quantises or dequantises one."""
    return node.op_type == "Constant" or (is_quantisation(node) and node.output[0] in constants)


def _tensors(path: Path, model: Any) -> list[Any]:
    """List the initialisers and the tensors of Constant nodes, under the names that other nodes use."""
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    attribute.t.name = node.output[0]
                    tensors.append(attribute.t)
    if len(tensors) > MAX_TENSORS:
        raise SourceError(path, f"it holds {len(tensors)} tensors, more than {MAX_TENSORS}")
    return tensors


def _constants(path: Path, model: Any) -> Iterator[tuple[str, Array]]:
    from onnx import numpy_helper

    for tensor in _tensors(path, model):
        try:
            yield tensor.name, np.asarray(numpy_helper.to_array(tensor))
        except Exception as error:  # the library raises any exception on damage
            raise SourceError(
                path, "its data does not have its dtype and shape", tensor=tensor.name
            ) from error


def _read_external(path: Path, tensor: Any, files: list[Path], claimed: dict[str, TensorInfo]) -> bytes:
    """Read the data of a tensor from another file, which is appended to `files`.

    `claimed` holds the tensors so far: together they must not be much larger than their file.
    """
    import onnx

    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file_path = _external_file(path, tensor.name, location)
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        offset = int(entries.get("offset", 0))
        claimed[tensor.name] = info = TensorInfo(dtype, tuple(tensor.dims))
        with open_regular(file_path) as file:
            size = os.fstat(file.fileno()).st_size
            check_claims(file_path, claimed, size)
            if (
                not 0 <= offset <= size - info.nbytes
                or int(entries.get("length", info.nbytes)) != info.nbytes
            ):
                raise SourceError(file_path, "its data lies beyond the end of the file", tensor=tensor.name)
            file.seek(offset)
            data = file.read(info.nbytes)
    except (OSError, ValueError, KeyError) as error:
        problem = f"its data in {location} cannot be read ({getattr(error, 'strerror', None) or error})"
        next_step = f"Put {location} into the folder of the model"
        raise SourceError(path, problem, tensor=tensor.name, next_step=next_step) from error
    if file_path not in files:
        files.append(file_path)
    return data


def _external_file(path: Path, tensor: str, location: str) -> Path:
    """Find the file with the data of a tensor; it must lie in the folder of the model or of a link to it.

    In the cache of huggingface_hub the model and its data are links, from snapshots/REVISION to blobs.

    Raises:
        SourceError: The file lies, or a link leads, elsewhere.
    """
    relative = PurePath(location)
    if not location or relative.is_absolute() or ".." in relative.parts:
        problem = f"its data lies outside the folder of the model, in {location!r}"
        raise SourceError(path, problem, tensor=tensor, next_step="Export the model again, into one folder")
    folders = [path.parent.resolve()]
    link = path  # of no circle: the model has been read
    while link.is_symlink():
        link = link.parent / link.readlink()
        folders.append(link.parent.resolve())
    folders += [
        parent.parent / "blobs"
        for folder in folders
        for parent in folder.parents
        if parent.name == "snapshots"
    ]
    beside = next(
        (folder / relative for folder in folders if (folder / relative).exists()), path.parent / relative
    )
    target = beside.resolve()
    if not any(target.is_relative_to(folder) for folder in folders):
        problem = f"its data in {location!r} is a link to {target}, outside the folder of the model"
        raise SourceError(path, problem, tensor=tensor, next_step="Put the file itself there")
    return beside


def _fold_constants(nodes: Sequence[Any], constants: dict[str, Array]) -> None:
    """Add to the constants the outputs of nodes that only reorder, reshape or widen a constant."""
    import onnx

    for node in nodes:
        if node.op_type == "Reshape" and all(name in constants for name in node.input):
            _fold_reshape(node, constants)
        if len(node.input) != 1 or node.input[0] not in constants:
            continue
        array = constants[node.input[0]]
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Identity":
            constants[node.output[0]] = array
        elif node.op_type == "Transpose":
            constants[node.output[0]] = array.transpose(attributes.get("perm"))
        elif (
            node.op_type == "Cast"
            and attributes["to"] == onnx.TensorProto.FLOAT
            and array.dtype == np.float16
        ):
            constants[node.output[0]] = array  # as stored: widening changes no value


def _fold_reshape(node: Any, constants: dict[str, Array]) -> None:
    """Add the output of a Reshape of a constant; of one that its runtime would refuse, nothing."""
    array, shape = (constants[name] for name in node.input)
    extents = shape.tolist()
    if not any(each.name == "allowzero" and each.i for each in node.attribute):  # then 0 keeps an extent
        extents = [
            array.shape[axis] if extent == 0 and axis < array.ndim else extent
            for axis, extent in enumerate(extents)
        ]
    with suppress(ValueError):
        constants[node.output[0]] = array.reshape(extents)


def _value(value: Any) -> Value:
    import onnx

    kind = value.type.tensor_type
    # Some exporters write -1 or 0 for a variable extent.
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
    try:
        dtype = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    except (KeyError, TypeError):
        dtype = "unknown"
    return Value(value.name, shape, dtype)


def _node(node: Any, constants: Mapping[str, Array]) -> Node:
    import onnx

    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    op: Op = _OPS.get(node.op_type, "other") if node.domain in ("", "ai.onnx") else "other"
    is_rounding = node.op_type == "Cast" and attributes.get("to") not in _floats()
    if attributes.get("training_mode", 0) or is_rounding:
        op = "other"
    # onnxruntime's own convolution with a ReLU. A fourth input would be added before the ReLU.
    is_fused = (node.domain, node.op_type) == ("com.microsoft", "FusedConv") and len(node.input) < 4
    if is_fused and attributes.get("activation") == b"Relu":
        op = "conv"
    quantisation = read_quantisation(node, attributes, constants) if is_quantisation(node) else None
    if quantisation is not None:
        op = "same"
    layout = None
    if op == "conv":
        layout = CONVOLUTION
    elif op == "dense":
        factors = attributes.get("alpha", 1.0), attributes.get("beta", 1.0), attributes.get("transA", 0)
        if factors != (1.0, 1.0, 0):
            op = "other"
        layout = FULLY_CONNECTED if attributes.get("transB", 0) else _FULLY_CONNECTED_AS_TENSORFLOW
        if len(node.input) < 2 or node.input[1] not in constants:
            op = "other"
    return Node(
        op, node.op_type, tuple(node.input), node.output[0] if node.output else "", is_fused,
        window=_window(attributes) if op in ("conv", "max_pool") else None,
        epsilon=attributes.get("epsilon", 1e-5) if op == "batch_norm" else None,
        layout=layout,
        quantisation=quantisation,
    )  # fmt: skip


@cache
def _floats() -> frozenset[int]:
    """The numbers of the dtypes to which a Cast keeps values but for rounding."""
    from onnx import TensorProto

    return frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))


def _window(attributes: Mapping[str, Any]) -> Window:
    auto = attributes.get("auto_pad", b"NOTSET")
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    padding: Any = ((pads[0], pads[2]), (pads[1], pads[3])) if len(pads) == 4 else "VALID"
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        padding = "SAME"
    elif auto == b"VALID":
        padding = "VALID"
    return Window(
        tuple(attributes.get("strides", [1, 1])), padding, tuple(attributes.get("kernel_shape", [])) or None,
        tuple(attributes.get("dilations", [1, 1])), bool(attributes.get("ceil_mode", 0)),
        attributes.get("group", 1),
    )  # fmt: skip
