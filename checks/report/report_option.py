"""`--report FILE.html`: the option, and everything that can be refused before the long work starts."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from converter import command_line
from converter.atomic import AtomicFiles
from converter.errors import RequirementError, UsageError

_PACKAGES = {"matplotlib": "matplotlib>=3.8", "jinja2": "jinja2>=3.1"}


def add_report_option(built: argparse.ArgumentParser, note: str = "") -> None:
    """Add --report.

    Args:
        built: The parser.
        note: What else the option does, for its help.
    """
    built.add_argument(
        "--report",
        metavar="FILE.html",
        type=command_line.path,
        help=f"also write the result as a page that opens in a browser{note}",
    )


def check_report(arguments: argparse.Namespace) -> None:
    """Refuse a report that could not be written in the end; does nothing where none is asked for.

    Raises:
        RequirementError: A package that draws it is not installed.
        UsageError: The file exists, its folder does not or cannot be written to, or another option names it.
    """
    path: Path | None = arguments.report
    if path is None:
        return
    missing = [wanted for name, wanted in _PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(wanted.partition(">")[0] for wanted in missing)
        line = " ".join(f"'{wanted}'" for wanted in missing)
        raise RequirementError(
            f"--report is drawn with {names}, not installed here: pip install {line}. The command works "
            "without --report."
        )
    if not path.parent.is_dir():
        raise UsageError(f"--report {path}: there is no folder {path.parent}. Create it first.")
    if path.exists() or path.is_symlink():
        raise UsageError(f"--report {path}: it exists. Give another name.")
    for name, value in vars(arguments).items():
        if name != "report" and isinstance(value, Path) and value.resolve() == path.resolve():
            raise UsageError(f"--report {path}: --{name.replace('_', '-')} names the same file.")
    with AtomicFiles(path.parent, overwrite=False):
        pass  # the folder can be written to
