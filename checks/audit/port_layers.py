"""A port by layers: each layer's tensors by what they are for, whatever the file calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from converter.layer_map import BOTTLENECK_SCOPES, CONVOLUTIONS, LOGITS_SCOPE, Layer, Variant
from converter.layouts import Layout

Role = Literal[
    "weights",
    "biases",
    "gamma",
    "beta",
    "moving_mean",
    "moving_variance",
    "counter",
    "scale",
    "shift",
    "factor",
]
"""What a tensor is for: TensorFlow's own words, and four that only ports have. counter: PyTorch's count of
batches. scale and shift: a BatchNorm as a product and a sum. factor: the scale of a residual, one number."""


def printable(name: str) -> str:
    """A name from a file, with what a terminal would act on spelled out."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in name)


BATCH_NORM: tuple[Role, ...] = ("gamma", "beta", "moving_mean", "moving_variance")
BOTTLENECK = BOTTLENECK_SCOPES[0]


@dataclass(frozen=True, slots=True)
class PortTensor:
    """One tensor of a port.

    Attributes:
        name: As the port calls it.
        array: Its values.
        layout: From TensorFlow's order of axes to the port's.
    """

    name: str
    array: NDArray[Any]
    layout: Layout


@dataclass(frozen=True, slots=True)
class Leftover:
    """A tensor of a port that belongs to no layer.

    Attributes:
        name: As the port calls it.
        dtype: Of its elements.
        shape: Its shape.
        reason: Why it may be there; empty where nothing explains it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PortWeights:
    """What a port holds.

    Attributes:
        layers: TensorFlow scope, with the Bottleneck where it stands today, to the layer's tensors.
        names: TensorFlow scope to what the port would call each tensor of a layer; empty for a graph, where
            names mean nothing.
        leftovers: What belongs to no layer.
        prefix: What every name begins with, before the name that it has in the published files.
    """

    layers: Mapping[str, Mapping[Role, PortTensor]]
    names: Mapping[str, Mapping[Role, str]] = field(default_factory=dict)
    leftovers: tuple[Leftover, ...] = ()
    prefix: str = ""


def network_layers(variant: Variant) -> tuple[Layer, ...]:
    """Every layer with weights, in the network's order: the convolutions, the Bottleneck, the classifier.

    The Bottleneck is called as it is today, whatever the variant's scope.
    """
    size, classes = variant.embedding_size, variant.num_classes
    layers = (*CONVOLUTIONS, Layer(BOTTLENECK, "last_linear", (1, 1), 1792, size))
    if classes is None:
        return layers
    return (*layers, Layer(LOGITS_SCOPE, "logits", (1, 1), size, classes, batch_norm=False))


RESIDUAL_SCALES: Mapping[str, float] = {"Repeat": 0.17, "Repeat_1": 0.10, "Repeat_2": 0.20}
"""Scope of a group of residual blocks to the factor on their residual: inception_resnet_v1.py in
davidsandberg/facenet, `slim.repeat(..., scale=)`. The last block has none."""


def residual_scale(scope: str) -> float:
    """The factor on what a residual block's last convolution, of this scope, gives."""
    return RESIDUAL_SCALES.get(scope.split("/")[1], 1.0)


def stage_of(scope: str) -> str:
    """The stage that a layer belongs to: `Repeat/block35_1`, `Mixed_6a`, `Conv2d_1a_3x3`."""
    parts = scope.split("/")[1:] or [scope]
    return "/".join(parts[:2]) if parts[0] in RESIDUAL_SCALES else parts[0]
