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
from converter.formats.source import Naming, TensorInfo, TensorSource
from converter.formats.tensorflow.data_types import numpy_dtype
from converter.formats.tensorflow.proto_scanner import BYTES, Field, ProtoError, ProtoScanner
from converter.formats.tensorflow.protos import TensorProto

_MOST_BYTES = 2**31 - 1  # protobuf's own limit for a message
_MOST_REPEATED_BYTES = 2**26  # for a tensor spelled as one value and a shape, which costs a file nothing
_MOST_LISTED_BYTES = 2**22  # of values that are not in tensor_content; TensorFlow lists only very few
_MAX_FIELDS = 250_000  # of a graph; one real frozen graph of 5,893 nodes has 40,000
# Numbers of fields: core/framework/graph.proto, node_def.proto, attr_value.proto and tensor.proto.
_NODE = 1
_NAME, _OP, _INPUT, _ATTRIBUTE = 1, 2, 3, 5
_KEY, _VALUE = 1, 2
_TENSOR = 8
_TENSOR_CONTENT = 4
_VARIABLE_OPS = ("Variable", "VariableV2", "VarHandleOp")
# Where TensorProto keeps the elements that are not in tensor_content (core/framework/tensor.proto).
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
    """Whether a file is a MetaGraphDef (.meta) and not a GraphDef (.pb), told from its first two fields.

    A MetaGraphDef holds meta_info_def (1) and then graph_def (2); a GraphDef begins with its nodes (all 1).
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

    Freezing turns a variable into a Const of the same name and leaves the Identity that read it (`NAME/read`,
    or `NAME/Read/ReadVariableOp` for a resource variable) in place; a Const without one is a number of the
    graph's arithmetic and no weight.

    Args:
        path: The file.

    Raises:
        SourceError: Not a GraphDef, no frozen variables in it, a name that stands twice, or a constant whose
            dtype, shape and size do not agree.
    """

    format = "TensorFlow frozen graph"
    naming: Naming = "tensorflow"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        content = read_whole(path, _MOST_BYTES, "over 2 GiB, which no GraphDef can be")
        self._wire: ProtoScanner | None = ProtoScanner(content, _MAX_FIELDS)
        try:
            self._constants = self._frozen_variables(self._wire)
        except ProtoError as error:
            raise SourceError(
                path,
                f"not a readable file of any known format (as a GraphDef it does not parse: {error})",
                next_step="Download or copy it again, or give a checkpoint, .pb, .h5, .pt or .safetensors",
            ) from error
        self.info = {name: self._describe(name, constant) for name, constant in self._constants.items()}
        check_claims(path, self.info, len(content))

    def _frozen_variables(self, wire: ProtoScanner) -> dict[str, _Constant]:
        read: set[str] = set()
        constants: dict[str, _Constant] = {}
        variables = nodes = 0
        for field in wire.fields(0, len(wire.data)):
            if field.number != _NODE:
                continue
            node = _Node(wire, field)
            nodes += 1
            if node.op == "Identity" and node.inputs:
                source = node.inputs[0].removesuffix(":0")
                if node.name in (f"{source}/read", f"{source}/Read/ReadVariableOp"):
                    read.add(source)
            elif node.op == "Const":
                if node.name in constants:
                    raise SourceError(self.path, "there twice", tensor=node.name[:200])
                constants[node.name] = _find_constant(wire, node)
            variables += node.op in _VARIABLE_OPS
        frozen = {name: constant for name, constant in constants.items() if name in read}
        if frozen:
            return frozen
        if variables:
            raise SourceError(
                self.path,
                f"a graph without weights ({variables} variables, none of them frozen)",
                next_step="Give the checkpoint beside it, or a graph frozen by freeze_graph",
            )
        raise SourceError(
            self.path,
            f"no weights in it (as a GraphDef it has {nodes} nodes and no frozen variable)",
            next_step="Give a checkpoint, a frozen .pb, .h5, .pt or .safetensors",
        )

    def _describe(self, name: str, constant: _Constant) -> TensorInfo:
        proto = self._parse(name, constant)
        # The number of dimensions comes first: a shape may have millions.
        shape = tuple(dim.size for dim in proto.tensor_shape.dim[: MAX_RANK + 1])
        try:
            dtype = numpy_dtype(proto.dtype)
        except ValueError as error:
            raise SourceError(self.path, str(error), tensor=name) from error
        if dtype.name not in _VALUE_FIELDS:
            raise SourceError(self.path, f"{dtype} is no dtype of a weight", tensor=name)
        if proto.tensor_shape.unknown_rank or any(extent < 0 for extent in shape):
            raise SourceError(self.path, f"a constant of unknown shape {shape}", tensor=name)
        wanted = math.prod(shape) * dtype.itemsize
        if constant.content is not None:
            fits = constant.content.stop - constant.content.start == wanted
        else:
            values = len(getattr(proto, _VALUE_FIELDS[dtype.name]))
            fits = values <= math.prod(shape) and (
                values == math.prod(shape) or wanted <= _MOST_REPEATED_BYTES
            )
        if not fits:
            raise self._misfit(name, f"its data does not have the size of {dtype} {shape}")
        return TensorInfo(dtype, shape)

    def _parse(self, name: str, constant: _Constant) -> Any:
        """Parse a constant's TensorProto without its tensor_content, which is large and never copied."""
        try:
            return TensorProto.FromString(constant.fields)
        except DecodeError as error:
            raise self._misfit(name, "it is not a valid message") from error

    def _misfit(self, name: str, problem: str) -> SourceError:
        return SourceError(self.path, problem, tensor=name[:200], next_step="Download or copy the file again")

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Decode one constant.

        Raises:
            KeyError: There is no frozen variable of this name.
            SourceError: A value is none of its dtype.
            ValueError: The source is closed.
        """
        constant, info = self._constants[name], self.info[name]
        if self._wire is None:
            raise ValueError(f"{self.path} is closed")
        if constant.content is not None:
            data = np.frombuffer(self._wire.data, np.uint8)[constant.content.start : constant.content.stop]
            return data.view(info.dtype).reshape(info.shape)
        values = getattr(self._parse(name, constant), _VALUE_FIELDS[info.dtype.name])
        # half_val holds the bits.
        stored = np.dtype(np.uint16) if info.dtype.name in ("float16", "bfloat16") else info.dtype
        listed = np.array(values).astype(stored)
        if stored.kind in "iu" and listed.tolist() != list(values):
            raise self._misfit(name, f"a value is none of {info.dtype}")
        listed = listed.view(info.dtype)
        # TensorFlow lets the last value stand for all that follow, and an empty list for zeros.
        array = np.full(info.size, listed[-1] if listed.size else 0, info.dtype)
        array[: listed.size] = listed
        return array.reshape(info.shape)

    def close(self) -> None:
        """Drop the graph; arrays that were read stay valid."""
        self._wire = None


@dataclass(frozen=True, slots=True)
class _Constant:
    """The TensorProto of a Const: where its tensor_content stands, and the bytes of all its other fields."""

    content: Field | None
    fields: bytes


class _Node:
    """What is needed of a NodeDef: name, op, inputs, and where its attributes stand."""

    def __init__(self, wire: ProtoScanner, message: Field) -> None:
        if message.wire_type != BYTES:
            raise ProtoError(f"a node at byte {message.begin} that is no message")
        self.name = self.op = ""
        self.inputs: list[str] = []
        self.attributes: list[Field] = []
        for field in wire.fields(message.start, message.stop):
            if field.wire_type != BYTES:
                continue
            if field.number == _NAME:
                self.name = wire.text(field)
            elif field.number == _OP:
                self.op = wire.text(field)
            elif field.number == _INPUT:
                self.inputs.append(wire.text(field))
            elif field.number == _ATTRIBUTE:
                self.attributes.append(field)


def _find_constant(wire: ProtoScanner, node: _Node) -> _Constant:
    """Find the tensor in the attribute `value` of a Const."""
    found = []
    for attribute in node.attributes:
        entry = {field.number: field for field in wire.fields(attribute.start, attribute.stop)}
        if _KEY in entry and _VALUE in entry and wire.text(entry[_KEY]) == "value":
            found.append(entry[_VALUE])
    if len(found) != 1:
        raise ProtoError(
            f"a Const at byte {node.attributes[0].begin if node.attributes else 0} with {len(found)} values"
        )
    kinds = list(wire.fields(found[0].start, found[0].stop))
    if [kind.number for kind in kinds] != [_TENSOR] or kinds[0].wire_type != BYTES:
        raise ProtoError(f"a Const at byte {found[0].begin} whose value is no tensor")
    contents, rest = [], bytearray()
    for field in wire.fields(kinds[0].start, kinds[0].stop):
        if field.number == _TENSOR_CONTENT and field.wire_type == BYTES:
            contents.append(field)
        else:
            rest += wire.data[field.begin : field.stop]
    if len(contents) > 1 or len(rest) > _MOST_LISTED_BYTES:
        raise ProtoError(f"a tensor at byte {kinds[0].begin} that is larger than it should be")
    content = contents[0] if contents and contents[0].stop > contents[0].start else None
    return _Constant(content, bytes(rest))
