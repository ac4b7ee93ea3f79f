"""The options, exit codes and error messages that every command shares."""

from __future__ import annotations

import argparse
import codecs
import difflib
import errno
import importlib
import io
import json
import logging
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from converter.atomic import AtomicFiles, replace_file
from converter.errors import PortError, RequirementError, SourceError, UsageError
from converter.free_names import without_controls
from converter.progress import ProgressBar
from converter.stop_signals import StopSignals

ESCAPE = "facenet-port-escape"
"""Name of an error handler for encoding text that may name files: see `_escape`."""

UNFORESEEN = 3  # exit code for an unforeseen error, which an odd input is likely to cause


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Write a byte of a path that is not UTF-8 as \xff, as shells do, and other characters as Python does.

    Python keeps such a byte as one of the surrogates U+DC80 to U+DCFF (PEP 383), which no encoding has.
    """
    if isinstance(error, UnicodeEncodeError) and 0xDC80 <= ord(error.object[error.start]) <= 0xDCFF:
        return f"\\x{ord(error.object[error.start]) - 0xDC00:02x}", error.start + 1
    return codecs.backslashreplace_errors(error)


codecs.register_error(ESCAPE, _escape)


def _let_paths_be_printed() -> None:
    """Let stdout and stderr show names of files that are not UTF-8, or not in the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPE)


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """Print text and tables; control characters in a text, as of a file's name, do not act."""
        super().print(*(without_controls(o) if isinstance(o, str) else o for o in objects), **options)

    def on_broken_pipe(self) -> None:
        """Go on without a reader, such as `| head`: the exit code still tells the result."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(width: int = 0) -> Console:
    """Make a console on stdout that does not wrap lines, at least `width` columns wide."""
    result = _Console(highlight=False, soft_wrap=True)
    result.width = max(result.width, width)
    return result


def path(text: str) -> Path:
    """Parse an argument that is a path, and refuse an empty one."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def output(text: str) -> Path:
    """Parse an argument that names an output; a name that ends in / has to be a folder that exists."""
    if text.endswith("/") and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder. Create it, or leave out the / to name a file")
    return path(text)


def natural_number(text: str) -> int:
    """Parse an argument that is a whole number, 0 or above."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or above")
    return int(text)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command whose SOURCE may be a name: --offline and --archive."""
    parser.add_argument("--offline", action="store_true", help="never use the network")
    parser.add_argument(
        "--archive",
        metavar="FILE",
        type=path,
        help="the zip or package of the model that SOURCE names, downloaded by hand; it is verified",
    )


def add_ignore_option(parser: argparse.ArgumentParser) -> None:
    """Add --ignore, which may be repeated."""
    parser.add_argument(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out tensors that the network does not have, such as 'Logits_finetune/*'; may be repeated",
    )


def locate(arguments: argparse.Namespace, source: Path) -> Path:
    """Find a command's source: an unchanged path, or the path of a named model's files in the cache.

    Args:
        arguments: Of a command that calls `add_network_options`.
        source: The path or name that the user gave.

    Raises:
        UsageError, RequirementError, SourceError: As `hub.locate.locate` says.
    """
    from converter.hub.locate import locate as locate_source

    with ProgressBar(f"downloading {source}", quiet=arguments.quiet) as progress:
        return locate_source(source, offline=arguments.offline, archive=arguments.archive, progress=progress)


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its options and its work.

    Attributes:
        module: The module that runs it, as in `python -m MODULE`.
        summary: One line for the help.
        add_arguments: Adds its own options to a parser.
        work: Takes the parsed arguments, returns the exit code.
        epilog: Text below the options in the help.
        extra_hint: Advice on an unexpected argument.
    """

    module: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], int]
    epilog: str = ""
    extra_hint: str = ""

    def parser(self, program: str | None = None) -> argparse.ArgumentParser:
        """Build the parser, with the options that every command has: --json, --quiet, --debug."""
        parser = argparse.ArgumentParser(
            prog=program or f"python -m {self.module}", description=self.summary, epilog=self.epilog
        )
        self.set_up(parser)
        return parser

    def set_up(self, parser: argparse.ArgumentParser) -> None:
        """Add every option of the command to a parser."""
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        self.add_arguments(parser)
        parser.add_argument("--json", type=output, metavar="FILE", help="also write the result as JSON")
        parser.add_argument(
            "--quiet", action="store_true", help="print no tables and no progress, only warnings and errors"
        )
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def main(self, argv: Sequence[str] | None = None, program: str | None = None) -> int:
        """Parse the arguments, do the work and turn every error into one message on stderr and an exit code.

        Args:
            argv: The arguments; None takes those of the process.
            program: Name of the command in its messages; None is `python -m MODULE`.

        Returns:
            0 proven; 1 a difference was found; 2 wrong usage; 3 the input is unreadable, corrupt or not this
            network; 4 something that is needed is missing; 5 only a weaker proof (`audit`); 130, 143 or 129
            interrupted by Ctrl-C (SIGINT), SIGTERM or SIGHUP.
        """
        with StopSignals(for_good=argv is None) as stop:
            return self.run(sys.argv[1:] if argv is None else argv, stop, program)

    def run(self, argv: Sequence[str], stop: StopSignals, program: str | None = None) -> int:
        """Do the work of `main`, under the signal handlers of the caller."""
        _let_paths_be_printed()
        parser = self.parser(program)
        arguments, extra = parser.parse_known_args(argv)
        arguments.options = tuple(dict.fromkeys(re.findall(r"--[a-z][\w-]*", parser.format_help())))
        if extra:
            parser.error(f"unexpected {' '.join(extra)}{self._advise(extra, parser.prog, arguments.options)}")
        arguments.program = parser.prog
        arguments.command = shlex.join([*parser.prog.split(), *argv])
        try:
            with _show_warnings(parser.prog):
                if arguments.json:
                    check_result_file(arguments, "json", (".json",), (b"{", b"["))
                return self.work(arguments)
        except (Exception, KeyboardInterrupt) as error:
            if arguments.debug:
                traceback.print_exception(error)
            if stop.received or _is_interruption(error):
                message, code = f"{stop.cause}; no file was left half written", stop.exit_code
            else:
                message, code = _explain(error)
        print_error(f"{parser.prog}: error: {message}")
        return code

    def _advise(self, extra: Sequence[str], program: str, options: Sequence[str]) -> str:
        """Advise on arguments that the command does not have."""
        typed = [argument.partition("=")[0] for argument in extra if argument.startswith("-")]
        if not typed and self.extra_hint:
            return f": {self.extra_hint}"
        close = [match for option in typed for match in difflib.get_close_matches(option, options, n=1)]
        meant = f": did you mean {' and '.join(dict.fromkeys(close))}?" if close else "."
        return f"{meant} `{program} --help` lists the options."


def print_error(message: str) -> None:
    """Print a line on stderr, which is gone if the terminal was closed."""
    try:
        print(without_controls(message), file=sys.stderr)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _WarningHandler(logging.Handler):
    """Prints the warnings of this project's modules as the command's own."""

    def __init__(self, program: str) -> None:
        super().__init__(logging.WARNING)
        self._program = program

    def emit(self, record: logging.LogRecord) -> None:
        """Print one warning."""
        print_error(f"{self._program}: warning: {record.getMessage()}")


@contextmanager
def _show_warnings(program: str) -> Iterator[None]:
    loggers = [logging.getLogger(package) for package in ("converter", "faces")]
    handler = _WarningHandler(program)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _explain(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code for an error."""
    if isinstance(error, PortError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and "temporary directory" in str(error):  # tempfile's or matplotlib's
        problem = "no folder for temporary files can be written to"
        return f"{problem}. Set TMPDIR to one with 500 MB free.", RequirementError.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: the name is too long. Give a shorter one.", UsageError.exit_code
    if isinstance(error, OSError):
        return f"{error}. Check the disk's free space and the permissions.", RequirementError.exit_code
    report = "Please report it, with the output of --debug."
    return f"unexpected {type(error).__name__}: {error}. {report}", UNFORESEEN


def _is_interruption(error: BaseException | None) -> bool:
    """Return whether an error is a Ctrl-C, or was raised during a Ctrl-C, as in imports of C++ code."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def write_json(path: Path, result: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a result to the file of `--json`, whole or not at all; an older file is replaced.

    JSON has neither infinity nor NaN: both become null.
    """
    replace_file(path, f"{json.dumps(_finite(result), indent=1, allow_nan=False)}\n".encode())


def show_result(
    arguments: argparse.Namespace,
    result: Any,
    rooms: str,
    as_json: Callable[[], Mapping[str, Any] | Sequence[Any]],
) -> None:
    """Print a command's result and write the files of --json and --report, as the options ask for.

    Args:
        arguments: The parsed arguments.
        result: The result, for the functions of the rooms.
        rooms: The package of the command, such as `checks.audit`: its `table` has `print_result`, its `page`
            has `write_page`. A room is imported when it is needed.
        as_json: Gives the content of the file of --json.
    """
    if not arguments.quiet:
        verbosity = {"verbose": arguments.verbose} if hasattr(arguments, "verbose") else {}
        importlib.import_module(f"{rooms}.table").print_result(result, **verbosity)
    if arguments.json:
        write_json(arguments.json, as_json())
    if getattr(arguments, "report", None):
        page = importlib.import_module(f"{rooms}.page")
        page.write_page(arguments.report, result, command=arguments.command)


def check_result_file(
    arguments: argparse.Namespace, name: str, endings: Sequence[str], starts: Sequence[bytes]
) -> None:
    """Refuse the file of an option such as --json before the work begins, if it cannot be written.

    An older result is left: the new one replaces it when it is complete. A file with another ending is an
    older result, too, if it is empty or starts as results do.

    Args:
        arguments: The parsed arguments.
        name: The name of the option's value in them, such as `json`.
        endings: The endings of such files, in lower case.
        starts: The first bytes of such files, in lower case.

    Raises:
        UsageError: The file exists and is something else or a manifest, its folder does not exist or cannot
            be written to, or another argument names the same file.
    """
    path: Path = getattr(arguments, name)
    option = f"--{name}"
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}. Create it first.")
    if path.is_dir():
        raise UsageError(f"{option} {path}: this is a folder. Give the name of a file in it.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path}: this is not a regular file. Give the name of a file.")
    if path.exists() and path.suffix.lower() not in endings and not _starts_with(path, starts):
        article = "an" if endings[0] == ".html" else "a"
        raise UsageError(
            f"{option} {path}: it exists and is not {article} {endings[0]} file. Give another name."
        )
    if path.exists() and _is_manifest(path):
        raise UsageError(
            f"{option} {path}: this is the manifest of a conversion, by which its weights are verified. Give "
            "another name."
        )
    if (other := _names_same_file(arguments, name)) is not None:
        raise UsageError(f"{option} {path}: {other} names the same file. Give another name.")
    with AtomicFiles(path.resolve().parent, overwrite=True):
        pass  # fails if the folder cannot be written to


def _names_same_file(arguments: argparse.Namespace, name: str) -> str | None:
    """Return the argument that names the same file as this one, as the help calls it; None if none does."""
    path = getattr(arguments, name).resolve()
    for other, value in vars(arguments).items():
        values = value if isinstance(value, list) else [value]
        if other != name and any(isinstance(each, Path) and each.resolve() == path for each in values):
            option = f"--{other.replace('_', '-')}"
            return option if option in arguments.options else other.upper()
    return None


def _is_manifest(path: Path) -> bool:
    from converter.manifest import read_manifest  # slow to import

    try:
        read_manifest(path)
    except SourceError:
        return False
    return True


def _starts_with(path: Path, starts: Sequence[bytes]) -> bool:
    """Return whether a file is empty or starts with one of these bytes."""
    with path.open("rb") as file:
        actual = file.read(max(map(len, starts))).lower()
    return not actual or actual.startswith(tuple(starts))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
