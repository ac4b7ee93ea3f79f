"""The judgements of a comparison of gradients and training steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from checks.core import thresholds
from checks.core.judgement import Judgement
from checks.gradients.result import GradientMeasurement, StepsMeasurement, TensorDistance


def judge_gradients(measurement: GradientMeasurement) -> Judgement:
    """Judge that every gradient exists and is within `thresholds.GRADIENT`."""
    limit = thresholds.GRADIENT
    details = _differences(measurement.gradients, limit)
    worst = worst_tensor(measurement.gradients)
    count = len(measurement.gradients)
    statement = f"{count} gradients, worst {worst.distance:.1e} ({worst.key}); limit {limit:.0e}"
    small = sum(tensor.scale > tensor.norm for tensor in measurement.gradients)
    if small:
        share = f"{thresholds.GRADIENT_FLOOR:.0e} of the norm of all"
        statement += f"; {small} near zero, judged by {share}"
    return _judgement(measurement.mode, statement, details, measurement.loss, worst.distance, limit)


def judge_steps(measurement: StepsMeasurement) -> Judgement:
    """Judge that every tensor of the state, its change and every loss are within `TRAINING_STEPS`."""
    limit = thresholds.TRAINING_STEPS
    details = _differences(measurement.state, limit)
    shown = {tensor.key for tensor in measurement.state if not tensor.distance <= limit}
    change = [tensor for tensor in measurement.change if tensor.key not in shown]
    details += [f"{line} (its change)" for line in _differences(change, limit)]
    worst, worst_change = (worst_tensor(t).distance for t in (measurement.state, measurement.change))
    statement = (
        f"{len(measurement.state)} tensors after {measurement.steps} steps, worst {worst:.1e}, their changes "
        f"{worst_change:.1e}; limit {limit:.0e}"
    )
    farthest = max(worst, worst_change)
    return _judgement(measurement.training, statement, details, measurement.loss, farthest, limit)


def _judgement(
    name: str, statement: str, details: list[str], loss: float, farthest: float, limit: float
) -> Judgement:
    """Judge the distance of the losses as well, beside the tensors that the details name."""
    if not loss <= limit:
        apart = f"the losses are {loss:.1e} apart"
        statement, details = f"{statement}; {apart}", [apart, *details]
    return Judgement(name, not details, statement, tuple(details), max(farthest, loss) / limit)


def worst_tensor(tensors: Sequence[TensorDistance]) -> TensorDistance:
    """The tensor that is furthest from TensorFlow's."""
    return max(tensors, key=lambda tensor: tensor.distance)


def describe_distance(distance: float) -> str:
    """Describe a tensor's distance, as "1.0e-03 from TensorFlow's"."""
    if math.isfinite(distance):
        return f"{distance:.1e} from TensorFlow's"
    return "missing, misshapen or not finite on one side"


def _differences(tensors: Iterable[TensorDistance], limit: float) -> list[str]:
    """A line for each tensor beyond the limit."""
    return [
        f"{tensor.key}: {describe_distance(tensor.distance)}"
        for tensor in tensors
        if not tensor.distance <= limit
    ]
