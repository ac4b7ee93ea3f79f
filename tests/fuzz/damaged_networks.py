"""Whole conversions of damaged files of real size: each is refused, changes nothing, or is reported."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.convert_file import Conversion, convert_file
from converter.errors import PortError
from converter.manifest import file_digest
from tests.fuzz.seeds import network_files
from tests.fuzz.targets import TARGETS
from tests.fuzz.workers import limit_memory, make_mutant, peak_memory

CPU_SECONDS = 10.0
"""Limit on the processor time of a conversion; a sound file of this size takes about one second."""

FULL_SIZE = ("index", "data", "pb", "h5", "pt", "pt-legacy", "safetensors")


@dataclass
class Report:
    """The outcomes of a target's damaged networks.

    Attributes:
        counts: Number of files that were `refused`, were written as the `same` bytes, were written as `other`
            bytes and reported by the source's SHA-256, or are `findings`.
        worst_growth: Largest growth of the process during a conversion, in bytes.
        findings: Case to its description.
    """

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("refused", "same", "other", "findings"), 0)
    )
    worst_growth: int = 0
    findings: dict[str, str] = field(default_factory=dict)


def in_child(work: Callable[[], Any], *, cpu_seconds: float) -> tuple[Any, str]:
    """Run a function in a forked process.

    Returns:
        The result of the function, and the reason for the process's death; one of the two is empty.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            result = work()
            signal.setitimer(signal.ITIMER_PROF, 0)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(result, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return None, f"the process died of {signal.Signals(os.WTERMSIG(status)).name}"
    return (pickle.loads(answer), "") if answer else (None, "the process ended without an answer")


def run_conversions(
    targets: list[str],
    count: int,
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Report]:
    """Convert `count` damaged networks of each target; a case is counted from -1 downwards."""
    reports = {}
    expected = ""
    for name in targets:
        if progress is not None:
            progress(name)
        home = folder / f"network-{name}"
        path = network_files(home, (name,))[name]
        # All formats hold the same tensors, so they give the same state_dict.
        expected = expected or _outputs(_convert(path, home / "sound", ()))
        reports[name] = _run(name, path, count, expected, seed)
        shutil.rmtree(home)
    return reports


def _run(name: str, path: Path, count: int, expected: str, seed: int) -> Report:
    report = Report()
    original = path.read_bytes()
    digests = [file_digest(file) for file in path.parent.iterdir() if file.is_file()]
    output = path.parent / "output"
    output.mkdir()
    for case in range(-1, -1 - count, -1):
        _, mutant, signed = make_mutant(TARGETS[name], [original], case, seed)
        path.write_bytes(mutant)
        result, death = in_child(lambda: _attempt(path, output), cpu_seconds=CPU_SECONDS)
        left = sorted(file.name for file in output.iterdir())
        outcome, problem = "findings", death
        if not death:
            kind, text, growth = result
            report.worst_growth = max(report.worst_growth, growth)
            if kind == "refused":
                outcome, problem = ("refused", "") if not left else ("findings", f"left behind: {left}")
            elif kind == "converted":
                if text == expected:
                    outcome = "same"
                elif TARGETS[name].checksummed and not signed:
                    problem = "other weights were written, and nothing was reported"
                elif (
                    in_child(lambda: _attempt(path, output, digests), cpu_seconds=CPU_SECONDS)[0][0]
                    != "refused"
                ):
                    problem = "other weights were written although the SHA-256 was given"
                else:
                    outcome = "other"
            else:
                problem = text
        report.counts[outcome] += 1
        if outcome == "findings":
            report.findings[f"{name}:{case}"] = problem
        shutil.rmtree(output)
        output.mkdir()
    return report


def _attempt(path: Path, output: Path, digests: Sequence[str] = ()) -> tuple[str, Any, int]:
    """Convert under limits; returns `refused`, `converted` with the output's digest, or `traceback`."""
    limit_memory(path.stat().st_size)
    before = peak_memory()
    try:
        written = _convert(path, output, digests)
    except PortError as error:
        return "refused", str(error), peak_memory() - before
    except BaseException:
        return "traceback", traceback.format_exc(), peak_memory() - before
    return "converted", _outputs(written), peak_memory() - before


def _convert(path: Path, output: Path, digests: Sequence[str]) -> Conversion:
    output.mkdir(exist_ok=True)
    return convert_file(path, output / "weights.pt", sha256=digests, overwrite=bool(digests))


def _outputs(conversion: Conversion) -> str:
    """Digest of the state_dict alone, because the manifest beside it names the source's digest."""
    return file_digest(next(path for path in conversion.outputs if path.suffix == ".pt"))
