"""Which constant of a graph is which layer's: the graph layers from its output back to its input.

Names mean nothing in an exported graph. What a layer is, its place says: the order in which branches are
concatenated, the sum that ends a residual block, the size of a kernel. A graph that is built otherwise is
refused; one that is built so, but for the order of branches, a ReLU or how a window slides, is a port with a
fault, and the walk says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import permutations
from typing import Any

from checks.audit.graphs.graph import ForeignGraphError, Graph, Node, Window
from checks.audit.port_layers import BATCH_NORM, BOTTLENECK, PortTensor, PortWeights, Role, printable
from checks.core.activations import short_name
from converter.casting import HALVES
from converter.layer_map import BLOCKS, BOTTLENECK_INPUTS, LOGITS_SCOPE, NETWORK_SCOPE, STEM, Layer
from converter.layouts import VECTOR, Layout

_NUMBER = Layout("1->1", (0,))
SURROUNDING = frozenset((
    # ONNX
    "Add", "Cast", "Clip", "Concat", "ConstantOfShape", "Div", "Expand", "Flatten", "Gather", "Identity",
    "LpNormalization", "Max", "Mul", "Pow", "Reciprocal", "ReduceL2", "ReduceMean", "ReduceSum",
    "ReduceSumSquare", "Reshape", "Shape", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Transpose",
    "Unsqueeze",
    # TFLite
    "ADD", "BROADCAST_TO", "CAST", "CONCATENATION", "DEQUANTIZE", "DIV", "EXPAND_DIMS", "GATHER",
    "L2_NORMALIZATION", "MAXIMUM", "MEAN", "MUL", "PACK", "POW", "RESHAPE", "REVERSE_V2", "RSQRT", "SHAPE",
    "SLICE", "SOFTMAX", "SPLIT", "SQRT", "SQUARE", "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB",
    "SUM", "TRANSPOSE",
))  # fmt: skip
"""Operations that prepare an image or bring an embedding to length one, and do the same to every image. Of
any other, a run on some images says little."""

_CLASSIFIER = {"Gemm", "MatMul", "FULLY_CONNECTED"}
_POOL = Window((2, 2), "VALID", (3, 3))


@dataclass(slots=True)
class GraphLayers:
    """What a walk found.

    Attributes:
        weights: The port's layers.
        activations: Stage or layer, as `checks.core.activations` calls it, to the graph's tensor that is its output.
        input: The graph's tensor that the first convolution takes.
        embeddings: The graph's outputs that the embedding is, brought to length one or not; none where it
            gives logits alone.
        halved: Whether a convolution computes in half precision.
        before: Kinds of operations before the first convolution.
        remarks: Where the structure is not that of the network.
    """

    weights: PortWeights
    activations: dict[str, str]
    input: str = ""
    embeddings: tuple[str, ...] = ()
    halved: bool = False
    before: tuple[str, ...] = ()
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Unit:
    """A linear operation with constant weights and the affine ones behind it."""

    linear: Node
    tensors: Mapping[Role, PortTensor]
    relu: bool
    output: str
    epsilon: float | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's shape in TensorFlow's layout."""
        kernel = self.tensors["weights"]
        return kernel.layout.inverse.shape(kernel.array.shape)


def find_layers(graph: Graph) -> GraphLayers:
    """Find every layer of a graph.

    Raises:
        ForeignGraphError: It is not this network.
    """
    problems: list[ForeignGraphError] = []
    found: list[GraphLayers] = []
    for output in graph.outputs:
        try:
            found.append(_Walk(graph).network(output.name))
        except ForeignGraphError as error:
            problems.append(error)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            problem = f"an operation lacks its inputs or has others than it should ({error})"
            problems.append(ForeignGraphError(graph, problem))
    if not found:
        raise max(problems, key=lambda error: error.reached)
    # A graph may give the embedding and the logits: the walk from the logits finds all that the other does.
    best = max(found, key=lambda layers: len(layers.weights.layers))
    best.embeddings = tuple(name for layers in found for name in layers.embeddings)
    judged = {*best.embeddings, best.activations.get(LOGITS_SCOPE)}
    others = [output.name for output in graph.outputs if output.name not in judged]
    best.remarks += [f"its output {_plain(name)!r} is not one that can be judged" for name in others]
    return best


class _Walk:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = {node.output: node for node in graph.nodes}
        self.consumers: dict[str, list[Node]] = {}
        edges = {
            node.output: [name for name in node.inputs if name in self.producers] for node in graph.nodes
        }
        try:
            TopologicalSorter(edges).prepare()
        except CycleError:
            raise ForeignGraphError(graph, "its operations lead back into themselves") from None
        for node in graph.nodes:
            for name in node.inputs:
                self.consumers.setdefault(name, []).append(node)
        self.layers: dict[str, Mapping[Role, PortTensor]] = {}
        self.activations: dict[str, str] = {}
        self.remarks: list[str] = []
        self.halved = False

    def network(self, output: str) -> GraphLayers:
        """Walk from one of the graph's outputs to its input."""
        unit = self._bottleneck(output)
        name = self._pooled(unit.linear.inputs[0])
        for scope, _, layers in reversed(BLOCKS[1:]):
            full = f"{NETWORK_SCOPE}/{scope}"
            self.activations[full] = self._through(name)
            if scope.startswith("Mixed"):
                name = self._reduction(name, full, layers)
            else:
                name = self._residual(name, full, layers, relu=scope != "Block8")
        for layer in reversed(STEM):
            if layer.module == "conv2d_3b":
                name, unit = self._stem_unit(name, layer)
                self.activations[f"{NETWORK_SCOPE}/MaxPool_3a_3x3"] = self._through(name)
                pool = self._producer(name)
                if pool is None or pool.op != "max_pool":
                    raise self._foreign(f"{_label(pool)} where MaxPool_3a_3x3 should be")
                self._check_window("MaxPool_3a_3x3", pool.window, _POOL)
                name = pool.inputs[0]
                continue
            name, unit = self._stem_unit(name, layer)
        before = self._kinds(self._ancestors(name))
        behind = self._ancestors(output) - self._ancestors(self.activations[BOTTLENECK])
        for kinds, known, where in (
            (before, SURROUNDING, "before the first layer"),
            (self._kinds(behind), SURROUNDING | _CLASSIFIER, "behind the last layer"),
        ):
            strange = [kind for kind in kinds if kind not in known]
            if strange:
                self.remarks.append(f"{', '.join(strange)} {where}, which no run can vouch for")
        embeddings = () if LOGITS_SCOPE in self.layers else (output,)
        return GraphLayers(
            PortWeights(self.layers), self.activations, name, embeddings, self.halved, before, self.remarks
        )

    def _ancestors(self, name: str) -> set[str]:
        """The outputs of all nodes that a tensor depends on."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            node = self.producers.get(waiting.pop())
            if node is not None and node.output not in found:
                found.add(node.output)
                waiting += node.inputs
        return found

    def _kinds(self, outputs: set[str]) -> tuple[str, ...]:
        return tuple(sorted({self.producers[name].kind for name in outputs}))

    def _stem_unit(self, name: str, layer: Layer) -> tuple[str, _Unit]:
        unit = self._unit(name)
        if unit is None or unit.shape != _shape(layer):
            found = "no convolution" if unit is None else f"a kernel of {unit.shape}"
            raise self._foreign(f"{found} where {layer.scope} should be")
        self._keep(f"{NETWORK_SCOPE}/{layer.scope}", unit, layer)
        return unit.linear.inputs[0], unit

    # From here on: what stands between the output and the last block.

    def _bottleneck(self, output: str) -> _Unit:
        """The layer that makes the embedding; a classifier may stand behind it."""
        found = self._linear_ancestors(output)
        if len(found) != 1:
            raise self._foreign(f"{len(found)} layers with weights end in {output!r}, not one")
        unit = self._forward(found[0])
        if unit.shape[-2] == BOTTLENECK_INPUTS:
            self._keep(BOTTLENECK, unit)
            return unit
        before = self._linear_ancestors(unit.linear.inputs[0])
        if len(before) != 1:
            raise self._foreign(f"the layer that ends in {output!r} takes {unit.shape[-2]} features")
        bottleneck = self._forward(before[0])
        if bottleneck.shape[-2] != BOTTLENECK_INPUTS or bottleneck.shape[-1] != unit.shape[-2]:
            raise self._foreign(f"the layer that ends in {output!r} takes {unit.shape[-2]} features")
        self._keep(LOGITS_SCOPE, unit)
        self._keep(BOTTLENECK, bottleneck)
        return bottleneck

    def _linear_ancestors(self, name: str) -> list[Node]:
        """The nearest convolutions and dense layers before a tensor."""
        found: dict[str, Node] = {}
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            node = self.producers.get(waiting.pop())
            if node is None or node.output in seen:
                continue
            seen.add(node.output)
            if node.op in ("conv", "dense"):
                found[node.output] = node
            else:
                waiting += [each for each in node.inputs if each not in self.graph.constants]
        return list(found.values())

    def _forward(self, linear: Node) -> _Unit:
        """A dense layer and what follows it: the product and sum, or the batch normalisation, behind it."""
        tensors = dict(self._linear_tensors(linear))
        name, epsilon = linear.output, None
        while True:
            following = [node for node in self.consumers.get(name, []) if node.op != "other"]
            step = next((node for node in following if self._affine(node, name)), None)
            if step is not None:
                epsilon = self._gather(step, tensors) or epsilon
                name = step.output
                continue
            skip = next((node for node in following if node.op == "same" and node.inputs[0] == name), None)
            if skip is None or not self._leads_to_affine(skip.output):
                break
            name = skip.output
        return _Unit(linear, _settled(tensors), False, name, epsilon)

    def _leads_to_affine(self, name: str) -> bool:
        waiting = [name]
        while waiting:
            name = waiting.pop()
            for node in self.consumers.get(name, []):
                if self._affine(node, name):
                    return True
                if node.op == "same" and node.inputs[0] == name:
                    waiting.append(node.output)
        return False

    def _pooled(self, name: str) -> str:
        """The last block's output, from what the bottleneck takes."""
        pool = self._producer(name)
        if pool is None or pool.op != "mean":
            raise self._foreign(f"{_label(pool)} where the average pool should be")
        self.activations[f"{NETWORK_SCOPE}/Logits/AvgPool_1a_8x8"] = pool.output
        return pool.inputs[0]

    # Blocks.

    def _residual(self, name: str, scope: str, layers: Sequence[Layer], *, relu: bool) -> str:
        """A residual block from its output; returns what it takes."""
        node = self._producer(name)
        has_relu = node is not None and (node.op == "relu" or node.relu)
        if node is not None and node.op == "relu":
            node = self._producer(node.inputs[0])
        if node is None or node.op != "add" or len(node.inputs) != 2:
            raise self._foreign(f"{_label(node)} where the sum of {short_name(scope)} should be")
        if has_relu is not relu:
            self.remarks.append(f"{short_name(scope)} ends {'with' if has_relu else 'without'} a ReLU")
        for residual, trunk in (node.inputs, reversed(node.inputs)):
            unit = self._unit(residual)
            mixed = None if unit is None or unit.relu else self._producer(unit.linear.inputs[0])
            if unit is None or mixed is None or mixed.op != "concat" or unit.shape != _shape(layers[-1]):
                continue
            self._keep(f"{scope}/{layers[-1].scope}", unit, layers[-1])
            trunk = self._through(trunk)
            self._branches(mixed, scope, layers[:-1], trunk)
            return trunk
        raise self._foreign(f"no 1x1 convolution of concatenated branches in {short_name(scope)}")

    def _reduction(self, name: str, scope: str, layers: Sequence[Layer]) -> str:
        """Mixed_6a or Mixed_7a from its output; returns what it takes."""
        mixed = self._producer(name)
        if mixed is None or mixed.op != "concat":
            raise self._foreign(f"{_label(mixed)} where {short_name(scope)} should concatenate its branches")
        pools = [node for each in mixed.inputs if (node := self._producer(each)) and node.op == "max_pool"]
        if len(pools) != 1:
            raise self._foreign(f"{len(pools)} max pools in {short_name(scope)}, not one")
        self._check_window(f"the pool of {short_name(scope)}", pools[0].window, _POOL)
        trunk = self._through(pools[0].inputs[0])
        self._branches(mixed, scope, layers, trunk, pool=pools[0])
        return trunk

    def _branches(
        self, mixed: Node, scope: str, layers: Sequence[Layer], trunk: str, pool: Node | None = None
    ) -> None:
        """Every convolution of a block's branches, found from their concatenation."""
        wanted = _by_branch(layers)
        chains = [self._chain(name, trunk, scope) for name in mixed.inputs]
        if pool is not None:
            place = next(place for place, name in enumerate(mixed.inputs) if self._producer(name) is pool)
            chains[place] = []
            wanted = [*wanted, []]
        order = next(
            (
                order
                for order in permutations(range(len(wanted)))
                if len(chains) == len(wanted)
                and all(
                    [unit.shape for unit in chains[place]] == [_shape(layer) for layer in wanted[branch]]
                    for place, branch in enumerate(order)
                )
            ),
            None,
        )
        if order is None:
            shapes = "; ".join(", ".join(str(unit.shape) for unit in chain) or "none" for chain in chains)
            raise self._foreign(f"{short_name(scope)} has branches of other kernels ({shapes})")
        if order != tuple(range(len(order))):
            branches = ", ".join(map(str, order))
            self.remarks.append(f"{short_name(scope)} concatenates its branches in the order {branches}")
        for place, branch in enumerate(order):
            for unit, layer in zip(chains[place], wanted[branch], strict=True):
                self._keep(f"{scope}/{layer.scope}", unit, layer)

    def _chain(self, name: str, trunk: str, scope: str) -> list[_Unit]:
        """The convolutions between a block's input and the end of a branch, in the order of evaluation."""
        units: list[_Unit] = []
        while self._through(name) != trunk:
            unit = self._unit(name)
            if unit is None or len(units) > 3:
                node = self._producer(name)
                if node is not None and node.op == "max_pool" and self._through(node.inputs[0]) == trunk:
                    return []
                raise self._foreign(f"{_label(node)} in a branch of {short_name(scope)}")
            units.insert(0, unit)
            name = unit.linear.inputs[0]
        return units

    # Single layers.

    def _unit(self, name: str) -> _Unit | None:
        """The convolution that ends in a tensor, with the ReLU and the affine operations behind it."""
        node = self._producer(name)
        if node is None:
            return None
        output, relu = node.output, node.op == "relu" or node.relu
        if node.op == "relu":
            node = self._producer(node.inputs[0])
        steps: list[Node] = []
        while node is not None and node.op not in ("conv", "dense"):
            operand = next((each for each in node.inputs if each not in self.graph.constants), "")
            if not self._affine(node, operand):
                return None
            steps.append(node)
            node = self._producer(operand)
        if node is None or len(node.inputs) < 2 or node.inputs[1] not in self.graph.constants:
            return None
        tensors = dict(self._linear_tensors(node))
        epsilon = None
        for step in reversed(steps):
            epsilon = self._gather(step, tensors) or epsilon
        return _Unit(node, _settled(tensors), relu, output, epsilon)

    def _linear_tensors(self, node: Node) -> Iterator[tuple[Role, PortTensor]]:
        assert node.layout is not None
        if len(node.inputs) < 2 or node.inputs[1] not in self.graph.constants:
            raise self._foreign(f"the weights of {node.output!r} are no constant")
        weights = self.graph.constants[node.inputs[1]]
        # Weights that are only stored in half precision are widened by a node before they are used.
        self.halved |= weights.dtype in HALVES and node.inputs[1] not in self.producers
        yield "weights", PortTensor(_plain(node.inputs[1]), weights, node.layout)
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = self.graph.constants.get(node.inputs[2])
            if bias is None:
                raise self._foreign(f"the bias of {node.output!r} is no constant")
            yield "biases", PortTensor(_plain(node.inputs[2]), bias, VECTOR)

    def _affine(self, node: Node, operand: str) -> bool:
        """Whether a node multiplies a tensor by constants, adds constants to it, or normalises it by some."""
        if node.op == "batch_norm":
            return node.inputs[0] == operand and all(each in self.graph.constants for each in node.inputs[1:])
        if node.op not in ("add", "multiply") or len(node.inputs) != 2 or operand not in node.inputs:
            return False
        return any(each in self.graph.constants for each in node.inputs)

    def _gather(self, step: Node, tensors: dict[Role, PortTensor]) -> float | None:
        """Add an affine operation's constants to a unit's; returns the epsilon of a batch normalisation."""
        if step.op == "batch_norm":
            for each, name in zip(BATCH_NORM, step.inputs[1:], strict=True):
                tensors[each] = PortTensor(_plain(name), self.graph.constants[name], VECTOR)
            return step.epsilon
        name = next(each for each in step.inputs if each in self.graph.constants)
        array = self.graph.constants[name]
        number = array.size == 1
        role: Role = "shift" if step.op == "add" else "factor" if number else "scale"
        tensors[role] = PortTensor(_plain(name), array.reshape(-1), _NUMBER if number else VECTOR)
        return None

    def _keep(self, scope: str, unit: _Unit, layer: Layer | None = None) -> None:
        self.layers[scope] = unit.tensors
        # What a residual's last convolution gives is told before it is scaled.
        self.activations[scope] = unit.linear.output if "factor" in unit.tensors else unit.output
        if layer is not None and unit.relu is not layer.batch_norm:
            self.remarks.append(f"{short_name(scope)} ends {'with' if unit.relu else 'without'} a ReLU")
        if unit.epsilon is not None and abs(unit.epsilon - 0.001) > 1e-9:
            self.remarks.append(
                f"{short_name(scope)} normalises with an epsilon of {unit.epsilon:g}, not 0.001"
            )
        if layer is not None:
            self._check_window(short_name(scope), unit.linear.window, _window(scope, layer))

    def _check_window(self, what: str, found: Window | None, wanted: Window) -> None:
        if found is None:
            return
        size = wanted.size or found.size or (1, 1)
        if (
            found.strides != wanted.strides
            or found.dilations != (1, 1)
            or found.groups != 1
            or found.ceil_mode
        ):
            self.remarks.append(f"{what} has strides {found.strides}, expected {wanted.strides}")
        elif found.size not in (None, size):
            self.remarks.append(f"{what} has a window of {found.size}, expected {size}")
        elif not _same_padding(found.padding, wanted.padding, size, wanted.strides):
            self.remarks.append(f"{what} is padded by {found.padding}, expected {wanted.padding}")

    def _producer(self, name: str) -> Node | None:
        return self.producers.get(self._through(name))

    def _through(self, name: str) -> str:
        """The tensor behind nodes that change no value."""
        node = self.producers.get(name)
        while node is not None and node.op == "same":
            name = node.inputs[0]
            node = self.producers.get(name)
        return name

    def _foreign(self, problem: str) -> ForeignGraphError:
        return ForeignGraphError(self.graph, problem, reached=len(self.layers))


def _settled(tensors: dict[Role, PortTensor]) -> Mapping[Role, PortTensor]:
    """A sum behind a layer without a product is its bias."""
    if "shift" in tensors and "scale" not in tensors and "biases" not in tensors:
        tensors["biases"] = tensors.pop("shift")
    return tensors


def _by_branch(layers: Sequence[Layer]) -> list[list[Layer]]:
    branches: dict[str, list[Layer]] = {}
    for layer in layers:
        branches.setdefault(layer.scope.partition("/")[0], []).append(layer)
    return list(branches.values())


def _shape(layer: Layer) -> tuple[int, ...]:
    return (*layer.kernel, layer.inputs, layer.outputs)


_STRIDED = {"Conv2d_1a_3x3", "Conv2d_4b_3x3"}
_UNPADDED = {"Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "Conv2d_4b_3x3"}


def _window(scope: str, layer: Layer) -> Window:
    """How a convolution slides: inception_resnet_v1.py in davidsandberg/facenet, stride and padding."""
    leaf = scope.rpartition("/")[2]
    strides = (2, 2) if leaf in _STRIDED else (1, 1)
    return Window(strides, "VALID" if leaf in _UNPADDED else "SAME", layer.kernel)


def _same_padding(found: Any, wanted: Any, size: tuple[int, int], strides: tuple[int, int]) -> bool:
    """Whether two paddings come to the same: of stride 1 "SAME" is half the window on either side."""

    def rows(padding: Any) -> Any:
        if padding == "VALID":
            return ((0, 0), (0, 0))
        if padding == "SAME" and strides == (1, 1):
            return tuple(((extent - 1) // 2, extent // 2) for extent in size)
        return padding

    return bool(
        rows(found) == rows(wanted) or (size == (1, 1) and strides == (1, 1) and found in ("SAME", "VALID"))
    )


def _label(node: Node | None) -> str:
    return "an input" if node is None else f"{node.kind} {_plain(node.output)!r}"


def _plain(name: str) -> str:
    """A tensor's name as its file has it, without the number that `tflite_file` adds."""
    stem, _, number = name.rpartition("#")
    return printable(stem if stem and number.isdigit() else name)
