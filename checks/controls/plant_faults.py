"""Plants faults in clean ports, runs the checks, and takes the faults out again."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from checks.controls.faults.fault import Fault, Site
from checks.controls.judge_graph import PortJudge, clean_inputs
from checks.controls.judge_inference import InferenceJudge, Verdict, judge_tiny, judge_whole
from checks.controls.judge_training import judge_training
from checks.controls.margins import FLOAT32_FAULTS, Shares, largest, shares_of
from checks.controls.port_pipeline import Pipeline
from checks.controls.result import CleanRun, SiteResult, Status
from checks.controls.tensorflow_reference import ControlInput, ControlReference, ControlSource
from checks.core.inputs import InputBatch
from checks.core.network import LOGITS
from checks.diagnosis.causes import Cause
from checks.diagnosis.diagnose import diagnose

Progress = Callable[[int, int | None], None]

WORKERS = 2
_EQUIVALENCE_INPUTS = 2  # noise and pixels must not show a fault of another setting


class FaultPlanter:
    """Plants faults in clean ports, one port for each worker, and runs the checks.

    Args:
        checkpoint: The source of the ports.
        reference: TensorFlow's side.
    """

    def __init__(self, checkpoint: ControlSource, reference: ControlReference) -> None:
        self._checkpoint = checkpoint
        self._reference = reference
        self._ports: queue.SimpleQueue[Pipeline] = queue.SimpleQueue()
        clean = checkpoint.port()
        for _ in range(WORKERS):
            self._ports.put(checkpoint.port())
        self._inference = InferenceJudge(clean, reference.inference)
        self._odd = InferenceJudge(clean, [reference.odd])
        self._audit = PortJudge(clean)
        self._noise = clean_inputs(0)[0]

    def run(
        self, faults: Sequence[Fault], seeds: Sequence[int], progress: Progress
    ) -> tuple[tuple[SiteResult, ...], tuple[CleanRun, ...]]:
        """Judge every site of some faults, and clean ports.

        Args:
            faults: The classes to plant.
            seeds: Seeds of the clean runs. The first is the reference's, and is judged in every setting.
            progress: Takes the number that is done, and the total.
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
        return tuple(site.result() for site in planted), tuple(run.result() for run in clean)

    @contextmanager
    def _port(self) -> Iterator[Pipeline]:
        """Lend a clean port. Every fault is taken out again without a trace, as a test shows."""
        port = self._ports.get()
        try:
            yield port
        finally:
            self._ports.put(port)

    def clean(self, seed: int) -> CleanRun:
        """Judge a clean port in inference, on the inputs of one seed."""
        inputs = self._checkpoint.inputs(seed)
        with self._port() as port:
            alarms, shares = judge_whole(port, inputs)
            return self._with_audit(seed, port, alarms, shares)

    def _with_audit(self, seed: int, port: Pipeline, alarms: Sequence[str], shares: Shares) -> CleanRun:
        """Judge a clean port as an audit does, and add that to the other judgements on it."""
        audited = self._audit.judge(port, clean_inputs(seed))
        alarms = [*alarms, *(f"audit: {each.name}: {each.statement}" for each in audited if not each.passed)]
        return CleanRun(seed, tuple(alarms), largest(shares, shares_of(audited)))

    def clean_everywhere(self, seed: int) -> CleanRun:
        """Judge a clean port in every setting, and diagnose it."""
        with self._port() as port:
            reference = self._reference
            alarms, shares = judge_whole(port, (*reference.inference, reference.odd))
            tiny = judge_tiny(port, reference.tiny)
            alarms += [f"tiny embeddings: {name}" for name in tiny.judgements]
            shares = largest(shares, tiny.shares)
            if reference.training is not None:
                trained = judge_training(port, reference.training)
                alarms += [f"training: {name}" for name in trained.judgements]
                shares = largest(shares, trained.shares)
            noise = reference.inference[0].activations
            source = self._checkpoint.arrays
            findings = diagnose(port.float64, noise.float64, noise.batch.images, source=source).findings
            alarms += [f"diagnosis: {finding.activation}: {finding.statement}" for finding in findings]
            return self._with_audit(seed, port, alarms, shares)

    def plant(self, fault: Fault, site: Site) -> SiteResult:
        """Plant a fault at a site, run the checks, and take it out again."""
        described: dict[str, Any] = {
            "fault": fault.name,
            "kind": fault.kind,
            "site": site.label,
            "setting": site.setting,
            "true_place": site.activation,
            "cause": fault.cause,
        }
        if site.activation == LOGITS and LOGITS not in self._checkpoint.activations:
            return SiteResult(status="does not apply", **described)
        with self._port() as port, site.apply(port):
            elsewhere = site.setting != "inference"
            verdict = self._inference.judge(port, most=_EQUIVALENCE_INPUTS if elsewhere else None)
            named = None
            if elsewhere and verdict.killed:
                status: Status = "not equivalent"
            else:
                if elsewhere:
                    verdict, named = self._judge_in(site, port)
                else:
                    named = self._diagnose(port, verdict, site.activation)
                status = "killed" if verdict.killed else "survived"
            shares = largest(verdict.shares, self._audit_shares(fault, site, port))
        return SiteResult(
            status=status,
            judgements=verdict.judgements,
            place=verdict.place,
            named=named,
            inputs=verdict.inputs,
            shares=shares,
            **described,
        )

    def _audit_shares(self, fault: Fault, site: Site, port: Pipeline) -> Shares:
        """Judge a faulty port as an audit does, at the first site of a class; a layer's arithmetic at all.

        An audit reads the weights apart, so their faults are judged exactly. A network that does not run, and
        preprocessing that is recognised as another, fail whatever the bound.
        """
        arithmetic = fault.kind == "hyperparameters" and site.setting == "inference"
        if not (arithmetic or fault.kind == "preprocessing") or site.activation == LOGITS:
            return {}  # as a graph, the port gives embeddings only
        if site is not fault.sites[0] and fault.name not in FLOAT32_FAULTS:
            return {}
        noise = self._noise
        if fault.name not in FLOAT32_FAULTS:  # the distance is of five images, the rest of any
            noise = InputBatch(noise.name, noise.images[:1])
        try:
            if arithmetic:
                _, *judgements = self._audit.judge(port, [noise])
                return shares_of(judgements)
            preprocessing = self._audit.judge_preprocessing(port, [noise])
        except (RuntimeError, ValueError):  # PyTorch's, if shapes do not fit
            return {}
        return shares_of([preprocessing]) if preprocessing.share and preprocessing.share > 1 else {}

    def _judge_in(self, site: Site, port: Pipeline) -> tuple[Verdict, Cause | None]:
        """Judge a port in a setting other than inference, and name the cause."""
        if site.setting == "training":
            assert self._reference.training is not None  # `run_controls` makes it for these sites
            trained = judge_training(port, self._reference.training)
            return trained, trained.cause
        odd = site.setting == "odd size"
        verdict = self._odd.judge(port) if odd else judge_tiny(port, self._reference.tiny)
        return verdict, self._diagnose(port, verdict, site.activation)

    def _diagnose(self, port: Pipeline, verdict: Verdict, activation: str) -> Cause | None:
        """The cause that the diagnosis names first; None if it is not at the fault's own activation."""
        if not verdict.killed:
            return None
        control = verdict.control or self._reference.inference[0]
        named = self._name(port, control, 1, activation)
        # A fault may mix the images of a batch.
        if named is None and len(control.activations.batch.images) > 1:
            named = self._name(port, control, 2, activation)
        return named

    def _name(self, port: Pipeline, control: ControlInput, images: int, activation: str) -> Cause | None:
        """The first cause that the diagnosis names on the first images of an input."""
        activations = {name: array[:images] for name, array in control.activations.float64.items()}
        diagnosis = diagnose(
            port.float64,
            activations,
            control.activations.batch.images[:images],
            given=None if control.pixels is None else control.given(port)[:images],
            pixels=None if control.pixels is None else control.pixels[:images],
            source=self._checkpoint.arrays,
            averages=self._checkpoint.averages,
            most_layers=1,
        )
        first = diagnosis.findings[0] if diagnosis.findings else None
        return first.cause if first is not None and first.activation == activation else None
