"""The checks, checked: every fault of the catalog planted in a clean port, and clean ports as they are."""

from __future__ import annotations

import difflib
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from checks.controls.faults.all_faults import ALL_FAULTS
from checks.controls.faults.fault import Fault, Kind, Setting, Site
from checks.controls.judge_inference import InferenceJudge, Snapshot, Verdict, judge_tiny, judge_whole
from checks.controls.judge_training import judge_training
from checks.controls.pipeline import Pipeline
from checks.controls.tensorflow_reference import ControlInput, ControlReference, ControlSource
from checks.core import thresholds
from checks.core.activations import LOGITS
from checks.core.builtin_checkpoint import built_in_checkpoint
from checks.core.tensorflow_side import require_tensorflow
from checks.core.types import Say
from checks.diagnosis.causes import Cause
from checks.diagnosis.diagnose import diagnose
from converter.errors import DifferenceError, UsageError
from converter.formats.detect import open_source
from converter.hub.locate import locate
from converter.layer_map import Variant

Progress = Callable[[int, int | None], None]

Status = Literal["killed", "survived", "not equivalent", "does not apply"]

CLEAN_RUNS = 5
_EQUIVALENCE_INPUTS = 2  # noise and pixels: on these a fault that shows elsewhere leaves inference alone
WORKERS = 2


@dataclass(frozen=True, slots=True)
class SiteResult:
    """What became of one fault at one site.

    Attributes:
        fault: The class.
        kind: As in `Fault`.
        site: The site's label.
        setting: Where it has to show; in any but inference it must not show in inference.
        status: "not equivalent" is a fault that showed in inference although it was declared not to.
        judgements: Those that failed.
        true_place: Where the fault is.
        place: Where the comparison says that the port first differs.
        cause: What the diagnosis should call it; None where it has no name for it.
        named: What it calls it.
        inputs: How many inputs were run until one told, in the setting.
    """

    fault: str
    kind: Kind
    site: str
    setting: Setting
    status: Status
    judgements: tuple[str, ...] = ()
    true_place: str = ""
    place: str | None = None
    cause: str | None = None
    named: str | None = None
    inputs: int = 0

    @property
    def killed(self) -> bool:
        """Whether it was found in its setting, and in that only."""
        return self.status == "killed"

    @property
    def exact(self) -> bool:
        """Whether it was found where it is."""
        return self.killed and self.place == self.true_place

    @property
    def explained(self) -> bool:
        """Whether its cause was named."""
        return self.killed and self.cause is not None and self.named == self.cause


@dataclass(frozen=True, slots=True)
class CleanRun:
    """A port without a fault, judged on the inputs of one seed.

    Attributes:
        seed: The seed.
        alarms: What failed; each is a false alarm.
    """

    seed: int
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ControlReport:
    """What the controls came to.

    Attributes:
        source: The checkpoint.
        variant: The variant of the network.
        own_averages: Whether the moving averages that faults mix in are the checkpoint's own.
        sites: In the order of the catalog.
        clean: In the order of the seeds.
        seconds: Wall time of the whole.
        files: Every file that was read.
        seed: Of the inputs that the faults are judged on.
    """

    source: str
    variant: Variant
    own_averages: bool
    sites: tuple[SiteResult, ...]
    clean: tuple[CleanRun, ...]
    seconds: float
    files: tuple[str, ...] = ()
    seed: int = 0

    @property
    def applicable(self) -> tuple[SiteResult, ...]:
        """The sites that this checkpoint has."""
        return tuple(site for site in self.sites if site.status != "does not apply")

    @property
    def surviving(self) -> tuple[SiteResult, ...]:
        """Faults that were not found, or found where they were said not to show."""
        return tuple(site for site in self.applicable if not site.killed)

    @property
    def false_alarms(self) -> tuple[CleanRun, ...]:
        """Clean runs that raised an alarm."""
        return tuple(run for run in self.clean if run.alarms)

    @property
    def places(self) -> float:
        """The share of all faults whose place is exact."""
        return _share([site.exact for site in self.applicable])

    @property
    def causes(self) -> float:
        """The share of all faults whose cause is named."""
        return _share([site.explained for site in self.applicable])

    @property
    def whole(self) -> bool:
        """Whether every class of the catalog was planted."""
        return len({site.fault for site in self.sites}) == len(ALL_FAULTS)

    @property
    def enough_causes(self) -> bool:
        """Whether enough causes are named; asked of the whole catalog, since some faults have no name."""
        return not self.whole or self.causes >= thresholds.CAUSES

    @property
    def passed(self) -> bool:
        """Whether the checks are worth their name."""
        enough = self.places >= thresholds.PLACES and self.enough_causes
        return enough and not self.surviving and not self.false_alarms


def _share(of: Sequence[bool]) -> float:
    return sum(of) / len(of) if of else 1.0


def choose(names: Sequence[str]) -> tuple[Fault, ...]:
    """The classes of these names, in the catalog's order; all for no name.

    Raises:
        UsageError: There is no such class.
    """
    known = [fault.name for fault in ALL_FAULTS]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known[:3]
            raise UsageError(f"--only {name}: no such class of faults. Near it: {', '.join(near)}.")
    return tuple(fault for fault in ALL_FAULTS if not names or fault.name in names)


def run_controls(
    source: Path | None = None,
    *,
    faults: Sequence[Fault] = ALL_FAULTS,
    step: int | None = None,
    clean: int = CLEAN_RUNS,
    seed: int = 0,
    say: Say = lambda _: None,
    progress: Progress = lambda done, total: None,
) -> ControlReport:
    """Plant every fault at every site and see what the checks say, then judge clean ports.

    Args:
        source: Anything that `open_source` takes but a state_dict, or the name of a published model; None is
            the built-in checkpoint.
        faults: What to plant.
        step: As in `open_source`.
        clean: How many clean runs: one on the inputs of the faults, in every setting, and the others in
            inference, each on the inputs of a seed of its own.
        seed: Of the inputs that the faults are judged on; the clean runs take it and the ones after it.
        say: Told what is going on.
        progress: Told how many sites and clean runs are done, and how many there are.

    Returns:
        The report; its `passed` is the verdict.

    Raises:
        DifferenceError: A fault could not be taken out again without a trace.
        PortError: As its subclasses say.
    """
    require_tensorflow("to run the controls")
    started = time.monotonic()
    if source is None:
        say("looking for the built-in checkpoint")
        source = built_in_checkpoint()
    say("starting TensorFlow")
    with open_source(locate(source), step=step) as opened, ControlSource(opened) as checkpoint:
        training = any(site.setting == "training" for fault in faults for site in fault.sites)
        reference = checkpoint.reference(seed, training=training, say=say)
        say("planting faults")
        with one_thread_each():
            controls = Controls(checkpoint, reference)
            results, runs = controls.run(faults, range(seed, seed + clean), progress)
        return ControlReport(
            str(source),
            checkpoint.plan.variant,
            checkpoint.own_averages,
            results,
            runs,
            time.monotonic() - started,
            tuple(map(str, opened.files)),
            seed,
        )


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Have PyTorch compute on the calling thread alone, as long as it is open."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Controls:
    """Clean ports, one for each worker, and what judges them.

    Args:
        checkpoint: Where the ports come from.
        reference: TensorFlow's side.
    """

    def __init__(self, checkpoint: ControlSource, reference: ControlReference) -> None:
        self._checkpoint = checkpoint
        self._reference = reference
        self._ports: queue.SimpleQueue[tuple[Pipeline, Snapshot]] = queue.SimpleQueue()
        clean = checkpoint.port()
        for _ in range(WORKERS):
            port = checkpoint.port()
            self._ports.put((port, Snapshot(port, clean)))
        self._inference = InferenceJudge(clean, reference.inference)
        self._odd = InferenceJudge(clean, [reference.odd])

    def run(
        self, faults: Sequence[Fault], seeds: Sequence[int], progress: Progress
    ) -> tuple[tuple[SiteResult, ...], tuple[CleanRun, ...]]:
        """Judge every site of some faults, and clean ports.

        Args:
            faults: What to plant.
            seeds: Of the clean runs. The first is the reference's, and its port is judged in every setting.
            progress: Told how many are done.
        """
        with ThreadPoolExecutor(WORKERS) as workers:
            planted = [workers.submit(self.plant, fault, site) for fault in faults for site in fault.sites]
            clean = [
                workers.submit(self.clean if number else self.clean_everywhere, seed)
                for number, seed in enumerate(seeds)
            ]
            try:
                waiting: list[Future[Any]] = [*planted, *clean]
                for done, finished in enumerate(as_completed(waiting), start=1):
                    finished.result()
                    progress(done, len(planted) + len(clean))
            except BaseException:
                workers.shutdown(wait=False, cancel_futures=True)
                raise
        return tuple(one.result() for one in planted), tuple(one.result() for one in clean)

    @contextmanager
    def _port(self, what: str) -> Iterator[Pipeline]:
        """A clean port, which has to come back as it was."""
        port, snapshot = self._ports.get()
        try:
            yield port
            left = snapshot.differences(port)
            if left:
                raise DifferenceError(
                    f"{what}: taken out again, this fault leaves traces, at {left[0]} first."
                )
        finally:
            self._ports.put((port, snapshot))

    def clean(self, seed: int) -> CleanRun:
        """Judge a clean port on the inputs of one seed, as a whole."""
        inputs = self._checkpoint.inputs(seed)
        with self._port(f"clean run {seed}") as port:
            return CleanRun(seed, tuple(judge_whole(port, inputs)))

    def clean_everywhere(self, seed: int) -> CleanRun:
        """Judge a clean port in every setting that faults are judged in, the diagnosis included."""
        alarms = []
        with self._port(f"clean run {seed}") as port:
            reference = self._reference
            alarms += judge_whole(port, (*reference.inference, reference.odd))
            alarms += [f"tiny embeddings: {name}" for name in judge_tiny(port, reference.tiny).judgements]
            if reference.training is not None:
                trained = judge_training(port, reference.training).verdict
                alarms += [f"training: {name}" for name in trained.judgements]
            batch = reference.inference[0].activations
            found = diagnose(
                port.float64, batch.float64, batch.batch.images, source=self._checkpoint.arrays
            ).findings
            alarms += [f"diagnosis: {finding.activation}: {finding.statement}" for finding in found]
        return CleanRun(seed, tuple(alarms))

    def plant(self, fault: Fault, site: Site) -> SiteResult:
        """Plant a fault at a site, see what the checks say of it, and take it out again.

        Raises:
            DifferenceError: The port is not what it was before.
        """
        known: dict[str, Any] = {
            "fault": fault.name,
            "kind": fault.kind,
            "site": site.label,
            "setting": site.setting,
            "true_place": site.activation,
            "cause": fault.cause,
        }
        if site.activation == LOGITS and LOGITS not in self._checkpoint.activations:
            return SiteResult(status="does not apply", **known)
        with self._port(f"{fault.name} at {site.label}") as port, site.apply(port):
            elsewhere = site.setting != "inference"
            found = self._inference.judge(port, most=_EQUIVALENCE_INPUTS if elsewhere else None)
            if elsewhere and found.killed:
                status: Status = "not equivalent"
                named = None
            else:
                if elsewhere:
                    found, named = self._judge_in(site, port)
                else:
                    named = self._diagnose(port, found, site.activation)
                status = "killed" if found.killed else "survived"
        return SiteResult(
            status=status,
            judgements=found.judgements,
            place=found.place,
            named=named,
            inputs=found.inputs,
            **known,
        )

    def _judge_in(self, site: Site, port: Pipeline) -> tuple[Verdict, Cause | None]:
        """Judge a port in a setting other than inference, and name the cause."""
        if site.setting == "training":
            assert self._reference.training is not None  # `run_controls` sees to it
            trained = judge_training(port, self._reference.training)
            return trained.verdict, trained.cause
        odd = site.setting == "odd size"
        found = self._odd.judge(port) if odd else judge_tiny(port, self._reference.tiny)
        return found, self._diagnose(port, found, site.activation)

    def _diagnose(self, port: Pipeline, found: Verdict, activation: str) -> Cause | None:
        """What the first thing that is wrong is called; nothing where it is not at the fault's own activation."""
        if not found.killed:
            return None
        batch = found.batch or self._reference.inference[0]
        # One image tells most causes; those that lie between the images of a batch need two.
        named = self._name(port, batch, 1, activation)
        return named or (
            self._name(port, batch, 2, activation) if len(batch.activations.batch.images) > 1 else None
        )

    def _name(self, port: Pipeline, batch: ControlInput, images: int, activation: str) -> Cause | None:
        """The cause of the first thing that is wrong on the first images of an input."""
        activations = {activation: array[:images] for activation, array in batch.activations.float64.items()}
        diagnosis = diagnose(
            port.float64,
            activations,
            batch.activations.batch.images[:images],
            given=None if batch.pixels is None else batch.given(port)[:images],
            pixels=None if batch.pixels is None else batch.pixels[:images],
            source=self._checkpoint.arrays,
            averages=self._checkpoint.averages,
            most_layers=1,
        )
        first = diagnosis.findings[0] if diagnosis.findings else None
        return first.cause if first is not None and first.activation == activation else None
