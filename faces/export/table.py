"""Print the result of `export` on the terminal: the file, and the judgements of its audit."""

from __future__ import annotations

from checks.core.render import print_judgements
from converter import command_line
from converter.home_folder import from_home
from faces.export.result import ExportResult


def print_result(result: ExportResult) -> None:
    """Print the exported file and its audit on stdout."""
    console = command_line.console()
    console.print(result.audit.verdict, style="bold green", markup=False)
    against = f"{from_home(result.audit.source)} ({result.audit.network})"
    for line in (
        f"  file     {result.output} ({result.precision}, {result.size / 1e6:.1f} MB)",
        f"  against  {against}",
        f"  input    {result.metadata['input']}",
        f"  output   {result.metadata['output']}",
        f"  images   {result.metadata['standardisation']}",
    ):
        console.print(line, markup=False)
    print_judgements(console, result.audit.judgements, most_details=0)
    console.print(f"  sha256 {result.sha256}", markup=False)
