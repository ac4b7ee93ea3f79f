"""The verdict on a port with a fault in it: the judgements of a comparison, an input at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checks.compare.judge import judge_headline, judge_mapping, judge_rounding, judge_tensors
from checks.compare.measure import measure
from checks.compare.result import ActivationMeasurement, InputMeasurement
from checks.controls.pipeline import Pipeline
from checks.controls.tensorflow_reference import ControlInput, TinyEmbeddings, tiny_activations
from checks.core import thresholds
from checks.core.activations import EMBEDDINGS, LAYERS, STAGES, run_pytorch
from checks.core.inputs import NOISE
from checks.core.metrics import Difference, relative_l2
from checks.core.tensorflow_side import Activations

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judgements say of a port.

    Attributes:
        judgements: Those that fail, by name; "run" is a network that raises. Rounding
            and headline are asked where the mapping holds.
        place: Where the port first differs: an activation; in training `LOSS` or `OPTIMISER` as well.
        inputs: How many inputs were run until one told.
        input: The one that did; None where none did, or it is none that a diagnosis can use.
    """

    judgements: tuple[str, ...] = ()
    place: str | None = None
    inputs: int = 0
    batch: ControlInput | None = None

    @property
    def killed(self) -> bool:
        """Whether any judgement fails."""
        return bool(self.judgements)


@dataclass(frozen=True, slots=True)
class _Clean:
    """What a clean port gives on an input: an activation that still has these bits need not be measured again."""

    float32: Outputs
    float64: Outputs
    measured: dict[str, ActivationMeasurement]


class InferenceJudge:
    """Judges ports in inference. Several threads may ask it at once.

    Args:
        port: A clean port, in which no fault is planted as long as this judge is in use.
        inputs: The inputs, in the order in which they are tried.
    """

    def __init__(self, port: Pipeline, inputs: Sequence[ControlInput]) -> None:
        self._port = port
        self._inputs = tuple(inputs)
        self._clean: list[_Clean] = []
        for batch in inputs:
            activations = tuple(batch.activations.float64)
            images = batch.given(port)
            single, double = (run_pytorch(model, images, activations) for model in port.models)
            measured = measure_for_judging(batch.activations, single, double)
            self._clean.append(_Clean(single, double, {t.activation: t for t in measured.activations}))

    def judge(self, port: Pipeline, most: int | None = None) -> Verdict:
        """Run the inputs, or the first so many, one after another until one tells that the port differs."""
        tensors = () if self._has_clean_tensors(port) or tensors_hold(port) else ("tensors",)
        tried = list(zip(self._inputs, self._clean, strict=True))[:most]
        for number, (batch, clean) in enumerate(tried, start=1):
            failed, place = _try(port, batch, clean)
            if failed:
                return Verdict((*tensors, *failed), place, number, batch)
        return Verdict(tensors, None, len(tried))

    def _has_clean_tensors(self, port: Pipeline) -> bool:
        """Whether plan and tensors are those of the clean port, of which `tensors_hold` is known."""
        clean = self._port.float32.state_dict()
        return port.plan is self._port.plan and all(
            _same_bits(tensor, clean[key]) for key, tensor in port.float32.state_dict().items()
        )


def tensors_hold(port: Pipeline) -> bool:
    """Whether the port's tensors are what its own layer map makes of the source, bit for bit."""
    arrays = {key: tensor.numpy() for key, tensor in port.float32.state_dict().items()}
    return judge_tensors(arrays, port.source, port.plan, {}).passed


def _try(port: Pipeline, batch: ControlInput, clean: _Clean) -> tuple[tuple[str, ...], str | None]:
    """The judgements that fail on one input, and where the port first differs."""
    expected = batch.activations
    activations = tuple(expected.float64)
    images = batch.given(port)
    with _finished_activations(port, activations) as finished:
        try:
            double = run_pytorch(port.float64, images, activations)
        except (RuntimeError, ValueError):  # what PyTorch raises where shapes do not fit
            return ("run",), next(
                (activation for activation in activations if activation not in finished), None
            )
    misshapen = next(
        (
            activation
            for activation in activations
            if double[activation].shape != expected.float64[activation].shape
        ),
        None,
    )
    comparable = activations if misshapen is None else activations[: activations.index(misshapen)]
    changed = [
        activation
        for activation in comparable
        if not np.array_equal(double[activation], clean.float64[activation])
    ]
    far = (t for t in changed if not relative_l2(double[t], expected.float64[t]) <= thresholds.MAPPING)
    diverged = next(far, None)
    if diverged is not None and EMBEDDINGS in comparable:
        # The mapping fails, and it looks at float64 only: float32 need not be run.
        return _judge(_measured(expected, clean.float32, double, clean, (diverged, EMBEDDINGS)))
    if diverged is not None or misshapen is not None:
        return ("mapping",), diverged or misshapen  # another shape counts as infinitely far
    single = run_pytorch(port.float32, images, activations)
    changed += [
        activation
        for activation in activations
        if not np.array_equal(single[activation], clean.float32[activation])
    ]
    return _judge(_measured(expected, single, double, clean, changed)) if changed else ((), None)


def _measured(
    expected: Activations, single: Outputs, double: Outputs, clean: _Clean, changed: Sequence[str]
) -> InputMeasurement:
    """The measurement of an input of which only some activations have other bits than a clean port's."""
    chosen = {
        activation: expected.float64[activation]
        for activation in expected.float64
        if activation in {*changed, EMBEDDINGS}
    }
    measured = measure_for_judging(replace(expected, float64=chosen), single, double)
    known = {**clean.measured, **{activation.activation: activation for activation in measured.activations}}
    return replace(measured, activations=tuple(known[activation] for activation in expected.float64))


def measure_for_judging(activations: Activations, single: Outputs, double: Outputs) -> InputMeasurement:
    """`judgements.measure` without the figures that no judgement looks at, which cost the most."""
    return measure(activations, single, double, differ=_only_l2)


def _only_l2(array: NDArray[Any], reference: NDArray[Any]) -> Difference:
    return Difference(math.nan, relative_l2(array, reference), math.nan, 0, math.nan)


def _judge(measured: InputMeasurement) -> tuple[tuple[str, ...], str | None]:
    """The judgements of a comparison, in its order; the later ones see nothing new where an earlier fails."""
    if not judge_mapping([measured]).passed:
        return ("mapping",), measured.first_divergence
    failed = []
    place = None
    if not judge_rounding([measured]).passed:
        failed.append("rounding")
        limit = thresholds.ROUNDING_FEW_VALUES if measured.few_values else thresholds.ROUNDING
        place = next(
            (activation.activation for activation in measured.activations if not activation.excess <= limit),
            None,
        )
    if measured.name == NOISE and not judge_headline([measured]).passed:
        failed.append("headline")
    return tuple(failed), place


def judge_whole(port: Pipeline, inputs: Iterable[ControlInput]) -> list[str]:
    """Every judgement on every activation of every input, as a comparison passes them.

    Returns:
        What fails, a line for each; nothing for a clean port.
    """
    alarms = [] if tensors_hold(port) else ["tensors"]
    for batch in inputs:
        activations = tuple(batch.activations.float64)
        single, double = (run_pytorch(model, batch.given(port), activations) for model in port.models)
        measured = measure_for_judging(batch.activations, single, double)
        judgements = [judge_mapping([measured]), judge_rounding([measured])]
        if measured.name == NOISE:
            judgements.append(judge_headline([measured]))
        alarms += [f"{j.name}: {measured.name}: {j.statement}" for j in judgements if not j.passed]
    return alarms


def judge_tiny(port: Pipeline, tiny: TinyEmbeddings) -> Verdict:
    """Judge the normalisation of embeddings near its floor."""
    outputs = []
    with torch.inference_mode():
        for model, dtype in zip(port.models, (np.float32, np.float64), strict=True):
            output = model.head(torch.from_numpy(tiny.prelogits.astype(dtype)))
            outputs.append({EMBEDDINGS: output.numpy()})
    failed, place = _judge(measure_for_judging(tiny_activations(tiny), *outputs))
    return Verdict(failed, place, 1)


@contextmanager
def _finished_activations(port: Pipeline, activations: Iterable[str]) -> Iterator[set[str]]:
    """The activations of the float64 network that have given an output, as long as it is open."""
    finished: set[str] = set()

    def note(activation: str) -> Any:
        return lambda module, inputs, output: finished.add(activation)

    modules = {**LAYERS, **STAGES}
    handles = [
        port.float64.get_submodule(modules[activation]).register_forward_hook(note(activation))
        for activation in activations
        if activation in modules
    ]
    try:
        yield finished
    finally:
        for handle in handles:
            handle.remove()


class Snapshot:
    """What a port is, bit for bit, to see whether a fault has been taken out without a trace.

    Args:
        port: The port.
        clean: A clean port that shares no memory with this one.
    """

    def __init__(self, port: Pipeline, clean: Pipeline) -> None:
        self._clean = tuple(model.state_dict() for model in clean.models)
        self._parts = _parts(port)

    def differences(self, port: Pipeline) -> list[str]:
        """What is not as it was, by name."""
        found = [
            key
            for model, clean in zip(port.models, self._clean, strict=True)
            for key, tensor in model.state_dict().items()
            if not _same_bits(tensor, clean[key])
        ]
        parts = _parts(port)
        return found + [key for key in {**self._parts, **parts} if self._parts.get(key) != parts.get(key)]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of one dtype, shape and content, NaN and the sign of zero included."""
    as_bits = torch.int32 if one.dtype == torch.float32 else torch.int64
    return one.dtype == other.dtype and torch.equal(one.view(as_bits), other.view(as_bits))


def _parts(port: Pipeline) -> dict[str, object]:
    """Everything about a port but its tensors, by name."""
    parts: dict[str, object] = {
        "plan": port.plan,
        "prepare": dict(port.prepare),
        "loss": port.loss,
        "optimiser": port.make_optimiser,
    }
    for number, model in enumerate(port.models):
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                parts[f"{number} {path}.{name}"] = _identity(value)
        for key, parameter in model.named_parameters():
            parts[f"{number} {key}"] = (id(parameter), parameter.requires_grad, parameter.grad is None)
    return parts


def _identity(value: object) -> object:
    """A value to compare by: what a container holds, and whether an object is the same."""
    if isinstance(value, dict):
        return {key: id(item) for key, item in value.items()}
    return value if isinstance(value, bool | int | float | str | tuple | None) else id(value)
