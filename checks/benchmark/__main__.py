"""`facenet-port benchmark`: the options of `checks.benchmark.run.run_benchmark`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks.core import options
from converter import command_line
from converter.errors import UsageError

if TYPE_CHECKING:
    from checks.benchmark.result import BenchmarkResult


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="number of runs of each command (default: 5)")
    parser.add_argument(
        "--only",
        choices=("conversion", "faces", "deploy", "training"),
        help="measure one part: converting and comparing, finding and embedding faces, the network "
        "in ONNX Runtime, or training "
        "(default: all)",
    )
    parser.add_argument(
        "--photographs",
        metavar="N",
        type=command_line.natural_number,
        default=0,
        help="photographs of --only faces; of more than 118 some are embedded again (default: 118)",
    )
    options.add_report_option(parser)


def _work(arguments: argparse.Namespace) -> int:
    options.check_report(arguments)
    if arguments.rounds < 1:
        raise UsageError(f"--rounds {arguments.rounds}: give a number from 1 on.")
    from checks.benchmark.run import run_benchmark

    with tempfile.TemporaryDirectory() as folder:
        result = run_benchmark(Path(folder), arguments.rounds, arguments.only, arguments.photographs)
    command_line.show_result(arguments, result, "checks.benchmark", lambda: _as_json(result))
    return 0 if result.passed else 1


def _as_json(result: BenchmarkResult) -> dict[str, Any]:
    figures = [{**asdict(figure), "held": figure.held} for figure in result.figures]
    return {
        "rounds": result.rounds,
        "figures": figures,
        "notes": list(result.notes),
        "environment": result.environment,
    }


COMMAND = command_line.Command(
    "checks.benchmark",
    "Measure the time and memory that converting, comparing, embedding faces and training take.",
    _add_arguments,
    _work,
    "exit codes: 0 every bound is kept; 1 a bound is not kept; 4 TensorFlow is missing, or with\n"
    "--only faces or training a package or the package index",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
