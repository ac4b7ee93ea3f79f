"""The nodes of a GraphDef, their edges in both directions, and the kinds of operations."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

REF_VARIABLES = frozenset({"Variable", "VariableV2"})
VARIABLES = REF_VARIABLES | {"VarHandleOp"}
READS = frozenset({"Identity", "ReadVariableOp"})
ADDS = frozenset({"Add", "AddV2", "BiasAdd"})
CONCATS = frozenset({"Concat", "ConcatV2"})
POOLS = frozenset({"AvgPool", "Mean"})
LAYER_ENDS = CONCATS | POOLS | {"Conv2D", "MatMul", "MaxPool", "Relu"}
"""Operations that a walk inside a layer does not cross."""


class GraphError(ValueError):
    """A file does not hold the expected graph.

    Args:
        path: The file.
        problem: A clause without a full stop.

    Attributes:
        path: The file.
        problem: The clause.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}.")
        self.path, self.problem = path, problem


def rename_nodes(graph_def: Any, names: Mapping[str, str]) -> None:
    """Rename nodes of a GraphDef in place, wherever they are referred to.

    Args:
        graph_def: The GraphDef.
        names: Old name to new name, which no other node has.
    """
    for node in graph_def.node:
        node.name = names.get(node.name, node.name)
        for index, reference in enumerate(node.input):
            old = node_name(reference)
            if old in names:
                node.input[index] = reference.replace(old, names[old], 1)


def node_name(reference: str) -> str:
    """Return the name of an input's node; the input is written like `^name` or `name:1`."""
    return reference.removeprefix("^").partition(":")[0]


class GraphNodes:
    """The nodes of a GraphDef by name, and the consumers of each.

    Args:
        path: The graph's file, for messages.
        graph_def: The GraphDef.

    Attributes:
        path: The file.
        by_name: Name to NodeDef.
        consumers: Name to the nodes that take an output of this node, without control dependencies.
    """

    def __init__(self, path: Path, graph_def: Any) -> None:
        self.path = path
        self.by_name: dict[str, Any] = {node.name: node for node in graph_def.node}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in graph_def.node:
            for reference in node.input:
                if not reference.startswith("^"):
                    self.consumers[node_name(reference)].append(node)

    def node(self, name: str) -> Any:
        """Return the node of a name.

        Raises:
            GraphError: There is no such node.
        """
        if name not in self.by_name:
            raise GraphError(self.path, f"it has no node {name!r}")
        return self.by_name[name]

    def producer(self, node: Any, index: int) -> Any:
        """Return the node that computes an input of `node`, before any identities."""
        source = self.node(node_name(node.input[index]))
        return self.producer(source, 0) if source.op in READS else source

    def ancestors(self, names: Iterable[str], stops: Collection[str]) -> set[str]:
        """Find the nodes that `names` depend on, with `names` and control dependencies.

        Args:
            names: The nodes to start from.
            stops: Nodes whose inputs are not followed.
        """
        result: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in result:
                result.add(name)
                if name not in stops:
                    waiting.extend(node_name(reference) for reference in self.node(name).input)
        return result

    def descendants(
        self, start: str, ops: frozenset[str], through: frozenset[str] | None = None
    ) -> list[Any]:
        """Find the first nodes downstream of a node with one of some operations.

        Args:
            start: Name of the node to start from.
            ops: Operations to find.
            through: Operations to pass through; None for all but `LAYER_ENDS`.
        """
        result: dict[str, Any] = {}
        seen = {start}
        waiting = deque([start])
        while waiting:
            for node in self.consumers[waiting.popleft()]:
                crossed = node.op not in LAYER_ENDS if through is None else node.op in through
                if node.op in ops:
                    result[node.name] = node
                elif crossed and node.name not in seen:
                    seen.add(node.name)
                    waiting.append(node.name)
        return list(result.values())

    def descendant(
        self, layer: str, start: str, ops: frozenset[str], through: frozenset[str] | None = None
    ) -> Any:
        """Find the single result of `descendants`.

        Raises:
            GraphError: There are several nodes or none; the message names `layer`.
        """
        nodes = self.descendants(start, ops, through)
        if len(nodes) != 1:
            names = ", ".join(sorted(ops))
            raise GraphError(self.path, f"{layer}: {len(nodes)} operations {names} follow {start!r}, not one")
        return nodes[0]
