"""The options that say which checkpoint a command is about."""

from __future__ import annotations

import argparse
from pathlib import Path

from converter import command_line
from converter.errors import UsageError


def add_source_options(built: argparse.ArgumentParser) -> None:
    """Add SOURCE, which may be left out, --step, --offline and --archive."""
    built.add_argument(
        "source",
        metavar="SOURCE",
        type=command_line.path,
        nargs="?",
        help="the TensorFlow checkpoint, or its name",
    )
    add_step_option(built)
    command_line.add_network_options(built)


def add_step_option(built: argparse.ArgumentParser) -> None:
    """Add --step."""
    built.add_argument(
        "--step",
        metavar="N",
        type=command_line.natural_number,
        help="of a folder with several checkpoints take that of step N (default: the latest)",
    )


def add_weights_option(built: argparse.ArgumentParser) -> None:
    """Add --weights."""
    built.add_argument(
        "--weights",
        choices=("variable", "average"),
        default="variable",
        help="take the variables (default) or their exponential moving averages",
    )


def locate(arguments: argparse.Namespace) -> Path | None:
    """The path of SOURCE, or None where it was left out.

    Raises:
        UsageError: --archive is given without a name.
        RequirementError, SourceError: As `command_line.locate` says.
    """
    if arguments.source is not None:
        return command_line.locate(arguments, arguments.source)
    if arguments.archive:
        raise UsageError("--archive goes with a name as SOURCE, such as vggface2.")
    return None
