"""Runs of the command in processes with limits, for attacks and full disks, and of whole programs.

As a program, this module imports the modules of the command once and forks for each request. A run then takes
milliseconds instead of the seconds that importing PyTorch takes.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAM_SECONDS = 300.0
"""Time after which a program is killed."""


@dataclass(frozen=True)
class Run:
    """The result of a run of the command.

    Attributes:
        code: The exit code; None if a signal ended the process.
        died_of: The signal's name, or "".
        out: Text on stdout.
        err: Text on stderr.
        cpu: Processor time in seconds, with that of its children.
        growth: Bytes of memory beyond what the process had at its start.
    """

    code: int | None
    died_of: str
    out: str
    err: str
    cpu: float
    growth: int


class Sandbox:
    """A process that runs the command on request; close it at the end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def run(
        self,
        *arguments: str | Path,
        folder: Path,
        input_size: int = 0,
        largest_file: int | None = None,
        user: int | None = None,
        function: str = "",
        cpu_seconds: float = 2.0,
    ) -> Run:
        """Run `python -m converter` with at most twice `input_size` and 300 MB more memory than it has.

        Args:
            arguments: Those of the command.
            folder: The current folder.
            input_size: Bytes of the file that is read.
            largest_file: Limit on the size of a file in bytes, which imitates a full disk.
            user: Id of the user to run as, if this process may choose.
            function: Instead of the command, a function that takes its only argument: one of `FUNCTIONS`.
            cpu_seconds: Processor time after which SIGPROF ends the process.
        """
        return self._ask(
            arguments,
            folder,
            input_size=input_size,
            largest_file=largest_file,
            user=user,
            function=function,
            cpu_seconds=cpu_seconds,
        )

    def run_program(self, program: str, *arguments: str | Path, folder: Path) -> Run:
        """Run `python -c program` without limits, and with the environment of this process.

        The program starts with PyTorch imported, and ends as an interpreter ends: with its handlers of exit.

        Args:
            program: The source.
            arguments: Those of the program.
            folder: The current folder.
        """
        return self._ask(arguments, folder, program=program, environment=dict(os.environ))

    def _ask(self, arguments: Sequence[str | Path], folder: Path, **options: Any) -> Run:
        request = {"arguments": [str(argument) for argument in arguments], "folder": str(folder), **options}
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Run(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process; it would wait for ever if a fork of this one has its standard input open."""
        with self._process:
            self._process.kill()


def _serve() -> dict[str, Any] | None:
    """Answer requests; returns the request of a program in the process that is to run it."""
    import rich.progress
    import rich.table  # noqa: F401
    import torch

    # What the command imports when it is needed, so that no run is charged for it.

    torch.set_num_threads(1)
    gc.freeze()  # no fork searches all of torch for cycles as it exits
    for line in sys.stdin:
        request = json.loads(line)
        run = _run(request)
        if run is None:
            return request
        print(json.dumps(run), flush=True)
    return None


def _run(request: dict[str, Any]) -> dict[str, Any] | None:
    """Run a request in a forked process; returns None in the process of a program."""
    from tests.fuzz.workers import WALL_SECONDS

    at_start = mmap.mmap(-1, 8)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            at_start[:] = _resident().to_bytes(8, "little")
            if "program" in request:
                _prepare(request, out.fileno(), err.fileno())
                return None
            _become(request, out.fileno(), err.fileno())
        limit = PROGRAM_SECONDS if "program" in request else WALL_SECONDS
        watchdog = threading.Timer(limit, os.kill, (pid, signal.SIGKILL))
        watchdog.start()
        _, status, used = os.wait4(pid, 0)
        watchdog.cancel()
        out.seek(0)
        err.seek(0)
        return {
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "died_of": signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "",
            "out": out.read().decode(errors="replace"),
            "err": err.read().decode(errors="replace"),
            "cpu": used.ru_utime + used.ru_stime,
            "growth": (used.ru_maxrss << 10) - int.from_bytes(at_start[:], "little"),
        }


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _unpack(path: Path) -> None:
    from converter.hub.archive import unpack

    unpack(path, Path("unpacked"))


def _read_manifest(path: Path) -> None:
    from converter.manifest import read_manifest

    read_manifest(path)


def _read_latest(path: Path) -> None:
    from converter.formats.tensorflow.checkpoint_state import read_latest

    read_latest(path)


def _read_catalog(path: Path) -> None:
    from converter.hub.catalog import all_entries
    from converter.hub.user_catalog import VARIABLE

    os.environ[VARIABLE] = str(path)
    all_entries()


FUNCTIONS = {
    "unpack": _unpack,
    "read_manifest": _read_manifest,
    "read_latest": _read_latest,
    "read_catalog": _read_catalog,
}
"""Functions that may run instead of the command, with the same error messages."""


def _call(function: str, path: Path) -> int:
    from converter.errors import PortError

    try:
        FUNCTIONS[function](path)
    except PortError as error:
        print(f"python -m converter: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _prepare(request: dict[str, Any], out: int, err: int) -> None:
    """Give this process the streams, the arguments, the folder and the environment of a program."""
    for descriptor, number in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["-c", *request["arguments"]]
    os.chdir(request["folder"])


def _become(request: dict[str, Any], out: int, err: int) -> None:
    """Set the limits, run the command and end, in the forked process."""
    from converter.__main__ import main
    from tests.fuzz.workers import limit_memory

    code = 70
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(request["folder"])
        limit_memory(request["input_size"])
        if request["largest_file"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
        if request["user"] is not None:
            os.setgroups([])
            os.setgid(request["user"])
            os.setuid(request["user"])
        signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
        if request["function"]:
            code = _call(request["function"], Path(request["arguments"][0]))
        else:
            code = main(request["arguments"])
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 70
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    request = _serve()
    if request is not None:
        exec(request["program"], {"__name__": "__main__"})
