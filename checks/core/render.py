"""Parts of the checks' output: judgements and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import table as rich_table
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from checks.core.judgement import Judgement
from converter.free_names import without_controls


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        name: The text of the first column.
        cells: The texts of the other columns.
        failed: The indices of the cells that fail a judgement; they are marked, and so is the row.
        strong: Whether the row stands out among the others.
    """

    name: str
    cells: tuple[str, ...]
    failed: tuple[int, ...] = ()
    strong: bool = False

    @property
    def kind(self) -> str:
        """The look of the row: "fault", "strong" or neither."""
        return "fault" if self.failed else "strong" if self.strong else ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: a name in the first column, figures in the others.

    Attributes:
        name: The heading of the first column.
        headings: The headings of the other columns.
        rows: The rows, in order.
        text_columns: The number of columns at the end that hold text; the others hold figures.
        explanations: A line on each heading, below the table; empty for none.
    """

    name: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    text_columns: int = 0
    explanations: tuple[str, ...] = ()


def print_table(console: Console, table: Table) -> None:
    """Print a table, a line on each of its columns, and the meaning of its marks."""
    shown = rich_table.Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column(table.name, overflow="fold")
    figures = len(table.headings) - table.text_columns
    for index, heading in enumerate(table.headings):
        if index < figures:  # a narrow terminal folds names and text, and never cuts off a figure
            texts = (*heading.splitlines(), *(row.cells[index] for row in table.rows))
            width = max(map(len, texts)) + 2 * any(index in row.failed for row in table.rows)
            shown.add_column(heading, justify="right", no_wrap=True, min_width=width)
        else:
            shown.add_column(heading, overflow="fold")
    for row in table.rows:
        style = "bold red" if row.failed else "bold" if row.strong else ""
        cells = [
            Text(f"✕ {cell}", "bold red") if index in row.failed else Text(cell)
            for index, cell in enumerate(map(without_controls, row.cells))
        ]
        shown.add_row(Text(without_controls(row.name), style), *cells)
    console.print()
    console.print(shown)
    lines = dict(zip(table.headings, table.explanations, strict=True)) if table.explanations else {}
    if any(row.failed for row in table.rows):
        lines["✕"] = "fails a judgement"
    width = max(map(len, lines), default=0)
    for heading, explanation in lines.items():
        console.print(f"  {heading.replace(chr(10), ' '):<{width}}  {explanation}", style="dim", markup=False)


def print_judgements(
    console: Console, judgements: Sequence[Judgement], *, most_details: int = 12, width: int = 0
) -> None:
    """Print a line for each judgement, and below it the details if it fails.

    Args:
        console: The console.
        judgements: The judgements, in order.
        most_details: Number of details to print of each; the rest are counted, unless this is 0.
        width: Columns for the names; 0 fits the longest name.
    """
    width = width or max(len(judgement.name) for judgement in judgements)
    for judgement in judgements:
        mark = "[bold green]holds [/]" if judgement.passed else "[bold red]FAILS [/]"
        console.print(f"{mark} [bold]{judgement.name:<{width}}[/]  {escape(judgement.statement)}")
        for detail in judgement.details[:most_details]:
            console.print(f"         {detail}", markup=False)
        if 0 < most_details < len(judgement.details):
            console.print(f"         ... and {len(judgement.details) - most_details} more")
