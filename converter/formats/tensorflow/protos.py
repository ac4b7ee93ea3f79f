"""The few protobuf messages of TensorFlow that a checkpoint and a frozen graph are made of.

The messages are described here and built when this module is imported, in a descriptor pool of their own:
no generated code ties the project to one protobuf release, and TensorFlow's own definitions of the same
names may live in the same process. Each line of `_MESSAGES` is a field as TensorFlow's .proto file declares
it, with the same number and type. Fields that nothing here needs are left out; protobuf keeps what it finds
in them as unknown fields.

Sources: TensorFlow's core/protobuf/tensor_bundle.proto and, in core/framework, versions.proto, types.proto,
tensor_shape.proto, tensor_slice.proto, tensor.proto, attr_value.proto, node_def.proto and graph.proto; for
CheckpointState, python/training/checkpoint_state.proto.

The functions at the end turn a message into the Python value it stands for, or refuse it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from converter.formats.limits import MAX_RANK


class DataType(IntEnum):
    """TensorFlow's numbers for element types (core/framework/types.proto)."""

    DT_INVALID = 0
    DT_FLOAT = 1
    DT_DOUBLE = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 5
    DT_INT8 = 6
    DT_STRING = 7
    DT_COMPLEX64 = 8
    DT_INT64 = 9
    DT_BOOL = 10
    DT_QINT8 = 11
    DT_QUINT8 = 12
    DT_QINT32 = 13
    DT_BFLOAT16 = 14
    DT_QINT16 = 15
    DT_QUINT16 = 16
    DT_UINT16 = 17
    DT_COMPLEX128 = 18
    DT_HALF = 19
    DT_RESOURCE = 20
    DT_VARIANT = 21
    DT_UINT32 = 22
    DT_UINT64 = 23
    DT_FLOAT8_E5M2 = 24
    DT_FLOAT8_E4M3FN = 25
    DT_INT4 = 29
    DT_UINT4 = 30


NUMPY_DTYPES: Mapping[DataType, np.dtype] = MappingProxyType(
    {
        DataType.DT_FLOAT: np.dtype("<f4"),
        DataType.DT_DOUBLE: np.dtype("<f8"),
        DataType.DT_INT32: np.dtype("<i4"),
        DataType.DT_UINT8: np.dtype("u1"),
        DataType.DT_INT16: np.dtype("<i2"),
        DataType.DT_INT8: np.dtype("i1"),
        DataType.DT_STRING: np.dtype(object),
        DataType.DT_COMPLEX64: np.dtype("<c8"),
        DataType.DT_INT64: np.dtype("<i8"),
        DataType.DT_BOOL: np.dtype(bool),
        DataType.DT_BFLOAT16: np.dtype(ml_dtypes.bfloat16),
        DataType.DT_UINT16: np.dtype("<u2"),
        DataType.DT_COMPLEX128: np.dtype("<c16"),
        DataType.DT_HALF: np.dtype("<f2"),
        DataType.DT_UINT32: np.dtype("<u4"),
        DataType.DT_UINT64: np.dtype("<u8"),
    }
)
"""Element types that can be read, with the NumPy dtype of the same bits; strings are objects (`bytes`)."""


def numpy_dtype(number: int) -> np.dtype:
    """Find the NumPy dtype of a TensorFlow element type.

    Args:
        number: The number that stands in a message's field of type DataType.

    Returns:
        A little-endian dtype; `object` for strings, `ml_dtypes.bfloat16` for bfloat16.

    Raises:
        ValueError: The type is unknown, or known but not one that can be read; the message names it.
    """
    try:
        data_type = DataType(number)
    except ValueError:
        raise ValueError(f"element type number {number} is unknown") from None
    if data_type not in NUMPY_DTYPES:
        raise ValueError(f"element type {data_type.name} is not supported")
    return NUMPY_DTYPES[data_type]


def data_type(dtype: np.dtype) -> DataType:
    """Find the TensorFlow element type of a NumPy dtype, whatever its byte order.

    Args:
        dtype: A NumPy dtype.

    Returns:
        The element type.

    Raises:
        ValueError: TensorFlow has no such type, or it is not one that is handled here.
    """
    for number, known in NUMPY_DTYPES.items():
        if dtype.newbyteorder("<") == known.newbyteorder("<"):
            return number
    raise ValueError(f"dtype {dtype} has no TensorFlow element type")


_ENUMS: Mapping[str, Mapping[str, int]] = {
    "DataType": {member.name: member.value for member in DataType},
    "BundleHeaderProto.Endianness": {"LITTLE": 0, "BIG": 1},
}

_MESSAGES: Mapping[str, tuple[str, ...]] = {
    "BundleHeaderProto": (
        "int32 num_shards = 1",
        "BundleHeaderProto.Endianness endianness = 2",
        "VersionDef version = 3",
    ),
    "BundleEntryProto": (
        "DataType dtype = 1",
        "TensorShapeProto shape = 2",
        "int32 shard_id = 3",
        "int64 offset = 4",
        "int64 size = 5",
        "fixed32 crc32c = 6",
        "repeated TensorSliceProto slices = 7",
    ),
    "VersionDef": (
        "int32 producer = 1",
        "int32 min_consumer = 2",
        "repeated int32 bad_consumers = 3",
    ),
    "TensorShapeProto": ("repeated TensorShapeProto.Dim dim = 2", "bool unknown_rank = 3"),
    "TensorShapeProto.Dim": ("int64 size = 1", "string name = 2"),
    "TensorSliceProto": ("repeated TensorSliceProto.Extent extent = 1",),
    "TensorSliceProto.Extent": ("int64 start = 1", "oneof has_length: int64 length = 2"),
    "TensorProto": (
        "DataType dtype = 1",
        "TensorShapeProto tensor_shape = 2",
        "int32 version_number = 3",
        "bytes tensor_content = 4",
        "repeated float float_val = 5",
        "repeated double double_val = 6",
        "repeated int32 int_val = 7",
        "repeated bytes string_val = 8",
        "repeated int64 int64_val = 10",
        "repeated bool bool_val = 11",
        "repeated int32 half_val = 13",
    ),
    "AttrValue": (
        "oneof value: AttrValue.ListValue list = 1",
        "oneof value: bytes s = 2",
        "oneof value: int64 i = 3",
        "oneof value: float f = 4",
        "oneof value: bool b = 5",
        "oneof value: DataType type = 6",
        "oneof value: TensorShapeProto shape = 7",
        "oneof value: TensorProto tensor = 8",
    ),
    "AttrValue.ListValue": (
        "repeated bytes s = 2",
        "repeated int64 i = 3",
        "repeated float f = 4",
        "repeated bool b = 5",
        "repeated DataType type = 6",
        "repeated TensorShapeProto shape = 7",
        "repeated TensorProto tensor = 8",
    ),
    "NodeDef": (
        "string name = 1",
        "string op = 2",
        "repeated string input = 3",
        "string device = 4",
        "repeated NodeDef.AttrEntry attr = 5",
    ),
    "NodeDef.AttrEntry": ("string key = 1", "AttrValue value = 2"),
    "GraphDef": ("repeated NodeDef node = 1", "VersionDef versions = 4"),
    "CheckpointState": (
        "string model_checkpoint_path = 1",
        "repeated string all_model_checkpoint_paths = 2",
        "repeated double all_model_checkpoint_timestamps = 3",
        "double last_preserved_timestamp = 4",
    ),
}

_MAP_ENTRIES = {"NodeDef.AttrEntry"}
"""How protobuf declares `map<string, AttrValue> attr`: a repeated message of this kind."""

_PACKAGE = "tensorflow"
_FIELD = re.compile(
    r"(?:oneof (?P<oneof>\w+): )?(?P<repeated>repeated )?"
    r"(?P<type>[\w.]+) (?P<name>\w+) = (?P<number>\d+)"
)
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "fixed32": _Field.TYPE_FIXED32,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


def _add_field(message: Any, declaration: str) -> None:
    """Add to a message's descriptor the field that a line of `_MESSAGES` declares."""
    match = _FIELD.fullmatch(declaration)
    if match is None:
        raise ValueError(f"not a field declaration: {declaration!r}")
    field = message.field.add(
        name=match["name"],
        number=int(match["number"]),
        label=_Field.LABEL_REPEATED if match["repeated"] else _Field.LABEL_OPTIONAL,
    )
    if match["type"] in _SCALARS:
        field.type = _SCALARS[match["type"]]
    else:
        field.type = _Field.TYPE_ENUM if match["type"] in _ENUMS else _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{match['type']}"
    if match["oneof"]:
        if not message.oneof_decl:
            message.oneof_decl.add(name=match["oneof"])
        field.oneof_index = 0


def _build_pool() -> descriptor_pool.DescriptorPool:
    """Describe all the messages as one file in a new pool."""
    file = descriptor_pb2.FileDescriptorProto(name="tensorflow.proto", package=_PACKAGE, syntax="proto3")
    messages: dict[str, Any] = {}
    for path, fields in _MESSAGES.items():
        outer, _, name = path.rpartition(".")
        message = messages[outer].nested_type.add(name=name) if outer else file.message_type.add(name=name)
        message.options.map_entry = path in _MAP_ENTRIES
        for declaration in fields:
            _add_field(message, declaration)
        messages[path] = message
    for path, values in _ENUMS.items():
        outer, _, name = path.rpartition(".")
        enum = (messages[outer] if outer else file).enum_type.add(name=name)
        for value_name, number in values.items():
            enum.value.add(name=value_name, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _build_pool()


def _message_class(name: str) -> Any:
    """Make the Python class of a message."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


BundleHeaderProto = _message_class("BundleHeaderProto")
BundleEntryProto = _message_class("BundleEntryProto")
TensorShapeProto = _message_class("TensorShapeProto")
TensorSliceProto = _message_class("TensorSliceProto")
TensorProto = _message_class("TensorProto")
AttrValue = _message_class("AttrValue")
NodeDef = _message_class("NodeDef")
GraphDef = _message_class("GraphDef")
CheckpointState = _message_class("CheckpointState")


def shape_of(message: Any, dtype: np.dtype) -> tuple[int, ...]:
    """Read a shape, refusing what no array can have before any memory is asked for.

    Args:
        message: A TensorShapeProto.
        dtype: The type of the elements.

    Returns:
        Row-major extents; `()` for a scalar.

    Raises:
        ValueError: The rank is unknown or above 32, a dimension is negative, or the dimensions that are not
            zero make more than 2**63 - 1 bytes.
    """
    if message.unknown_rank:
        raise ValueError("the shape is unknown")
    if len(message.dim) > MAX_RANK:
        raise ValueError(f"the shape has {len(message.dim)} dimensions, more than {MAX_RANK}")
    shape = tuple(dim.size for dim in message.dim)
    if any(size < 0 for size in shape):
        raise ValueError(f"the shape {shape} has a negative dimension")
    if math.prod(size for size in shape if size) * dtype.itemsize >= 1 << 63:
        raise ValueError(f"the shape {shape} overflows")
    return shape


_FULL_EXTENT = -1
"""Length that stands for a whole dimension (core/framework/tensor_slice.h, kFullExtent)."""


def slice_extents(message: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Read which part of a partitioned variable a slice is.

    Args:
        message: A TensorSliceProto.
        shape: The shape of the whole variable.

    Returns:
        Start and stop in each dimension.

    Raises:
        ValueError: The slice has another rank or reaches outside the shape.
    """
    if len(message.extent) != len(shape):
        raise ValueError(f"a slice has {len(message.extent)} dimensions, not {len(shape)}")
    extents = []
    for extent, size in zip(message.extent, shape, strict=True):
        length = extent.length if extent.HasField("length") else size
        if not 0 <= extent.start <= extent.start + length <= size:
            raise ValueError(f"a slice of {length} from {extent.start} reaches outside the shape {shape}")
        extents.append((extent.start, extent.start + length))
    return tuple(extents)


def slice_key(name: bytes, message: Any) -> bytes:
    """Make the key under which a checkpoint's index holds a slice of a partitioned variable.

    The key is written in ordered code (core/lib/strings/ordered_code.cc): the number 0, the name, the number
    of dimensions, and start and length of each (EncodeTensorNameSlice in core/util/
    saved_tensor_slice_util.cc).

    Args:
        name: The variable's name in UTF-8.
        message: A TensorSliceProto.

    Returns:
        The key; its first byte is zero.
    """
    # Ordered code escapes the byte 0xff as well, but UTF-8 never has it.
    escaped = name.replace(b"\0", b"\0\xff")
    rank = bytes([1, len(message.extent)]) if message.extent else b"\0"
    key = b"\0" + escaped + b"\0\1" + rank
    for extent in message.extent:
        key += _ordered_signed(extent.start)
        key += _ordered_signed(extent.length if extent.HasField("length") else _FULL_EXTENT)
    return key


def variable_of_slice(key: bytes) -> str:
    """Find the variable that a slice belongs to.

    Args:
        key: A key that starts with a zero byte, as `slice_key` makes it.

    Returns:
        The variable's name; for a key that is not in ordered code, what stands in its place.

    Raises:
        UnicodeDecodeError: The name is not UTF-8.
    """
    return key[1:].partition(b"\0\1")[0].replace(b"\0\xff", b"\0").decode()


def _ordered_signed(number: int) -> bytes:
    """Write a signed number in ordered code.

    A number of n bytes is n ones, a zero and 7n - 1 bits; a negative number is the complement of all of that.
    """
    magnitude = ~number if number < 0 else number
    length = magnitude.bit_length() // 7 + 1
    code = magnitude | ((1 << length) - 1) << 7 * length
    if number < 0:
        code ^= (1 << 8 * length) - 1
    return code.to_bytes(length, "big")
