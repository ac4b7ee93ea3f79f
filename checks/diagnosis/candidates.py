"""What a layer could be computing instead of what it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.core.network import NetworkLayer
from checks.diagnosis.causes import Cause


class Candidate(NamedTuple):
    """One thing that a layer could be computing instead."""

    cause: Cause
    words: str
    output: Callable[[], Tensor]


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "no ReLU": lambda x: x,
    "a ReLU": F.relu,
    "a ReLU6": F.relu6,
    "a leaky ReLU of slope 0.01": lambda x: F.leaky_relu(x, 0.01),
    "a leaky ReLU of slope 0.1": lambda x: F.leaky_relu(x, 0.1),
    "a leaky ReLU of slope 0.2": lambda x: F.leaky_relu(x, 0.2),
    "a leaky ReLU of slope 0.25": lambda x: F.leaky_relu(x, 0.25),
    "an ELU": F.elu,
    "a SELU": F.selu,
    "a SiLU": F.silu,
    "a GELU": F.gelu,
    "a GELU by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "a softplus": F.softplus,
    "a hard swish": F.hardswish,
    "a tanh": torch.tanh,
    "a sigmoid": torch.sigmoid,
    "an absolute value": torch.abs,
}


def other_activations(output: Tensor, right: str) -> Iterator[Candidate]:
    """An output with every other ending; `right` is the one that it should have."""
    for name, function in ACTIVATIONS.items():
        if name != right:
            yield Candidate(
                Cause.RELU,
                f"it ends with {name} and should end with {right}",
                partial(function, output),
            )


def activated(layer: NetworkLayer) -> Callable[[Tensor], Tensor]:
    """The ending that a layer should have."""
    return F.relu if layer.relu else lambda x: x
