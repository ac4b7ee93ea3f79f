"""The head and the tables of a page, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from checks.core.judgement import Judgement


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a page.

    Attributes:
        command: The name of the command.
        passed: The verdict.
        word: The verdict in a word.
        sentence: The verdict in a sentence.
        facts: The name and value of each fact on the port and the source.
        judgements: The judgements, in order.
        place: The place of the fault; empty without one.
        reasons: The label and the sentence of each cause.
        is_weaker: Whether everything that was compared is the same, but too little was compared to pass.
    """

    command: str
    passed: bool
    word: str
    sentence: str
    facts: tuple[tuple[str, str], ...]
    judgements: tuple[Judgement, ...]
    place: str = ""
    reasons: tuple[tuple[str, str], ...] = ()
    is_weaker: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        name: The text of the first column.
        cells: The texts of the other columns.
        kind: The look of the row: "", "fault" or "strong".
        failed: The indices of the cells that fail a judgement; the page marks them.
    """

    name: str
    cells: tuple[str, ...]
    kind: str = ""
    failed: tuple[int, ...] = ()


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
