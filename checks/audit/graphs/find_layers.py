"""Find the layers of a graph, with the constants that are their weights.

The names in an exported graph mean nothing, so its place identifies a layer. The search starts at an output
of the graph and goes back, stage by stage, to the image:

1. `linear_units.find_units` finds every convolution, with the affine operations and the ReLU behind it.
2. The head: the layer that makes the embedding, and the average pool before it.
3. The blocks: each ends in a concatenation of branches, or in a sum of the block's input and a convolution
   of such a concatenation. The shapes of its kernels identify a branch.
4. The stem: six convolutions in a row, with a max pool after the third.

A graph with another structure is not understood, and the message names the node. A wrong order of branches, a
wrong stride or an extra ReLU is a fault of the port, and becomes a remark on the structure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from checks.audit.graphs.check_structure import (
    CLASSIFIER_OPERATIONS,
    SURROUNDING_OPERATIONS,
    remarks_on_relu,
    remarks_on_unit,
    remarks_on_window,
)
from checks.audit.graphs.graph import Graph, Node, NotUnderstoodError
from checks.audit.graphs.linear_units import LinearUnit, find_units
from checks.audit.graphs.wiring import Wiring, label, plain_name
from checks.audit.port_layers import PortTensor, PortWeights, Role
from checks.core.network import (
    AVERAGE_POOL,
    BOTTLENECK,
    LOGITS,
    MAX_POOL,
    NETWORK,
    LayerKind,
    by_branch,
    short_name,
)
from converter.casting import HALVES
from converter.layer_map import BLOCKS, BOTTLENECK_INPUTS, NETWORK_SCOPE, STEM, Layer

_LONGEST_BRANCH = max(len(branch) for _, _, layers in BLOCKS[1:] for branch in by_branch(layers))


@dataclass(frozen=True, slots=True)
class GraphLayers:
    """The layers of a graph.

    Attributes:
        weights: The weights of each layer.
        activations: Activation, as in `checks.core.activations`, to the graph's tensor that holds it.
        input: The graph's tensor that the first convolution takes, before it is quantised.
        embeddings: The outputs of the graph that are the embedding, normalised or not; empty if all its
            outputs are logits.
        logits: The outputs of the graph that are logits.
        computes_in_half: Whether a convolution computes in half precision.
        remarks: The deviations from the network's structure.
    """

    weights: PortWeights
    activations: Mapping[str, str]
    input: str
    embeddings: tuple[str, ...]
    logits: tuple[str, ...]
    computes_in_half: bool
    remarks: tuple[str, ...]


def find_layers(graph: Graph) -> GraphLayers:
    """Find every layer of a graph.

    Raises:
        NotUnderstoodError: The layers are not found; the message names the node at which the search ends.
    """
    wiring = Wiring(graph)
    units = find_units(wiring)
    problems: list[NotUnderstoodError] = []
    searches: list[_Search] = []
    for output in graph.outputs:
        search = _Search(wiring, units, output.name)
        try:
            search.run()
            searches.append(search)
        except NotUnderstoodError as error:
            problems.append(error)
    if not searches:
        raise max(problems, key=lambda error: error.reached)
    # In a graph with embedding and logits, the search from the logits finds every layer.
    best = max(searches, key=lambda search: len(search.layers))
    embeddings = tuple(search.output for search in searches if LOGITS not in search.layers)
    classified = best.activations.get(LOGITS)
    logits = tuple(each.name for each in graph.outputs if wiring.origin(each.name) == classified)
    judged = {*embeddings, *logits}
    unjudged = [plain_name(output.name) for output in graph.outputs if output.name not in judged]
    return GraphLayers(
        weights=PortWeights(best.layers),
        activations=best.activations,
        input=best.input,
        embeddings=embeddings,
        logits=logits,
        computes_in_half=best.computes_in_half,
        remarks=(
            *best.remarks,
            *(f"its output {name!r} is neither an embedding nor logits" for name in unjudged),
        ),
    )


class _Search:
    """The search from one output of a graph back to the image.

    Every step takes the output tensor of a part of the network, and returns the input tensor of the part.

    Args:
        wiring: The graph's wiring.
        units: Its linear units, by output.
        output: The output.
    """

    def __init__(self, wiring: Wiring, units: Mapping[str, LinearUnit], output: str) -> None:
        self.output = output
        self.layers: dict[str, Mapping[Role, PortTensor]] = {}
        self.activations: dict[str, str] = {}
        self.remarks: list[str] = []
        self.input = ""
        self.computes_in_half = False
        self._wiring, self._units = wiring, units

    def run(self) -> None:
        """Find every layer.

        Raises:
            NotUnderstoodError: The layers are not found.
        """
        tensor = self._average_pool(self._head(self.output))
        for scope, _, layers in reversed(BLOCKS[1:]):
            block = f"{NETWORK_SCOPE}/{scope}"
            self.activations[block] = self._wiring.origin(tensor)
            is_reduction = NETWORK[block].kind is LayerKind.REDUCTION
            tensor = (self._reduction if is_reduction else self._residual_block)(tensor, block, layers)
        self.input = self._wiring.before_quantisation(self._stem(tensor))
        self._remark_on_surroundings()

    # The head.

    def _head(self, output: str) -> str:
        """Find the Bottleneck, and the classifier if the graph has one."""
        last = self._last_unit_before(output)
        if last.inputs == BOTTLENECK_INPUTS:
            self._keep(BOTTLENECK, last)
            return last.input
        bottleneck = None
        if len(self._wiring.nearest_linear(last.input)) == 1:
            bottleneck = self._last_unit_before(last.input)
        if bottleneck is None or (bottleneck.inputs, bottleneck.outputs) != (BOTTLENECK_INPUTS, last.inputs):
            raise self._not_understood(
                f"{label(last.linear)}, the last layer before the output {plain_name(output)!r}, takes "
                f"{last.inputs} values, expected {BOTTLENECK_INPUTS}"
            )
        self._keep(LOGITS, last)
        self._keep(BOTTLENECK, bottleneck)
        return bottleneck.input

    def _last_unit_before(self, name: str) -> LinearUnit:
        """Find the linear unit before a tensor, with every affine operation that follows the unit."""
        nodes = self._wiring.nearest_linear(name)
        if len(nodes) != 1:
            raise self._not_understood(
                f"{len(nodes)} layers with weights end in {plain_name(name)!r}, expected 1"
            )
        units = [unit for unit in self._units.values() if unit.linear is nodes[0] and unit.last.op != "relu"]
        if not units:
            raise self._not_understood(f"the weights or the bias of {label(nodes[0])} are not constants")
        return max(units, key=lambda unit: unit.length)

    def _average_pool(self, tensor: str) -> str:
        pool = self._wiring.producer(tensor)
        if pool is None or pool.op != "mean":
            raise self._not_understood(f"{label(pool)} where the average pool should be")
        self.activations[AVERAGE_POOL] = pool.output
        return pool.inputs[0]

    # The blocks.

    def _residual_block(self, tensor: str, block: str, layers: Sequence[Layer]) -> str:
        """Find a ReLU of the sum of the block's input and a 1x1 convolution of concatenated branches."""
        node = self._wiring.producer(tensor)
        relu = node is not None and (node.op == "relu" or node.relu)
        self.remarks += remarks_on_relu(short_name(block), relu, expected=NETWORK[block].relu)
        if node is not None and node.op == "relu":
            node = self._wiring.producer(node.inputs[0])
        if node is None or node.op != "add" or len(node.inputs) != 2:
            raise self._not_understood(f"{label(node)} where the sum of {short_name(block)} should be")
        first, second = node.inputs
        for residual, shortcut in ((first, second), (second, first)):
            projection = self._units.get(self._wiring.origin(residual))
            if projection is None or projection.relu or projection.kernel_shape != _kernel_shape(layers[-1]):
                continue
            concatenation = self._wiring.producer(projection.input)
            if concatenation is not None and concatenation.op == "concat":
                self._keep(f"{block}/{layers[-1].scope}", projection)
                block_input = self._wiring.origin(shortcut)
                self._branches(concatenation, block, layers, block_input)
                return block_input
        raise self._not_understood(
            f"{label(node)} does not add a 1x1 convolution of concatenated branches to the input of "
            f"{short_name(block)}"
        )

    def _reduction(self, tensor: str, block: str, layers: Sequence[Layer]) -> str:
        """Find Mixed_6a or Mixed_7a: a concatenation of branches and a max pool."""
        concatenation = self._wiring.producer(tensor)
        if concatenation is None or concatenation.op != "concat":
            raise self._not_understood(
                f"{label(concatenation)} where {short_name(block)} should concatenate its branches"
            )
        ends = [self._wiring.producer(name) for name in concatenation.inputs]
        pools = [node for node in ends if node is not None and node.op == "max_pool"]
        if len(pools) != 1:
            raise self._not_understood(
                f"{label(concatenation)} at the end of {short_name(block)} takes {len(pools)} max pools, "
                "expected 1"
            )
        self.remarks += remarks_on_window(f"the pool of {short_name(block)}", pools[0].window, block)
        block_input = self._wiring.origin(pools[0].inputs[0])
        self._branches(concatenation, block, layers, block_input)
        return block_input

    def _branches(self, concatenation: Node, block: str, layers: Sequence[Layer], block_input: str) -> None:
        """Identify the convolutions of a block's branches by the shapes of their kernels."""
        actual = [self._branch(name, block, block_input) for name in concatenation.inputs]
        expected = list(by_branch(layers))
        if NETWORK[block].kind is LayerKind.REDUCTION:
            expected.append(())  # the max pool, a branch without convolutions
        order = _match_branches(actual, expected)
        if order is None:
            shapes = "; ".join(
                ", ".join(str(unit.kernel_shape) for unit in branch) or "none" for branch in actual
            )
            raise self._not_understood(
                f"{label(concatenation)} at the end of {short_name(block)} joins branches with kernels "
                f"({shapes}) that are not those of the network"
            )
        if order != tuple(range(len(order))):
            places = ", ".join(map(str, order))
            self.remarks.append(f"{short_name(block)} concatenates its branches in the order {places}")
        for units, branch in zip(actual, order, strict=True):
            for unit, layer in zip(units, expected[branch], strict=True):
                self._keep(f"{block}/{layer.scope}", unit)

    def _branch(self, name: str, block: str, block_input: str) -> list[LinearUnit]:
        """List the convolutions from a block's input to the end of a branch, in the order of evaluation."""
        units: list[LinearUnit] = []
        while (tensor := self._wiring.origin(name)) != block_input:
            node, unit = self._wiring.producer(tensor), self._units.get(tensor)
            if node is not None and node.op == "max_pool" and not units:
                return self._pool_branch(node, block, block_input)
            if unit is None or len(units) == _LONGEST_BRANCH:
                raise self._not_understood(f"{self._end(tensor)} in a branch of {short_name(block)}")
            units.insert(0, unit)
            name = unit.input
        return units

    def _pool_branch(self, pool: Node, block: str, block_input: str) -> list[LinearUnit]:
        """Check that a branch is a max pool of the block's input; it has no convolutions."""
        if self._wiring.origin(pool.inputs[0]) != block_input:
            raise self._not_understood(
                f"{label(pool)} in {short_name(block)} does not take the input of the block"
            )
        return []

    # The stem.

    def _stem(self, tensor: str) -> str:
        """Find six convolutions, with a max pool after the third."""
        for layer in reversed(STEM):
            activation = f"{NETWORK_SCOPE}/{layer.scope}"
            unit = self._units.get(self._wiring.origin(tensor))
            if unit is None or unit.kernel_shape != _kernel_shape(layer):
                kernel = "" if unit is None else f", with a kernel of {unit.kernel_shape},"
                raise self._not_understood(
                    f"{self._end(tensor)}{kernel} where {short_name(activation)} should be"
                )
            self._keep(activation, unit)
            tensor = unit.input
            if NETWORK[activation].inputs == (MAX_POOL,):
                tensor = self._max_pool(tensor)
        return tensor

    def _max_pool(self, tensor: str) -> str:
        pool = self._wiring.producer(tensor)
        if pool is None or pool.op != "max_pool":
            raise self._not_understood(f"{label(pool)} where {short_name(MAX_POOL)} should be")
        self.activations[MAX_POOL] = pool.output
        self.remarks += remarks_on_window(short_name(MAX_POOL), pool.window, MAX_POOL)
        return pool.inputs[0]

    # The surroundings of the layers, and the record of layers.

    def _remark_on_surroundings(self) -> None:
        """Name the operations before the first layer or after the last whose effect a run cannot show."""
        after = self._wiring.ancestors(self.output) - self._wiring.ancestors(self.activations[BOTTLENECK])
        for outputs, known, place in (
            (self._wiring.ancestors(self.input), SURROUNDING_OPERATIONS, "before the first layer"),
            (after, SURROUNDING_OPERATIONS | CLASSIFIER_OPERATIONS, "after the last layer"),
        ):
            unknown = sorted({self._wiring.producers[name].kind for name in outputs} - known)
            if unknown:
                self.remarks.append(f"{', '.join(unknown)} {place}, which a run cannot judge")

    def _keep(self, activation: str, unit: LinearUnit) -> None:
        """Record a unit as a layer of the network."""
        self.layers[activation] = unit.tensors
        # The activation of a residual's last convolution is its output before the residual scale.
        self.activations[activation] = unit.unscaled or unit.output
        self.remarks += remarks_on_unit(unit, activation)
        # A node widens weights that are only stored in half precision.
        is_widened = unit.linear.inputs[1] in self._wiring.producers
        self.computes_in_half |= unit.constants["weights"].array.dtype in HALVES and not is_widened

    def _end(self, tensor: str) -> str:
        """Describe the node that computes a tensor, for a message; with a ReLU comes the node before it."""
        node = self._wiring.producer(tensor)
        if node is None or node.op != "relu":
            return label(node)
        return f"{label(node)} of {label(self._wiring.producer(node.inputs[0]))}"

    def _not_understood(self, problem: str) -> NotUnderstoodError:
        return NotUnderstoodError(self._wiring.graph, problem, reached=len(self.layers))


def _match_branches(
    actual: Sequence[Sequence[LinearUnit]], expected: Sequence[Sequence[Layer]]
) -> tuple[int, ...] | None:
    """Match each branch of a graph to a branch of the network; None if the branches do not match."""
    if len(actual) != len(expected):
        return None
    shapes = [[unit.kernel_shape for unit in branch] for branch in actual]
    for order in permutations(range(len(expected))):
        if shapes == [[_kernel_shape(layer) for layer in expected[number]] for number in order]:
            return order
    return None


def _kernel_shape(layer: Layer) -> tuple[int, ...]:
    return (*layer.kernel, layer.inputs, layer.outputs)
