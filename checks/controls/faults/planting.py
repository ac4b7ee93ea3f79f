"""How a fault is planted in tensors: in one variable, in several, in all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.controls.faults.fault import Apply, Pipeline, Site, activation_of, tensors_changed
from checks.core.types import Arrays

Change = Callable[[NDArray[Any]], NDArray[Any]]
Changes = Callable[[Pipeline], Arrays]


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
