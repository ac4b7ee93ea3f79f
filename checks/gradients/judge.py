"""What a check of training measures, and its judgements of gradients and of training steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from checks.core import thresholds
from checks.core.judgement import Judgement
from checks.core.metrics import l2_norm

Mode = Literal["inference", "training"]
OptimiserName = Literal["sgd", "adam"]

INPUT = "input"
"""What the gradient for the images is called beside those of the parameters."""


@dataclass(frozen=True, slots=True)
class TensorDistance:
    """How far one tensor is from TensorFlow's.

    Attributes:
        key: state_dict key, or `INPUT`.
        distance: L2 norm of the difference over `scale`; infinite where one side has no such tensor, or has
            it in another shape.
        norm: L2 norm of TensorFlow's.
        scale: The same, or the least that counts, where that is more.
    """

    key: str
    distance: float
    norm: float
    scale: float


@dataclass(frozen=True, slots=True)
class GradientMeasurement:
    """The gradients in one mode.

    Attributes:
        mode: The mode.
        loss: Distance of the losses, relative where they are more than one.
        gradients: The input, then every parameter; `scale` as `thresholds.GRADIENT_FLOOR` says.
    """

    mode: Mode
    loss: float
    gradients: tuple[TensorDistance, ...]


@dataclass(frozen=True, slots=True)
class StepsMeasurement:
    """The state after the steps of one optimiser.

    Attributes:
        optimiser: Its name.
        steps: How many steps there were.
        losses: TensorFlow's first and last loss.
        state: Every float tensor of the state_dict after the last step.
        change: What the steps changed in each; `scale` as `thresholds.CHANGE_FLOOR` says.
    """

    optimiser: OptimiserName
    steps: int
    losses: tuple[float, float]
    state: tuple[TensorDistance, ...]
    change: tuple[TensorDistance, ...]


def measure_distance(
    key: str, found: NDArray[Any] | None, expected: NDArray[Any] | None, floor: float = 0.0
) -> TensorDistance:
    """Measure one tensor; None is one that is not there, and `floor` the least scale that counts."""
    if expected is None:
        return TensorDistance(key, math.inf, 0.0, floor)
    norm = l2_norm(expected)
    scale = max(norm, floor)
    if found is None or found.shape != expected.shape:
        return TensorDistance(key, math.inf, norm, scale)
    gap = l2_norm(found - expected)
    if gap == 0.0:
        return TensorDistance(key, 0.0, norm, scale)
    return TensorDistance(key, gap / scale if scale and math.isfinite(gap) else math.inf, norm, scale)


def judge_gradients(measurement: GradientMeasurement) -> Judgement:
    """Every gradient within `thresholds.GRADIENT`; none may be missing."""
    limit = thresholds.GRADIENT
    details = _beyond(measurement.gradients, limit, "a gradient")
    if not measurement.loss <= limit:
        details.insert(0, f"the losses are {measurement.loss:.1e} apart")
    worst = max(measurement.gradients, key=lambda tensor: tensor.distance)
    statement = (
        f"gradients for the input and {len(measurement.gradients) - 1} parameters, worst "
        f"{worst.distance:.1e} ({worst.key}); at most {limit:.0e}"
    )
    floored = sum(tensor.scale > tensor.norm for tensor in measurement.gradients)
    if floored:
        share = f"{thresholds.GRADIENT_FLOOR:.0e} of the norm of all"
        statement += f"; {floored} all but vanish and are judged by {share}"
    return Judgement(measurement.mode, not details, statement, tuple(details))


def judge_steps(measurement: StepsMeasurement) -> Judgement:
    """Every tensor of the state, and what the steps changed in it, within `thresholds.TRAINING_STEPS`."""
    limit = thresholds.TRAINING_STEPS
    details = _beyond(measurement.state, limit, "a value")
    shown = {tensor.key for tensor in measurement.state if not tensor.distance <= limit}
    change = [tensor for tensor in measurement.change if tensor.key not in shown]
    details += [f"{line} (its change)" for line in _beyond(change, limit, "a value")]
    worst = max(measurement.state, key=lambda tensor: tensor.distance)
    worst_change = max(measurement.change, key=lambda tensor: tensor.distance)
    statement = (
        f"{measurement.steps} steps, loss {measurement.losses[0]:.4g} to {measurement.losses[1]:.4g}: "
        f"{len(measurement.state)} weights and statistics, worst {worst.distance:.1e} ({worst.key}), their "
        f"changes {worst_change.distance:.1e} ({worst_change.key}); at most {limit:.0e}"
    )
    return Judgement(measurement.optimiser, not details, statement, tuple(details))


def _beyond(tensors: Iterable[TensorDistance], limit: float, what: str) -> list[str]:
    return [
        f"{tensor.key}: {tensor.distance:.1e} from TensorFlow's"
        if math.isfinite(tensor.distance)
        else f"{tensor.key}: {what} is missing, misshapen or not finite on one side"
        for tensor in tensors
        if not tensor.distance <= limit
    ]
