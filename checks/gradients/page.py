"""The HTML page of `facenet-port gradients`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from checks.core import thresholds
from checks.core.metrics import ulp_histogram
from checks.core.network import describe_network
from checks.core.render import Row, Table
from checks.gradients.judge import worst_tensor
from checks.gradients.result import GradientsResult, TensorDistance
from checks.report.charts import Drawer
from checks.report.content import Head
from checks.report.depth_chart import DOUBLE, UNIT64, Depth, Limit, Mark, Series
from checks.report.histogram_chart import Counts, Panel
from checks.report.network_parts import key_groups
from checks.report.page import write_html
from checks.report.provenance import digests, provenance, shown_path

_TRAININGS = {"sgd": "SGD", "adam": "Adam", "triplet": "triplets"}

Columns = dict[str, tuple[TensorDistance, ...]]
"""A column's name to the distance of every tensor in it."""


def write_page(path: str | Path, result: GradientsResult, *, command: str) -> None:
    """Write the page of a comparison of gradients.

    Args:
        path: The file; an older page is replaced.
        result: The result.
        command: The command as it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
    """
    foot = provenance(command, digests(result.files), result.environment, result.seed)
    drawer = Drawer()
    gradients: Columns = {str(measured.mode): measured.gradients for measured in result.gradients}
    steps: Columns = {}
    panels = [_panel("gradients", gradients)]
    step_charts = []
    for measured in result.steps:
        name = _TRAININGS[measured.training]
        columns = {"state": measured.state, "its change": measured.change}
        chart = drawer.depth(_depth(f"{measured.steps} steps of {name}", columns, thresholds.TRAINING_STEPS))
        step_charts.append((name, measured, chart))
        panels.append(_panel(f"{measured.steps} steps of {name}", columns))
        steps |= {f"{name},\n{column}": distances for column, distances in columns.items()}
    write_html(
        Path(path),
        "gradients/page.html",
        _head(result),
        foot,
        gradients=drawer.depth(_depth("gradients", gradients, thresholds.GRADIENT)),
        steps=step_charts,
        histograms=drawer.histograms(
            "Distances of gradients and of trained tensors in units of float64's roundoff", panels
        ),
        tensors=_table({f"gradient,\n{mode}": tensors for mode, tensors in gradients.items()} | steps),
    )


def _head(result: GradientsResult) -> Head:
    place, reasons = "", []
    for judgement in result.judgements:
        if not judgement.passed:
            reasons += [
                (judgement.name, detail) for detail in judgement.details[:2] or (judgement.statement,)
            ]
    everything = [measured.gradients for measured in result.gradients]
    everything += [tensors for measured in result.steps for tensors in (measured.state, measured.change)]
    limits = [thresholds.GRADIENT] * len(result.gradients)
    limits += [thresholds.TRAINING_STEPS] * (len(everything) - len(limits))
    for tensors, limit in zip(everything, limits, strict=True):
        worst = worst_tensor(tensors)
        if not place and not worst.distance <= limit:
            place = worst.key
    if result.passed:
        sentence = "Training continues as in TensorFlow."
    else:
        sentence = "Training differs, most at" if place else "Training differs."
    size = "×".join(map(str, result.batch_shape[1:3]))  # noqa: RUF001
    return Head(
        command="gradients",
        passed=result.passed,
        word="Proven" if result.passed else "Differs",
        sentence=sentence,
        facts=(
            ("source", shown_path(result.source)),
            ("loss", result.loss),
            ("batch", f"{result.batch_shape[0]} images of {size}, float64"),
            ("network", describe_network(result.variant)),
        ),
        judgements=result.judgements,
        place=place,
        reasons=tuple(reasons),
    )


def _depth(title: str, columns: Columns, limit: float) -> Depth:
    looks = zip(("pytorch", "float64"), ("dots", "boxes"), strict=True)
    series = tuple(
        Series(name, tuple(tensor.distance for tensor in tensors), role, look, most=limit)
        for (name, tensors), (role, look) in zip(columns.items(), looks, strict=True)
    )
    name, worst = max(
        ((name, worst_tensor(tensors)) for name, tensors in columns.items()),
        key=lambda item: item[1].distance,
    )
    keys = [tensor.key for tensor in columns[name]]
    return Depth(
        description=(
            f"Distance of every tensor from TensorFlow's in network order, {title}, log scale: the worst is "
            f"{worst.distance:.1e}, {worst.key}."
        ),
        series=series,
        groups=key_groups(keys),
        limits=(Limit("threshold", f"{limit:.0e}", limit, "limit"), DOUBLE),
        mark=Mark(
            keys.index(worst.key),
            f"worst, {name}: {worst.distance:.1e}",
            worst.key,
            "ink" if worst.distance <= limit else "fault",
        ),
    )


def _panel(title: str, columns: Columns) -> Panel:
    roles = ("pytorch", "float64")
    labels = ("inference; state", "training; its change")
    return Panel(
        title,
        tuple(
            Counts(label, _histogram(tensors), role)
            for label, tensors, role in zip(labels, columns.values(), roles, strict=True)
        ),
    )


def _histogram(tensors: Sequence[TensorDistance]) -> tuple[int, ...]:
    """Count distances of 0, 1, 2, 3-4, 5-8, ... roundoffs; infinite distances are left out."""
    finite = [tensor.distance / UNIT64 for tensor in tensors if math.isfinite(tensor.distance)]
    return ulp_histogram(np.array(finite))


def _table(columns: Columns) -> Table:
    by_key = {name: {tensor.key: tensor for tensor in tensors} for name, tensors in columns.items()}
    keys = dict.fromkeys(key for column in by_key.values() for key in column)
    rows = []
    for key in keys:
        cells, failed = [], []
        for place, (name, column) in enumerate(by_key.items()):
            limit = thresholds.GRADIENT if name.startswith("gradient") else thresholds.TRAINING_STEPS
            cells.append(f"{column[key].distance:.1e}" if key in column else "")
            if key in column and not column[key].distance <= limit:
                failed.append(place)
        rows.append(Row(key, tuple(cells), tuple(failed)))
    return Table("tensor", tuple(columns), tuple(rows))
