"""A comparison on the screen: a table of activations, a line for each input, and the four verdicts."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from checks.compare.result import ActivationMeasurement, CompareResult, InputMeasurement
from checks.core.activations import short_name
from checks.core.render import print_judgements
from converter import command_line

_WIDTH = 110  # columns; rather a wrapped line than a figure cut off

ACTIVATION_HEADINGS = (
    "float64\nrel. L2",
    "float32\nrel. L2",
    "max abs",
    "1 - cos",
    "ULP\nmax",
    "ULP\nmedian",
    "error,\nPT:TF",
)
"""Above the figures of `activation_cells`."""

INPUT_HEADINGS = (
    "embeddings,\nfloat64",
    "worst activation,\nfloat64",
    "embeddings,\nfloat32",
    "largest row,\nfloat32",
    "worst error,\nPT:TF",
    "TensorFlow's\nfloat32 graph",
)
"""Above the figures of `input_cells`."""


def print_result(result: CompareResult) -> None:
    """Print the result on stdout."""
    console = command_line.console(_WIDTH)
    judged = f", judging {result.state_dict}" if result.state_dict else ""
    console.print(f"[bold]{result.source}[/]{judged}")
    graph = result.own_graph or "none of its own; rebuilt from scratch"
    console.print(f"TensorFlow graph: {graph}\n")
    if result.inputs:
        console.print(_activations(result.inputs[0]))
        console.print()
        console.print(_inputs(result.inputs))
        console.print()
    print_judgements(console, result.judgements)
    first = next((batch for batch in result.inputs if batch.first_divergence), None)
    if result.passed:
        console.print("\n[bold green]The port is exact.[/]")
    elif first is not None and first.first_divergence is not None:
        console.print(
            f"\n[bold red]The port differs.[/] First divergence: {first.first_divergence} ({first.name})"
        )
    else:
        console.print("\n[bold red]A difference was found.[/]")
    _causes(console, result)
    if result.repair is not None:
        console.print("\n[bold]Repair:[/] ", end="")
        console.print(result.repair.statement, markup=False)


def _causes(console: Console, result: CompareResult) -> None:
    if result.undiagnosed:
        console.print(f"No cause given: {result.undiagnosed}.", markup=False)
    if result.diagnosis is None:
        return
    for line in result.diagnosis.summary:
        console.print("[bold]Cause:[/] ", end="")
        console.print(line, markup=False)
    if not result.diagnosis.findings:
        console.print("No cause found: every layer agrees on the reference's own input.")


def _activations(batch: InputMeasurement) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column(f"activation ({batch.name})", no_wrap=True)
    for heading in ACTIVATION_HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for activation in batch.activations:
        style = "bold red" if activation.activation == batch.first_divergence else None
        table.add_row(short_name(activation.activation), *activation_cells(activation), style=style)
    return table


def activation_cells(activation: ActivationMeasurement) -> tuple[str, ...]:
    """The figures of an activation, as a reader is shown them."""
    return (
        f"{activation.float64.relative_l2:.1e}",
        f"{activation.float32.relative_l2:.1e}",
        f"{activation.float32.max_abs:.1e}",
        f"{1 - activation.float32.cosine:.0e}",
        f"{activation.float32.max_ulp:.0e}"
        if activation.float32.max_ulp > 9999
        else str(activation.float32.max_ulp),
        f"{activation.float32.median_ulp:g}",
        f"{activation.excess:.2f}",
    )


def _inputs(inputs: tuple[InputMeasurement, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("input", no_wrap=True)
    *figures, graph = INPUT_HEADINGS
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(graph, no_wrap=True)
    for batch in inputs:
        table.add_row(batch.name, *input_cells(batch))
    return table


def input_cells(batch: InputMeasurement) -> tuple[str, ...]:
    """The figures of an input, as a reader is shown them."""
    return (
        f"{batch.distance64:.1e}",
        f"{max(activation.float64.relative_l2 for activation in batch.activations):.1e}",
        f"{batch.distance32:.2e}",
        f"{batch.row_distance32:.1e}",
        f"{max(activation.excess for activation in batch.activations):.2f}",
        "own" if batch.own_graph else "rebuilt",
    )
