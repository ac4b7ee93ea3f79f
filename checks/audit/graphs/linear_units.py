"""Find linear units: each convolution or dense layer of a graph with the operations that belong to it.

A layer of the network may be several nodes of a graph: a convolution; then a batch normalisation, or a
product and a sum with constants; then a ReLU. If an exporter folded the BatchNorm in, the convolution and the
ReLU remain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from checks.audit.graphs.graph import Graph, Node
from checks.audit.graphs.wiring import Wiring, plain_name
from checks.audit.port_layers import BATCH_NORM, PortTensor, Role
from converter.layouts import VECTOR, Layout

_NUMBER = Layout("1->1", (0,))


@dataclass(frozen=True, slots=True)
class LinearUnit:
    """A convolution or dense layer with constant weights, and the operations that follow.

    Attributes:
        linear: The node of the convolution or dense layer.
        last: The node of the last operation; `linear` if none follows.
        length: The number of nodes from `linear` to `last`.
        constants: Role to tensor: the weights, and the constants of the operations that follow.
        epsilon: The epsilon of the batch normalisation; None without one.
        unscaled: The name of the output before a factor; empty without one.
    """

    linear: Node
    last: Node
    length: int
    constants: Mapping[Role, PortTensor]
    epsilon: float | None = None
    unscaled: str = ""

    @property
    def input(self) -> str:
        """The name of its input tensor."""
        return self.linear.inputs[0]

    @property
    def output(self) -> str:
        """The name of its output tensor."""
        return self.last.output

    @property
    def relu(self) -> bool:
        """True if it ends with a ReLU."""
        return self.last.op == "relu" or self.last.relu

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape of its weights in TensorFlow's layout, HWIO or IO."""
        weights = self.constants["weights"]
        return weights.layout.inverse.shape(weights.array.shape)

    @property
    def inputs(self) -> int:
        """The number of its input channels."""
        return self.kernel_shape[-2]

    @property
    def outputs(self) -> int:
        """The number of its output channels."""
        return self.kernel_shape[-1]

    @property
    def tensors(self) -> Mapping[Role, PortTensor]:
        """The constants; a shift without a scale or a bias counts as the bias."""
        tensors = dict(self.constants)
        if "shift" in tensors and "scale" not in tensors and "biases" not in tensors:
            tensors["biases"] = tensors.pop("shift")
        return tensors


def find_units(wiring: Wiring) -> dict[str, LinearUnit]:
    """Map the outputs of all linear units of a graph, complete or not, to the units.

    A convolution with a batch normalisation and a ReLU gives three entries: the convolution alone, with the
    normalisation, and with the ReLU.
    """
    units: dict[str, LinearUnit] = {}
    waiting = [unit for node in wiring.graph.nodes if (unit := _start_unit(node, wiring)) is not None]
    while waiting:
        unit = waiting.pop()
        units[unit.output] = unit
        if unit.last.op != "relu":
            for node, name in wiring.consumers(unit.output):
                longer = _extend_unit(unit, node, name, wiring.graph)
                if longer is not None:
                    waiting.append(longer)
    return units


def _start_unit(node: Node, wiring: Wiring) -> LinearUnit | None:
    """Make the unit of a linear node alone; None unless its weights and bias are constants that fit."""
    if node.op not in ("conv", "dense") or node.layout is None:
        return None
    graph = wiring.graph
    weights = graph.constants.get(node.inputs[1])
    if weights is None or weights.ndim != len(node.layout.permutation):
        return None
    tensors: dict[Role, PortTensor] = {"weights": _tensor(graph, node.inputs[1], node.layout)}
    before = wiring.producers.get(node.inputs[0])
    if before is not None and before.quantisation is not None and before.quantisation.scale.size == 1:
        scale = float(before.quantisation.scale.reshape(-1)[0])
        tensors["weights"] = replace(tensors["weights"], input_scale=scale)
    if len(node.inputs) > 2 and node.inputs[2]:
        if node.inputs[2] not in graph.constants:
            return None
        tensors["biases"] = _tensor(graph, node.inputs[2], VECTOR)
    return LinearUnit(node, node, 1, tensors)


def _extend_unit(unit: LinearUnit, node: Node, operand: str, graph: Graph) -> LinearUnit | None:
    """Add an operation to a unit; return None if the operation does not belong to it.

    Args:
        unit: The unit so far.
        node: A node that takes its output.
        operand: The name of that input of the node.
        graph: The graph.
    """
    constants = graph.constants
    longer = replace(unit, last=node, length=unit.length + 1)
    others = [name for name in node.inputs if name != operand]
    if node.op == "relu":
        return longer
    if node.op == "batch_norm" and node.inputs[0] == operand and all(name in constants for name in others):
        tensors = {role: _tensor(graph, name, VECTOR) for role, name in zip(BATCH_NORM, others, strict=False)}
        return replace(longer, constants={**unit.constants, **tensors}, epsilon=node.epsilon)
    if node.op in ("add", "multiply") and len(others) == 1 and others[0] in constants:
        is_number = constants[others[0]].size == 1
        role: Role = "shift" if node.op == "add" else "factor" if is_number else "scale"
        tensor = _flat(_tensor(graph, others[0], _NUMBER if is_number else VECTOR))
        unscaled = unit.output if role == "factor" else unit.unscaled
        return replace(longer, constants={**unit.constants, role: tensor}, unscaled=unscaled)
    return None


def _tensor(graph: Graph, name: str, layout: Layout) -> PortTensor:
    """Make the tensor of a constant; a quantised one has the name of its integers."""
    quantised = graph.quantised.get(name)
    shown = plain_name(name if quantised is None else quantised.name)
    return PortTensor(shown, graph.constants[name], layout, quantised)


def _flat(tensor: PortTensor) -> PortTensor:
    """Take the axes of a tensor for one."""
    quantised = tensor.quantised
    if quantised is not None:
        quantised = replace(quantised, integers=quantised.integers.reshape(-1))
    return replace(tensor, array=tensor.array.reshape(-1), quantised=quantised)
