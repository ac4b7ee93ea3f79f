"""Writers killed at random moments: every final name has a whole file or none."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from converter.convert_file import convert_file
from converter.manifest import file_digest

JOBS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "pt": ("weights.pt", {}),
    "parts": ("weights.pt", {"parts": True}),
    "safetensors": ("weights.safetensors", {"output_format": "safetensors"}),
    "tensorflow": ("model.ckpt-1", {"output_format": "tensorflow"}),
    "overwrite": ("weights.pt", {"overwrite": True}),
}
"""Job to the name of its output and the arguments of `convert_file`."""


@dataclass
class Kills:
    """The outcomes of the kills of one job.

    Attributes:
        moments: Number of kills `before`, `during` and `after` the writing; only those during it prove
            something.
        partial: Files with a final name that were not whole.
    """

    moments: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("before", "during", "after"), 0))
    partial: list[str] = field(default_factory=list)


def run_kills(
    source: Path,
    count: int,
    folder: Path,
    *,
    jobs: Sequence[str] = tuple(JOBS),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Kills]:
    """Kill `count` conversions of a source, as many of each job, at drawn moments spread over its duration.

    Args:
        source: A network in any format.
        count: Number of kills.
        folder: Folder to write to; the files in it are removed.
        jobs: The jobs to kill, from `JOBS`.
        seed: Seed of the moments.
        progress: Progress callback; takes the name of the next job.
    """
    rng = Random(seed)
    kills = {}
    folder.mkdir(parents=True, exist_ok=True)
    wait_for_fork(_start(source, folder / "warm.pt", {}))  # warms the caches
    for number, job in enumerate(jobs):
        if progress is not None:
            progress(job)
        each = count // len(jobs) + (number < count % len(jobs))
        kills[job] = _kill_job(source, job, each, folder / job, rng)
    return kills


def _kill_job(source: Path, job: str, count: int, folder: Path, rng: Random) -> Kills:
    name, options = JOBS[job]
    folder.mkdir()
    started = time.monotonic()
    wait_for_fork(_start(source, folder / name, options))
    duration = time.monotonic() - started
    expected = {path.name: file_digest(path) for path in folder.iterdir()}
    kills = Kills()
    for number in range(count):
        shutil.rmtree(folder)
        folder.mkdir()
        if options.get("overwrite"):
            for file in expected:
                (folder / file).write_text(f"the old {file}")
        pid = _start(source, folder / name, options)
        time.sleep(1.05 * duration * rng.uniform(number, number + 1) / count)
        os.kill(pid, signal.SIGKILL)
        killed = os.WIFSIGNALED(wait_for_fork(pid))
        moment, partial = _look(folder, expected, killed=killed, old=bool(options.get("overwrite")))
        kills.moments[moment] += 1
        kills.partial += [f"{job}, kill {number}: {what}" for what in partial]
    shutil.rmtree(folder)
    return kills


def _start(source: Path, output: Path, options: Mapping[str, Any]) -> int:
    return start_fork(lambda: convert_file(source, output, **options))


def start_fork(work: Callable[[], object]) -> int:
    """Start work in a fork of this process; return its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def wait_for_fork(pid: int) -> int:
    """Wait for the end of a fork and return its status.

    Raises:
        RuntimeError: It failed by itself.
    """
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the work that was to be killed failed by itself")
    return status


def _look(folder: Path, expected: Mapping[str, str], *, killed: bool, old: bool) -> tuple[str, list[str]]:
    """Return the moment of the kill, and the partial files that it left."""
    present = {path.name: path for path in folder.iterdir()}
    hidden = [name for name in present if name.startswith(".")]
    partial = []
    new = set()
    for name, path in present.items():
        if name in hidden:
            continue
        if old and path.read_bytes()[:16] == f"the old {name}".encode()[:16]:
            continue
        if expected.get(name) == file_digest(path):
            new.add(name)
        else:
            partial.append(f"{name} has {path.stat().st_size} bytes and another digest")
    if old:
        partial += [f"{name} is lost" for name in expected if name not in present]
    for name in new:
        output = name.removesuffix(".json")
        if output != name and any(f"{other}.".startswith(f"{output}.") for other in expected.keys() - new):
            partial.append(f"{name} appears before its output")
    if not killed or (len(new) == len(expected) and not hidden):
        return "after", partial
    return ("during" if hidden or new else "before"), partial
