"""Processes, and what each of them costs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessCost:
    """The cost of one process: wall-clock seconds and peak resident bytes."""

    seconds: float
    peak: int


def run_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> ProcessCost:
    """Run a command; the operating system measures its cost.

    Args:
        command: The command.
        environment: Its environment; None is this process's.

    Raises:
        RuntimeError: The command failed; the message has its stderr.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.DEVNULL, stderr=output, env=environment
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # interrupted
            process.kill()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed: {output.read().decode(errors='replace')}")
    kilobyte = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return ProcessCost(seconds, usage.ru_maxrss * kilobyte)


def run_timed(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Run a command that prints the seconds of its work, and return them.

    Raises:
        RuntimeError: The command failed; the message has its stderr.
    """
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stderr}")
    return float(result.stdout.split()[-1])
