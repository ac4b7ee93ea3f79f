"""TensorFlow's side: gradients and training steps of the rebuilt graph, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from checks.core.types import Array, Arrays, Say
from checks.gradients.result import INPUT, Mode, TrainingName
from checks.gradients.training_setup import (
    LEARNING_RATE,
    MODES,
    STEPS,
    TRAININGS,
    TrainingBatch,
    trained_keys,
)
from converter.layer_map import ConvertedRow, Variant, table
from converter.plan import describe, infer_variant


@dataclass(frozen=True, slots=True)
class TrainingSteps:
    """A training by TensorFlow.

    Attributes:
        losses: The loss before each step, without the L2 penalty.
        state: state_dict key to float64 array after the last step, in PyTorch's layout.
    """

    losses: tuple[float, ...]
    state: Arrays


@dataclass(frozen=True, slots=True)
class TrainingReference:
    """TensorFlow's side as plain arrays, by which any number of PyTorch models and threads can be judged.

    Attributes:
        variant: The variant of the network.
        batch: The batch that was trained on.
        trained: As in `trained_keys`.
        losses: The loss in each mode.
        gradients: In each mode the gradients by state_dict key, and those of the images (N, H, W, 3) under
            `INPUT`; float64, in PyTorch's layout.
        steps: Each training by name.
    """

    variant: Variant
    batch: TrainingBatch
    trained: frozenset[str]
    losses: Mapping[Mode, float]
    gradients: Mapping[Mode, Arrays]
    steps: Mapping[TrainingName, TrainingSteps]


def train_tensorflow(
    tensors: Arrays,
    batch: TrainingBatch,
    *,
    modes: Sequence[Mode] = MODES,
    trainings: Sequence[TrainingName] = tuple(TRAININGS),
    steps: int = STEPS,
    say: Say = lambda _: None,
) -> TrainingReference:
    """Run TensorFlow: gradients in each mode, then each training from the checkpoint.

    Args:
        tensors: TensorFlow variable to float32 array.
        batch: The batch, as `draw_batch` gives it for the variant of these tensors.
        modes: The modes to take gradients in.
        trainings: The names of the trainings.
        steps: Number of training steps.
        say: Progress callback.
    """
    from facenet_tf.training import TrainingNetwork

    variant = infer_variant(describe(tensors))
    target = batch.functional if batch.labels is None else batch.labels
    assert target is not None
    inputs = batch.images, target, batch.mask
    losses: dict[Mode, float] = {}
    gradients: dict[Mode, Arrays] = {}
    trained: dict[TrainingName, TrainingSteps] = {}
    say("building TensorFlow's training graph")
    with TrainingNetwork(
        tensors, batch.triplets, inference="inference" in modes, images=batch.images.shape
    ) as network:
        for mode in modes:
            say(f"TensorFlow: gradients in {mode}")
            losses[mode], by_variable = network.gradients(*inputs, training=mode == "training")
            gradients[mode] = {INPUT: by_variable.pop(INPUT), **_in_pytorch_layout(by_variable, variant)}
        for name in trainings:
            say(f"TensorFlow: training, {name}")
            network.reset()
            setting = asdict(TRAININGS[name])
            before = tuple(
                network.step(*inputs, learning_rate=LEARNING_RATE, **setting) for _ in range(steps)
            )
            trained[name] = TrainingSteps(before, _in_pytorch_layout(network.values(), variant))
    return TrainingReference(variant, batch, trained_keys(variant), losses, gradients, trained)


def _in_pytorch_layout(tensors: Arrays, variant: Variant) -> dict[str, Array]:
    """Turn variables of the training graph, which has a gamma everywhere, into state_dict tensors."""
    rows = [row for row in table(replace(variant, gamma=True)) if isinstance(row, ConvertedRow)]
    return {row.key: row.layout.apply(tensors[row.variable]) for row in rows if row.variable in tensors}
