"""What every command has in common: its common options, its exit codes, and errors as one message."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from converter.atomic import AtomicFiles
from converter.errors import PortError, RequirementError, UsageError
from converter.progress import ProgressBar

UNREADABLE = 3  # the exit code for whatever a file led to that was not foreseen
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_IMPORT_PAUSE = 0.02  # seconds until an interruption that met an import is tried again


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on without a reader, as behind `| head`: the exit code is the verdict, read or not."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(width: int = 0) -> Console:
    """A console on stdout that wraps nothing, at least `width` columns wide."""
    made = _Console(highlight=False, soft_wrap=True)
    made.width = max(made.width, width)
    return made


def path(text: str) -> Path:
    """The type of an argument that is a path: anything but nothing."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def natural_number(text: str) -> int:
    """The type of an argument that is a number from 0 on."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def add_network_options(built: argparse.ArgumentParser) -> None:
    """Add the options of a command whose SOURCE may be a name: --offline and --archive."""
    built.add_argument("--offline", action="store_true", help="never use the network")
    built.add_argument(
        "--archive",
        metavar="FILE",
        type=path,
        help="with a name as SOURCE: its zip, downloaded by hand, which is verified and unpacked",
    )


def locate(arguments: argparse.Namespace, source: Path) -> Path:
    """The path of a command's source; where it is a name, that of the model's folder in the cache.

    Args:
        arguments: Of a command that calls `add_network_options`.
        source: What the user gave.

    Raises:
        UsageError: --archive is given, and `source` is no name.
        RequirementError, SourceError: As `download.model_folder` says.
    """
    from converter.hub.locate import locate as locate_source

    with ProgressBar(f"downloading {source}", quiet=arguments.quiet) as progress:
        return locate_source(source, offline=arguments.offline, archive=arguments.archive, progress=progress)


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its options, and the work that it does with them.

    Attributes:
        module: The module that runs it, as in `python -m MODULE`.
        summary: What it does, in one line.
        add_arguments: Adds its own options to a parser.
        work: Takes the parsed arguments, returns the exit code.
        epilog: Printed below the options.
    """

    module: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], int]
    epilog: str = ""

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
        parser.add_argument("--json", type=path, metavar="FILE", help="also write the result as JSON")
        parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def main(self, argv: Sequence[str] | None = None, program: str | None = None) -> int:
        """Parse the arguments, do the work and turn every error into one message on stderr and an exit code.

        Args:
            argv: The arguments; None takes those of the process.
            program: How the command was called, for its messages; None is `python -m MODULE`.

        Returns:
            0 proven; 1 a difference was found; 2 wrong usage; 3 the input is unreadable, corrupt or not this
            network; 4 something that is needed is missing; 130 interrupted.
        """
        parser = self.parser(program)
        arguments = parser.parse_args(argv)
        typed = sys.argv[1:] if argv is None else argv
        arguments.command = shlex.join([*parser.prog.split(), *typed])
        try:
            with _imports_uninterrupted():
                if arguments.json:
                    _refuse(arguments.json, getattr(arguments, "overwrite", False))
                return self.work(arguments)
        except PortError as error:
            caught: BaseException = error
            message, code = str(error), error.exit_code
        except KeyboardInterrupt as error:
            caught = error
            message, code = "interrupted; no file was left half written", INTERRUPTED
        except OSError as error:
            caught = error
            message = f"{error}. Look at the disk's free space and at the permissions."
            code = RequirementError.exit_code
        except Exception as error:
            caught = error
            message = (
                f"unexpected {type(error).__name__}: {error}. Please report it, with the output of --debug."
            )
            code = UNREADABLE
        if arguments.debug:
            traceback.print_exception(caught)
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        return code


@contextmanager
def _imports_uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait while a module is being imported.

    Interrupted, the C and C++ code of NumPy, PyTorch and TensorFlow ends in an ImportError, or ends the
    process.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield  # no signal arrives here, or somebody else is to have it
        return
    entered = sys._getframe()
    again: list[threading.Timer] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame is not entered:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                again.append(threading.Timer(_IMPORT_PAUSE, signal.raise_signal, [number]))
                again[-1].start()
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        signal.signal(signal.SIGINT, before)


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result where `--json` asked for it, whole or not at all.

    JSON has no infinity and no NaN: both are written as null. `run` has refused an existing file, but for
    `--overwrite`.
    """
    with AtomicFiles(path.parent, overwrite=True) as files:
        files.stage(path.name).write_text(json.dumps(_finite(result), indent=1, allow_nan=False) + "\n")
        files.commit()


def _refuse(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"--json {path}: there is no folder {path.parent}. Create it first.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UsageError(f"--json {path}: it exists. Give another name.")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
