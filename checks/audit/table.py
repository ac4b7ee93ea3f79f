"""An audit on the screen: a line for each stage, what came of running a graph, and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from checks.audit.result import AuditResult, GraphRun, TensorResult
from checks.core.activations import short_name
from checks.core.render import print_judgements
from converter import command_line

_WIDTH = 110  # columns; rather a wrapped line than a figure cut off
_COLUMNS = ("equal", "folded", "rounded", "approximate", "differs", "missing", "extra", "not judged")


def show(report: AuditResult) -> None:
    """Print a report on stdout."""
    console = command_line.console(_WIDTH)
    console.print(f"[bold]{escape(report.port)}[/] ({report.format}) against {escape(report.source)}")
    for path, digest in report.files.items():
        console.print(f"  sha256 {digest}  {path.rpartition('/')[2]}", markup=False)
    if report.recognised:
        console.print(f"  {report.recognised}", markup=False)
    console.print(f"  {report.network}\n", markup=False)
    console.print(_stages(report.tensors))
    console.print()
    if report.run is not None:
        run = report.run
        console.print(f"Run by {run.runtime} in {run.arithmetic}, fed {run.feed}:", markup=False)
        console.print(_run(run))
        console.print()
    print_judgements(console, report.judgements)
    style = "bold green" if report.passed else "bold red"
    console.print()
    console.print(report.verdict, style=style, markup=False)


def _stages(tensors: Sequence[TensorResult]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True)
    shown = [status for status in _COLUMNS if any(tensor.status == status for tensor in tensors)]
    for heading in ("tensors", *shown, "steps\nat most"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("layout", no_wrap=True)
    groups: dict[str, list[TensorResult]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.stage.partition("/")[0] or "no layer", []).append(tensor)
    for stage, group in groups.items():
        counts = [sum(tensor.status == status for tensor in group) for status in shown]
        good = all(tensor.is_faithful for tensor in group)
        layouts = dict.fromkeys(tensor.layout for tensor in group if len(tensor.shape) > 1 and tensor.layout)
        table.add_row(
            escape(stage),
            str(len(group)),
            *(str(count or "-") for count in counts),
            str(max(tensor.max_ulp for tensor in group)),
            ", ".join(layouts),
            style=None if good else "bold red",
        )
    return table


def _run(run: GraphRun) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("input", no_wrap=True)
    for heading in ("error", "PyTorch's\nerror", "from the\nsource's", "worst layer,\nto PyTorch's"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("at", no_wrap=True)
    for batch in run.inputs:
        worst = max(batch.layers, key=lambda layer: layer.error / layer.floor)
        table.add_row(
            batch.name,
            f"{batch.error:.1e}",
            f"{batch.floor:.1e}",
            f"{batch.distance:.2e}",
            f"{worst.error / worst.floor:.2f}",
            short_name(worst.activation),
        )
    return table
