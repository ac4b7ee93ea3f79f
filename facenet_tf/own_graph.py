"""A checkpoint's own graph, cut down to inference and run as it was written.

Names of operations drifted between releases of slim and mean nothing here. Only the names of variables are
relied on, with those of the published interface (`input`, `phase_train`, `batch_size`, `embeddings`): an activation
is found by walking from the variable that holds a layer's weights to the operation that ends the layer.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from facenet_tf import import_tensorflow
from facenet_tf.graph import STAGES
from facenet_tf.session import check_activations, check_images, legacy_graph, open_session
from facenet_tf.variables import BOTTLENECK, OLD_BOTTLENECK, SCOPE

tf = import_tensorflow()
tf1 = tf.compat.v1

REF_VARIABLES = frozenset({"Variable", "VariableV2"})
VARIABLES = REF_VARIABLES | {"VarHandleOp"}
READS = frozenset({"Identity", "ReadVariableOp"})
ADDS = frozenset({"Add", "AddV2", "BiasAdd"})
CONCATS = frozenset({"Concat", "ConcatV2"})
POOLS = frozenset({"AvgPool", "Mean"})
LAYER_ENDS = CONCATS | POOLS | {"Conv2D", "MatMul", "MaxPool", "Relu"}
"""Operations that no walk inside a layer may cross."""

LEAVES = frozenset({"weights", "biases", "beta", "gamma", "moving_mean", "moving_variance"})
"""The last parts of the variable names that slim gives in this network."""

AVERAGE = "ExponentialMovingAverage"
POOL = f"{SCOPE}/Logits/AvgPool_1a_8x8"
CONVOLUTIONS = 132


class GraphError(ValueError):
    """A file does not hold the graph that was looked for.

    Args:
        path: The file.
        problem: What was not found, a clause without a full stop.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}.")
        self.path = path


def source_of(reference: str) -> str:
    """The node that an input such as `^name` or `name:1` refers to."""
    return reference.removeprefix("^").partition(":")[0]


class Nodes:
    """The nodes of a GraphDef with their edges in both directions."""

    def __init__(self, path: Path, graph_def: Any) -> None:
        self.path = path
        self.by_name: dict[str, Any] = {node.name: node for node in graph_def.node}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in graph_def.node:
            for reference in node.input:
                if not reference.startswith("^"):
                    self.consumers[source_of(reference)].append(node)

    def named(self, name: str) -> Any:
        """The node of this name; GraphError where there is none."""
        if name not in self.by_name:
            raise GraphError(self.path, f"no node {name!r}: not the Inception-ResNet-v1 graph of facenet")
        return self.by_name[name]

    def producer(self, node: Any, index: int) -> Any:
        """The node behind an input, seen through identities."""
        source = self.named(source_of(node.input[index]))
        return self.producer(source, 0) if source.op in READS else source

    def ancestors(self, names: Iterable[str], feeds: Iterable[str]) -> set[str]:
        """The nodes that `names` depend on, control dependencies included, not looking behind `feeds`."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                if name not in feeds:
                    waiting.extend(source_of(reference) for reference in self.named(name).input)
        return found

    def reached(self, start: str, ops: frozenset[str], through: frozenset[str] | None = None) -> list[Any]:
        """The first nodes downstream of `start` whose operation is one of `ops`.

        Args:
            start: Name of the node to walk from.
            ops: Operations to stop at.
            through: Operations that may be crossed; None for all but `LAYER_ENDS`.
        """
        found: dict[str, Any] = {}
        seen = {start}
        waiting = deque([start])
        while waiting:
            for node in self.consumers[waiting.popleft()]:
                if node.op in ops:
                    found[node.name] = node
                elif node.name not in seen and (
                    node.op not in LAYER_ENDS if through is None else node.op in through
                ):
                    seen.add(node.name)
                    waiting.append(node.name)
        return list(found.values())

    def only(self, what: str, start: str, ops: frozenset[str], through: frozenset[str] | None = None) -> Any:
        """The single node that `reached` finds."""
        found = self.reached(start, ops, through)
        if len(found) != 1:
            names = ", ".join(sorted(ops))
            raise GraphError(self.path, f"{what}: {len(found)} operations {names} follow {start!r}, not one")
        return found[0]


FEEDS: Mapping[str, tuple[Any, Sequence[int | None]]] = {
    "input": (tf.float32, (None, None, None, 3)),
    "phase_train": (tf.bool, ()),
    "batch_size": (tf.int32, ()),
}
"""What is fed when the graph runs; whatever computes these nodes is cut away."""


def _logits(nodes: Nodes) -> str | None:
    """Name of the node that ends the classification head, or None where there is no head."""
    if "Logits/weights" not in nodes.by_name:
        return None
    # A whole training graph multiplies by the weights once more, in the gradient; only the forward product
    # takes something that the embeddings depend on, or the embeddings themselves.
    forward = nodes.ancestors(["embeddings"], FEEDS)
    products = {
        node.name
        for node in nodes.reached("Logits/weights", frozenset({"MatMul"}), READS)
        if source_of(node.input[0]) in forward
    }
    nodes.named("Logits/biases")
    sums = [
        node.name
        for node in nodes.reached("Logits/biases", ADDS, READS)
        if any(source_of(reference) in products for reference in node.input)
    ]
    if len(sums) != 1:
        raise GraphError(nodes.path, f"Logits: {len(sums)} sums of the product and Logits/biases, not one")
    return str(sums[0])


def _cut(nodes: Nodes, versions: Any, outputs: Sequence[str]) -> Any:
    """The GraphDef of what `outputs` depend on, with placeholders for the feeds."""
    kept = nodes.ancestors(outputs, FEEDS)
    result = tf1.GraphDef()
    result.versions.CopyFrom(versions)
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
        # Shapes recorded at export hold for the queue's images, not for the ones fed here.
        copy.attr.pop("_output_shapes", None)
        colocated = [c for c in copy.attr["_class"].list.s if c.decode().removeprefix("loc:@") in kept]
        if colocated:
            copy.attr["_class"].list.s[:] = colocated
        else:
            del copy.attr["_class"]
    return result


def _find_activations(nodes: Nodes, logits: str | None) -> dict[str, str]:
    """Activation name to the node whose first output it is, in the order of evaluation."""
    scopes = sorted(
        name.removesuffix("/weights")
        for name in nodes.by_name
        if name.startswith(f"{SCOPE}/") and name.endswith("/weights") and name != f"{BOTTLENECK}/weights"
    )
    if len(scopes) != CONVOLUTIONS:
        raise GraphError(nodes.path, f"{len(scopes)} convolutions have weights here, not {CONVOLUTIONS}")
    ends: dict[str, str] = {}
    for scope in scopes:
        convolution = nodes.only(scope, f"{scope}/weights", frozenset({"Conv2D"}), READS)
        if f"{scope}/biases" in nodes.by_name:
            ends[scope] = nodes.only(scope, convolution.name, ADDS, READS).name
            block = scope.rpartition("/")[0]
            ends[block] = _residual_end(nodes, block, ends[scope])
        else:
            ends[scope] = nodes.only(scope, convolution.name, frozenset({"Relu"})).name
    for stage, start, ops in (
        (f"{SCOPE}/MaxPool_3a_3x3", f"{SCOPE}/Conv2d_2b_3x3", frozenset({"MaxPool"})),
        (f"{SCOPE}/Mixed_6a", f"{SCOPE}/Mixed_6a/Branch_0/Conv2d_1a_3x3", CONCATS),
        (f"{SCOPE}/Mixed_7a", f"{SCOPE}/Mixed_7a/Branch_0/Conv2d_1a_3x3", CONCATS),
        (POOL, f"{SCOPE}/Block8", POOLS),
    ):
        if start not in ends:
            raise GraphError(nodes.path, f"no variable {start}/weights")
        ends[stage] = nodes.only(stage, ends[start], ops, READS).name
    ends[BOTTLENECK] = _normalised(nodes)
    ends["embeddings"] = "embeddings"
    if logits is not None:
        ends["Logits"] = logits
    missing = [stage for stage in STAGES if stage not in ends and stage != "Logits"]
    if missing:
        raise GraphError(nodes.path, f"no variables for {', '.join(missing)}")
    ordered = [
        activation
        for stage in STAGES
        for activation in (*(scope for scope in scopes if scope.startswith(f"{stage}/")), stage)
        if activation in ends
    ]
    return {activation: ends[activation] for activation in ordered}


def _residual_end(nodes: Nodes, block: str, update: str) -> str:
    """The node that ends a residual block, from the one that ends its last convolution."""
    total = nodes.only(block, update, frozenset({"Add", "AddV2"}), READS | {"Mul"})
    relu = nodes.reached(total.name, frozenset({"Relu"}), READS)
    return str(relu[0].name if relu else total.name)


def _normalised(nodes: Nodes) -> str:
    """The node that `embeddings` brings to unit length."""
    product = nodes.named("embeddings")
    if product.op in READS:
        product = nodes.producer(product, 0)
    if product.op == "Mul":
        for index in (0, 1):
            if nodes.producer(product, index).op == "Rsqrt":
                return source_of(product.input[1 - index])
    raise GraphError(nodes.path, "'embeddings' is not a product of something and the inverse of its length")


class OwnGraph:
    """A checkpoint's own graph with its weights, ready to run in inference. A context manager.

    Open one with `from_checkpoint` or `from_frozen`.

    Attributes:
        path: The file that the graph was read from.
        activations: The names that `run` knows, in the order of evaluation: the stages of
            `facenet_tf.graph.STAGES` and the 132 convolutions.
        has_logits: Whether the classification head is there.
        operations: Every kind of operation in it.
        tensors: Variable name to the array that TensorFlow's own reader gave.
        pool_size: Height and width of the last average pool where the graph fixes them, else None.
    """

    def __init__(
        self,
        path: Path,
        graph_def: Any,
        logits: str | None,
        tensors: Mapping[str, NDArray[Any]],
        ops: Any = None,
    ) -> None:
        nodes = Nodes(path, graph_def)
        self.path = path
        self.tensors = tensors
        self.has_logits = logits is not None
        self.operations = frozenset(node.op for node in graph_def.node)
        ends = _find_activations(nodes, logits)
        self.activations = tuple(ends)
        pool = nodes.by_name[ends[POOL]]
        self.pool_size = tuple(pool.attr["ksize"].list.i[1:3]) if pool.op == "AvgPool" else None
        with legacy_graph() as graph:
            try:
                tf.graph_util.import_graph_def(graph_def, name="", producer_op_list=ops)
            except ValueError as error:
                raise GraphError(path, f"TensorFlow does not import its graph: {error}") from error
            self._tensors = {
                activation: graph.get_tensor_by_name(f"{end}:0") for activation, end in ends.items()
            }
            self._feeds = {f: graph.get_tensor_by_name(f"{f}:0") for f in FEEDS if f in nodes.by_name}
            self._session = open_session(graph)
            self._assign({name: nodes.by_name[name].op for name in tensors})

    def _assign(self, ops: Mapping[str, str]) -> None:
        """Give the variables of the graph their values; constants have theirs already."""
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
        cls, meta: Path, prefix: Path, weights: Literal["variable", "average"] = "variable"
    ) -> Self:
        """Open the graph of a `.meta` file with the values of a checkpoint.

        Args:
            meta: The MetaGraphDef file.
            prefix: The checkpoint: its `.index` file without the suffix.
            weights: Whether each variable gets its own value or that of its exponential moving average.

        Raises:
            GraphError: The file is no MetaGraphDef, holds another network, or the checkpoint lacks a
                variable or has it in another shape.
        """
        meta_graph = _parse(meta, tf1.MetaGraphDef())
        nodes = Nodes(meta, meta_graph.graph_def)
        logits = _logits(nodes)
        graph_def = _cut(nodes, meta_graph.graph_def.versions, ["embeddings", *filter(None, [logits])])
        shapes = {n.name: n.attr["shape"].shape for n in graph_def.node if n.op in VARIABLES}
        tensors = _read_checkpoint(prefix, shapes, weights)
        return cls(meta, graph_def, logits, tensors, meta_graph.meta_info_def.stripped_op_list)

    @classmethod
    def from_frozen(cls, pb: Path) -> Self:
        """Open a frozen graph, whose variables have become constants.

        Args:
            pb: The GraphDef file.

        Raises:
            GraphError: The file is no GraphDef, holds another network, or holds no weights.
        """
        graph_def = _parse(pb, tf1.GraphDef())
        nodes = Nodes(pb, graph_def)
        logits = _logits(nodes)
        graph_def = _cut(nodes, graph_def.versions, ["embeddings", *filter(None, [logits])])
        variables = [node.name for node in graph_def.node if node.op in VARIABLES]
        if variables:
            raise GraphError(pb, f"the graph is not frozen: {variables[0]!r} is a variable without a value")
        roots = (f"{SCOPE}/", f"{OLD_BOTTLENECK}/", "Logits/")
        tensors = {
            node.name: tf.make_ndarray(node.attr["value"].tensor)
            for node in graph_def.node
            if node.op == "Const" and node.name.startswith(roots) and node.name.rpartition("/")[2] in LEAVES
        }
        return cls(pb, graph_def, logits, tensors)

    def supports(self, height: int, width: int) -> bool:
        """Tell whether images of this size run: a fixed average pool must cover the last map exactly."""
        return self.pool_size in (None, (_map_size(height), _map_size(width)))

    def run(self, images: NDArray[Any], activations: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run the graph on a batch, `phase_train` off.

        Args:
            images: Standardised pixels (N, H, W, 3), float32; H and W at least 75.
            activations: Which activations to return; None for all.

        Returns:
            Activation name to array, NHWC.

        Raises:
            ValueError: The images have another shape or a size that the graph is not built for, or an activation
                does not exist.
        """
        check_images(images)
        if not self.supports(*images.shape[1:3]):
            raise ValueError(
                f"{self.path}: the average pool is fixed to {self.pool_size}, and images of "
                f"{images.shape[1:3]} give {tuple(map(_map_size, images.shape[1:3]))}."
            )
        names = self.activations if activations is None else tuple(activations)
        check_activations(names, self.activations)
        given = {"input": images, "phase_train": False, "batch_size": len(images)}
        values: dict[str, NDArray[Any]] = self._session.run(
            {name: self._tensors[name] for name in names},
            {tensor: given[name] for name, tensor in self._feeds.items()},
        )
        if POOL in values:
            values[POOL] = values[POOL].reshape(len(images), 1, 1, -1)
        return values

    def close(self) -> None:
        """Release the session."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _map_size(side: int) -> int:
    """Side of the last map: five strided 3x3 windows and two plain ones, none of them padded."""
    for stride in (2, 1, 2, 1, 2, 2, 2):
        side = (side - 3) // stride + 1
    return side


def _parse(path: Path, message: Any) -> Any:
    """Fill a protobuf message from a file."""
    try:
        message.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise GraphError(path, f"not a {type(message).__name__}: {error}") from error
    return message


def _read_checkpoint(prefix: Path, shapes: Mapping[str, Any], weights: str) -> dict[str, NDArray[Any]]:
    """Read the named variables, or their averages, with TensorFlow's reader.

    Where no BatchNorm statistic has an average, all are taken as they are: moving averages already.
    """
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        averaged = {name for name in shapes if weights == "average"}
        statistics = {name for name in averaged if name.endswith(("/moving_mean", "/moving_variance"))}
        if not any(reader.has_tensor(f"{name}/{AVERAGE}") for name in statistics):
            averaged -= statistics
        stored = {name: f"{name}/{AVERAGE}" if name in averaged else name for name in shapes}
        missing = [name for name in stored.values() if not reader.has_tensor(name)]
        if missing:
            raise GraphError(prefix, f"the checkpoint lacks {', '.join(missing)}")
        tensors = {name: reader.get_tensor(key) for name, key in stored.items()}
    except (tf.errors.OpError, RuntimeError) as error:
        raise GraphError(prefix, f"TensorFlow does not read the checkpoint: {error}") from error
    for name, value in tensors.items():
        expected = tuple(d.size for d in shapes[name].dim)
        if value.shape != expected:
            raise GraphError(prefix, f"{stored[name]} has shape {value.shape}, the graph wants {expected}")
    return tensors
