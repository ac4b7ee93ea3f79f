"""`python -m checks.benchmark`: a thin shell around `checks.benchmark.run`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from converter import command_line
from converter.errors import UsageError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="how often each command runs (default: 5)")


def _work(arguments: argparse.Namespace) -> int:
    from checks.benchmark.run import measure

    if arguments.rounds < 1:
        raise UsageError("--rounds must be at least 1.")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.rounds)
    if not arguments.quiet:
        from checks.benchmark.table import show

        show(figures)
    if arguments.json:
        results = [{**asdict(figure), "held": figure.held} for figure in figures]
        command_line.write_json(arguments.json, {"rounds": arguments.rounds, "figures": results})
    return 0 if all(figure.held for figure in figures) else 1


COMMAND = command_line.Command(
    "checks.benchmark",
    "Measure what converting and comparing cost, as ratios within one run.",
    _add_arguments,
    _work,
    "exit codes: 0 every bound is kept; 1 one is not; 4 TensorFlow is missing",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return COMMAND.main(argv)


if __name__ == "__main__":
    sys.exit(main())
