"""The options that several checks share: SOURCE, --step, --seed, --weights, --device, --verbose, --report."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from converter import command_line
from converter.errors import RequirementError, UsageError

_DEVICES = ("cpu", "cuda", "mps")
_REPORT_PACKAGES = ("matplotlib", "jinja2")


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add SOURCE, which is optional, --step, --offline and --archive."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=command_line.path,
        nargs="?",
        help="the TensorFlow checkpoint, or its name",
    )
    add_step_option(parser)
    command_line.add_network_options(parser)


def add_step_option(parser: argparse.ArgumentParser) -> None:
    """Add --step."""
    parser.add_argument(
        "--step",
        metavar="N",
        type=command_line.natural_number,
        help="in a folder with several checkpoints, take step N (default: the latest)",
    )


def add_seed_option(
    parser: argparse.ArgumentParser, of: str = "the inputs", *, default: int | None = 0
) -> None:
    """Add --seed; a default of None stands for 0, and shows that it was not given."""
    seed = command_line.natural_number
    parser.add_argument("--seed", metavar="N", type=seed, default=default, help=f"seed of {of} (default: 0)")


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """Add --weights."""
    parser.add_argument(
        "--weights",
        choices=("variable", "average"),
        default="variable",
        help="take the variables (default) or their exponential moving averages",
    )


def locate(arguments: argparse.Namespace) -> Path | None:
    """The path of SOURCE; None without SOURCE.

    Raises:
        UsageError: --archive is given without a name.
        RequirementError, SourceError: As `command_line.locate` says.
    """
    if arguments.source is not None:
        return command_line.locate(arguments, arguments.source)
    if arguments.archive:
        raise UsageError("--archive goes with a name as SOURCE, such as vggface2.")
    return None


def add_verbose_option(parser: argparse.ArgumentParser) -> None:
    """Add --verbose."""
    parser.add_argument(
        "--verbose", action="store_true", help="also print the tables, with a line that explains each column"
    )


def add_report_option(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Add --report.

    Args:
        parser: The command's parser.
        note: The end of the option's help.
    """
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        type=command_line.output,
        help=f"also write the result as a page that opens in a browser{note}",
    )


def check_report(arguments: argparse.Namespace) -> None:
    """Refuse a report that cannot be written, before the long work starts.

    Without --report this does nothing. An existing page is left: the new one replaces it when it is complete.

    Raises:
        RequirementError: A package that draws the page is not installed.
        UsageError: The file exists and is not a page, its folder does not exist or cannot be written to, or
            another argument names the same file.
    """
    path: Path | None = arguments.report
    if path is None:
        return
    missing = [name for name in _REPORT_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RequirementError(
            f"--report needs {' and '.join(missing)}, not installed here: "
            "pip install 'facenet-port[report]'. The command works without --report."
        )
    command_line.check_result_file(arguments, "report", (".html", ".htm"), (b"<!doctype html",))


def add_device_option(parser: argparse.ArgumentParser, what: str = "the networks run") -> None:
    """Add --device.

    Args:
        parser: The parser.
        what: The subject of the help.
    """
    parser.add_argument(
        "--device",
        choices=_DEVICES,
        default="cpu",
        help=f"where {what} (default: cpu)",
    )


def check_device(device: str) -> None:
    """Refuse a device that PyTorch cannot use here.

    Raises:
        RequirementError: It cannot.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[device]:
        usable = " or ".join(name for name, is_available in available.items() if is_available)
        raise RequirementError(f"--device {device}: PyTorch finds no such device here. Give {usable}.")
