"""Measures PyTorch's gradients and training steps against TensorFlow's."""

from __future__ import annotations

import math

from checks.core import thresholds
from checks.core.metrics import l2_norm
from checks.core.types import Array
from checks.gradients.result import (
    INPUT,
    GradientMeasurement,
    Mode,
    StepsMeasurement,
    TensorDistance,
    TrainingName,
)
from checks.gradients.train_pytorch import (
    Loss,
    MakeOptimiser,
    PyTorchGradients,
    PyTorchTraining,
    make_optimiser,
    take_gradients,
    train_pytorch,
    training_loss,
)
from checks.gradients.train_tensorflow import TrainingReference
from reference import InceptionResnetV1


def measure_gradients(
    model: InceptionResnetV1, reference: TrainingReference, mode: Mode, *, loss: Loss = training_loss
) -> GradientMeasurement:
    """Take a model's gradients and measure them. The arguments are those of `take_gradients`."""
    return measure_gradient_distances(take_gradients(model, reference.batch, mode, loss), reference, mode)


def measure_steps(
    model: InceptionResnetV1,
    reference: TrainingReference,
    training: TrainingName,
    *,
    loss: Loss | None = None,
    make: MakeOptimiser = make_optimiser,
) -> StepsMeasurement:
    """Train a model as the reference and measure it. The arguments are those of `train_pytorch`."""
    steps = len(reference.steps[training].losses)
    actual = train_pytorch(
        model, reference.batch, reference.trained, training, steps=steps, loss=loss, make=make
    )
    return measure_step_distances(actual, reference, training)


def measure_gradient_distances(
    actual: PyTorchGradients, reference: TrainingReference, mode: Mode
) -> GradientMeasurement:
    """Measure gradients on the reference's batch."""
    expected = reference.gradients[mode]
    norm_of_all = math.hypot(*(l2_norm(gradient) for key, gradient in expected.items() if key != INPUT))
    floor = thresholds.GRADIENT_FLOOR * norm_of_all
    keys = dict.fromkeys((*expected, *actual.gradients))
    return GradientMeasurement(
        mode,
        _loss_distance(actual.loss, reference.losses[mode]),
        tuple(
            measure_distance(
                key, actual.gradients.get(key), expected.get(key), 0.0 if key == INPUT else floor
            )
            for key in keys
        ),
    )


def measure_step_distances(
    actual: PyTorchTraining, reference: TrainingReference, training: TrainingName
) -> StepsMeasurement:
    """Measure a training on the reference's batch, with as many steps as the reference."""
    reference_steps = reference.steps[training]
    state, change = [], []
    for key in dict.fromkeys((*reference_steps.state, *actual.after)):
        before, after, expected = (
            tensors.get(key) for tensors in (actual.before, actual.after, reference_steps.state)
        )
        state.append(measure_distance(key, after, expected))
        if before is None or after is None or expected is None or not _same_shape(before, after, expected):
            change.append(measure_distance(key, None, expected))
        else:
            floor = thresholds.CHANGE_FLOOR * state[-1].norm
            change.append(measure_distance(key, after - before, expected - before, floor))
    losses = reference_steps.losses
    distance = max(map(_loss_distance, actual.losses, losses))
    return StepsMeasurement(
        training, len(losses), (losses[0], losses[-1]), distance, tuple(state), tuple(change)
    )


def measure_distance(
    key: str, actual: Array | None, expected: Array | None, floor: float = 0.0
) -> TensorDistance:
    """Measure one tensor.

    Args:
        key: Its state_dict key, or `INPUT`.
        actual: PyTorch's tensor, or None.
        expected: TensorFlow's tensor, or None.
        floor: The least scale of the distance.
    """
    if expected is None:
        return TensorDistance(key, math.inf, 0.0, floor)
    norm = l2_norm(expected)
    scale = max(norm, floor)
    if actual is None or not _same_shape(actual, expected):
        return TensorDistance(key, math.inf, norm, scale)
    gap = l2_norm(actual - expected)
    if gap == 0.0:
        return TensorDistance(key, 0.0, norm, scale)
    return TensorDistance(key, gap / scale if scale and math.isfinite(gap) else math.inf, norm, scale)


def _loss_distance(actual: float, expected: float) -> float:
    distance = abs(actual - expected) / max(1.0, abs(expected))
    return math.inf if math.isnan(distance) else distance


def _same_shape(first: Array, *others: Array) -> bool:
    return all(other.shape == first.shape for other in others)
