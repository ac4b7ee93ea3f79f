"""The wiring of a graph: the node that computes each tensor, and the nodes that take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from checks.audit.graphs.graph import Graph, Node, NotUnderstoodError, Op
from checks.audit.port_layers import printable
from converter.counts import counted

_FEWEST_INPUTS: Mapping[Op, int] = {
    "conv": 2, "dense": 2, "batch_norm": 5, "add": 2, "subtract": 2, "multiply": 2, "divide": 2,
    "relu": 1, "concat": 1, "max_pool": 1, "mean": 1, "same": 1,
}  # fmt: skip


class Wiring:
    """The nodes of a graph, by the tensors between them.

    Args:
        graph: The graph.

    Raises:
        NotUnderstoodError: A node lacks inputs, or a node depends on its own output.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = {node.output: node for node in graph.nodes}
        self._consumers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            if len(node.inputs) < _FEWEST_INPUTS.get(node.op, 0):
                raise NotUnderstoodError(
                    graph, f"{label(node)} has only {counted(len(node.inputs), 'input')}"
                )
            for name in node.inputs:
                self._consumers.setdefault(name, []).append(node)
        self._refuse_cycles()

    def _refuse_cycles(self) -> None:
        edges = {
            node.output: [name for name in node.inputs if name in self.producers] for node in self.graph.nodes
        }
        try:
            TopologicalSorter(edges).prepare()
        except CycleError as error:
            name = error.args[1][0]
            raise NotUnderstoodError(
                self.graph, f"{label(self.producers[name])} depends on its own output"
            ) from None

    def origin(self, name: str) -> str:
        """Return the tensor whose values a tensor has, before all nodes that only reorder or cast."""
        node = self.producers.get(name)
        while node is not None and node.op == "same":
            name = node.inputs[0]
            node = self.producers.get(name)
        return name

    def before_quantisation(self, name: str) -> str:
        """Return the tensor that is quantised to give a tensor; the tensor itself if none is."""
        node = self.producers.get(name)
        while node is not None and node.quantisation is not None:
            name = node.inputs[0]
            node = self.producers.get(name)
        return name

    def producer(self, name: str) -> Node | None:
        """Return the node that computes a tensor's values; None for an input or a constant of the graph."""
        return self.producers.get(self.origin(name))

    def consumers(self, name: str) -> Iterator[tuple[Node, str]]:
        """Yield every node that takes the values of a tensor, with the name of that input of the node."""
        waiting = [name]
        while waiting:
            name = waiting.pop()
            for node in self._consumers.get(name, []):
                if node.op != "same":
                    yield node, name
                elif node.inputs[0] == name:
                    waiting.append(node.output)

    def ancestors(self, name: str) -> set[str]:
        """Return the outputs of all nodes on which a tensor depends."""
        ancestors: set[str] = set()
        waiting = [name]
        while waiting:
            node = self.producers.get(waiting.pop())
            if node is not None and node.output not in ancestors:
                ancestors.add(node.output)
                waiting += node.inputs
        return ancestors

    def nearest_linear(self, name: str) -> list[Node]:
        """List the convolutions and dense layers nearest before a tensor, on every path."""
        nearest: dict[str, Node] = {}
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            node = self.producers.get(waiting.pop())
            if node is None or node.output in seen:
                continue
            seen.add(node.output)
            if node.op in ("conv", "dense"):
                nearest[node.output] = node
            else:
                waiting += [each for each in node.inputs if each not in self.graph.constants]
        return list(nearest.values())


def label(node: Node | None) -> str:
    """Name a node for a message, by its kind and its output."""
    return "an input of the graph" if node is None else f"{node.kind} {plain_name(node.output)!r}"


def plain_name(name: str) -> str:
    """Return a tensor's name in its file, without what `tflite_file` and `tflite_quantisation` append."""
    stem, _, number = name.rpartition("#")
    is_appended = number.removesuffix(" exact").removesuffix(" dequantised").isdigit()
    return printable(stem if stem and is_appended else name)
