"""Find linear units: each convolution or dense layer of a graph with the operations that belong to it.

A layer of the network may be several nodes of a graph: a convolution; then a batch normalisation, or a
product and a sum with constants; then a ReLU. If an exporter folded the BatchNorm in, the convolution and the
ReLU remain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from checks.audit.graphs.graph import Node
from checks.audit.graphs.wiring import Wiring, plain_name
from checks.audit.port_layers import BATCH_NORM, PortTensor, Role
from checks.core.types import Array
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
    waiting = [
        unit for node in wiring.graph.nodes if (unit := _start_unit(node, wiring.graph.constants)) is not None
    ]
    while waiting:
        unit = waiting.pop()
        units[unit.output] = unit
        if unit.last.op != "relu":
            for node, name in wiring.consumers(unit.output):
                longer = _extend_unit(unit, node, name, wiring.graph.constants)
                if longer is not None:
                    waiting.append(longer)
    return units


def _start_unit(node: Node, constants: Mapping[str, Array]) -> LinearUnit | None:
    """Make the unit of a linear node alone; None unless its weights and bias are constants that fit."""
    if node.op not in ("conv", "dense") or node.layout is None:
        return None
    weights = constants.get(node.inputs[1])
    if weights is None or weights.ndim != len(node.layout.permutation):
        return None
    tensors: dict[Role, PortTensor] = {
        "weights": PortTensor(plain_name(node.inputs[1]), weights, node.layout)
    }
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = constants.get(node.inputs[2])
        if bias is None:
            return None
        tensors["biases"] = PortTensor(plain_name(node.inputs[2]), bias, VECTOR)
    return LinearUnit(node, node, 1, tensors)


def _extend_unit(
    unit: LinearUnit, node: Node, operand: str, constants: Mapping[str, Array]
) -> LinearUnit | None:
    """Add an operation to a unit; return None if the operation does not belong to it.

    Args:
        unit: The unit so far.
        node: A node that takes its output.
        operand: The name of that input of the node.
        constants: The graph's constants.
    """
    longer = replace(unit, last=node, length=unit.length + 1)
    others = [name for name in node.inputs if name != operand]
    if node.op == "relu":
        return longer
    if node.op == "batch_norm" and node.inputs[0] == operand and all(name in constants for name in others):
        tensors = {
            role: PortTensor(plain_name(name), constants[name], VECTOR)
            for role, name in zip(BATCH_NORM, others, strict=False)
        }
        return replace(longer, constants={**unit.constants, **tensors}, epsilon=node.epsilon)
    if node.op in ("add", "multiply") and len(others) == 1 and others[0] in constants:
        array = constants[others[0]]
        is_number = array.size == 1
        role: Role = "shift" if node.op == "add" else "factor" if is_number else "scale"
        layout = _NUMBER if is_number else VECTOR
        tensor = PortTensor(plain_name(others[0]), array.reshape(-1), layout)
        unscaled = unit.output if role == "factor" else unit.unscaled
        return replace(longer, constants={**unit.constants, role: tensor}, unscaled=unscaled)
    return None
