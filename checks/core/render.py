"""Judgements on the screen: a line each, and what is wrong below it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from checks.core.judgement import Judgement

_MOST_DETAILS = 12


def show_judgements(console: Console, judgements: Sequence[Judgement]) -> None:
    """Print judgements below each other, their statements aligned."""
    width = 2 + max(len(judgement.name) for judgement in judgements)
    for judgement in judgements:
        mark = "[bold green]holds [/]" if judgement.passed else "[bold red]FAILS [/]"
        console.print(f"{mark} [bold]{judgement.name:<{width}}[/]{escape(judgement.statement)}")
        for detail in judgement.details[:_MOST_DETAILS]:
            console.print(f"         {detail}", markup=False)
        if len(judgement.details) > _MOST_DETAILS:
            console.print(f"         ... and {len(judgement.details) - _MOST_DETAILS} more")
