"""A checkpoint's own graph, reduced to inference and run without other changes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from facenet_tf import import_tensorflow
from facenet_tf.find_activations import AVERAGE_POOL, find_activations, find_logits
from facenet_tf.graph_interface import NORMALISATION, name_interface
from facenet_tf.graph_nodes import REF_VARIABLES, VARIABLES, GraphError, GraphNodes, rename_nodes
from facenet_tf.saved_model import read_saved_model
from facenet_tf.session import check_activations, check_images, legacy_graph, open_session
from facenet_tf.variables import OLD_BOTTLENECK, SCOPE, STATISTICS

tf = import_tensorflow()
tf1 = tf.compat.v1

LEAVES = frozenset({"weights", "biases", "beta", "gamma", "moving_mean", "moving_variance"})
"""The last parts of slim's variable names in this network."""

AVERAGE = "ExponentialMovingAverage"

# core/common_runtime/constant_folding.cc adds the last part.
_READ_OR_FOLDED = re.compile(r"(/read|/Read/ReadVariableOp)?(/_\d+__cf__\d+)?$")

FEEDS: Mapping[str, tuple[Any, Sequence[int | None]]] = {
    "input": (tf.float32, (None, None, None, 3)),
    "phase_train": (tf.bool, ()),
    "batch_size": (tf.int32, ()),
}
"""The nodes to feed; the reduced graph does not compute them."""


GraphKind = Literal["meta", "frozen", "frozen_meta", "saved_model"]


def read_graph(
    path: Path, kind: GraphKind, weights: Literal["variable", "average"] = "variable", scope: str = ""
) -> Any:
    """Read a whole graph, with its training, as a GraphDef under the network's names.

    Args:
        path: The file.
        kind: A `.meta`, a frozen `.pb`, a `.meta` of a frozen graph or the `saved_model.pb` of a SavedModel.
        weights: "average" gives constants that are moving averages the names of their variables.
        scope: The prefix of the network's names, such as `resnet/`, which is taken off.

    Raises:
        GraphError: The file is damaged or another one, or TensorFlow does not load it.
    """
    if kind in ("meta", "frozen_meta"):
        graph_def = _parse(path, tf1.MetaGraphDef()).graph_def
    else:
        graph_def = _parse(path, tf1.GraphDef()) if kind == "frozen" else read_saved_model(path)
    _take_off(scope, graph_def)
    if not any(node.op in VARIABLES for node in graph_def.node):
        if weights == "average":
            _name_averages_as_variables(graph_def)
        _name_folded_variables(graph_def)
    return graph_def


class OwnGraph:
    """A context manager: a checkpoint's own graph with its weights, in inference.

    Open one with `from_checkpoint` or `from_frozen`.

    Attributes:
        path: The graph's file.
        activations: The names that `run` takes, in the order of evaluation: the stages of
            `facenet_tf.graph.STAGES` and the 132 convolutions.
        has_logits: Whether the graph has a classification head.
        is_normalised: Whether the graph itself scales its embeddings to length one.
        operations: Every kind of operation in the graph.
        tensors: Variable name to the array that TensorFlow's reader returned.
        pool_size: Height and width of the last average pool, or None if the graph does not fix them.
    """

    def __init__(
        self,
        path: Path,
        graph_def: Any,
        logits: str | None,
        tensors: Mapping[str, NDArray[Any]],
        ops: Any = None,
    ) -> None:
        nodes = GraphNodes(path, graph_def)
        self.path = path
        self.tensors = tensors
        self.has_logits = logits is not None
        self.is_normalised = not any(name.startswith(f"{NORMALISATION}/") for name in nodes.by_name)
        self.operations = frozenset(node.op for node in graph_def.node)
        ends = find_activations(nodes, logits)
        self.activations = tuple(ends)
        pool = nodes.by_name[ends[AVERAGE_POOL]]
        self.pool_size = tuple(pool.attr["ksize"].list.i[1:3]) if pool.op == "AvgPool" else None
        with legacy_graph() as graph:
            try:
                tf.graph_util.import_graph_def(graph_def, name="", producer_op_list=ops)
            except ValueError as error:
                raise GraphError(path, f"TensorFlow does not import its graph: {error}") from error
            self._tensors = {name: graph.get_tensor_by_name(f"{end}:0") for name, end in ends.items()}
            self._feeds = {f: graph.get_tensor_by_name(f"{f}:0") for f in FEEDS if f in nodes.by_name}
            self._session = open_session(graph)
            self._assign({name: nodes.by_name[name].op for name in tensors})

    def _assign(self, ops: Mapping[str, str]) -> None:
        """Assign the values of the graph's variables; constants already have values."""
        assignments, feed = [], {}
        for name, op in ops.items():
            if op not in VARIABLES:
                continue
            variable = self._session.graph.get_tensor_by_name(f"{name}:0")
            value = tf1.placeholder(self.tensors[name].dtype, self.tensors[name].shape)
            feed[value] = self.tensors[name]
            if op in REF_VARIABLES:
                assignments.append(tf.raw_ops.Assign(ref=variable, value=value).op)
            else:
                assignments.append(tf.raw_ops.AssignVariableOp(resource=variable, value=value))
        self._session.run(assignments, feed)

    @classmethod
    def from_checkpoint(
        cls,
        meta: str | Path,
        prefix: str | Path,
        weights: Literal["variable", "average"] = "variable",
        scope: str = "",
    ) -> Self:
        """Open the graph of a `.meta` file with the values of a checkpoint.

        Args:
            meta: The MetaGraphDef file.
            prefix: The checkpoint: its `.index` file without the suffix.
            weights: Whether each variable gets its own value or its exponential moving average.
            scope: The prefix of the network's names, such as `resnet/`, which is taken off.

        Raises:
            GraphError: The file is not a MetaGraphDef or holds another network, or the checkpoint lacks a
                variable or has it in another shape.
        """
        path = Path(meta)
        meta_graph = _parse(path, tf1.MetaGraphDef())
        _take_off(scope, meta_graph.graph_def)
        graph_def, logits = _cut_to_inference(path, meta_graph.graph_def)
        shapes = {n.name: n.attr["shape"].shape for n in graph_def.node if n.op in VARIABLES}
        tensors = _read_checkpoint(Path(prefix), shapes, weights, scope)
        return cls(path, graph_def, logits, tensors, meta_graph.meta_info_def.stripped_op_list)

    @classmethod
    def from_frozen(
        cls,
        pb: str | Path,
        weights: Literal["variable", "average"] = "variable",
        scope: str = "",
        kind: GraphKind = "frozen",
    ) -> Self:
        """Open a frozen graph, whose variables have become constants.

        Args:
            pb: The file.
            weights: "average" opens a graph that computes with the averages, which are its constants.
            scope: As in `from_checkpoint`.
            kind: "frozen" or "frozen_meta", as in `read_graph`.

        Raises:
            GraphError: The file is of another kind, holds another network, or holds no weights.
        """
        path = Path(pb)
        return cls._from_constants(path, read_graph(path, kind, weights, scope))

    @classmethod
    def _from_constants(cls, path: Path, graph_def: Any) -> Self:
        """Open a graph whose variables have become constants."""
        graph_def, logits = _cut_to_inference(path, graph_def)
        variables = [node.name for node in graph_def.node if node.op in VARIABLES]
        if variables:
            raise GraphError(path, f"the graph is not frozen: {variables[0]!r} is a variable without a value")
        roots = (f"{SCOPE}/", f"{OLD_BOTTLENECK}/", "Logits/")
        tensors = {
            node.name: tf.make_ndarray(node.attr["value"].tensor)
            for node in graph_def.node
            if node.op == "Const" and node.name.startswith(roots) and node.name.rpartition("/")[2] in LEAVES
        }
        return cls(path, graph_def, logits, tensors)

    @classmethod
    def from_saved_model(
        cls,
        path: str | Path,
        prefix: str | Path | None,
        weights: Literal["variable", "average"] = "variable",
        scope: str = "",
    ) -> Self:
        """Open the graph of a SavedModel.

        Args:
            path: The saved_model.pb.
            prefix: Its checkpoint `variables/variables`; None if its weights are constants.
            weights: As in `from_checkpoint`; of constants, as in `from_frozen`.
            scope: As in `from_checkpoint`.

        Raises:
            GraphError: The file is not a SavedModel or holds another network, or TensorFlow does not load it.
        """
        path = Path(path)
        graph_def = read_graph(path, "saved_model", weights, scope)
        if prefix is None or not any(node.op in VARIABLES for node in graph_def.node):
            return cls._from_constants(path, graph_def)
        graph_def, logits = _cut_to_inference(path, graph_def)
        shapes = {n.name: n.attr["shape"].shape for n in graph_def.node if n.op in VARIABLES}
        return cls(path, graph_def, logits, _read_checkpoint(Path(prefix), shapes, weights, scope))

    def supports(self, height: int, width: int) -> bool:
        """Return whether the graph takes this image size: a fixed average pool must cover the whole map."""
        return self.pool_size in (None, (_map_size(height), _map_size(width)))

    def run(self, images: NDArray[Any], activations: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run the graph on a batch, `phase_train` off.

        Args:
            images: Standardised pixels (N, H, W, 3), float32; H and W at least 75.
            activations: Activations to return; None for all.

        Returns:
            Activation name to array, NHWC.

        Raises:
            ValueError: The images have a wrong shape or an unsupported size, or an activation does not exist.
            GraphError: TensorFlow does not run the graph.
        """
        check_images(images)
        if not self.supports(*images.shape[1:3]):
            raise ValueError(
                f"{self.path}: the average pool is fixed to {self.pool_size}, and images of "
                f"{images.shape[1:3]} give {tuple(map(_map_size, images.shape[1:3]))}."
            )
        names = self.activations if activations is None else tuple(activations)
        check_activations(names, self.activations)
        feeds = {"input": images, "phase_train": False, "batch_size": len(images)}
        try:
            values: dict[str, NDArray[Any]] = self._session.run(
                {name: self._tensors[name] for name in names},
                {tensor: feeds[name] for name, tensor in self._feeds.items()},
            )
        except tf.errors.InvalidArgumentError as error:
            first = str(error.message).strip().splitlines()[0].removesuffix(".")
            raise GraphError(self.path, f"TensorFlow does not run it: {first}") from error
        if AVERAGE_POOL in values:
            values[AVERAGE_POOL] = values[AVERAGE_POOL].reshape(len(images), 1, 1, -1)
        return values

    def close(self) -> None:
        """Release the session."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _map_size(side: int) -> int:
    """Compute the side of the last map, after five strided and two plain 3x3 windows without padding."""
    for stride in (2, 1, 2, 1, 2, 2, 2):
        side = (side - 3) // stride + 1
    return side


def _cut_to_inference(path: Path, graph_def: Any) -> tuple[Any, str | None]:
    """Reduce a graph to the ancestors of the embeddings and logits, with placeholders for the feeds.

    Returns:
        The GraphDef, and the node of the logits, or None.
    """
    name_interface(path, graph_def)
    nodes = GraphNodes(path, graph_def)
    logits = find_logits(nodes, FEEDS)
    outputs = ["embeddings"] if logits is None else ["embeddings", logits]
    kept = nodes.ancestors(outputs, FEEDS)
    result = tf1.GraphDef()
    result.versions.CopyFrom(graph_def.versions)
    for name, node in nodes.by_name.items():
        if name not in kept:
            continue
        copy = result.node.add()
        if name in FEEDS:
            dtype, shape = FEEDS[name]
            copy.name, copy.op = name, "Placeholder"
            copy.attr["dtype"].type = dtype.as_datatype_enum
            copy.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())
            continue
        copy.CopyFrom(node)
        copy.device = ""
        # The shapes in the file are those of the queue's images, not of the fed images.
        copy.attr.pop("_output_shapes", None)
        colocated = [c for c in copy.attr["_class"].list.s if c.decode().removeprefix("loc:@") in kept]
        if colocated:
            copy.attr["_class"].list.s[:] = colocated
        else:
            del copy.attr["_class"]
    return result, logits


def _name_folded_variables(graph_def: Any) -> None:
    """Give a constant its variable's name, if a transform left it under that of the node that read it."""
    nodes = {node.name: node for node in graph_def.node}
    names = {name: _READ_OR_FOLDED.sub("", name) for name, node in nodes.items() if node.op == "Const"}
    rename_nodes(
        graph_def,
        {
            name: variable
            for name, variable in names.items()
            if variable not in nodes and variable.rpartition("/")[2] in LEAVES
        },
    )


def _take_off(scope: str, graph_def: Any) -> None:
    """Take a prefix off the names of all nodes; one whose shorter name exists keeps its name."""
    if scope:
        names = {node.name for node in graph_def.node}
        rename_nodes(
            graph_def,
            {
                name: name.removeprefix(scope)
                for name in names
                if name.startswith(scope) and name.removeprefix(scope) not in names
            },
        )


def _name_averages_as_variables(graph_def: Any) -> None:
    """Give constants that are moving averages the names of their variables, which the graph does not have."""
    names = {node.name for node in graph_def.node}
    averages = {
        node.name for node in graph_def.node if node.op == "Const" and node.name.endswith(f"/{AVERAGE}")
    }
    variables = {name: name.removesuffix(f"/{AVERAGE}") for name in averages}
    rename_nodes(graph_def, {name: variable for name, variable in variables.items() if variable not in names})


def _parse(path: Path, message: Any) -> Any:
    """Fill a protobuf message from a file."""
    try:
        message.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise GraphError(path, "the file is damaged, cut off or not a graph") from error
    return message


def _read_checkpoint(
    prefix: Path, shapes: Mapping[str, Any], weights: str, scope: str
) -> dict[str, NDArray[Any]]:
    """Read variables or their averages with TensorFlow's reader.

    If no BatchNorm statistic has an average, the statistics are read, which are moving averages already.
    """
    try:
        reader = tf1.train.NewCheckpointReader(os.fsencode(prefix))
        averaged = {name for name in shapes if weights == "average"}
        statistics = {name for name in averaged if name.endswith(STATISTICS)}
        if not any(reader.has_tensor(f"{scope}{name}/{AVERAGE}") for name in statistics):
            averaged -= statistics
        stored = {name: f"{scope}{name}/{AVERAGE}" if name in averaged else scope + name for name in shapes}
        missing = [name for name in stored.values() if not reader.has_tensor(name)]
        if missing:
            raise GraphError(prefix, f"the checkpoint lacks {', '.join(missing)}")
        tensors = {name: reader.get_tensor(key) for name, key in stored.items()}
    except (tf.errors.OpError, RuntimeError) as error:
        raise GraphError(prefix, f"TensorFlow does not read the checkpoint: {error}") from error
    for name, value in tensors.items():
        expected = tuple(d.size for d in shapes[name].dim)
        if value.shape != expected:
            raise GraphError(prefix, f"{stored[name]} has shape {value.shape}, the graph expects {expected}")
    return tensors
