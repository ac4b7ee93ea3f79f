"""Judges a port in inference, by the measurements and judgements of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from checks.compare.judge import judge_headline, judge_mapping, judge_rounding, judge_tensors
from checks.compare.measure import measure, measure_activation
from checks.compare.result import ActivationMeasurement, InputMeasurement
from checks.controls.port_pipeline import Pipeline
from checks.controls.port_snapshot import same_bits
from checks.controls.tensorflow_reference import ControlInput, TinyEmbeddings, tiny_activations
from checks.core.activations import run_pytorch
from checks.core.inputs import NOISE
from checks.core.judgement import Judgement
from checks.core.network import EMBEDDINGS
from checks.core.tensorflow_side import Activations
from converter.layer_map import ConvertedRow, Row
from converter.plan import Plan

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgements on a port, and where it first differs.

    Attributes:
        judgements: The names of the judgements that fail; "run" fails if the network raises. Rounding and
            headline are judged only if the mapping holds.
        place: An activation; in training also `LOSS` or `OPTIMISER`.
        inputs: Number of inputs that were run until one showed the difference.
        control: The input that showed it; None if none did, or a diagnosis cannot use it.
    """

    judgements: tuple[str, ...] = ()
    place: str | None = None
    inputs: int = 0
    control: ControlInput | None = None

    @property
    def killed(self) -> bool:
        """True if a judgement fails."""
        return bool(self.judgements)


@dataclass(frozen=True, slots=True)
class _CleanOutputs:
    """A clean port's outputs on an input, and their measurements."""

    expected: Activations
    float32: Outputs
    float64: Outputs
    measured: Mapping[str, ActivationMeasurement]

    def measure(
        self, name: str, float64: NDArray[Any], float32: NDArray[Any] | None = None
    ) -> ActivationMeasurement:
        """Measure an activation of another port; if it has the clean port's bits, reuse its measurement.

        Args:
            name: The activation.
            float64: Its array in float64.
            float32: Its array in float32; None takes the clean port's.
        """
        clean = self.float32[name]
        same32 = float32 is None or np.array_equal(float32, clean)
        if same32 and np.array_equal(float64, self.float64[name]):
            return self.measured[name]
        single = clean if float32 is None else float32
        return measure_activation(name, self.expected, single, float64, judged_only=True)


class InferenceJudge:
    """Judges ports in inference. Several threads may call it at once.

    Args:
        port: A clean port, which must stay clean.
        inputs: The inputs, in the order in which they are run.
    """

    def __init__(self, port: Pipeline, inputs: Sequence[ControlInput]) -> None:
        self._port = port
        self._inputs = tuple(inputs)
        self._clean = tuple(_run_clean(port, control) for control in inputs)

    def judge(self, port: Pipeline, most: int | None = None) -> Verdict:
        """Run the inputs, or the first `most` of them, until one shows that the port differs."""
        tensors = () if tensors_hold(port, self._port) else ("tensors",)
        inputs = list(zip(self._inputs, self._clean, strict=True))[:most]
        for count, (control, clean) in enumerate(inputs, start=1):
            failed, place = _judge_input(port, control, clean)
            if failed:
                return Verdict((*tensors, *failed), place, count, control)
        return Verdict(tensors, None, len(inputs))


def _run_clean(port: Pipeline, control: ControlInput) -> _CleanOutputs:
    names = tuple(control.activations.float64)
    float32, float64 = (run_pytorch(model, control.given(port), names) for model in port.models)
    measured = measure(control.activations, float32, float64, judged_only=True).activations
    return _CleanOutputs(control.activations, float32, float64, {each.activation: each for each in measured})


def tensors_hold(port: Pipeline, clean: Pipeline | None = None) -> bool:
    """Return True if a port's tensors are what its own layer map makes of the source, bit for bit.

    Args:
        port: The port.
        clean: A port whose tensors hold. With it, only tensors that differ, or have another row, are judged.
    """
    rows = port.plan.rows if clean is None else tuple(_changed_rows(port, clean))
    state = port.float32.state_dict()
    arrays = {row.key: state[row.key].numpy() for row in rows}
    return judge_tensors(arrays, port.source, replace(port.plan, rows=rows), {}).passed


def _changed_rows(port: Pipeline, clean: Pipeline) -> Iterator[Row]:
    """The rows of a port's layer map whose origin or tensor is not the clean port's."""
    state, known = port.float32.state_dict(), clean.float32.state_dict()
    for row, other in zip(port.plan.rows, clean.plan.rows, strict=True):
        same_origin = row == other and _origin(port.plan, row) == _origin(clean.plan, other)
        if not same_origin or not same_bits(state[row.key], known[row.key]):
            yield row


def _origin(plan: Plan, row: Row) -> str | None:
    """The source's tensor that a row reads."""
    return plan.sources[row.variable] if isinstance(row, ConvertedRow) else None


def _judge_input(
    port: Pipeline, control: ControlInput, clean: _CleanOutputs
) -> tuple[tuple[str, ...], str | None]:
    """Find the judgements that fail on one input, and the activation at which the port first differs."""
    expected, images = control.activations, control.given(port)
    names = tuple(expected.float64)
    measured: dict[str, ActivationMeasurement] = {}

    def diverges(name: str, float64: NDArray[Any]) -> bool:
        measured[name] = clean.measure(name, float64)
        return measured[name].diverges

    # The mapping judges float64 alone, and fails at the first activation that diverges.
    try:
        float64 = run_pytorch(port.float64, images, names, stop=diverges)
    except (RuntimeError, ValueError):  # PyTorch's, if shapes do not fit
        return ("run",), next((name for name in names if name not in measured), None)
    measurements = [measured.get(name) or clean.measure(name, array) for name, array in float64.items()]
    result = measure(expected, clean.float32, float64, measured=measurements)
    if not judge_mapping([result]).passed:
        return ("mapping",), result.first_divergence
    float32 = run_pytorch(port.float32, images, names)
    measurements = [clean.measure(name, float64[name], float32[name]) for name in names]
    result = measure(expected, float32, float64, measured=measurements)
    failed = tuple(judgement.name for judgement in _judge(result) if not judgement.passed)
    return failed, _place(result) if failed else None


def _judge(measured: InputMeasurement) -> list[Judgement]:
    """The judgements of a comparison on one input; the headline is judged on noise alone."""
    judgements = [judge_mapping([measured]), judge_rounding([measured])]
    return [*judgements, judge_headline([measured])] if measured.name == NOISE else judgements


def _place(measured: InputMeasurement) -> str | None:
    """The activation at which a port first differs: in float64, else in its rounding."""
    rounding = (
        each.activation for each in measured.activations if not each.excess <= measured.rounding_factor
    )
    return measured.first_divergence or next(rounding, None)


def judge_whole(port: Pipeline, inputs: Iterable[ControlInput]) -> list[str]:
    """Judge every activation of every input.

    Returns:
        A line for each judgement that fails; none for a clean port.
    """
    alarms = [] if tensors_hold(port) else ["tensors"]
    for control in inputs:
        names = tuple(control.activations.float64)
        float32, float64 = (run_pytorch(model, control.given(port), names) for model in port.models)
        judgements = _judge(measure(control.activations, float32, float64, judged_only=True))
        alarms += [
            f"{judgement.name}: {control.activations.batch.name}: {judgement.statement}"
            for judgement in judgements
            if not judgement.passed
        ]
    return alarms


def judge_tiny(port: Pipeline, tiny: TinyEmbeddings) -> Verdict:
    """Judge the normalisation of embeddings near its floor."""
    prelogits = torch.from_numpy(tiny.prelogits)
    with torch.inference_mode():
        float32 = {EMBEDDINGS: port.float32.head(prelogits.float()).numpy()}
        float64 = {EMBEDDINGS: port.float64.head(prelogits).numpy()}
    measured = measure(tiny_activations(tiny), float32, float64, judged_only=True)
    failed = [judgement.name for judgement in _judge(measured) if not judgement.passed]
    if "mapping" in failed:  # the later judgements say nothing new then
        failed = ["mapping"]
    return Verdict(tuple(failed), _place(measured) if failed else None, 1)
