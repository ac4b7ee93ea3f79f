"""Frozen TensorFlow graphs (.pb): a GraphDef whose variables have become constants."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
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
from converter.formats.tensorflow.find_proto_fields import BYTES, ProtoError, ProtoScanner
from converter.formats.tensorflow.graph_def import (
    MAX_FIELDS,
    MOST_BYTES,
    Constant,
    GraphNodes,
    NameTwiceError,
)
from converter.formats.tensorflow.protos import TensorProto
from converter.same_bits import same_bits

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


def find_meta_graph(scanner: ProtoScanner) -> tuple[int, int]:
    """Find the GraphDef in a MetaGraphDef (graph_def, field 2): its start and stop.

    Raises:
        ProtoError: The bytes are not a MetaGraphDef with a graph.
    """
    for field in scanner.fields(0, len(scanner.data)):
        if field.number == 2 and field.wire_type == BYTES:
            return field.start, field.stop
    raise ProtoError("a MetaGraphDef without a graph")


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
        self.in_meta_graph = find_graph is find_meta_graph
        self._in_saved_model = find_graph is not None and not self.in_meta_graph
        content = read_whole(path, MOST_BYTES, "it has over 2 GiB, more than a graph can have")
        self._scanner: ProtoScanner | None = ProtoScanner(content, MAX_FIELDS)
        nodes = GraphNodes()
        try:
            start, stop = find_graph(self._scanner) if find_graph else (0, len(content))
            nodes.scan(self._scanner, start, stop)
        except NameTwiceError as error:
            raise SourceError(path, "the graph has this name twice", tensor=error.name[:200]) from None
        except ProtoError as error:
            raise self._damaged(nodes) from error
        self._refuse_quantised(nodes)
        variables = nodes.frozen_variables()
        if not variables or (self.in_meta_graph and any(nodes.ops[op] for op in _VARIABLE_OPS)):
            raise self._without_weights(nodes)
        info = {name: self._describe(name, nodes.constants[name]) for name in chain(*variables.values())}
        variables = {
            variable: names
            for variable, names in variables.items()
            if variable in nodes.read or any(info[name].shape for name in names)
        }
        check_claims(path, {name: info[name] for name in chain(*variables.values())}, len(content))
        self._constants = {variable: nodes.constants[names[0]] for variable, names in variables.items()}
        self.info = {variable: info[names[0]] for variable, names in variables.items()}
        for names in variables.values():
            self._refuse_ambiguous(
                names, [nodes.constants[name] for name in names], [info[name] for name in names]
            )
        self._refuse_folded(nodes)
        self._warn_of_fake_quantisation(nodes)

    def _damaged(self, nodes: GraphNodes) -> SourceError:
        if self.in_meta_graph:
            return self._without_weights(nodes)
        if self._in_saved_model:
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

    def _without_weights(self, nodes: GraphNodes) -> SourceError:
        """Explain why no constant is a weight."""
        if self.in_meta_graph:
            return SourceError(
                self.path,
                "this is a graph without weights, and no checkpoint of its name is beside it",
                next_step=f"Put {self.path.stem}.ckpt-STEP.index and its .data file beside it",
            )
        if variables := sum(nodes.ops[op] for op in _VARIABLE_OPS):
            return SourceError(
                self.path,
                f"this is a graph without weights ({counted(variables, 'variable')}, not frozen)",
                next_step="Copy the whole SavedModel, with its folder variables/"
                if self._in_saved_model
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
            what = _list_operations(nodes.quantised)
            raise SourceError(
                self.path,
                f"its weights are quantised to integers (operations: {what}); the float32 weights are gone",
                next_step="Give the checkpoint, or the graph before its weights were quantised",
            )

    def _refuse_ambiguous(
        self, names: Sequence[str], constants: Sequence[Constant], infos: Sequence[TensorInfo]
    ) -> None:
        """Refuse a variable that stands in several constants whose bits differ."""
        if len(names) == 1:
            return
        first, *others = map(self._decode, names, constants, infos)
        for name, array in zip(names[1:], others, strict=True):
            if not same_bits(first, array):
                raise SourceError(
                    self.path,
                    f"its constants {names[0][:200]!r} and {name[:200]!r} stand for one variable and differ",
                    next_step="Give the checkpoint, or freeze it again",
                )

    def _warn_of_fake_quantisation(self, nodes: GraphNodes) -> None:
        """Warn of a graph that computes with rounded weights, which the constants are not."""
        if not nodes.fake_quantised:
            return
        what = _list_operations(nodes.fake_quantised)
        note = (
            f"this graph rounds weights or activations to few values, as integers do (operations: {what}); "
            "the weights are taken from before this rounding, and the port computes without it"
        )
        logging.getLogger(__name__).warning("%s: %s.", self.path, note)
        self.notes = (note,)

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
        return self._decode(name, self._constants[name], self.info[name])

    def _decode(self, name: str, constant: Constant, info: TensorInfo) -> NDArray[Any]:
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


def _list_operations(counts: Mapping[str, int]) -> str:
    """List the first operations of a message, each with its count."""
    return ", ".join(f"{count} of {op[:60]}" for op, count in sorted(counts.items())[:3])
