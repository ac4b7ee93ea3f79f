"""A comparison on the screen: a table of taps, a line for each input, and the four verdicts."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from checks.compare.judge import ProbeMeasurement, Report, TapMeasurement
from checks.core.activations import short
from checks.core.render import show_judgements
from converter import command_line

_WIDTH = 110  # columns; rather a wrapped line than a figure cut off

TAP_HEADINGS = (
    "float64\nrel. L2",
    "float32\nrel. L2",
    "max abs",
    "1 - cos",
    "ULP\nmax",
    "ULP\nmedian",
    "error,\nPT:TF",
)
"""Above the figures of `tap_cells`."""

INPUT_HEADINGS = (
    "embeddings,\nfloat64",
    "worst tap,\nfloat64",
    "embeddings,\nfloat32",
    "largest row,\nfloat32",
    "worst error,\nPT:TF",
    "TensorFlow's\nfloat32 graph",
)
"""Above the figures of `input_cells`."""


def show(report: Report) -> None:
    """Print a report on stdout."""
    console = command_line.console(_WIDTH)
    judged = f", judging {report.state_dict}" if report.state_dict else ""
    console.print(f"[bold]{report.source}[/]{judged}")
    graph = report.own_graph or "none of its own; rebuilt from scratch"
    console.print(f"TensorFlow graph: {graph}\n")
    if report.probes:
        console.print(_taps(report.probes[0]))
        console.print()
        console.print(_inputs(report.probes))
        console.print()
    show_judgements(console, report.judgements)
    first = next((probe for probe in report.probes if probe.first_divergence), None)
    if report.passed:
        console.print("\n[bold green]The port is exact.[/]")
    elif first is not None and first.first_divergence is not None:
        console.print(
            f"\n[bold red]The port differs.[/] First divergence: {first.first_divergence} ({first.name})"
        )
    else:
        console.print("\n[bold red]A difference was found.[/]")
    _causes(console, report)
    if report.repair is not None:
        console.print("\n[bold]Repair:[/] ", end="")
        console.print(report.repair.statement, markup=False)


def _causes(console: Console, report: Report) -> None:
    if report.undiagnosed:
        console.print(f"No cause given: {report.undiagnosed}.", markup=False)
    if report.diagnosis is None:
        return
    for line in report.diagnosis.summary:
        console.print("[bold]Cause:[/] ", end="")
        console.print(line, markup=False)
    if not report.diagnosis.findings:
        console.print("No cause found: every layer agrees on the reference's own input.")


def _taps(probe: ProbeMeasurement) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column(f"tap ({probe.name})", no_wrap=True)
    for heading in TAP_HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for tap in probe.taps:
        style = "bold red" if tap.tap == probe.first_divergence else None
        table.add_row(short(tap.tap), *tap_cells(tap), style=style)
    return table


def tap_cells(tap: TapMeasurement) -> tuple[str, ...]:
    """The figures of a tap, as a reader is shown them."""
    return (
        f"{tap.float64.relative_l2:.1e}",
        f"{tap.float32.relative_l2:.1e}",
        f"{tap.float32.max_abs:.1e}",
        f"{1 - tap.float32.cosine:.0e}",
        f"{tap.float32.max_ulp:.0e}" if tap.float32.max_ulp > 9999 else str(tap.float32.max_ulp),
        f"{tap.float32.median_ulp:g}",
        f"{tap.excess:.2f}",
    )


def _inputs(probes: tuple[ProbeMeasurement, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("input", no_wrap=True)
    *figures, graph = INPUT_HEADINGS
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(graph, no_wrap=True)
    for probe in probes:
        table.add_row(probe.name, *input_cells(probe))
    return table


def input_cells(probe: ProbeMeasurement) -> tuple[str, ...]:
    """The figures of an input, as a reader is shown them."""
    return (
        f"{probe.distance64:.1e}",
        f"{max(tap.float64.relative_l2 for tap in probe.taps):.1e}",
        f"{probe.distance32:.2e}",
        f"{probe.row_distance32:.1e}",
        f"{max(tap.excess for tap in probe.taps):.2f}",
        "own" if probe.own_graph else "rebuilt",
    )
