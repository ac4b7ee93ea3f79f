"""Print the result of `export` on the terminal: the file, and the judgements of its audit."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from checks.core.render import print_judgements
from converter import command_line
from converter.home_folder import from_home
from faces.export.result import ExportResult


def print_result(results: Sequence[ExportResult]) -> None:
    """Print the exported files and their audits on stdout."""
    console = command_line.console()
    for result in results:
        _print_file(console, result)


def _print_file(console: Console, result: ExportResult) -> None:
    console.print(result.audit.verdict, style="bold green", markup=False)
    against = f"{from_home(result.audit.source)} ({result.audit.network})"
    for line in (
        f"  file     {result.output} ({result.precision}, {result.size / 1e6:.3g} MB)",
        f"  against  {against}",
        f"  input    {result.metadata['input']}",
        f"  output   {result.metadata['output']}",
        f"  images   {result.metadata['standardisation']}",
    ):
        console.print(line, markup=False)
    print_judgements(console, result.audit.judgements, most_details=0)
    console.print(f"  sha256 {result.sha256}", markup=False)
