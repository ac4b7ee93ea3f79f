"""The network as the checks know it: every layer's inputs, window, scale, activation and tensors.

`converter.layer_map` names the tensors; this adds the arithmetic, as pure data. The settings are those of
davidsandberg/facenet's `src/models/inception_resnet_v1.py`. They are not read from a port's modules,
because the checks judge the port.

A layer is named by its activation: the TensorFlow scope whose output it is, such as
`InceptionResnetV1/Repeat/block35_1/Branch_0/Conv2d_1x1`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from converter.counts import counted
from converter.layer_map import (
    BLOCKS,
    BOTTLENECK_INPUTS,
    CONVOLUTIONS,
    LOGITS_SCOPE,
    NETWORK_SCOPE,
    Layer,
    Variant,
)
from converter.mtcnn_layer_map import MtcnnNetwork, Network

EPSILON = 0.001
"""Added to BatchNorm's variance: `batch_norm_params` in davidsandberg/facenet's `src/train_softmax.py`."""

NORM_FLOOR = 1e-5
"""The least norm that an embedding is divided by: the root of 1e-10 in `tf.nn.l2_normalize(x, 1, 1e-10)`."""

MAX_POOL = f"{NETWORK_SCOPE}/MaxPool_3a_3x3"
AVERAGE_POOL = f"{NETWORK_SCOPE}/Logits/AvgPool_1a_8x8"
BOTTLENECK = f"{NETWORK_SCOPE}/Bottleneck"
EMBEDDINGS = "embeddings"
LOGITS = LOGITS_SCOPE

STATISTICS = ("gamma", "beta", "mean", "variance")
"""Roles of BatchNorm's tensors."""

_SCALES = {"block35": 0.17, "block17": 0.10, "block8": 0.20, "Block8": 1.0}
_HALVING = {"Conv2d_1a_3x3", "Conv2d_4b_3x3"}  # stride 2
_UNPADDED = _HALVING | {"Conv2d_2a_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"}  # padding='VALID'
_BATCH_NORM_KEYS = dict(zip(STATISTICS, ("weight", "bias", "running_mean", "running_var"), strict=True))


class LayerKind(Enum):
    """The operations that a layer consists of."""

    UNIT = auto()  # convolution, BatchNorm, ReLU
    PROJECTION = auto()  # 1x1 convolution with biases, at the end of a residual block
    MAX_POOL = auto()
    RESIDUAL = auto()  # shortcut and scaled projection, added
    REDUCTION = auto()  # branches and a max pool, concatenated
    AVERAGE_POOL = auto()  # over the whole map
    BOTTLENECK = auto()  # fully connected, BatchNorm
    EMBEDDINGS = auto()  # L2 normalisation
    LOGITS = auto()  # fully connected with biases

    # Of MTCNN
    CONVOLUTION = auto()  # convolution with biases
    PRELU = auto()  # a factor for each channel on what is negative
    FULLY_CONNECTED = auto()  # with biases, on a vector or on flattened maps
    SOFTMAX = auto()  # over the channels


@dataclass(frozen=True, slots=True)
class NetworkLayer:
    """A layer of the network.

    Attributes:
        activation: TensorFlow scope.
        kind: Its operations.
        inputs: The activations that it takes; None stands for the images. A projection concatenates them in
            this order. A residual takes its shortcut first, a reduction the input of its max pool last.
        keys: Role to state_dict key of each of its tensors: weight, then bias or those of `STATISTICS`.
        kernel: (height, width) of its convolution or max pool, or of the maps that a fully connected layer
            flattens; None if it has none.
        stride: Stride of the kernel, in both directions.
        padding: Padding of the kernel. SAME at stride 1 keeps the size. Of MTCNN's pools it says that pixels
            which do not fill a window are kept; no pixel is added before the first.
        scale: Factor on the residual.
        relu: Whether it ends with a ReLU.
    """

    activation: str
    kind: LayerKind
    inputs: tuple[str | None, ...]
    keys: Mapping[str, str] = field(default_factory=dict)
    kernel: tuple[int, int] | None = None
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "VALID"
    scale: float = 1.0
    relu: bool = False


def by_branch(layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], ...]:
    """Group a block's layers by branch, in the order in which TensorFlow concatenates the branches.

    Args:
        layers: Layers of a block of `BLOCKS`. The projection behind the branches is left out.
    """
    branches: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.batch_norm:
            branches.setdefault(layer.scope.partition("/")[0], []).append(layer)
    return tuple(map(tuple, branches.values()))


def _network() -> Iterator[NetworkLayer]:
    """Every layer in the order of evaluation."""
    trunk: str | None = None
    for scope, module, layers in BLOCKS:
        if scope:
            block = tuple(_block(scope, module, layers, trunk))
            yield from block
            trunk = block[-1].activation
            continue
        for layer in layers:
            unit = _unit(f"{NETWORK_SCOPE}/{layer.scope}", layer.module, layer, trunk)
            yield unit
            trunk = unit.activation
            if layer.scope == "Conv2d_2b_3x3":
                yield NetworkLayer(MAX_POOL, LayerKind.MAX_POOL, (trunk,), kernel=(3, 3), stride=2)
                trunk = MAX_POOL
    yield NetworkLayer(AVERAGE_POOL, LayerKind.AVERAGE_POOL, (trunk,))
    bottleneck_keys = {"weight": "last_linear.weight", **_batch_norm_keys("last_bn")}
    yield NetworkLayer(BOTTLENECK, LayerKind.BOTTLENECK, (AVERAGE_POOL,), bottleneck_keys)
    yield NetworkLayer(EMBEDDINGS, LayerKind.EMBEDDINGS, (BOTTLENECK,))
    logits_keys = {"weight": "logits.weight", "bias": "logits.bias"}
    yield NetworkLayer(LOGITS, LayerKind.LOGITS, (BOTTLENECK,), logits_keys)


def _block(scope: str, module: str, layers: Sequence[Layer], trunk: str | None) -> Iterator[NetworkLayer]:
    """The layers of a residual block or a reduction; the block itself is the last."""
    block = f"{NETWORK_SCOPE}/{scope}"
    ends = []
    for branch in by_branch(layers):
        previous = trunk
        for layer in branch:
            unit = _unit(f"{block}/{layer.scope}", f"{module}.{layer.module}", layer, previous)
            yield unit
            previous = unit.activation
        ends.append(previous)
    if scope.startswith("Mixed"):
        yield NetworkLayer(block, LayerKind.REDUCTION, (*ends, trunk), kernel=(3, 3), stride=2)
        return
    projection = f"{block}/Conv2d_1x1"
    keys = {"weight": f"{module}.conv2d.weight", "bias": f"{module}.conv2d.bias"}
    yield NetworkLayer(projection, LayerKind.PROJECTION, tuple(ends), keys, kernel=(1, 1), padding="SAME")
    scale = _SCALES[scope.rpartition("/")[2].partition("_")[0]]
    relu = scope != "Block8"
    yield NetworkLayer(block, LayerKind.RESIDUAL, (trunk, projection), scale=scale, relu=relu)


def _unit(activation: str, module: str, layer: Layer, previous: str | None) -> NetworkLayer:
    name = activation.rpartition("/")[2]
    return NetworkLayer(
        activation,
        LayerKind.UNIT,
        (previous,),
        {"weight": f"{module}.conv.weight", **_batch_norm_keys(f"{module}.bn")},
        kernel=layer.kernel,
        stride=2 if name in _HALVING else 1,
        padding="VALID" if name in _UNPADDED else "SAME",
        relu=True,
    )


def _batch_norm_keys(module: str) -> dict[str, str]:
    return {role: f"{module}.{name}" for role, name in _BATCH_NORM_KEYS.items()}


NETWORK: Mapping[str, NetworkLayer] = {layer.activation: layer for layer in _network()}
"""Activation to its layer, in the order of evaluation."""

KEYS: Mapping[str, str] = {key: layer.activation for layer in NETWORK.values() for key in layer.keys.values()}
"""state_dict key to the activation whose layer has it; batch counters have none."""


def network_layers(variant: Variant) -> tuple[Layer, ...]:
    """Every layer with weights: the convolutions, the Bottleneck, the classifier.

    The Bottleneck has today's scope, whatever the variant's scope.
    """
    size, classes = variant.embedding_size, variant.num_classes
    layers = (*CONVOLUTIONS, Layer(BOTTLENECK, "last_linear", (1, 1), BOTTLENECK_INPUTS, size))
    if classes is None:
        return layers
    return (*layers, Layer(LOGITS, "logits", (1, 1), size, classes, batch_norm=False))


def describe_network(variant: Network) -> str:
    """Describe a network in one line."""
    if isinstance(variant, MtcnnNetwork):
        return f"{variant.name} of MTCNN"
    classes = (
        "no classifier" if variant.num_classes is None else counted(variant.num_classes, "class", "classes")
    )
    return f"Inception-ResNet-v1, {variant.embedding_size}-d embedding, {classes}"


def stage_of(activation: str) -> str:
    """The stage that a layer belongs to: `Repeat/block35_1`, `Mixed_6a`, `Conv2d_1a_3x3`, `Logits`."""
    parts = short_name(activation).split("/")
    return "/".join(parts[:2]) if parts[0].startswith("Repeat") else parts[0]


def residual_scale(activation: str) -> float:
    """The factor on the residual of the block that a layer belongs to; 1 outside the residual blocks."""
    block = NETWORK.get(f"{NETWORK_SCOPE}/{stage_of(activation)}")
    return 1.0 if block is None else block.scale


def short_name(activation: str) -> str:
    """An activation's name without the network's scope."""
    return activation.removeprefix(f"{NETWORK_SCOPE}/")
