"""Parts of the checks' output: judgements, and paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from checks.core.judgement import Judgement
from converter.home_folder import home_folder


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


def from_home(path: str) -> str:
    """Shorten a path in the user's home folder to one that begins with ~."""
    home = home_folder()
    if home is None or not home.name or not Path(path).is_relative_to(home):  # a home of / has no name
        return path
    return str("~" / Path(path).relative_to(home))
