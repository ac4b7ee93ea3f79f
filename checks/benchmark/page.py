"""The page of a benchmark."""

from __future__ import annotations

from pathlib import Path

from checks.benchmark.result import BenchmarkResult
from checks.core.judgement import Judgement
from checks.report.content import Head, Row, Table
from checks.report.page import write_html
from checks.report.provenance import provenance

_HEADINGS = ("median", "smallest", "largest", "at most")


def write_page(path: Path, result: BenchmarkResult, *, command: str) -> None:
    """Write the page of a benchmark.

    Args:
        path: The file; an older page is replaced.
        result: The result.
        command: The command as it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
    """
    rows = []
    for figure in result.figures:
        cells = tuple(map(figure.show, (figure.value, figure.low, figure.high, figure.bound)))
        rows.append(Row(figure.name, cells, "" if figure.held else "fault", () if figure.held else (0,)))
    over = [figure.name for figure in result.figures if not figure.held]
    held = len(result.figures) - len(over)
    judgement = Judgement(
        "bounds",
        result.passed,
        f"{held} of {len(result.figures)} figures are within their bound",
        tuple(over),
    )
    head = Head(
        command="benchmark",
        passed=result.passed,
        word="Kept" if result.passed else "Over",
        sentence="Every bound is kept." if result.passed else "A bound is not kept:",
        facts=(("rounds", str(result.rounds)),),
        judgements=(judgement,),
        place="" if result.passed else over[0],
    )
    foot = provenance(command, {}, result.environment, seed=None)
    write_html(path, "benchmark/page.html", head, foot, figures=Table("figure", _HEADINGS, tuple(rows)))
