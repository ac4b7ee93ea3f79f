"""What a fault is, the port it is planted in, and the few ways to plant one so that it comes out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from checks.core.activations import BOTTLENECK, LAYERS, LOGITS, STAGES
from checks.core.inputs import prewhiten, standardise
from checks.core.types import Arrays
from checks.diagnosis.causes import Cause
from checks.gradients.result import OptimiserName
from checks.gradients.train_pytorch import Loss, make_optimiser, training_loss
from converter.layer_map import NETWORK_SCOPE, Converted, Row
from converter.plan import Plan
from reference import InceptionResnetV1

Kind = Literal["weights", "layer map", "hyperparameters", "preprocessing", "training"]
Setting = Literal["inference", "odd size", "tiny embeddings", "training"]
Standardisation = Literal["fixed", "per image"]

Prepare = Callable[[NDArray[Any]], NDArray[Any]]
"""Pixels (N, H, W, 3), uint8, to what the network is given: (N, H, W, 3), float32."""

MakeOptimiser = Callable[[OptimiserName, Iterable[Parameter]], Optimizer]
Forward = Callable[..., Tensor]

LOSS = "loss"
OPTIMISER = "optimiser"


def _preparations() -> dict[Standardisation, Prepare]:
    return {"fixed": standardise, "per image": prewhiten}


@dataclass(slots=True, eq=False)
class Pipeline:
    """A whole port, from pixels to the optimiser: what a fault may change.

    Attributes:
        float32: The network as a user runs it, in evaluation mode.
        float64: The same with its float32 weights widened.
        plan: What its tensors were converted by.
        source: TensorFlow name to array: the variables, and their moving averages under the name that
            TensorFlow gives these.
        prepare: The port's own preprocessing, for networks trained on either standardisation.
        loss: What training differentiates.
        make_optimiser: What training steps are taken with.
    """

    float32: InceptionResnetV1
    float64: InceptionResnetV1
    plan: Plan
    source: Arrays
    prepare: dict[Standardisation, Prepare] = field(default_factory=_preparations)
    loss: Loss = training_loss
    make_optimiser: MakeOptimiser = make_optimiser

    @property
    def models(self) -> tuple[InceptionResnetV1, InceptionResnetV1]:
        """The network in either arithmetic."""
        return self.float32, self.float64

    def row(self, variable: str) -> Converted:
        """The row of the layer map for a variable, named without the network's scope."""
        return next(row for row in self.plan.converted if row.variable in self._full_names(variable))

    def _full_names(self, variable: str) -> tuple[str, str]:
        return f"{NETWORK_SCOPE}/{variable}", variable  # Logits, and an old Bottleneck, stand outside it

    def tensor(self, variable: str) -> NDArray[Any]:
        """The port's tensor for a variable: float32, in PyTorch's layout, a copy."""
        return np.array(self.state(self.row(variable).key))

    def state(self, key: str) -> NDArray[Any]:
        """The tensor of the float32 network under a state_dict key, sharing its memory."""
        array: NDArray[Any] = self.float32.state_dict()[key].numpy()
        return array


Apply = Callable[[Pipeline], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Site:
    """One place that a fault can be planted in.

    Attributes:
        label: The place in words; unique within a fault.
        activation: Where a comparison must say that the port first differs: an activation, or in training `LOSS` or
            `OPTIMISER`.
        apply: Plants the fault in a port, and takes it out when the context ends.
        setting: Where it shows. In any but inference the fault is equivalent in inference at 160x160.
    """

    label: str
    activation: str
    apply: Apply
    setting: Setting = "inference"


@dataclass(frozen=True, slots=True)
class Fault:
    """A class of faults.

    Attributes:
        name: Short, as `--only` takes it.
        kind: The part of a port that is wrong.
        shipped: Where such a fault has really been shipped, or how it comes about, a sentence.
        cause: What a diagnosis should call it; None where it has no name for it.
        sites: Where it is planted.
    """

    name: str
    kind: Kind
    shipped: str
    cause: Cause | None
    sites: tuple[Site, ...]


# Places


def activation_of(scope: str) -> str:
    """The activation of a layer or stage, from its scope without the network's."""
    if scope == LOGITS:
        return scope
    return BOTTLENECK if scope == "Bottleneck" else f"{NETWORK_SCOPE}/{scope}"


def module_of(scope: str) -> str:
    """Dotted path of the module of a layer or stage, from its scope without the network's."""
    activation = activation_of(scope)
    return LAYERS[activation] if activation in LAYERS else STAGES[activation]


def batch_norm_of(scope: str) -> str:
    """Dotted path of the BatchNorm of a layer."""
    return "last_bn" if scope == "Bottleneck" else f"{module_of(scope)}.bn"


# Ways to plant a fault


@contextmanager
def tensors_changed(port: Pipeline, changes: Arrays) -> Iterator[None]:
    """Other values under some state_dict keys, float32 arrays in PyTorch's layout, in both networks."""
    kept = {key: port.state(key).copy() for key in changes}
    try:
        _load(port, changes)
        yield
    finally:
        _load(port, kept)


def _load(port: Pipeline, arrays: Arrays) -> None:
    for model in port.models:
        state = model.state_dict()
        for key, array in arrays.items():
            state[key].copy_(torch.tensor(np.ascontiguousarray(array)))


@contextmanager
def rows_changed(
    port: Pipeline, rows: Mapping[str, Row], sources: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Another layer map, and the tensors that follow from it.

    Args:
        port: The port.
        rows: state_dict key to the row that takes the place of its own.
        sources: Variable to the tensor that is read for it, where that is another than planned.
    """
    kept = port.plan
    plan = replace(
        kept,
        rows=tuple(rows.get(row.key, row) for row in kept.rows),
        sources={**kept.sources, **(sources or {})},
    )
    changes = {}
    for key, row in rows.items():
        if isinstance(row, Converted):
            changes[key] = row.layout.apply(port.source[plan.sources[row.variable]])
        else:
            changes[key] = np.full(row.shape, row.fill, row.dtype)
    with tensors_changed(port, changes):
        port.plan = plan
        try:
            yield
        finally:
            port.plan = kept


@contextmanager
def attributes_set(owner: object, **values: Any) -> Iterator[None]:
    """Other values of some attributes, which are deleted again where the object itself had none."""
    own = {**owner.__dict__, **owner._modules} if isinstance(owner, nn.Module) else _attributes(owner, values)
    kept = {name: own[name] for name in values if name in own}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in values:
            if name in kept:
                setattr(owner, name, kept[name])
            else:
                delattr(owner, name)


def _attributes(owner: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in names}


def modules_set(*paths: str, **values: Any) -> Apply:
    """Plant other attributes in the modules of these dotted paths, in both networks."""

    @contextmanager
    def apply(port: Pipeline) -> Iterator[None]:
        with ExitStack() as closing:
            for model in port.models:
                for path in paths:
                    closing.enter_context(attributes_set(model.get_submodule(path), **values))
            yield

    return apply


def forward_replaced(path: str, forward: Forward, *, method: str = "forward", only32: bool = False) -> Apply:
    """Plant another method, usually the forward, in a module of both networks or of the float32 one.

    Args:
        path: Dotted path of the module; empty is the network itself.
        forward: Takes the module and the method's arguments.
        method: The method's name.
        only32: Whether the fault lies in float32 arithmetic alone.
    """

    @contextmanager
    def apply(port: Pipeline) -> Iterator[None]:
        with ExitStack() as closing:
            for model in port.models[:1] if only32 else port.models:
                module = model.get_submodule(path)
                closing.enter_context(attributes_set(module, **{method: MethodType(forward, module)}))
            yield

    return apply


def every_batch_norm(**values: Any) -> Apply:
    """Plant other attributes in every BatchNorm of both networks."""

    @contextmanager
    def apply(port: Pipeline) -> Iterator[None]:
        with ExitStack() as closing:
            for model in port.models:
                for module in model.modules():
                    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                        closing.enter_context(attributes_set(module, **values))
            yield

    return apply
