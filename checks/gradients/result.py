"""The result of a comparison of gradients and training steps, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from checks.core.judgement import Judgement
from converter.layer_map import Variant

Mode = Literal["inference", "training"]
TrainingName = Literal["sgd", "adam", "triplet"]

INPUT = "input"
"""The name of the gradient for the images, beside the state_dict keys of the parameters."""


@dataclass(frozen=True, slots=True)
class TensorDistance:
    """The distance of one tensor from TensorFlow's.

    Attributes:
        key: state_dict key, or `INPUT`.
        distance: L2 norm of the difference over `scale`; infinite if one side has no such tensor, or if the
            shapes differ.
        norm: L2 norm of TensorFlow's tensor.
        scale: `norm`, or its floor if the norm is smaller.
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
        loss: Distance of the losses; relative if TensorFlow's loss is above 1.
        gradients: The input, then every parameter; the floor of `scale` is `thresholds.GRADIENT_FLOOR`.
    """

    mode: Mode
    loss: float
    gradients: tuple[TensorDistance, ...]


@dataclass(frozen=True, slots=True)
class StepsMeasurement:
    """The state after the steps of one training.

    Attributes:
        training: Its name.
        steps: The number of steps.
        losses: TensorFlow's first and last loss.
        loss: The largest distance of the losses of a step; relative if TensorFlow's loss is above 1.
        state: Every float tensor of the state_dict after the last step.
        change: The change of each over all steps; the floor of `scale` is `thresholds.CHANGE_FLOOR`.
    """

    training: TrainingName
    steps: int
    losses: tuple[float, float]
    loss: float
    state: tuple[TensorDistance, ...]
    change: tuple[TensorDistance, ...]


@dataclass(frozen=True, slots=True)
class GradientsResult:
    """The result of `checks.gradients.run.compare_gradients`.

    Attributes:
        source: The checkpoint.
        variant: The variant of the network.
        loss: The name of the loss.
        batch_shape: (N, H, W, 3) of the images.
        judgements: statistics, inference, training, sgd, adam, triplet.
        gradients: In inference and in training.
        steps: Of each training.
        environment: As `checks.core.environment.environment` gives it.
        files: Every file that was read.
        seed: Seed of the batch.
    """

    source: str
    variant: Variant
    loss: str
    batch_shape: tuple[int, ...]
    judgements: tuple[Judgement, ...]
    gradients: tuple[GradientMeasurement, ...]
    steps: tuple[StepsMeasurement, ...]
    environment: Mapping[str, Any]
    files: tuple[str, ...] = ()
    seed: int = 0

    @property
    def passed(self) -> bool:
        """True if every judgement holds."""
        return all(judgement.passed for judgement in self.judgements)
