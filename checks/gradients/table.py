"""A check of training on the screen: two tables of the worst tensors by stage, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from checks.core.render import show_judgements
from checks.gradients.judge import TensorDistance
from checks.gradients.run import TrainingReport
from converter import command_line

_WIDTH = 110  # columns; rather a wrapped line than a figure cut off
_HEADINGS = {"sgd": "SGD", "adam": "Adam"}


def show(report: TrainingReport) -> None:
    """Print a report on stdout."""
    console = command_line.console(_WIDTH)
    size = "x".join(map(str, report.batch_shape[1:3]))
    console.print(f"[bold]{report.source}[/]")
    console.print(f"float64, {report.batch_shape[0]} images of {size}, {report.loss}\n")
    gradients = {str(measured.mode): measured.gradients for measured in report.gradients}
    console.print(_table("gradients", gradients, keys=True))
    console.print()
    steps = {}
    for measured in report.steps:
        name = _HEADINGS[measured.optimiser]
        steps[f"{name},\nstate"] = measured.state
        steps[f"{name},\nits change"] = measured.change
    console.print(_table(f"after {report.steps[0].steps} steps", steps, keys=False))
    console.print()
    show_judgements(console, report.judgements)
    verdict = (
        "[green]Training continues as in TensorFlow." if report.passed else "[red]A difference was found."
    )
    console.print(f"\n[bold]{verdict}[/][/]")


def _table(title: str, columns: Mapping[str, tuple[TensorDistance, ...]], *, keys: bool) -> Table:
    """A row for each stage: how many tensors it has, and in every column the worst of them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title, no_wrap=True)
    table.add_column("tensors", justify="right", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
        if keys:
            table.add_column("of", no_wrap=True)
    by_stage = [_by_stage(tensors) for tensors in columns.values()]
    for stage, tensors in by_stage[0].items():
        cells = []
        for column in by_stage:
            worst = max(column.get(stage, ()), key=lambda tensor: tensor.distance)
            cells.append(f"{worst.distance:.1e}")
            if keys:
                cells.append(worst.key.removeprefix(stage).removeprefix("."))
        table.add_row(stage, str(len(tensors)), *cells)
    return table


def _by_stage(tensors: Sequence[TensorDistance]) -> dict[str, list[TensorDistance]]:
    stages: dict[str, list[TensorDistance]] = {}
    for tensor in tensors:
        stages.setdefault(tensor.key.partition(".")[0], []).append(tensor)
    return stages
