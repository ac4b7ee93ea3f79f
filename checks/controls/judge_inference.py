"""Judges a port in inference, by the measurements and judgements of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from checks.compare.judge import judge_headline, judge_mapping, judge_rounding, judge_tensors
from checks.compare.measure import measure, measure_activation
from checks.compare.result import ActivationMeasurement, InputMeasurement
from checks.controls.margins import FAR, Shares, largest, shares_of
from checks.controls.port_pipeline import Pipeline
from checks.controls.tensorflow_reference import ControlInput
from checks.core import thresholds
from checks.core.activations import run_pytorch
from checks.core.inputs import NOISE
from checks.core.judgement import Judgement
from checks.core.network import BOTTLENECK, EMBEDDINGS
from checks.core.rounding import LayerRounding, first_image, measure_rounding
from checks.core.tensorflow_side import Activations
from checks.core.types import Array
from checks.diagnosis.causes import Cause
from converter.layer_map import ConvertedRow, Row
from converter.plan import Plan
from converter.same_bits import same_bits

Outputs = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgements on a port, and where it first differs.

    Attributes:
        judgements: The names of the judgements that fail; "run" fails if the network raises. Rounding and
            headline are judged only if the mapping holds.
        place: An activation; in training also `LOSS` or `OPTIMISER`.
        inputs: Number of inputs that were run until one showed the difference.
        control: The input that showed it; None if none did, or a diagnosis cannot use it.
        shares: Judgement to its share of the bound, as in `Judgement`.
        cause: The known cause of a difference in training; None if there is none, or in inference.
    """

    judgements: tuple[str, ...] = ()
    place: str | None = None
    inputs: int = 0
    control: ControlInput | None = None
    shares: Shares = field(default_factory=dict)
    cause: Cause | None = None

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
    rounding: tuple[LayerRounding, ...]

    def measure(self, name: str, float64: Array, float32: Array | None = None) -> ActivationMeasurement:
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

    def measure_rounding(self, port: Pipeline, images: Array, float32: Outputs) -> tuple[LayerRounding, ...]:
        """Measure the rounding of another port; if it has the clean port's bits, reuse its measurement."""
        if all(np.array_equal(float32[name], array) for name, array in self.float32.items()):
            return self.rounding
        return measure_rounding(port.float64, *first_image(images, float32))


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
        verdict = Verdict(tensors, None, len(inputs))
        for count, (control, clean) in enumerate(inputs, start=1):
            failed, place, shares = _judge_input(port, control, clean)
            if failed and verdict.control is None:
                verdict = Verdict((*tensors, *failed), place, count, control, shares)
            else:
                verdict = replace(verdict, shares=largest(verdict.shares, shares))
            # Other inputs may show a fault more clearly, which matters for a fault near its bound.
            if verdict.control is not None and max(verdict.shares.values(), default=FAR) >= FAR:
                break
        return verdict


def _run_clean(port: Pipeline, control: ControlInput) -> _CleanOutputs:
    names = tuple(control.activations.float64)
    float32, float64 = (run_pytorch(model, control.given(port), names) for model in port.models)
    measured = measure(control.activations, float32, float64, judged_only=True).activations
    return _CleanOutputs(
        control.activations,
        float32,
        float64,
        {each.activation: each for each in measured},
        measure_rounding(port.float64, *first_image(control.given(port), float32)),
    )


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
        if not same_origin or not same_bits(state[row.key].numpy(), known[row.key].numpy()):
            yield row


def _origin(plan: Plan, row: Row) -> str | None:
    """The source's tensor that a row reads."""
    return plan.sources[row.variable] if isinstance(row, ConvertedRow) else None


def _judge_input(
    port: Pipeline, control: ControlInput, clean: _CleanOutputs
) -> tuple[tuple[str, ...], str | None, Shares]:
    """Find the judgements that fail on one input, where the port first differs, and all shares."""
    expected, images = control.activations, control.given(port)
    names = tuple(expected.float64)
    measured: dict[str, ActivationMeasurement] = {}

    def diverges(name: str, float64: Array) -> bool:
        measured[name] = clean.measure(name, float64)
        return not measured[name].float64.relative_l2 <= FAR * thresholds.MAPPING

    # The mapping judges float64 alone, and fails at the first activation that diverges.
    try:
        float64 = run_pytorch(port.float64, images, names, stop=diverges)
    except (RuntimeError, ValueError):  # PyTorch's, if shapes do not fit
        return ("run",), next((name for name in names if name not in measured), None), {}
    measurements = [measured.get(name) or clean.measure(name, array) for name, array in float64.items()]
    result = measure(expected, clean.float32, float64, measured=measurements)
    mapping = judge_mapping([result])
    if not mapping.passed:
        if len(measurements) == len(names):
            return ("mapping",), result.first_divergence, shares_of([mapping])
        return ("mapping",), result.first_divergence, {"mapping": FAR}  # at least
    float32 = run_pytorch(port.float32, images, names)
    measurements = [clean.measure(name, float64[name], float32[name]) for name in names]
    rounding = clean.measure_rounding(port, images, float32)
    result = measure(expected, float32, float64, measured=measurements, rounding=rounding)
    judgements = _judge(result)
    failed = tuple(judgement.name for judgement in judgements if not judgement.passed)
    return failed, _place(result) if failed else None, shares_of(judgements)


def _judge(measured: InputMeasurement) -> list[Judgement]:
    """The judgements of a comparison on one input; the headline is judged on noise alone."""
    judgements = [judge_mapping([measured]), judge_rounding([measured])]
    return [*judgements, judge_headline([measured])] if measured.name == NOISE else judgements


def _place(measured: InputMeasurement) -> str | None:
    """The activation at which a port first differs: in float64, else in its rounding."""
    rounding = (layer.activation for layer in measured.rounding if layer.exceeds)
    return measured.first_divergence or next(rounding, None)


def judge_whole(port: Pipeline, inputs: Iterable[ControlInput]) -> tuple[list[str], Shares]:
    """Judge every activation of every input.

    Returns:
        A line for each judgement that fails, none for a clean port; and the largest shares.
    """
    alarms = [] if tensors_hold(port) else ["tensors"]
    shares: Shares = {}
    for control in inputs:
        names = tuple(control.activations.float64)
        float32, float64 = (run_pytorch(model, control.given(port), names) for model in port.models)
        rounding = measure_rounding(port.float64, *first_image(control.given(port), float32))
        measured = measure(control.activations, float32, float64, judged_only=True, rounding=rounding)
        judgements = _judge(measured)
        shares = largest(shares, shares_of(judgements))
        alarms += [
            f"{judgement.name}: {control.activations.batch.name}: {judgement.statement}"
            for judgement in judgements
            if not judgement.passed
        ]
    return alarms, shares


def judge_tiny(port: Pipeline, tiny: Activations) -> Verdict:
    """Judge the normalisation of embeddings near its floor; `tiny` is that of `ControlReference`."""
    prelogits = torch.from_numpy(tiny.batch.images)
    with torch.inference_mode():
        float32 = {EMBEDDINGS: port.float32.head(prelogits).numpy()}
        float64 = {EMBEDDINGS: port.float64.head(prelogits.double()).numpy()}
    rounding = measure_rounding(port.float64, None, {BOTTLENECK: tiny.batch.images, **float32})
    measured = measure(tiny, float32, float64, judged_only=True, rounding=rounding)
    judgements = _judge(measured)
    failed = [judgement.name for judgement in judgements if not judgement.passed]
    if "mapping" in failed:  # the later judgements say nothing new then
        failed = ["mapping"]
    place = _place(measured) if failed else None
    return Verdict(tuple(failed), place, 1, shares=shares_of(judgements))
