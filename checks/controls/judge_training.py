"""Judges a port in training, by its gradients and one step of each optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from checks.controls.faults.fault import LOSS, OPTIMISER
from checks.controls.judge_inference import Verdict
from checks.controls.port_pipeline import Pipeline
from checks.core import thresholds
from checks.core.activations import LAYERS
from checks.core.metrics import relative_l2
from checks.core.network import BOTTLENECK, LOGITS
from checks.diagnosis.causes import Cause
from checks.gradients.judge import judge_gradients, judge_steps
from checks.gradients.measure import measure_gradients, measure_steps
from checks.gradients.result import INPUT, GradientMeasurement, StepsMeasurement, TensorDistance
from checks.gradients.train_tensorflow import TrainingReference

_STATISTICS = ("running_mean", "running_var")
_ONE_FACTOR = 1e-6
"""Largest relative spread of the gradients' distances if one factor scales all gradients."""


def judge_training(port: Pipeline, reference: TrainingReference) -> Verdict:
    """Judge gradients and steps, until one of them shows a difference.

    Args:
        port: The port, holding the checkpoint's weights.
        reference: TensorFlow's side: gradients in training mode, and one step of each optimiser.
    """
    gradients = measure_gradients(port.float64, reference, "training", loss=port.loss)
    judgement = judge_gradients(gradients)
    shares = {"gradients": judgement.share or 0.0}
    same = judgement.passed
    if not same:
        missing = [gradient.key for gradient in gradients.gradients if math.isinf(gradient.distance)]
        if missing:
            return Verdict(("gradients",), _first_layer(missing), 1, None, shares, Cause.FROZEN)
        if _evenly_scaled(gradients):
            return Verdict(("gradients",), LOSS, 1, None, shares, Cause.GRADIENT_SCALE)
    steps = _steps(port, reference, "sgd")
    judgement = judge_steps(steps)
    shares["SGD"] = judgement.share or 0.0
    if not same or not judgement.passed:
        failed = ("SGD",) if same else ("gradients", "SGD")
        place, cause = _explain(port, reference, steps, same)
        return Verdict(failed, place, 2, None, shares, cause)
    judgement = judge_steps(_steps(port, reference, "adam"))
    shares["Adam"] = judgement.share or 0.0
    if judgement.passed:
        return Verdict(inputs=3, shares=shares)
    return Verdict(("Adam",), OPTIMISER, 3, None, shares, Cause.OPTIMISER)


def _steps(port: Pipeline, reference: TrainingReference, name: Any) -> StepsMeasurement:
    return measure_steps(port.float64, reference, name, loss=port.loss, make=port.make_optimiser)


def _explain(
    port: Pipeline, reference: TrainingReference, steps: StepsMeasurement, same_gradients: bool
) -> tuple[str | None, Cause | None]:
    """Find where training first differs, and its cause, from the running statistics after one step."""
    moved = [
        tensor
        for tensor in steps.state
        if tensor.key.endswith(_STATISTICS) and not tensor.distance <= thresholds.TRAINING_STEPS
    ]
    if not moved:
        return (OPTIMISER, Cause.OPTIMISER) if same_gradients else (LOSS, None)
    place = _first_layer([tensor.key for tensor in moved])
    if same_gradients:
        means = any(tensor.key.endswith(_STATISTICS[0]) for tensor in moved)
        return place, Cause.MOMENTUM if means else Cause.RUNNING_VARIANCE
    # The forward pass first differs at the first layer with different statistics.
    if _at_rest(port, reference, [tensor for tensor in moved if _layer(tensor.key) == place]):
        return place, Cause.FROZEN
    return place, Cause.DROPOUT_RATE if place == BOTTLENECK else None


def _evenly_scaled(gradients: GradientMeasurement) -> bool:
    """Return True if one factor scales all gradients: then all relative distances are equal."""
    distances = [gradient.distance for gradient in gradients.gradients if gradient.norm > 0]
    return max(distances) - min(distances) <= _ONE_FACTOR * max(distances)


def _at_rest(port: Pipeline, reference: TrainingReference, moved: Sequence[TensorDistance]) -> bool:
    """Return True if the step did not move these running statistics: their distances are as before."""
    after = reference.steps["sgd"].state
    before = {tensor.key: relative_l2(port.state(tensor.key), after[tensor.key]) for tensor in moved}
    return all(math.isclose(tensor.distance, before[tensor.key], rel_tol=1e-9) for tensor in moved)


def _layer(key: str) -> str:
    """The activation of the layer that a state_dict key belongs to."""
    if key == INPUT:
        return next(iter(LAYERS))
    for activation, module in LAYERS.items():
        if key.startswith(f"{module}."):
            return activation
    return LOGITS if key.startswith("logits.") else BOTTLENECK


def _first_layer(keys: Sequence[str]) -> str:
    order = [*LAYERS, BOTTLENECK, LOGITS]
    return min((_layer(key) for key in keys), key=order.index)
