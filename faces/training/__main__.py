"""`facenet-port train`: the options of `faces.training.run.train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from converter import command_line
from converter.progress import ProgressBar
from faces.processes import read_processes
from faces.training.config import FIELDS, add_options, format_config, read_config

_EPILOG = """\
exit codes: 0 trained; 1 the loss is no longer a number; 2 wrong usage; 3 data, weights or a checkpoint cannot
be read; 4 something that is needed is missing; 130, 143 stopped by Ctrl-C or SIGTERM, with a checkpoint of
the last step: --resume goes on from it."""


# The figures of an epoch that are printed; metrics.csv has the others.
_SHOWN = ("loss", "accuracy", "active_triplets", "val_accuracy", "val_eer", "faces_per_second")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG.toml", nargs="?", type=command_line.path,
        help="the configuration; each of its fields is an option as well, which replaces the field",
    )  # fmt: skip
    parser.add_argument(
        "--print-config", action="store_true", help="print a complete configuration, and stop"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint of the run")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the weights, and train nothing")
    parser.add_argument("--report", metavar="FILE.html", type=command_line.output, help="also write a page")
    parser.add_argument("--offline", action="store_true", help="never use the network")
    add_options(parser)


def _work(arguments: argparse.Namespace) -> int:
    options = {name: value for name, value in vars(arguments).items() if name in FIELDS}
    if arguments.print_config:
        print(format_config(read_config(arguments.config, {"data": "crops"} | options)), end="")
        return 0
    config = read_config(arguments.config, options)
    if arguments.report:
        command_line.check_result_file(arguments, "report", (".html", ".htm"), (b"<!doctype", b"<html"))
    from faces.training.run import train  # with PyTorch, which takes seconds

    speaks = read_processes().is_first
    with ProgressBar("training", quiet=arguments.quiet or not speaks) as bar:

        def report(step: int, steps: int, figures: Mapping[str, float]) -> None:
            speed = figures["faces"] / figures["seconds"]
            bar.label(
                f"training: loss {figures['loss']:.3g}, {figures['score']:.0%}, {speed:.3g} faces a second"
            )
            bar(step, steps)

        def epoch_report(row: Mapping[str, Any]) -> None:
            if speaks and not arguments.quiet:
                shown = ", ".join(f"{name} {row[name]:.3g}" for name in _SHOWN if row.get(name) is not None)
                command_line.print_error(f"epoch {row['epoch']} of {config.epochs}: {shown}")

        result = train(
            config,
            resume=arguments.resume,
            evaluate_only=arguments.evaluate_only,
            offline=arguments.offline,
            report=report,
            epoch_report=epoch_report,
        )
    if not speaks:
        return 0
    command_line.show_result(arguments, result, "faces.training", result.as_json)
    for warning in result.warnings:
        command_line.print_error(f"{arguments.program}: warning: {warning}")
    return 0


COMMAND = command_line.Command(
    "faces.training",
    "Train a classifier of people, or embeddings by triplets, on aligned faces.",
    _add_arguments,
    _work,
    _EPILOG,
    "train takes one CONFIG.toml; the folder of faces goes with --data.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return COMMAND.main(argv)


if __name__ == "__main__":
    sys.exit(main())
