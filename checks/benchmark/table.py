"""A benchmark on the screen: a line for each figure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from checks.benchmark.run import Figure
from converter import command_line


def show(figures: Sequence[Figure]) -> None:
    """Print the figures on stdout."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    for heading in ("median", "min", "max", "at most"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        mark = "[green]kept[/]" if figure.held else "[red]OVER[/]"
        values = (figure.value, figure.low, figure.high, figure.bound)
        table.add_row(mark, figure.name, *(f"{value:.2f} {figure.unit}".strip() for value in values))
    command_line.console(width=110).print(table)
