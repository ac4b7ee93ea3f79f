"""The network's layers as functions in float64, each to be run by itself with whatever tensors and settings.

The settings are written down here from davidsandberg/facenet's `inception_resnet_v1.py` and not read from the
port's modules, which are what is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.core.activations import BOTTLENECK, EMBEDDINGS, LAYERS, LOGITS, STAGES
from converter.layer_map import BLOCKS, CONVOLUTIONS, NETWORK_SCOPE

EPSILON = 0.001
NORM_FLOOR = 1e-5  # the square root of the 1e-10 that tf.nn.l2_normalize is given
MAX_POOL = f"{NETWORK_SCOPE}/MaxPool_3a_3x3"
AVERAGE_POOL = f"{NETWORK_SCOPE}/Logits/AvgPool_1a_8x8"

Tensors = Mapping[str, Tensor]
"""A layer's tensors by role: weight, and gamma, beta, mean, variance, or bias."""

STATISTICS = ("gamma", "beta", "mean", "variance")
"""Roles of BatchNorm's tensors."""

_BATCH_NORM_KEYS = dict(zip(STATISTICS, ("weight", "bias", "running_mean", "running_var"), strict=True))


class Kind(Enum):
    """What an activation's layer is made of."""

    UNIT = auto()  # convolution, BatchNorm, ReLU
    PROJECTION = auto()  # 1x1 convolution with biases, at the end of a residual block
    MAX_POOL = auto()
    RESIDUAL = auto()  # shortcut and scaled projection, added
    REDUCTION = auto()  # branches and a pool, concatenated
    AVERAGE_POOL = auto()
    BOTTLENECK = auto()  # fully connected, BatchNorm
    EMBEDDINGS = auto()  # L2 normalisation
    LOGITS = auto()  # fully connected with biases


@dataclass(frozen=True, slots=True)
class Layer:
    """One activation's layer as it should be.

    Attributes:
        activation: TensorFlow scope.
        kind: What it is made of.
        inputs: Activations whose activations it takes; None stands for the images. Those of a projection are
            concatenated; a residual takes its shortcut first, a reduction the pool's input last.
        keys: Role to state_dict key.
        stride: Of a convolution.
        same: Whether a convolution keeps height and width at stride 1 (SAME) or pads nothing (VALID).
        scale: Factor on the residual.
        relu: Whether a ReLU ends it.
    """

    activation: str
    kind: Kind
    inputs: tuple[str | None, ...]
    keys: Mapping[str, str]
    stride: int = 1
    same: bool = True
    scale: float = 1.0
    relu: bool = True

    def padding(self, weight: Tensor) -> tuple[int, int, int, int]:
        """Zeros around the input of a convolution: left, right, top, bottom, as `F.pad` takes them."""
        if not self.same:
            return (0, 0, 0, 0)
        height, width = weight.shape[2:]
        return ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)


def _build() -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    before: str | None = None
    batch_norm = {layer.scope: layer.batch_norm for layer in CONVOLUTIONS}
    for scope, _, rows in BLOCKS:
        ends: dict[str, str] = {}  # branch to the last of its activations so far
        for row in rows:
            activation = "/".join(part for part in (NETWORK_SCOPE, scope, row.scope) if part)
            module = LAYERS[activation]
            if not batch_norm[activation]:
                keys = {"weight": f"{module}.weight", "bias": f"{module}.bias"}
                layers[activation] = Layer(
                    activation, Kind.PROJECTION, tuple(ends.values()), keys, relu=False
                )
                continue
            keys = {"weight": f"{module}.conv.weight"}
            keys |= {role: f"{module}.bn.{name}" for role, name in _BATCH_NORM_KEYS.items()}
            branch = row.scope.rpartition("/")[0]
            # slim numbers the stages of a branch: 1a is the one that halves the map.
            halves = row.scope.endswith("Conv2d_1a_3x3") or row.scope == "Conv2d_4b_3x3"
            valid = halves or row.scope in ("Conv2d_2a_3x3", "Conv2d_4a_3x3")
            previous = ends.get(branch, before) if scope else before
            layers[activation] = Layer(
                activation, Kind.UNIT, (previous,), keys, 2 if halves else 1, not valid
            )
            if scope:
                ends[branch] = activation
                continue
            before = activation
            if row.scope == "Conv2d_2b_3x3":
                layers[MAX_POOL] = Layer(
                    MAX_POOL, Kind.MAX_POOL, (activation,), {}, 2, same=False, relu=False
                )
                before = MAX_POOL
        if scope:
            activation = f"{NETWORK_SCOPE}/{scope}"
            layers[activation] = _block(activation, scope, before, tuple(ends.values()))
            before = activation
    keys = {"weight": "last_linear.weight"}
    keys |= {role: f"last_bn.{name}" for role, name in _BATCH_NORM_KEYS.items()}
    layers[AVERAGE_POOL] = Layer(AVERAGE_POOL, Kind.AVERAGE_POOL, (before,), {}, relu=False)
    layers[BOTTLENECK] = Layer(BOTTLENECK, Kind.BOTTLENECK, (AVERAGE_POOL,), keys, relu=False)
    layers[EMBEDDINGS] = Layer(EMBEDDINGS, Kind.EMBEDDINGS, (BOTTLENECK,), {}, relu=False)
    keys = {"weight": "logits.weight", "bias": "logits.bias"}
    layers[LOGITS] = Layer(LOGITS, Kind.LOGITS, (BOTTLENECK,), keys, relu=False)
    return layers


# Factor on the residual, by the name of the block: inception_resnet_v1.py.
_SCALES = {"block35": 0.17, "block17": 0.10, "block8": 0.20, "Block8": 1.0}


def _block(activation: str, scope: str, before: str | None, ends: tuple[str, ...]) -> Layer:
    if scope.startswith("Mixed"):
        return Layer(activation, Kind.REDUCTION, (*ends, before), {}, relu=False)
    name = scope.rpartition("/")[2].partition("_")[0]
    projection = f"{activation}/Conv2d_1x1"
    return Layer(
        activation, Kind.RESIDUAL, (before, projection), {}, scale=_SCALES[name], relu=scope != "Block8"
    )


NETWORK: Mapping[str, Layer] = _build()
"""Every activation's layer, in the order of evaluation."""

assert NETWORK.keys() == {*LAYERS, *STAGES, EMBEDDINGS, LOGITS}

KEYS: Mapping[str, str] = {key: layer.activation for layer in NETWORK.values() for key in layer.keys.values()}
"""state_dict key to the activation whose layer has it; batch counters have none."""


def convolve(
    x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int, int, int], mode: str = "constant"
) -> Tensor:
    """Cross-correlation after padding (left, right, top, bottom)."""
    return F.conv2d(F.pad(x, padding, mode) if any(padding) else x, weight, stride=stride)


def linear_part(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution or matrix product of a layer, without BatchNorm or biases."""
    if layer.kind in (Kind.BOTTLENECK, Kind.LOGITS):
        return F.linear(x.flatten(start_dim=1), weight)
    return convolve(x, weight, layer.stride, layer.padding(weight))


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """A vector in the shape that lies along the channels of a map or matrix."""
    return vector.view(1, -1, *(1,) * (like.ndim - 2))


def batch_norm(x: Tensor, tensors: Tensors, epsilon: float = EPSILON, *, outside: bool = False) -> Tensor:
    """BatchNorm in inference: (x - mean) * gamma / sqrt(variance + epsilon) + beta.

    Args:
        x: (N, channels, ...).
        tensors: gamma, beta, mean, variance.
        epsilon: What is added to the variance.
        outside: Whether it is added to the root instead.
    """
    variance = tensors["variance"]
    root = variance.sqrt() + epsilon if outside else (variance + epsilon).sqrt()
    gamma, beta, mean = (per_channel(tensors[role], x) for role in ("gamma", "beta", "mean"))
    return (x - mean) * gamma / per_channel(root, x) + beta


def finish(layer: Layer, linear: Tensor, tensors: Tensors) -> Tensor:
    """What follows a layer's convolution or matrix product: BatchNorm or biases, and the ReLU."""
    if "bias" in tensors:
        return linear + per_channel(tensors["bias"], linear)
    normalised = batch_norm(linear, tensors)
    return F.relu(normalised) if layer.relu else normalised


def run_weights(layer: Layer, x: Tensor, tensors: Tensors) -> Tensor:
    """A layer that has tensors: unit, projection, bottleneck, logits."""
    return finish(layer, linear_part(layer, x, tensors["weight"]), tensors)


def residual(layer: Layer, shortcut: Tensor, update: Tensor) -> Tensor:
    """The sum at the end of a residual block."""
    total = shortcut + layer.scale * update
    return F.relu(total) if layer.relu else total


def normalise(prelogits: Tensor, floor: float = NORM_FLOOR) -> Tensor:
    """Embeddings: each row over its L2 norm, which counts as `floor` at least."""
    return F.normalize(prelogits, eps=floor)


def distance(found: Tensor | str | None, wanted: Tensor) -> float:
    """Relative L2; infinite where there is nothing, another shape, or a value that is not finite."""
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return float("inf")
    gap, norm = float((found - wanted).norm()), float(wanted.norm())
    if gap == 0.0:
        return 0.0
    return gap / norm if norm and gap < float("inf") else float("inf")


def layer_input(layer: Layer, images: Tensor, reference: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The reference's activations that a layer takes, as `Layer.inputs` orders them."""
    return tuple(images if activation is None else reference[activation] for activation in layer.inputs)


def concatenated(parts: tuple[Tensor, ...]) -> Tensor:
    """Maps side by side along the channels; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
