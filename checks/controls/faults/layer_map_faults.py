"""Faults in the layer map: the port follows a wrong row, so only its activations show the fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from checks.controls.faults.change_port import rows_changed
from checks.controls.faults.fault import Apply, Fault, Site, activation_of
from checks.controls.port_pipeline import Pipeline
from checks.diagnosis.causes import Cause
from converter.layer_map import NETWORK_SCOPE, ConvertedRow, Row, SynthesisedRow
from converter.layouts import Layout
from converter.plan import AVERAGE

_HEIGHT_WIDTH = Layout("HWIO->OIWH", (3, 2, 1, 0))

Rows = Mapping[str, Row]


def _planted(changes: Callable[[Pipeline], Rows]) -> Apply:
    return lambda port: rows_changed(port, changes(port))


def _other_layout(layout: Layout, *scopes: str) -> tuple[Site, ...]:
    def site(scope: str) -> Site:
        def changes(port: Pipeline) -> Rows:
            row = port.row(f"{scope}/weights")
            return {row.key: replace(row, layout=layout)}

        return Site(scope, activation_of(scope), _planted(changes))

    return tuple(site(scope) for scope in scopes)


def _reads(row: ConvertedRow, other: ConvertedRow) -> ConvertedRow:
    """Replace a row's variable by another row's."""
    return replace(row, variable=other.variable)


def _scopes_exchanged(label: str, activation: str, scopes: Mapping[str, str]) -> Site:
    """A site where the variables of some scopes are read from others: `scopes` maps scope to wrong scope."""

    def changes(port: Pipeline) -> Rows:
        rows = {row.variable: row for row in port.plan.converted}
        changed: dict[str, Row] = {}
        for here, there in scopes.items():
            prefix, other = f"{NETWORK_SCOPE}/{here}/", f"{NETWORK_SCOPE}/{there}/"
            for variable, row in rows.items():
                if variable.startswith(prefix):
                    changed[row.key] = _reads(row, rows[other + variable.removeprefix(prefix)])
        return changed

    return Site(label, activation_of(activation), _planted(changes))


def _swapped(first: str, second: str) -> Site:
    return _scopes_exchanged(f"{first} and {second}", first, {first: second, second: first})


def _from_another_variable(scope: str, leaf: str, other: str) -> Site:
    def changes(port: Pipeline) -> Rows:
        row, wrong = port.row(f"{scope}/{leaf}"), port.row(f"{other}/{leaf}")
        return {row.key: _reads(row, wrong)}

    return Site(f"{scope}/{leaf} from {other}", activation_of(scope), _planted(changes))


def _counted_from_two(repeat: str, block: str, times: int) -> Site:
    numbers = range(1, times + 1)
    scopes = {f"{repeat}/{block}_{n}": f"{repeat}/{block}_{n % times + 1}" for n in numbers}
    first = f"{repeat}/{block}_1/Branch_0/Conv2d_1x1"
    return _scopes_exchanged(f"{repeat} from {block}_2 on", first, scopes)


def _in_order(repeat: str, block: str, order: tuple[int, ...]) -> Site:
    scopes = {
        f"{repeat}/{block}_{n}": f"{repeat}/{block}_{other}"
        for n, other in enumerate(order, start=1)
        if n != other
    }
    first = next(iter(scopes))
    return _scopes_exchanged(f"{repeat} as {order}", f"{first}/Branch_0/Conv2d_1x1", scopes)


def _averages_site(label: str, activation: str, select: Callable[[str], bool]) -> Site:
    def apply(port: Pipeline) -> AbstractContextManager[None]:
        rows = {row.key: row for row in port.plan.converted if select(row.variable)}
        return rows_changed(port, rows, {row.variable: f"{row.variable}/{AVERAGE}" for row in rows.values()})

    return Site(label, activation_of(activation), apply)


def _filled(scope: str, fill: int) -> Site:
    def changes(port: Pipeline) -> Rows:
        key = port.row(f"{scope}/BatchNorm/beta").key.removesuffix("bias") + "weight"
        row = next(row for row in port.plan.rows if row.key == key)
        return {
            key: SynthesisedRow(key, "float32", row.info.shape, fill, "a table that fills with another value")
        }

    return Site(f"{scope}: {fill}", activation_of(scope), _planted(changes))


LAYER_MAP: tuple[Fault, ...] = (
    Fault(
        "row-height-width",
        "layer map",
        "A table with H and W exchanged in one row is correct for 1x1 kernels and keeps the shape of all "
        "square kernels, which are 100 of the 132.",
        Cause.HEIGHT_WIDTH,
        _other_layout(
            _HEIGHT_WIDTH,
            "Conv2d_4a_3x3",
            "Repeat/block35_5/Branch_2/Conv2d_0b_3x3",
            "Mixed_7a/Branch_2/Conv2d_1a_3x3",
        ),
    ),
    Fault(
        "row-another-variable",
        "layer map",
        "A row is copied and edited in part: one variable is read twice and another never, which a converter "
        "that does not count what it reads misses.",
        Cause.OTHER_TENSOR,
        (
            _from_another_variable(
                "Repeat/block35_3/Branch_2/Conv2d_0c_3x3",
                "weights",
                "Repeat/block35_3/Branch_2/Conv2d_0b_3x3",
            ),
            _from_another_variable(
                "Repeat_1/block17_8/Branch_1/Conv2d_0c_7x1",
                "BatchNorm/beta",
                "Repeat_1/block17_8/Branch_0/Conv2d_1x1",
            ),
            _from_another_variable(
                "Mixed_7a/Branch_2/Conv2d_1a_3x3", "weights", "Mixed_7a/Branch_1/Conv2d_1a_3x3"
            ),
            _from_another_variable("Block8/Conv2d_1x1", "biases", "Repeat_2/block8_5/Conv2d_1x1"),
        ),
    ),
    Fault(
        "blocks-counted-from-two",
        "layer map",
        "TensorFlow counts the blocks of a repeat from 1 and PyTorch from 0; one shift too many loads, "
        "since all blocks of a repeat have the same shapes.",
        Cause.OTHER_TENSOR,
        (
            _counted_from_two("Repeat", "block35", 5),
            _counted_from_two("Repeat_1", "block17", 10),
            _counted_from_two("Repeat_2", "block8", 5),
        ),
    ),
    Fault(
        "blocks-in-order-of-names",
        "layer map",
        "A checkpoint lists names sorted by bytes: block17_1, block17_10, block17_2. Ports that count along "
        "that list permute the blocks; others reverse them, reading a stack from its top.",
        Cause.OTHER_TENSOR,
        (
            _in_order("Repeat_1", "block17", (1, 10, 2, 3, 4, 5, 6, 7, 8, 9)),
            _in_order("Repeat", "block35", (5, 4, 3, 2, 1)),
            _in_order("Repeat_2", "block8", (1, 2, 4, 3, 5)),
        ),
    ),
    Fault(
        "branches-misnamed",
        "layer map",
        "deepface's Keras files call branch 1 of Block17 and Block8 Branch_2 in places; a table that mends "
        "the names by hand can end at the sibling.",
        Cause.OTHER_TENSOR,
        (
            _swapped("Repeat/block35_4/Branch_1/Conv2d_0a_1x1", "Repeat/block35_4/Branch_2/Conv2d_0a_1x1"),
            _swapped("Repeat_1/block17_2/Branch_0/Conv2d_1x1", "Repeat_1/block17_2/Branch_1/Conv2d_0a_1x1"),
            _swapped("Repeat_2/block8_2/Branch_0/Conv2d_1x1", "Repeat_2/block8_2/Branch_1/Conv2d_0a_1x1"),
        ),
    ),
    Fault(
        "rows-read-averages",
        "layer map",
        "A name that is matched by its beginning matches the variable and its ExponentialMovingAverage, and "
        "the last match wins: the average sorts behind the variable.",
        Cause.AVERAGES,
        (
            _averages_site("Conv2d_2b_3x3", "Conv2d_2b_3x3", lambda name: "/Conv2d_2b_3x3/" in name),
            _averages_site(
                "betas of Repeat_1",
                "Repeat_1/block17_1/Branch_0/Conv2d_1x1",
                lambda name: "/Repeat_1/" in name and name.endswith("/beta"),
            ),
            _averages_site(
                "Bottleneck/weights", "Bottleneck", lambda name: name.endswith("Bottleneck/weights")
            ),
        ),
    ),
    Fault(
        "scale-filled-otherwise",
        "layer map",
        "The missing gamma is filled with zeros like every other missing tensor, or with another value than "
        "one.",
        Cause.UNLOADED,
        (
            _filled("Repeat/block35_5/Branch_2/Conv2d_0c_3x3", 0),
            _filled("Mixed_6a/Branch_0/Conv2d_1a_3x3", 2),
            _filled("Bottleneck", 2),
        ),
    ),
)
"""Every class of faults in the layer map."""
