"""Changes of a port's tensors, layer map and modules, each of which is taken out again without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from checks.controls.faults.fault import (
    Apply,
    Fault,
    Setting,
    Site,
    activation_of,
    batch_norm_of,
    module_of,
)
from checks.controls.port_pipeline import Pipeline
from checks.core.types import Array, Arrays
from checks.diagnosis.causes import Cause
from converter.layer_map import ConvertedRow, Row

Forward = Callable[..., Tensor]
Change = Callable[[Array], Array]
Changes = Callable[[Pipeline], Arrays]


# Tensors and the layer map


@contextmanager
def tensors_changed(port: Pipeline, changes: Arrays) -> Iterator[None]:
    """Change tensors of both networks, while open: state_dict key to float32 array, in PyTorch's layout."""
    kept = {key: port.state(key).copy() for key in changes}
    try:
        _load(port, changes)
        yield
    finally:
        _load(port, kept)


def _load(port: Pipeline, arrays: Arrays) -> None:
    with torch.no_grad():
        for model in port.models:
            for key, array in arrays.items():
                module, _, name = key.rpartition(".")
                tensor: Tensor = getattr(model.get_submodule(module), name)
                tensor.copy_(torch.tensor(np.ascontiguousarray(array)))


@contextmanager
def rows_changed(
    port: Pipeline, rows: Mapping[str, Row], sources: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Change rows of the layer map, and the tensors that follow from them, while open.

    Args:
        port: The port.
        rows: state_dict key to its new row.
        sources: Variable to the tensor that is read for it instead.
    """
    kept = port.plan
    plan = replace(
        kept,
        rows=tuple(rows.get(row.key, row) for row in kept.rows),
        sources={**kept.sources, **(sources or {})},
    )
    changes = {}
    for key, row in rows.items():
        if isinstance(row, ConvertedRow):
            changes[key] = row.layout.apply(port.source[plan.sources[row.variable]])
        else:
            changes[key] = np.full(row.shape, row.fill, row.dtype)
    with tensors_changed(port, changes):
        port.plan = plan
        try:
            yield
        finally:
            port.plan = kept


def planted(changes: Changes) -> Apply:
    """Plant tensors that are computed from the clean port: state_dict key to array."""
    return lambda port: tensors_changed(port, changes(port))


def scope_of(variable: str) -> str:
    """The scope of the layer that a variable belongs to."""
    return variable.removesuffix(f"/{variable.rsplit('/', 1)[1]}").removesuffix("/BatchNorm")


def in_variable(change: Change, variable: str) -> Site:
    """A site in one variable; `change` takes and returns the tensor in PyTorch's layout."""

    def changes(port: Pipeline) -> Arrays:
        return {port.row(variable).key: change(port.tensor(variable)).astype(np.float32)}

    return Site(variable, activation_of(scope_of(variable)), planted(changes))


def in_variables(change: Change, *variables: str) -> tuple[Site, ...]:
    """A site for each of several variables, with the same change."""
    return tuple(in_variable(change, variable) for variable in variables)


def in_weights(name: str, shipped: str, cause: Cause, change: Change, *variables: str) -> Fault:
    """A class of faults that changes one variable at each of its sites, as `in_variables` does."""
    return Fault(name, "weights", shipped, cause, in_variables(change, *variables))


def copied(scope: str, pairs: Mapping[str, str], *, label: str = "") -> Site:
    """A site where variables hold other tensors: `pairs` maps each variable to the one that it copies."""

    def changes(port: Pipeline) -> Arrays:
        return {port.row(variable).key: port.tensor(other) for variable, other in pairs.items()}

    return Site(label or next(iter(pairs)), activation_of(scope), planted(changes))


def exchanged(first: str, second: str) -> Site:
    """A site where two variables of the same shape are exchanged; `first` is evaluated first."""
    pairs = {first: second, second: first}
    return copied(scope_of(first), pairs, label=f"{first} and {second}")


def in_every(change: Change, label: str) -> Site:
    """A site in every variable at once."""

    def changes(port: Pipeline) -> Arrays:
        return {row.key: change(port.state(row.key).copy()).astype(np.float32) for row in port.plan.converted}

    return Site(label, activation_of("Conv2d_1a_3x3"), planted(changes))


# Modules and other attributes


@contextmanager
def attributes_set(owner: object, **values: Any) -> Iterator[None]:
    """Set attributes of an object, while open; the ones that it did not have are deleted again."""
    if isinstance(owner, nn.Module):
        own = {**owner.__dict__, **owner._modules}
    else:
        own = {name: getattr(owner, name) for name in values}
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


@contextmanager
def all_set(owners: Iterable[object], **values: Any) -> Iterator[None]:
    """Set the same attributes of several objects, as `attributes_set` does."""
    with ExitStack() as closing:
        for owner in owners:
            closing.enter_context(attributes_set(owner, **values))
        yield


def modules_set(path: str, **values: Any) -> Apply:
    """Plant attributes in the module with this dotted path, in both networks."""
    return lambda port: all_set([model.get_submodule(path) for model in port.models], **values)


def forward_replaced(path: str, forward: Forward, *, method: str = "forward", only32: bool = False) -> Apply:
    """Plant another method, usually `forward`, in a module of both networks or of the float32 one.

    Args:
        path: Dotted path of the module; empty is the network itself.
        forward: Takes the module and the method's arguments.
        method: The method's name.
        only32: Whether to plant it in the float32 network alone.
    """

    @contextmanager
    def apply(port: Pipeline) -> Iterator[None]:
        with ExitStack() as closing:
            for model in port.models[:1] if only32 else port.models:
                module = model.get_submodule(path)
                closing.enter_context(attributes_set(module, **{method: MethodType(forward, module)}))
            yield

    return apply


def in_forwards(
    forward: Forward, *scopes: str, part: str = "", setting: Setting = "inference", only32: bool = False
) -> tuple[Site, ...]:
    """Sites in layers or stages, or in one part of each ("conv" or "bn"), with another forward."""

    def site(scope: str) -> Site:
        path = batch_norm_of(scope) if part == "bn" else ".".join(filter(None, (module_of(scope), part)))
        return Site(scope, activation_of(scope), forward_replaced(path, forward, only32=only32), setting)

    return tuple(map(site, scopes))


def in_batch_norms(*scopes: str, setting: Setting = "inference", **values: Any) -> tuple[Site, ...]:
    """Sites in the BatchNorm of each layer, and one in every BatchNorm, with other attributes."""

    def everywhere(port: Pipeline) -> AbstractContextManager[None]:
        modules = [module for model in port.models for module in model.modules()]
        norms = [module for module in modules if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        return all_set(norms, **values)

    sites = [
        Site(scope, activation_of(scope), modules_set(batch_norm_of(scope), **values), setting)
        for scope in scopes
    ]
    return (*sites, Site("every BatchNorm", activation_of("Conv2d_1a_3x3"), everywhere, setting))
