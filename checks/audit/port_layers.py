"""A port's weights, layer by layer; each tensor has a role that does not depend on the file's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from checks.audit.quantisation import QuantisedTensor
from checks.audit.result import TensorResult
from checks.core.types import Array
from converter.layouts import CONVOLUTION, FULLY_CONNECTED, VECTOR, Layout

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
"""The role of a tensor in its layer, in TensorFlow's words, and four roles that only ports have. counter:
PyTorch's count of batches. scale and shift: a BatchNorm as a product and a sum. factor: the scale of a
residual, a single number."""

BATCH_NORM: tuple[Role, ...] = ("gamma", "beta", "moving_mean", "moving_variance")

_CHANNELS_FIRST: Mapping[int, Layout] = {4: CONVOLUTION, 2: FULLY_CONNECTED, 1: VECTOR}


@dataclass(frozen=True, slots=True)
class PortTensor:
    """A tensor of a port.

    Attributes:
        name: Its name in the port.
        array: Its values.
        layout: TensorFlow's order of axes to the port's.
        quantised: The integers that the port stores for the values; None if it stores the values.
        input_scale: Of the weights of a layer whose input is quantised, the scale of the input.
    """

    name: str
    array: Array
    layout: Layout
    quantised: QuantisedTensor | None = None
    input_scale: float | None = None

    def channels_first(self) -> Array | None:
        """The values in the order of the published state_dicts, OIHW or OI; None if the rank does not fit."""
        order = _CHANNELS_FIRST.get(self.array.ndim)
        if order is None or self.array.ndim != len(self.layout.permutation):
            return None
        return order.apply(self.array.transpose(self.layout.inverse.permutation))  # copied once at most

    def as_stored(self, channels_first: Array) -> Array:
        """Put an array in the order that `channels_first` gives into the order of the port."""
        order = _CHANNELS_FIRST[channels_first.ndim]
        return self.layout.apply(channels_first.transpose(order.inverse.permutation))


@dataclass(frozen=True, slots=True)
class PortWeights:
    """The weights of a port.

    Attributes:
        layers: TensorFlow scope to the layer's tensors. The Bottleneck is under its newer scope.
        names: TensorFlow scope to the names of the layer's tensors in this format; empty for a graph, whose
            names mean nothing.
        leftovers: The results for the tensors that belong to no layer.
    """

    layers: Mapping[str, Mapping[Role, PortTensor]]
    names: Mapping[str, Mapping[Role, str]] = field(default_factory=dict)
    leftovers: tuple[TensorResult, ...] = ()

    @property
    def is_finite(self) -> bool:
        """True if no tensor of a layer holds a NaN or an infinity, so that the port can be run."""
        return all(
            np.isfinite(tensor.array).all() for tensors in self.layers.values() for tensor in tensors.values()
        )


def printable(name: str) -> str:
    """Escape the characters of a file's name for a tensor that would act on a terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in name)
