"""Frozen TensorFlow graphs (.pb): a GraphDef whose variables have become constants."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from converter.errors import SourceError
from converter.formats.protos import GraphDef, numpy_dtype
from converter.tensor_source import Naming, TensorInfo, TensorSource

_MOST_BYTES = 2**31 - 1  # protobuf's own limit for a message
_MOST_REPEATED_BYTES = 2**26  # for a tensor spelled as one value and a shape, which costs a file nothing
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
        if path.stat().st_size > _MOST_BYTES:
            raise SourceError(path, "over 2 GiB, which no GraphDef can be")
        graph = GraphDef()
        try:
            graph.ParseFromString(path.read_bytes())
        except DecodeError as error:
            raise SourceError(
                path,
                "not a readable file of any known format (as a GraphDef it does not parse)",
                next_step="Download or copy it again, or give a checkpoint, .pb, .h5, .pt or .safetensors",
            ) from error
        self._constants = self._frozen_variables(graph)
        self.info = {name: self._describe(name, proto) for name, proto in self._constants.items()}

    def _frozen_variables(self, graph: Any) -> dict[str, Any]:
        read: set[str] = set()
        constants: dict[str, Any] = {}
        variables = 0
        for node in graph.node:
            if node.op == "Identity" and len(node.input) > 0:
                source = node.input[0].removesuffix(":0")
                if node.name in (f"{source}/read", f"{source}/Read/ReadVariableOp"):
                    read.add(source)
            elif node.op == "Const":
                if node.name in constants:
                    raise SourceError(self.path, "there twice", tensor=node.name)
                constants[node.name] = node.attr["value"].tensor
            variables += node.op in _VARIABLE_OPS
        frozen = {name: proto for name, proto in constants.items() if name in read}
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
            f"no weights in it (as a GraphDef it has {len(graph.node)} nodes and no frozen variable)",
            next_step="Give a checkpoint, a frozen .pb, .h5, .pt or .safetensors",
        )

    def _describe(self, name: str, proto: Any) -> TensorInfo:
        shape = tuple(dim.size for dim in proto.tensor_shape.dim)
        try:
            dtype = numpy_dtype(proto.dtype)
        except ValueError as error:
            raise SourceError(self.path, str(error), tensor=name) from error
        if dtype.name not in _VALUE_FIELDS:
            raise SourceError(self.path, f"{dtype} is no dtype of a weight", tensor=name)
        if proto.tensor_shape.unknown_rank or any(extent < 0 for extent in shape):
            raise SourceError(self.path, f"a constant of unknown shape {shape}", tensor=name)
        wanted = math.prod(shape) * dtype.itemsize
        if proto.tensor_content:
            fits = len(proto.tensor_content) == wanted
        else:
            values = len(getattr(proto, _VALUE_FIELDS[dtype.name]))
            fits = values <= math.prod(shape) and (
                values == math.prod(shape) or wanted <= _MOST_REPEATED_BYTES
            )
        if not fits:
            raise SourceError(
                self.path,
                f"its data does not have the size of {dtype} {shape}",
                tensor=name,
                next_step="Download or copy the file again",
            )
        return TensorInfo(dtype, shape)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Decode one constant.

        Raises:
            KeyError: There is no frozen variable of this name.
        """
        proto, info = self._constants[name], self.info[name]
        if proto.tensor_content:
            return np.frombuffer(proto.tensor_content, info.dtype).reshape(info.shape)
        values = getattr(proto, _VALUE_FIELDS[info.dtype.name])
        if info.dtype.name in ("float16", "bfloat16"):
            listed = np.array(values, np.uint16).view(info.dtype)  # half_val holds the bits
        else:
            listed = np.array(values, info.dtype)
        # TensorFlow lets the last value stand for all that follow, and an empty list for zeros.
        array = np.full(info.size, listed[-1] if listed.size else 0, info.dtype)
        array[: listed.size] = listed
        return array.reshape(info.shape)

    def close(self) -> None:
        """Drop the graph; arrays that were read stay valid."""
        self._constants = {}
