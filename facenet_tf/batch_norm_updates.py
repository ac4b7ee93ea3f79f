"""Reads from a graph how its BatchNorms update their moving variances: the target and the decay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facenet_tf import import_tensorflow
from facenet_tf.graph_nodes import READS, GraphError, GraphNodes, node_name
from facenet_tf.variables import BOTTLENECK, OLD_BOTTLENECK, SCOPE

tf = import_tensorflow()

PASSED = READS | {"Switch", "RefSwitch"}
"""Operations whose output is their first input."""

RESHAPES = frozenset({"Squeeze", "Reshape"})
FUSED = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})
UPDATES = frozenset({"AssignSub", "AssignSubVariableOp", "Sub"})
"""Operations that subtract the change from a moving variance; `Sub` is that of a frozen graph."""


@dataclass(frozen=True, slots=True)
class VarianceUpdate:
    """The update of one moving variance: moving -= (moving - target) * (1 - decay).

    Attributes:
        scope: The scope of the batch normalisation.
        biased: True if the target is the batch's variance over n values, as from `tf.nn.moments`. False if
            it is n / (n - 1) times that, as the fused operation's third output.
        decay: The share of the old value that stays.
        operation: The operation that computes the target: a version of `FusedBatchNorm`, or `Mean`.
    """

    scope: str
    biased: bool
    decay: float
    operation: str


def read_variance_updates(path: Path, graph_def: Any) -> dict[str, VarianceUpdate]:
    """Read the updates of all moving variances of a graph.

    Args:
        path: The graph's file, for messages.
        graph_def: The graph, as `facenet_tf.own_graph.read_graph` gives it.

    Returns:
        The update of every BatchNorm by its scope; empty if the graph was frozen without its training
        branches.

    Raises:
        GraphError: It is not a graph of the network, or an update has an unknown form.
    """
    nodes = GraphNodes(path, graph_def)
    roots = (f"{SCOPE}/", f"{OLD_BOTTLENECK}/")
    variables = [n for n in nodes.by_name if n.startswith(roots) and n.endswith("/moving_variance")]
    if not variables:
        raise GraphError(path, f"no moving variances in {SCOPE} or {BOTTLENECK}")
    updates = {variable: _read(nodes, variable) for variable in variables}
    if not any(updates.values()):
        return {}
    for variable, update in updates.items():
        if update is None:
            raise GraphError(path, f"{variable} is never updated, others are")
    return {update.scope: update for update in updates.values() if update is not None}


def _read(nodes: GraphNodes, variable: str) -> VarianceUpdate | None:
    """Read the update of one variable; None if it is never updated."""
    for update in nodes.descendants(variable, UPDATES, PASSED):
        product = _origin(nodes, update.input[1])
        if product.op != "Mul" or _origin(nodes, update.input[0]).name != variable:
            continue
        difference, share = (_origin(nodes, operand) for operand in product.input)
        if difference.op == "Const":
            difference, share = share, difference
        if share.op != "Const" or difference.op != "Sub":
            raise GraphError(nodes.path, f"{variable}: its update {update.name!r} has an unknown form")
        targets = {
            target
            for target in _targets(nodes, difference.input[1])
            if node_name(target) != variable and not _is_inference(nodes.node(node_name(target)))
        }
        if len(targets) != 1:
            raise GraphError(nodes.path, f"{variable}: moves towards {len(targets)} values, not one")
        biased, operation = _classify(nodes, variable, targets.pop())
        decay = 1 - float(tf.make_ndarray(share.attr["value"].tensor))
        return VarianceUpdate(variable.rpartition("/")[0], biased, decay, operation)
    return None


def _origin(nodes: GraphNodes, reference: str) -> Any:
    """Find the node that computes an input, before the operations that pass it on."""
    node = nodes.node(node_name(reference))
    return _origin(nodes, node.input[0]) if node.op in PASSED else node


def _targets(nodes: GraphNodes, reference: str) -> Iterator[str]:
    """Yield the outputs before an input, such as `name:2`, through both branches of a conditional."""
    node = nodes.node(node_name(reference))
    if node.op == "Merge":
        for branch in node.input:
            yield from _targets(nodes, branch)
    elif node.op in PASSED | RESHAPES:
        yield from _targets(nodes, node.input[0])
    else:
        yield reference


def _is_inference(node: Any) -> bool:
    """Return whether this is the fused operation in inference, which takes the moving variance."""
    return node.op in FUSED and not node.attr["is_training"].b


def _classify(nodes: GraphNodes, variable: str, target: str) -> tuple[bool, str]:
    """Return whether an output is the biased variance of a batch, and the operation that computes it."""
    node = nodes.node(node_name(target))
    if node.op in FUSED and target.endswith(":2"):
        return False, str(node.op)
    # tf.nn.moments: the mean of the squared differences from the mean. Early releases take the differences
    # from another shift, and subtract the square of the distance between mean and shift.
    mean = node
    if node.op == "Sub" and _origin(nodes, node.input[1]).op == "Square":
        mean = next(iter(_targets(nodes, node.input[0])))
        mean = nodes.node(node_name(mean))
    if mean.op == "Mean" and _origin(nodes, mean.input[0]).op == "SquaredDifference":
        return True, str(mean.op)
    raise GraphError(
        nodes.path, f"{variable}: moves towards {target!r}, neither a fused nor a plain variance"
    )
