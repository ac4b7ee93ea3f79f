"""The definition of a fault: its class, its sites, and how each is planted in a port."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from checks.controls.port_pipeline import Pipeline
from checks.core.activations import LAYERS, STAGES
from checks.core.network import BOTTLENECK, LOGITS
from checks.diagnosis.causes import Cause
from converter.layer_map import NETWORK_SCOPE

Kind = Literal["weights", "layer map", "hyperparameters", "preprocessing", "training"]
Setting = Literal["inference", "odd size", "tiny embeddings", "training"]

LOSS = "loss"
OPTIMISER = "optimiser"

Apply = Callable[[Pipeline], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Site:
    """A place to plant a fault in.

    Attributes:
        label: The place for a reader; unique within a fault.
        activation: The place where the port must first differ in a comparison; in training also `LOSS` or
            `OPTIMISER`.
        apply: Plants the fault in a port, and takes it out when the context ends.
        setting: The setting that shows the fault. If it is not inference, inference at 160x160 must not show
            it.
    """

    label: str
    activation: str
    apply: Apply
    setting: Setting = "inference"


@dataclass(frozen=True, slots=True)
class Fault:
    """A class of faults.

    Attributes:
        name: A short name, which `--only` takes.
        kind: The part of a port that is wrong.
        shipped: A sentence on a port that was shipped with it, or on how it comes about.
        cause: The cause that a diagnosis should name; None if it has no name for it.
        sites: The places to plant it in.
    """

    name: str
    kind: Kind
    shipped: str
    cause: Cause | None
    sites: tuple[Site, ...]


# Places


def activation_of(scope: str) -> str:
    """The activation of a layer or stage, given its scope without the network's scope."""
    if scope == LOGITS:
        return scope
    return BOTTLENECK if scope == "Bottleneck" else f"{NETWORK_SCOPE}/{scope}"


def module_of(scope: str) -> str:
    """Dotted path of the module of a layer or stage, given its scope without the network's scope."""
    activation = activation_of(scope)
    return LAYERS[activation] if activation in LAYERS else STAGES[activation]


def batch_norm_of(scope: str) -> str:
    """Dotted path of the BatchNorm of a layer."""
    return "last_bn" if scope == "Bottleneck" else f"{module_of(scope)}.bn"
