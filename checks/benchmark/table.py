"""Print the result of the benchmark on the terminal: the verdict, and a line for each figure."""

from __future__ import annotations

from checks.benchmark.result import BenchmarkResult
from checks.core.render import Row, Table, print_table
from converter import command_line


def print_result(result: BenchmarkResult) -> None:
    """Print the result on stdout."""
    console = command_line.console(width=110)
    console.print(
        "[bold green]Every bound is kept.[/]" if result.passed else "[bold red]A bound is not kept.[/]"
    )
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    print_table(console, figure_table(result))


def figure_table(result: BenchmarkResult) -> Table:
    """Tabulate the figures."""
    rows = []
    for figure in result.figures:
        cells = (*map(figure.show, (figure.value, figure.low, figure.high)), figure.limit)
        rows.append(Row(figure.name, cells, () if figure.held else (0,)))
    return Table("figure", ("median", "smallest", "largest", "bound"), tuple(rows))
