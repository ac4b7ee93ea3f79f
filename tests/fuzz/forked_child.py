"""The process that reads an HDF5 file, as a fork: a new interpreter for each would take six times as long."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import time
import types
from pathlib import Path
from typing import Any

from converter import child_process
from converter.formats.hdf5 import read_in_child_process

_STEP = 0.001  # seconds between two looks at a child that is about to end


class _Fork:
    """A fork that does what `read_in_child_process` does as a program; to its parent it is a `Popen`."""

    def __init__(self, command: list[Any], stdin: int, **_: Any) -> None:
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.dup2(stdin, 0)
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.dup2(null, 2)
                os.closerange(3, 256)  # the parent's end of the socket, too
                child_process.serve(read_in_child_process._Child(Path(command[-1])).answer)
                status = 0
            finally:
                os._exit(status)

    def kill(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = 60.0) -> int:
        deadline = time.monotonic() + seconds
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), seconds)
            else:
                time.sleep(_STEP)
        return self._status


def fork_children() -> None:
    """Have this process fork its child processes from now on: all but the start is as it is for a user."""
    gc.freeze()  # a fork does not copy what is only looked through for garbage
    child_process.subprocess = types.SimpleNamespace(  # type: ignore[attr-defined]
        Popen=_Fork, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )
