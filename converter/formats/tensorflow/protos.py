"""The protobuf messages of TensorFlow that a checkpoint and a frozen graph consist of.

The messages are declared in `_MESSAGES` and built on import, in a descriptor pool of their own. So no
generated code ties the project to one protobuf release, and TensorFlow may define messages of the same names
in the same process. Each line of `_MESSAGES` declares a field as TensorFlow's .proto file does, with the same
number and type. Fields that are not needed are left out; protobuf keeps their contents as unknown fields.

Sources: TensorFlow's core/protobuf/tensor_bundle.proto and, in core/framework, versions.proto, types.proto,
tensor_shape.proto, tensor_slice.proto, tensor.proto, attr_value.proto, node_def.proto and graph.proto; for
CheckpointState, python/training/checkpoint_state.proto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from converter.formats.tensorflow.data_types import DataType

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
"""Messages that declare a map, such as `map<string, AttrValue> attr`, as protobuf does internally."""

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
