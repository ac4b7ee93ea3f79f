"""Runs of the command in processes with limits, for attacks and full disks.

As a program, this module imports the modules of the command once and forks for each request. A run then takes
milliseconds instead of the seconds that importing PyTorch takes.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


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
        request = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "input_size": input_size,
            "largest_file": largest_file,
            "user": user,
            "function": function,
            "cpu_seconds": cpu_seconds,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Run(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _serve() -> None:
    import rich.progress
    import rich.table  # noqa: F401
    import torch

    # What the command imports when it is needed, so that no run is charged for it.

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    from tests.fuzz.workers import WALL_SECONDS

    at_start = mmap.mmap(-1, 8)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            at_start[:] = _resident().to_bytes(8, "little")
            _become(request, out.fileno(), err.fileno())
        watchdog = threading.Timer(WALL_SECONDS, os.kill, (pid, signal.SIGKILL))
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
    _serve()
