"""Simulate a graph of integers in float64, each part between two quantisations on its own integers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.audit.graphs.graph import Graph, Node, NotUnderstoodError, Window
from checks.audit.graphs.onnx_quantisation import QUANTISE
from checks.audit.graphs.wiring import Wiring, label
from checks.core.types import Array

_SHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_COPIES = frozenset({"Cast", "Dropout", "Identity"})


def quantisers(graph: Graph) -> list[Node]:
    """List the nodes that quantise an activation, in the file's order."""
    return [node for node in graph.nodes if node.kind == QUANTISE and node.quantisation is not None]


class Simulation:
    """The float64 values of a graph's tensors, computed from the integers that its runtime gave.

    Args:
        wiring: The wiring of an ONNX graph.
        known: The tensors that were fetched: the integers of every node that quantises, and the images before
            the first of them.
    """

    def __init__(self, wiring: Wiring, known: Mapping[str, Array]) -> None:
        self._wiring, self._graph = wiring, wiring.graph
        self._known = {name: torch.from_numpy(array).double() for name, array in known.items()}

    def evaluate(self, name: str) -> Tensor:
        """Compute a tensor, NCHW, from the integers before it.

        Raises:
            NotUnderstoodError: A node is not one of those that a network of integers consists of.
        """
        if name in self._known:
            return self._known[name]
        if name in self._graph.quantised:
            return torch.from_numpy(self._graph.quantised[name].dequantise())
        if name in self._graph.constants:
            return torch.from_numpy(self._graph.constants[name].copy()).double()
        node = self._wiring.producers.get(name)
        if node is None:
            raise NotUnderstoodError(self._graph, f"{name!r} is neither computed nor quantised")
        values = self._compute(node)
        return F.relu(values) if node.relu else values

    def _compute(self, node: Node) -> Tensor:
        inputs = [self.evaluate(each) for each in node.inputs if each]
        if node.quantisation is not None:  # one that dequantises: the others are known
            scale, zero_point = node.quantisation.scale, node.quantisation.zero_point
            return (inputs[0] - float(zero_point.reshape(-1)[0])) * float(scale.reshape(-1)[0])
        match node.op:
            case "conv":
                assert node.window is not None
                bias = inputs[2] if len(inputs) > 2 else None
                padded = self._pad(inputs[0], node, 0.0)
                return F.conv2d(
                    padded, inputs[1], bias, node.window.strides, 0, node.window.dilations, node.window.groups
                )
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
                padded = self._pad(inputs[0], node, float("-inf"))
                return F.max_pool2d(padded, node.window.size, node.window.strides)
            case "mean":
                return inputs[0].mean((2, 3), keepdim=True)
            case "add":
                return inputs[0] + inputs[1]
            case "multiply":
                return inputs[0] * inputs[1]
            case "concat":
                return torch.cat(inputs, dim=1)
            case "relu":
                return F.relu(inputs[0])
            case "same" if node.kind in _SHAPES | _COPIES:
                return inputs[0]  # its shape is that of the integers behind it
        raise NotUnderstoodError(self._graph, f"{label(node)} between quantised tensors cannot be simulated")

    def _pad(self, x: Tensor, node: Node, value: float) -> Tensor:
        """Pad a map as a window says."""
        window = node.window or Window((1, 1), "VALID")
        if window.padding == "VALID":
            return x
        if window.padding == "SAME" or window.ceil_mode:
            raise NotUnderstoodError(self._graph, f"the padding of {label(node)} cannot be simulated")
        (above, below), (left, right) = window.padding
        return F.pad(x, (left, right, above, below), value=value)
