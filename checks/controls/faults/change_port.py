"""Ways to change a port so that the change comes out again without a trace: tensors, layer map, modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from checks.controls.faults.fault import Apply, Site, activation_of
from checks.controls.pipeline import Pipeline
from checks.core.types import Arrays
from converter.layer_map import ConvertedRow, Row

Forward = Callable[..., Tensor]
Change = Callable[[NDArray[Any]], NDArray[Any]]
Changes = Callable[[Pipeline], Arrays]


# Tensors and the layer map


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
    """Plant what is computed from the clean port: state_dict keys to other values."""

    @contextmanager
    def apply(port: Pipeline) -> Iterator[None]:
        with tensors_changed(port, changes(port)):
            yield

    return apply


def scope_of(variable: str) -> str:
    """The scope of the layer that a variable belongs to."""
    return variable.removesuffix(f"/{variable.rsplit('/', 1)[1]}").removesuffix("/BatchNorm")


def in_variable(change: Change, variable: str) -> Site:
    """A site in one variable; `change` takes and gives the tensor in PyTorch's layout."""

    def changes(port: Pipeline) -> Arrays:
        return {port.row(variable).key: change(port.tensor(variable)).astype(np.float32)}

    return Site(variable, activation_of(scope_of(variable)), planted(changes))


def in_variables(change: Change, *variables: str) -> tuple[Site, ...]:
    """The same change in each of several variables, a site for each."""
    return tuple(in_variable(change, variable) for variable in variables)


def copied(scope: str, pairs: Mapping[str, str], *, what: str = "") -> Site:
    """A site where each variable takes the tensor of another: `pairs` has the wrong one to each."""

    def changes(port: Pipeline) -> Arrays:
        return {port.row(variable).key: port.tensor(other) for variable, other in pairs.items()}

    return Site(what or next(iter(pairs)), activation_of(scope), planted(changes))


def exchanged(one: str, other: str) -> Site:
    """A site where two variables of one shape hold each other's tensor; the first is evaluated first."""
    return copied(scope_of(one), {one: other, other: one}, what=f"{one} and {other}")


def in_every(change: Change, what: str, *, select: str = "") -> Site:
    """A site in every variable whose name ends as given."""

    def changes(port: Pipeline) -> Arrays:
        rows = [row for row in port.plan.converted if row.variable.endswith(select)]
        return {row.key: change(port.state(row.key).copy()).astype(np.float32) for row in rows}

    return Site(what, activation_of("Conv2d_1a_3x3"), planted(changes))


# Modules and other attributes


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
