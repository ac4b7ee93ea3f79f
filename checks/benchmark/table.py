"""Print the result of the benchmark on the terminal: the verdict, and a line for each figure."""

from __future__ import annotations

from rich.table import Table

from checks.benchmark.result import BenchmarkResult
from converter import command_line


def print_result(result: BenchmarkResult) -> None:
    """Print the result on stdout."""
    console = command_line.console(width=110)
    console.print(
        "[bold green]Every bound is kept.[/]" if result.passed else "[bold red]A bound is not kept.[/]"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("figure", no_wrap=True)
    for heading in ("median", "min", "max", "at most"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in result.figures:
        mark = "[green]kept[/]" if figure.held else "[red]OVER[/]"
        values = (figure.value, figure.low, figure.high, figure.bound)
        table.add_row(mark, figure.name, *map(figure.show, values))
    console.print(table)
