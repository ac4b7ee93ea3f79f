"""Frozen TensorFlow graphs (.pb): a GraphDef whose variables have become constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from converter.counts import counted
from converter.errors import SourceError
from converter.formats.limits import MAX_RANK, check_claims, read_whole
from converter.formats.source import DOWNLOAD_AGAIN, Naming, TensorInfo, TensorSource
from converter.formats.tensorflow.data_types import numpy_dtype
from converter.formats.tensorflow.find_proto_fields import ProtoError, ProtoScanner
from converter.formats.tensorflow.graph_def import (
    MAX_FIELDS,
    MOST_BYTES,
    Constant,
    GraphNodes,
    NameTwiceError,
)
from converter.formats.tensorflow.protos import TensorProto

_MOST_REPEATED_BYTES = 2**26  # of a tensor stored as one value and a shape, which can claim any size
_VARIABLE_OPS = ("Variable", "VariableV2", "VarHandleOp")
# The sums that replace a BatchNorm: tensorflow/python/tools/optimize_for_inference_lib.py and
# tensorflow/tools/graph_transforms/fold_old_batch_norms.cc.
_OFFSETS = ("_bn_offset", "_bias_offset")
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
    or `NAME/Read/ReadVariableOp` for a resource variable). Transforms and other ways to freeze do without
    that Identity, so a Const with the last name of a variable of tf-slim is one as well. Any other Const is a
    number of the graph's arithmetic, not a weight.

    Args:
        path: The file.
        find_graph: Finds the start and the stop of the GraphDef in the file; None if it is the whole file.

    Raises:
        SourceError: The file is not a GraphDef, has no frozen variables, has a name twice, has quantised
            weights or folded BatchNorms, or has a constant whose dtype, shape and size disagree.
    """

    format = "TensorFlow frozen graph"
    naming: Naming = "tensorflow"

    def __init__(
        self, path: Path, find_graph: Callable[[ProtoScanner], tuple[int, int]] | None = None
    ) -> None:
        self.path = path
        self.files = (path,)
        content = read_whole(path, MOST_BYTES, "it has over 2 GiB, more than a graph can have")
        self._scanner: ProtoScanner | None = ProtoScanner(content, MAX_FIELDS)
        nodes = GraphNodes()
        try:
            start, stop = find_graph(self._scanner) if find_graph else (0, len(content))
            nodes.scan(self._scanner, start, stop)
            self._constants = nodes.frozen_variables()
        except NameTwiceError as error:
            raise SourceError(path, "the graph has this name twice", tensor=error.name[:200]) from None
        except ProtoError as error:
            raise self._damaged(nodes, in_saved_model=find_graph is not None) from error
        self._refuse_quantised(nodes)
        if not self._constants:
            raise self._without_weights(nodes, in_saved_model=find_graph is not None)
        info = {name: self._describe(name, constant) for name, constant in self._constants.items()}
        self.info = {name: tensor for name, tensor in info.items() if tensor.shape or name in nodes.read}
        check_claims(path, self.info, len(content))
        self._refuse_folded(nodes)

    def _damaged(self, nodes: GraphNodes, *, in_saved_model: bool) -> SourceError:
        if in_saved_model:
            problem = "the graph of this SavedModel is damaged or cut off"
            return SourceError(self.path, problem, next_step=DOWNLOAD_AGAIN)
        if not any(nodes.ops):
            return SourceError(
                self.path,
                "this is not a TensorFlow graph, nor a file of any other known format",
                next_step="Download or copy it again, or give a checkpoint, .pb, .h5, .pt or .safetensors",
            )
        problem = f"the graph is damaged or cut off, after {counted(nodes.ops.total(), 'node')}"
        return SourceError(self.path, problem, next_step=DOWNLOAD_AGAIN)

    def _without_weights(self, nodes: GraphNodes, *, in_saved_model: bool) -> SourceError:
        """Explain why no constant is a weight."""
        if variables := sum(nodes.ops[op] for op in _VARIABLE_OPS):
            return SourceError(
                self.path,
                f"this is a graph without weights ({counted(variables, 'variable')}, not frozen)",
                next_step="Copy the whole SavedModel, with its folder variables/"
                if in_saved_model
                else "Give the checkpoint beside it, or a graph frozen by freeze_graph",
            )
        if nodes.ops["Conv2D"] and nodes.constants:
            folded = any(name.endswith(_OFFSETS) for name in nodes.constants)
            how = "BatchNorms are folded into its convolutions" if folded else "Freezing has lost the names"
            longest = max(nodes.constants, key=lambda name: nodes.constants[name].size)
            return SourceError(
                self.path,
                "none of its constants is named after a variable of this network; the largest is called "
                f"{longest[:200]!r}. {how}",
                next_step=f"Give the checkpoint. {self._audit_instead()}",
            )
        return SourceError(
            self.path,
            f"there are no weights in it (a graph of {counted(nodes.ops.total(), 'node')}, without a frozen "
            "variable)",
            next_step="Give a checkpoint, a frozen .pb, .h5, .pt or .safetensors",
        )

    def _refuse_quantised(self, nodes: GraphNodes) -> None:
        """Refuse weights that are stored as integers."""
        if nodes.quantised:
            what = ", ".join(f"{count} of {op[:60]}" for op, count in sorted(nodes.quantised.items())[:3])
            raise SourceError(
                self.path,
                f"its weights are quantised to integers (operations: {what}); the float32 weights are gone",
                next_step="Give the checkpoint, or the graph before its weights were quantised",
            )

    def _refuse_folded(self, nodes: GraphNodes) -> None:
        """Refuse a graph whose BatchNorms were folded into its convolutions."""
        kernels = [
            name.removesuffix("/weights")
            for name, tensor in self.info.items()
            if name.endswith("/weights") and len(tensor.shape) == 4
        ]
        alone = [
            scope
            for scope in kernels
            if not {f"{scope}/biases", f"{scope}/BatchNorm/moving_variance"} & self.info.keys()
        ]
        offsets = [name for name in nodes.constants if name.endswith(_OFFSETS)]
        if offsets or 2 * len(alone) > len(kernels):
            raise SourceError(
                self.path,
                f"its BatchNorms are folded into the convolutions ({max(len(offsets), len(alone))} of "
                f"{nodes.ops['Conv2D']}), as graph transforms do, and cannot be taken apart again",
                next_step="Give the checkpoint, or the graph before the transform"
                + (f". {self._audit_instead()}" if nodes.has_folded_batch_norms else ""),
            )

    def _audit_instead(self) -> str:
        return f"`facenet-port audit {self.path} --against CHECKPOINT` judges this graph as it is"

    def _describe(self, name: str, constant: Constant) -> TensorInfo:
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

    def _parse(self, name: str, constant: Constant) -> Any:
        """Parse a constant's TensorProto without its tensor_content, which is large and never copied."""
        try:
            return TensorProto.FromString(constant.fields)
        except DecodeError as error:
            raise self._misfit(name, "its description is damaged") from error

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
