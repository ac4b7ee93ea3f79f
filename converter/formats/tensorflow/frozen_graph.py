"""Frozen TensorFlow graphs (.pb): a GraphDef whose variables have become constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from converter.errors import SourceError
from converter.formats.limits import MAX_RANK, check_claims, read_whole
from converter.formats.source import DOWNLOAD_AGAIN, Naming, TensorInfo, TensorSource
from converter.formats.tensorflow.data_types import numpy_dtype
from converter.formats.tensorflow.find_proto_fields import BYTES, Field, ProtoError, ProtoScanner
from converter.formats.tensorflow.protos import TensorProto

_MOST_BYTES = 2**31 - 1  # protobuf's own limit for a message
_MOST_REPEATED_BYTES = 2**26  # of a tensor stored as one value and a shape, which can claim any size
_MOST_LISTED_BYTES = 2**22  # of values outside tensor_content; TensorFlow lists only very few
_MAX_FIELDS = 250_000  # of a graph; a published frozen graph of 5,893 nodes has 40,000
# Numbers of fields: core/framework/graph.proto, node_def.proto, attr_value.proto and tensor.proto.
_NODE = 1
_NAME, _OP, _INPUT, _ATTRIBUTE = 1, 2, 3, 5
_KEY, _VALUE = 1, 2
_TENSOR = 8
_TENSOR_CONTENT = 4
_VARIABLE_OPS = ("Variable", "VariableV2", "VarHandleOp")
# The fields of TensorProto for elements outside tensor_content (core/framework/tensor.proto).
_VALUE_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "uint16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "float16": "half_val",
    "bfloat16": "half_val",
}


def is_meta_graph(path: Path) -> bool:
    """Return whether a file is a MetaGraphDef (.meta) and not a GraphDef (.pb).

    A MetaGraphDef begins with meta_info_def (field 1) and graph_def (2); a GraphDef with its nodes (all 1).
    """
    with path.open("rb") as file:
        if file.read(1) != b"\x0a":
            return False
        length = 0
        for shift in range(0, 35, 7):
            byte = file.read(1)
            if not byte:
                return False
            length |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                break
        file.seek(length, 1)
        return file.read(1) == b"\x12"


class FrozenGraph(TensorSource):
    """The frozen variables of a GraphDef, under their variables' names.

    Freezing turns a variable into a Const of the same name and keeps the Identity that read it (`NAME/read`,
    or `NAME/Read/ReadVariableOp` for a resource variable). A Const without such an Identity is a number of
    the graph's arithmetic, not a weight.

    Args:
        path: The file.

    Raises:
        SourceError: The file is not a GraphDef, has no frozen variables, has a name twice, or has a constant
            whose dtype, shape and size disagree.
    """

    format = "TensorFlow frozen graph"
    naming: Naming = "tensorflow"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        content = read_whole(path, _MOST_BYTES, "it has over 2 GiB, more than a GraphDef can have")
        self._scanner: ProtoScanner | None = ProtoScanner(content, _MAX_FIELDS)
        try:
            self._constants = self._frozen_variables(self._scanner)
        except ProtoError as error:
            raise SourceError(
                path,
                f"this is not a TensorFlow graph, nor a file of any other known format ({error})",
                next_step="Download or copy it again, or give a checkpoint, .pb, .h5, .pt or .safetensors",
            ) from error
        self.info = {name: self._describe(name, constant) for name, constant in self._constants.items()}
        check_claims(path, self.info, len(content))

    def _frozen_variables(self, scanner: ProtoScanner) -> dict[str, _Constant]:
        read: set[str] = set()
        constants: dict[str, _Constant] = {}
        variables = nodes = 0
        for field in scanner.fields(0, len(scanner.data)):
            if field.number != _NODE:
                continue
            node = _Node(scanner, field)
            nodes += 1
            if node.op == "Identity" and node.inputs:
                source = node.inputs[0].removesuffix(":0")
                if node.name in (f"{source}/read", f"{source}/Read/ReadVariableOp"):
                    read.add(source)
            elif node.op == "Const":
                if node.name in constants:
                    raise SourceError(self.path, "the graph has this name twice", tensor=node.name[:200])
                constants[node.name] = _find_constant(scanner, node)
            variables += node.op in _VARIABLE_OPS
        frozen = {name: constant for name, constant in constants.items() if name in read}
        if frozen:
            return frozen
        if variables:
            raise SourceError(
                self.path,
                f"this is a graph without weights ({variables} variables, none of them frozen)",
                next_step="Give the checkpoint beside it, or a graph frozen by freeze_graph",
            )
        raise SourceError(
            self.path,
            f"there are no weights in it (a graph of {nodes} nodes, without a frozen variable)",
            next_step="Give a checkpoint, a frozen .pb, .h5, .pt or .safetensors",
        )

    def _describe(self, name: str, constant: _Constant) -> TensorInfo:
        proto = self._parse(name, constant)
        # At most one dimension too many is read: a shape may have millions.
        shape = tuple(dim.size for dim in proto.tensor_shape.dim[: MAX_RANK + 1])
        try:
            dtype = numpy_dtype(proto.dtype)
        except ValueError as error:
            raise SourceError(self.path, str(error), tensor=name) from error
        if dtype.name not in _VALUE_FIELDS:
            raise SourceError(self.path, f"a weight cannot be of dtype {dtype}", tensor=name)
        if proto.tensor_shape.unknown_rank or any(extent < 0 for extent in shape):
            raise SourceError(self.path, f"its shape is unknown {shape}", tensor=name)
        expected_bytes = math.prod(shape) * dtype.itemsize
        if constant.content is not None:
            fits = constant.content.stop - constant.content.start == expected_bytes
        else:
            values = len(getattr(proto, _VALUE_FIELDS[dtype.name]))
            fits = values <= math.prod(shape) and (
                values == math.prod(shape) or expected_bytes <= _MOST_REPEATED_BYTES
            )
        if not fits:
            raise self._misfit(name, f"its data does not have the size of {dtype} of shape {shape}")
        return TensorInfo(dtype, shape)

    def _parse(self, name: str, constant: _Constant) -> Any:
        """Parse a constant's TensorProto without its tensor_content, which is large and never copied."""
        try:
            return TensorProto.FromString(constant.fields)
        except DecodeError as error:
            raise self._misfit(name, "it is not a valid message") from error

    def _misfit(self, name: str, problem: str) -> SourceError:
        return SourceError(self.path, problem, tensor=name[:200], next_step=DOWNLOAD_AGAIN)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Decode one constant.

        Raises:
            KeyError: There is no frozen variable of this name.
            SourceError: A value is outside the range of its dtype.
            ValueError: The source is closed.
        """
        constant, info = self._constants[name], self.info[name]
        if self._scanner is None:
            raise ValueError(f"{self.path} is closed")
        if constant.content is not None:
            data = np.frombuffer(self._scanner.data, np.uint8)[constant.content.start : constant.content.stop]
            return data.view(info.dtype).reshape(info.shape)
        values = getattr(self._parse(name, constant), _VALUE_FIELDS[info.dtype.name])
        # half_val holds the bits of 16-bit floats.
        stored = np.dtype(np.uint16) if info.dtype.name in ("float16", "bfloat16") else info.dtype
        listed = np.array(values).astype(stored)
        if stored.kind in "iu" and listed.tolist() != list(values):
            raise self._misfit(name, f"a value is outside the range of {info.dtype}")
        listed = listed.view(info.dtype)
        # In TensorFlow the last value fills the rest of the array; an empty list means zeros.
        array = np.full(info.size, listed[-1] if listed.size else 0, info.dtype)
        array[: listed.size] = listed
        return array.reshape(info.shape)

    def close(self) -> None:
        """Drop the graph; arrays that were read stay valid."""
        self._scanner = None


@dataclass(frozen=True, slots=True)
class _Constant:
    """The TensorProto of a Const: the place of its tensor_content, and the bytes of all its other fields."""

    content: Field | None
    fields: bytes


class _Node:
    """The needed parts of a NodeDef: name, op, inputs, and the places of its attributes."""

    def __init__(self, scanner: ProtoScanner, message: Field) -> None:
        if message.wire_type != BYTES:
            raise ProtoError(f"byte {message.begin}: a node is not a message")
        self.name = self.op = ""
        self.inputs: list[str] = []
        self.attributes: list[Field] = []
        for field in scanner.fields(message.start, message.stop):
            if field.wire_type != BYTES:
                continue
            if field.number == _NAME:
                self.name = scanner.text(field)
            elif field.number == _OP:
                self.op = scanner.text(field)
            elif field.number == _INPUT:
                self.inputs.append(scanner.text(field))
            elif field.number == _ATTRIBUTE:
                self.attributes.append(field)


def _find_constant(scanner: ProtoScanner, node: _Node) -> _Constant:
    """Find the tensor in the attribute `value` of a Const."""
    values = []
    for attribute in node.attributes:
        entry = {field.number: field for field in scanner.fields(attribute.start, attribute.stop)}
        if _KEY in entry and _VALUE in entry and scanner.text(entry[_KEY]) == "value":
            values.append(entry[_VALUE])
    if len(values) != 1:
        raise ProtoError(f"the constant {node.name[:200]!r} has {len(values)} values")
    kinds = list(scanner.fields(values[0].start, values[0].stop))
    if [kind.number for kind in kinds] != [_TENSOR] or kinds[0].wire_type != BYTES:
        raise ProtoError(f"byte {values[0].begin}: the value of a constant is not a tensor")
    contents, rest = [], bytearray()
    for field in scanner.fields(kinds[0].start, kinds[0].stop):
        if field.number == _TENSOR_CONTENT and field.wire_type == BYTES:
            contents.append(field)
        else:
            rest += scanner.data[field.begin : field.stop]
    if len(contents) > 1 or len(rest) > _MOST_LISTED_BYTES:
        raise ProtoError(f"byte {kinds[0].begin}: a tensor is larger than it should be")
    content = contents[0] if contents and contents[0].stop > contents[0].start else None
    return _Constant(content, bytes(rest))
