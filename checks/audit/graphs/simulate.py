"""Simulate a graph of integers in float64, each part between two quantisations on its own integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.audit.graphs.graph import Graph, Node, NotUnderstoodError, Window
from checks.audit.graphs.quantisation import KEEP_ORDER
from checks.audit.graphs.wiring import Wiring, label
from checks.core.network import NORM_FLOOR
from checks.core.types import Array
from converter.layouts import CONVOLUTION


def quantisers(graph: Graph) -> list[Node]:
    """List the nodes that quantise an activation, in the file's order."""
    return [node for node in graph.nodes if node.quantises and node.quantisation is not None]


class Simulation:
    """The float64 values of a graph's tensors, computed from the integers that its runtime gave.

    Args:
        wiring: The wiring of a graph.
        known: The tensors that were fetched: the integers of every node that quantises, and the images before
            the first of them.
    """

    def __init__(self, wiring: Wiring, known: Mapping[str, Array]) -> None:
        self._wiring, self._graph = wiring, wiring.graph
        self._known = {name: torch.from_numpy(array).double() for name, array in known.items()}

    def evaluate(self, name: str) -> Tensor:
        """Compute a tensor, in the graph's own layout, from the integers before it.

        Raises:
            NotUnderstoodError: A node is not one of those that a network of integers consists of.
        """
        values: dict[str, Tensor] = {}
        waiting = [name]
        while waiting:
            each = waiting[-1]
            node = self._wiring.producers.get(each)
            if each in values:  # two nodes have asked for it
                pass
            elif (stored := self._stored(each)) is not None:
                values[each] = stored
            elif node is None:
                raise NotUnderstoodError(self._graph, f"{each!r} is neither computed nor quantised")
            elif missing := [taken for taken in _taken(node) if taken not in values]:
                waiting += missing
                continue
            else:
                computed = self._compute(node, [values[taken] for taken in _taken(node)])
                values[each] = F.relu(computed) if node.relu else computed
            waiting.pop()
        return values[name]

    def _stored(self, name: str) -> Tensor | None:
        """The values of a tensor that was fetched or is a constant; None if it is computed."""
        if name in self._known:
            return self._known[name]
        if name in self._graph.quantised:
            return torch.from_numpy(self._graph.quantised[name].dequantise())
        if name in self._graph.constants:
            return torch.from_numpy(self._graph.constants[name].copy()).double()
        return None

    def _compute(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        if _keeps_order(node):
            return inputs[0]  # its shape is that of the integers behind it
        if node.quantisation is not None:  # one that dequantises: the others are known
            scale, zero_point = node.quantisation.scale, node.quantisation.zero_point
            return (inputs[0] - float(zero_point.reshape(-1)[0])) * float(scale.reshape(-1)[0])
        match node.op:
            case "conv":
                assert node.window is not None
                assert node.layout is not None
                bias = inputs[2] if len(inputs) > 2 else None
                as_source = inputs[1].permute(node.layout.inverse.permutation)
                window = node.window
                maps = F.conv2d(
                    self._pad(self._channels_first(inputs[0]), node, as_source.shape[:2], 0.0),
                    as_source.permute(CONVOLUTION.permutation),
                    bias, window.strides, 0, window.dilations, window.groups,
                )  # fmt: skip
                return self._as_graph(maps)
            case "dense":
                assert node.layout is not None
                weights = inputs[1].permute(node.layout.inverse.permutation)
                product = inputs[0].flatten(start_dim=1) @ weights
                return product + inputs[2] if len(inputs) > 2 else product
            case "batch_norm":
                x, gamma, beta, mean, variance = inputs
                return F.batch_norm(x, mean, variance, gamma, beta, eps=node.epsilon or 0.0)
            case "max_pool":
                assert node.window is not None and node.window.size is not None
                size = node.window.size
                padded = self._pad(self._channels_first(inputs[0]), node, size, float("-inf"))
                return self._as_graph(F.max_pool2d(padded, size, node.window.strides))
            case "mean":
                return inputs[0].mean(self._sides, keepdim=True)
            case "add":
                return inputs[0] + inputs[1]
            case "multiply":
                return inputs[0] * inputs[1]
            case "concat":
                return torch.cat(list(inputs), dim=-1 if self._graph.channels_last else 1)
            case "relu":
                return F.relu(inputs[0])
            case "other" if node.kind == "L2_NORMALIZATION":
                return F.normalize(inputs[0], dim=-1, eps=NORM_FLOOR)
        raise NotUnderstoodError(self._graph, f"{label(node)} between quantised tensors cannot be simulated")

    @property
    def _sides(self) -> tuple[int, int]:
        """The axes of height and width."""
        return (1, 2) if self._graph.channels_last else (2, 3)

    def _channels_first(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 3, 1, 2) if self._graph.channels_last else maps

    def _as_graph(self, maps: Tensor) -> Tensor:
        """Bring maps, NCHW, into the layout of the graph."""
        return maps.permute(0, 2, 3, 1) if self._graph.channels_last else maps

    def _pad(self, x: Tensor, node: Node, size: Sequence[int], value: float) -> Tensor:
        """Pad a map, NCHW, as a window of this height and width says."""
        window = node.window or Window((1, 1), "VALID")
        if window.padding == "VALID":
            return x
        if window.padding == "SAME":
            # At a stride of 1 as much on either side, if the reach of the window is even.
            reach = [(extent - 1) * step for extent, step in zip(size, window.dilations, strict=True)]
            is_known = window.strides == (1, 1) and not any(each % 2 for each in reach)
            (above, below), (left, right) = ((each // 2, each // 2) for each in reach)
        else:
            is_known = not window.ceil_mode
            (above, below), (left, right) = window.padding
        if not is_known:
            raise NotUnderstoodError(self._graph, f"the padding of {label(node)} cannot be simulated")
        return F.pad(x, (left, right, above, below), value=value)


def _keeps_order(node: Node) -> bool:
    return node.op == "same" and node.kind in KEEP_ORDER


def _taken(node: Node) -> Sequence[str]:
    """The tensors that a node computes with."""
    return node.inputs[:1] if _keeps_order(node) else [name for name in node.inputs if name]
