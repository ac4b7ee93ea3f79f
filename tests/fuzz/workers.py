"""Reading mutants in processes that may crash, hang or run out of memory, and counting the outcomes."""

from __future__ import annotations

import mmap
import os
import re
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from converter.errors import PortError
from tests.fuzz.forked_child import fork_children
from tests.fuzz.seeds import Seed
from tests.fuzz.targets import Target

CPU_SECONDS = 2.0
"""Limit on the processor time of one input."""

WALL_SECONDS = 50.0
"""Time after which a waiting input counts as a hang; generous, for a busy machine."""

EXTRA_MEMORY = 300 << 20
"""Limit on the memory of one input, in bytes beyond twice its size."""

OUTCOMES = ("refused", "same", "other", "crashes", "hangs", "tracebacks", "memory", "undetected")
FINDINGS = OUTCOMES[3:]


@dataclass
class Result:
    """The outcomes of a target's inputs.

    Attributes:
        counts: Outcome to number of inputs: `refused` with a message; read as the `same` tensors; read as
            `other` tensors from a format without checksums or with new ones. All other outcomes are findings.
        seconds: Duration of the whole run.
        worst_cpu: Longest processor time of an input, in seconds.
        worst_wait: Longest time of an input, in seconds; on a busy machine it exceeds the work.
        worst_growth: Largest growth of a worker since before its first input, in bytes.
        findings: Case to its description, one for each kind and place.
    """

    counts: dict[str, int]
    seconds: float = 0.0
    worst_cpu: float = 0.0
    worst_wait: float = 0.0
    worst_growth: int = 0
    findings: dict[str, str] = field(default_factory=dict)


class _Shared:
    """The counters of a worker, in memory that outlives the worker's process."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4096)
        self.counts = np.frombuffer(self._memory, np.int64, len(OUTCOMES))
        self.numbers = np.frombuffer(self._memory, np.int64, 3, 1024)  # current case, next case, growth
        self.times = np.frombuffer(self._memory, np.float64, 3, 2048)  # start, worst CPU, worst wait


def make_mutant(target: Target, contents: list[bytes], case: int, seed: int) -> tuple[int, bytes, bool]:
    """Make the mutant of a case; returns its seed's number, its bytes, and whether its checksums are new."""
    rng = Random(f"{seed}/{target.name}/{case}")
    chosen = rng.randrange(len(contents))
    return chosen, *target.mutant(rng, contents[chosen], contents)


def judge(target: Target, path: Path, seed: Seed, signed: bool) -> tuple[str, str]:
    """Read a mutant; returns the outcome, and the traceback of a finding."""
    try:
        same = target.read(path, seed.tensors)
    except PortError as error:
        starved = _starved(error)
        return ("memory", traceback.format_exc()) if starved else ("refused", "")
    except MemoryError:
        return "memory", traceback.format_exc()
    except BaseException:
        return "tracebacks", traceback.format_exc()
    if same:
        return "same", ""
    return ("undetected", "read as other tensors") if target.checksummed and not signed else ("other", "")


def _starved(error: BaseException | None) -> bool:
    """Return whether the cause of a refusal is a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError) or re.search("(can't|unable to|cannot) allocate", str(error), re.I):
            return True
        error = error.__cause__ or error.__context__
    return False


def limit_memory(file_size: int) -> None:
    """Limit the growth of this process to twice the size of a file and 300 MB."""
    status = Path("/proc/self/status").read_text()
    used = int(status.partition("VmData:")[2].split()[0]) << 10
    most = used + 2 * file_size + EXTRA_MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def peak_memory() -> int:
    """Peak resident set of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def run_target(
    target: Target,
    count: int,
    folder: Path,
    findings: Path,
    *,
    seed: int = 0,
    first: int = 0,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Read `count` mutants of a target.

    Args:
        target: What to attack.
        count: Number of mutants.
        folder: A folder for seeds and mutants, which the caller removes. Several targets may share it.
        findings: Folder that keeps the harmful mutants.
        seed: With the target's name and the number of a case, it determines the mutant.
        first: Number of the first case.
        workers: Processes.
        progress: Progress callback; takes the number of mutants read.
    """
    for old in findings.glob(f"{target.name}-[0-9]*"):  # of an earlier run
        old.unlink()
    seeds = target.seeds(folder)
    contents = [each.path.read_bytes() for each in seeds]
    for each in seeds:
        if not target.read(each.path, each.tensors) and each.tensors:
            raise AssertionError(f"the seed {each.path.name} reads back different")
    started = time.monotonic()
    pool = [
        _Worker(target, seeds, contents, folder / "mutants" / target.name / str(number), findings, seed,
                range(first + number, first + count, workers))
        for number in range(workers)
    ]  # fmt: skip
    for worker in pool:
        worker.start()
    running = list(pool)
    while running:
        select.select([worker.pidfd for worker in running], [], [], 0.5)
        running = [worker for worker in running if worker.check()]
        if progress is not None:
            progress(sum(worker.done for worker in pool))
    result = Result(dict.fromkeys(OUTCOMES, 0), time.monotonic() - started)
    for worker in pool:
        for outcome, number in zip(OUTCOMES, worker.shared.counts, strict=True):
            result.counts[outcome] += int(number)
        result.worst_cpu = max(result.worst_cpu, float(worker.shared.times[1]))
        result.worst_wait = max(result.worst_wait, float(worker.shared.times[2]))
        result.worst_growth = max(result.worst_growth, int(worker.shared.numbers[2]))
    for note in sorted(findings.glob(f"{target.name}-[0-9]*.txt")):
        result.findings[note.stem] = note.read_text()
    return result


class _Worker:
    """A process that reads a share of the mutants; if it dies, another one goes on with the next mutant."""

    def __init__(
        self, target: Target, seeds: list[Seed], contents: list[bytes], folder: Path, findings: Path,
        seed: int, cases: range,
    ) -> None:  # fmt: skip
        self._target, self._seeds, self._contents = target, seeds, contents
        self._folder, self._findings, self._seed, self._cases = folder, findings, seed, cases
        self._deaths: set[str] = set()
        self.shared = _Shared()

    @property
    def done(self) -> int:
        return int(self.shared.counts.sum())

    def start(self) -> None:
        self.shared.times[0] = time.monotonic()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                self._work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        self.pidfd = os.pidfd_open(self._pid)

    def check(self) -> bool:
        """Return whether mutants are left; restart a process that died, end one that hangs."""
        if not select.select([self.pidfd], [], [], 0)[0]:
            if time.monotonic() - self.shared.times[0] > WALL_SECONDS:
                os.kill(self._pid, signal.SIGKILL)
                self.shared.times[0] = time.monotonic()
            return True
        os.close(self.pidfd)
        status = os.waitpid(self._pid, 0)[1]
        if not os.WIFSIGNALED(status):
            if os.WEXITSTATUS(status):
                raise RuntimeError(f"a worker on {self._target.name} failed at {self.shared.numbers[0]}")
            return False
        name = signal.Signals(os.WTERMSIG(status)).name
        outcome = "hangs" if name in ("SIGPROF", "SIGKILL") else "crashes"
        case = int(self.shared.numbers[0])
        if name not in self._deaths:
            self._deaths.add(name)
            number, data, _ = make_mutant(self._target, self._contents, case, self._seed)
            self._keep(case, number, data, f"{outcome}: the process died of {name}")
        self.shared.counts[OUTCOMES.index(outcome)] += 1
        self.shared.numbers[1] += 1
        self.start()
        return True

    def _keep(self, case: int, seed: int, data: bytes, note: str) -> None:
        name = f"{self._target.name}-{case}"
        self._findings.mkdir(parents=True, exist_ok=True)
        (self._findings / f"{name}{self._seeds[seed].path.suffix}").write_bytes(data)
        (self._findings / f"{name}.txt").write_text(note + "\n")

    def _work(self) -> None:
        # Mutants hold members of the same name on purpose.
        warnings.filterwarnings("ignore", "Duplicate name", module="zipfile")
        fork_children()
        folders = self._copy_seeds()
        shared, target = self.shared, self._target
        limit_memory(max(map(len, self._contents)))
        for path, seed in zip(folders, self._seeds, strict=True):
            target.read(path, seed.tensors)
        before = peak_memory()
        places: set[str] = set()
        while shared.numbers[1] < len(self._cases):
            case = self._cases[int(shared.numbers[1])]
            shared.numbers[0], shared.times[0] = case, time.monotonic()
            number, data, signed = make_mutant(target, self._contents, case, self._seed)
            path = folders[number]
            path.write_bytes(data)
            cpu = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            outcome, note = judge(target, path, self._seeds[number], signed)
            signal.setitimer(signal.ITIMER_PROF, 0)
            shared.times[1] = max(shared.times[1], time.process_time() - cpu)
            shared.times[2] = max(shared.times[2], time.monotonic() - shared.times[0])
            shared.numbers[2] = max(shared.numbers[2], peak_memory() - before)
            shared.counts[OUTCOMES.index(outcome)] += 1
            shared.numbers[1] += 1
            place = outcome + "".join(line for line in note.splitlines() if line.startswith("  File"))
            if note and place not in places:
                places.add(place)
                self._keep(case, number, data, f"{outcome}: {note}")

    def _copy_seeds(self) -> list[Path]:
        """Copy each seed and its companions into a folder of its own; returns the files to mutate."""
        paths = []
        for number, seed in enumerate(self._seeds):
            folder = self._folder / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            for file in seed.path.parent.iterdir():
                if file.is_file() and (file.stem == seed.path.stem or file == seed.path):
                    (folder / file.name).write_bytes(file.read_bytes())
            paths.append(folder / seed.path.name)
        return paths
