"""The page of a benchmark."""

from __future__ import annotations

from pathlib import Path

from checks.benchmark.result import BenchmarkResult
from checks.benchmark.table import figure_table
from checks.core.judgement import Judgement
from checks.report.content import Head
from checks.report.page import write_html
from checks.report.provenance import provenance


def write_page(path: Path, result: BenchmarkResult, *, command: str) -> None:
    """Write the page of a benchmark.

    Args:
        path: The file; an older page is replaced.
        result: The result.
        command: The command as it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
    """
    over = [figure.name for figure in result.figures if not figure.held]
    bounded = [figure for figure in result.figures if figure.bound is not None]
    held = len(bounded) - len(over)
    judgement = Judgement(
        "bounds",
        result.passed,
        f"{held} of {len(bounded)} figures are within their bound",
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
    write_html(path, "benchmark/page.html", head, foot, figures=figure_table(result), notes=result.notes)
