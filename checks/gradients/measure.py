"""Training in float64: gradients and steps of an optimiser, PyTorch against the rebuilt TensorFlow graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from checks.core import thresholds
from checks.core.metrics import l2_norm
from checks.gradients.judge import (
    INPUT,
    GradientMeasurement,
    Mode,
    OptimiserName,
    StepsMeasurement,
    TensorDistance,
    judge_gradients,
    judge_steps,
    measure_distance,
)
from converter.layer_map import BOTTLENECK_INPUTS, Converted, Variant, table
from converter.plan import describe, infer_variant
from reference import InceptionResnetV1
from reference.adam import TensorFlowAdam

__all__ = [
    "INPUT",
    "MODES",
    "OPTIMISERS",
    "GradientMeasurement",
    "Gradients",
    "Loss",
    "Mode",
    "OptimiserName",
    "StepsMeasurement",
    "TensorDistance",
    "Trained",
    "TrainingBatch",
    "TrainingReference",
    "TrainingSteps",
    "compare_gradients",
    "compare_steps",
    "judge_gradients",
    "judge_steps",
    "make_optimiser",
    "measure_gradients",
    "measure_steps",
    "take_gradients",
    "train",
    "trained_keys",
    "training_batch",
    "training_loss",
    "training_reference",
]

MODES: tuple[Mode, ...] = ("inference", "training")
OPTIMISERS: tuple[OptimiserName, ...] = ("sgd", "adam")

LEARNING_RATE = 0.0005
"""For both optimisers; the last of the learning rates that the checkpoints of 2018 were trained with
(facenet, data/learning_rate_schedule_classifier_vggface2.txt)."""

IMAGE_SIZE = (107, 115)
"""Height and width: small, odd, unequal, and still a map of 2x2 in the last blocks, so that every value of a
kernel has a gradient."""

STEPS = 10
"""How many training steps are followed."""

KEEP = 0.4
"""Share of the features that the mask keeps, as in the training of the checkpoints of 2018."""


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What both sides train on.

    Attributes:
        images: (N, H, W, 3), float64, standardised pixels.
        labels: (N,), int64, where there are logits; else None.
        functional: (N, embedding size), float64, the weights of a linear functional of the embeddings, where
            there are no logits; else None.
        mask: (N, 1792), float64: 1 where dropout keeps a feature, 0 where it does not.
    """

    images: NDArray[Any]
    labels: NDArray[Any] | None
    functional: NDArray[Any] | None
    mask: NDArray[Any]


@dataclass(frozen=True, slots=True)
class TrainingSteps:
    """What training with one optimiser came to.

    Attributes:
        losses: Before each step.
        state: state_dict key to float64 array after the last step, in PyTorch's layout.
    """

    losses: tuple[float, ...]
    state: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TrainingReference:
    """TensorFlow's side, plain arrays; any number of PyTorch models may be judged by it, in threads too.

    Attributes:
        variant: The variant of the network.
        batch: What was trained on.
        trained: As `trained_keys` gives them.
        losses: The loss in each mode.
        gradients: In each mode the gradients by state_dict key, and of the images (N, H, W, 3) under `INPUT`;
            float64, in PyTorch's layout.
        steps: By optimiser.
    """

    variant: Variant
    batch: TrainingBatch
    trained: frozenset[str]
    losses: Mapping[Mode, float]
    gradients: Mapping[Mode, Mapping[str, NDArray[Any]]]
    steps: Mapping[OptimiserName, TrainingSteps]


def training_batch(
    variant: Variant, *, seed: int = 0, image_size: tuple[int, int] = IMAGE_SIZE, images: int = 4
) -> TrainingBatch:
    """Draw a batch; the same seed gives the same one.

    Args:
        variant: The variant of the network.
        seed: For numpy's PCG64.
        image_size: Height and width.
        images: How many.
    """
    random = np.random.default_rng(seed)
    classes, size = variant.num_classes, variant.embedding_size
    return TrainingBatch(
        images=random.standard_normal((images, *image_size, 3)),
        mask=(random.random((images, BOTTLENECK_INPUTS)) < KEEP).astype(np.float64),
        labels=None if classes is None else random.integers(0, classes, images),
        functional=random.standard_normal((images, size)) if classes is None else None,
    )


def training_reference(
    tensors: Mapping[str, NDArray[Any]],
    batch: TrainingBatch,
    *,
    modes: Sequence[Mode] = MODES,
    optimisers: Sequence[OptimiserName] = OPTIMISERS,
    steps: int = STEPS,
    say: Callable[[str], None] = lambda _: None,
) -> TrainingReference:
    """Run TensorFlow: gradients in each mode, and training from the checkpoint with each optimiser.

    Args:
        tensors: TensorFlow variable to float32 array.
        batch: As `training_batch` draws it for the variant of these tensors.
        modes: Which gradients to take.
        optimisers: Which to train with.
        steps: How many steps.
        say: Told what is going on.
    """
    from facenet_tf.training import TrainingNetwork

    variant = infer_variant(describe(tensors))
    target = batch.functional if batch.labels is None else batch.labels
    assert target is not None
    given = batch.images, target, batch.mask
    losses: dict[Mode, float] = {}
    gradients: dict[Mode, Mapping[str, NDArray[Any]]] = {}
    trained: dict[OptimiserName, TrainingSteps] = {}
    say("building TensorFlow's training graph")
    with TrainingNetwork(tensors) as network:
        for mode in modes:
            say(f"TensorFlow: gradients in {mode}")
            losses[mode], found = network.gradients(*given, training=mode == "training")
            gradients[mode] = {INPUT: found.pop(INPUT), **_in_pytorch_layout(found, variant)}
        for name in optimisers:
            say(f"TensorFlow: training, {name}")
            network.reset()
            before = tuple(
                network.step(*given, optimiser=name, learning_rate=LEARNING_RATE) for _ in range(steps)
            )
            trained[name] = TrainingSteps(before, _in_pytorch_layout(network.values(), variant))
    return TrainingReference(variant, batch, trained_keys(variant), losses, gradients, trained)


def trained_keys(variant: Variant) -> frozenset[str]:
    """The state_dict keys that training moves by a gradient: those of the checkpoint's own variables.

    The weights of BatchNorm are not among them where the checkpoint has no scale.
    """
    rows = [row for row in table(variant) if isinstance(row, Converted)]
    return frozenset(
        row.key for row in rows if not row.variable.endswith(("/moving_mean", "/moving_variance"))
    )


def _in_pytorch_layout(tensors: Mapping[str, NDArray[Any]], variant: Variant) -> dict[str, NDArray[Any]]:
    """Tensors of the training graph, which has all scales, by state_dict key."""
    rows = [row for row in table(replace(variant, gamma=True)) if isinstance(row, Converted)]
    return {row.key: row.layout.apply(tensors[row.variable]) for row in rows if row.variable in tensors}


Loss = Callable[[InceptionResnetV1, Tensor, TrainingBatch], Tensor]


def training_loss(model: InceptionResnetV1, images: Tensor, batch: TrainingBatch) -> Tensor:
    """Mean softmax cross-entropy on the logits where there are labels, else the mean linear functional.

    Args:
        model: In the mode to train in.
        images: (N, 3, H, W), float64.
        batch: The batch that `images` are of.
    """
    model.classify = batch.labels is not None
    output: Tensor = model(images)
    if batch.labels is not None:
        return F.cross_entropy(output, torch.from_numpy(batch.labels))
    return (output * torch.from_numpy(batch.functional)).sum(dim=1).mean()


def make_optimiser(name: OptimiserName, parameters: Iterable[Parameter]) -> Optimizer:
    """SGD or TensorFlow's Adam, at the learning rate that the reference was made with."""
    optimiser = SGD if name == "sgd" else TensorFlowAdam
    return optimiser(parameters, lr=LEARNING_RATE)


def measure_gradients(
    model: InceptionResnetV1, reference: TrainingReference, mode: Mode, *, loss: Loss = training_loss
) -> GradientMeasurement:
    """Take PyTorch's gradients and measure them against TensorFlow's.

    Args:
        model: float64, holding the checkpoint's weights; left as it was, bit for bit, without gradients.
        reference: TensorFlow's side.
        mode: "inference" is `model.eval()`, "training" `model.train()` with the reference's dropout mask and
            the model's own `dropout.p`.
        loss: What is differentiated.
    """
    return compare_gradients(take_gradients(model, reference.batch, mode, loss), reference, mode)


@dataclass(frozen=True, slots=True)
class Gradients:
    """PyTorch's loss, and its gradients as `TrainingReference` has them; None where there is none."""

    loss: float
    gradients: Mapping[str, NDArray[Any] | None]


def take_gradients(
    model: InceptionResnetV1, batch: TrainingBatch, mode: Mode, loss: Loss = training_loss
) -> Gradients:
    """Differentiate PyTorch's loss; the arguments are those of `measure_gradients`."""
    images = _images(batch).requires_grad_()
    with _left_as_it_was(model), _shared_mask(model, batch):
        model.train(mode == "training")
        value = loss(model, images, batch)
        value.backward()  # type: ignore[no-untyped-call]
        found = {INPUT: None if images.grad is None else images.grad.permute(0, 2, 3, 1)}
        found |= {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = {key: None if gradient is None else gradient.numpy() for key, gradient in found.items()}
    return Gradients(value.item(), gradients)


def compare_gradients(found: Gradients, reference: TrainingReference, mode: Mode) -> GradientMeasurement:
    """Measure gradients that were taken before, on the reference's batch."""
    expected = reference.gradients[mode]
    whole = math.hypot(*(l2_norm(gradient) for key, gradient in expected.items() if key != INPUT))
    floor = thresholds.GRADIENT_FLOOR * whole
    keys = dict.fromkeys((*expected, *found.gradients))
    loss = reference.losses[mode]
    return GradientMeasurement(
        mode,
        abs(found.loss - loss) / max(1.0, abs(loss)),
        tuple(
            measure_distance(key, found.gradients.get(key), expected.get(key), 0.0 if key == INPUT else floor)
            for key in keys
        ),
    )


def measure_steps(
    model: InceptionResnetV1,
    reference: TrainingReference,
    optimiser: OptimiserName,
    *,
    loss: Loss = training_loss,
    make: Callable[[OptimiserName, Iterable[Parameter]], Optimizer] = make_optimiser,
) -> StepsMeasurement:
    """Train as the reference was trained and measure the state_dict against TensorFlow's.

    Args:
        model: float64, holding the checkpoint's weights; left as it was, bit for bit, without gradients.
        reference: TensorFlow's side.
        optimiser: Which of its trainings to follow.
        loss: What is minimised.
        make: Makes the optimiser for the parameters in `reference.trained`.
    """
    steps = len(reference.steps[optimiser].losses)
    found = train(model, reference.batch, reference.trained, optimiser, steps=steps, loss=loss, make=make)
    return compare_steps(found, reference, optimiser)


@dataclass(frozen=True, slots=True)
class Trained:
    """The float tensors of PyTorch's state_dict, before and after training."""

    before: Mapping[str, NDArray[Any]]
    after: Mapping[str, NDArray[Any]]


def train(
    model: InceptionResnetV1,
    batch: TrainingBatch,
    trained: Collection[str],
    optimiser: OptimiserName,
    *,
    steps: int = STEPS,
    loss: Loss = training_loss,
    make: Callable[[OptimiserName, Iterable[Parameter]], Optimizer] = make_optimiser,
) -> Trained:
    """Train PyTorch's model; the arguments are those of `measure_steps` and parts of its reference."""
    images = _images(batch)
    with _left_as_it_was(model), _shared_mask(model, batch):
        before = _float_tensors(model)
        model.train()
        stepper = make(optimiser, [p for name, p in model.named_parameters() if name in trained])
        for _ in range(steps):
            stepper.zero_grad()
            loss(model, images, batch).backward()  # type: ignore[no-untyped-call]
            stepper.step()
        return Trained(before, _float_tensors(model))


def compare_steps(found: Trained, reference: TrainingReference, optimiser: OptimiserName) -> StepsMeasurement:
    """Measure what came out of a training on the reference's batch, of as many steps."""
    expected = reference.steps[optimiser]
    state, change = [], []
    for key in dict.fromkeys((*expected.state, *found.after)):
        before, after, wanted = found.before.get(key), found.after.get(key), expected.state.get(key)
        state.append(measure_distance(key, after, wanted))
        if (
            before is None
            or after is None
            or wanted is None
            or not before.shape == after.shape == wanted.shape
        ):
            change.append(measure_distance(key, None, wanted))
        else:
            floor = thresholds.CHANGE_FLOOR * l2_norm(wanted)
            change.append(measure_distance(key, after - before, wanted - before, floor))
    losses = (expected.losses[0], expected.losses[-1])
    return StepsMeasurement(optimiser, len(expected.losses), losses, tuple(state), tuple(change))


def _float_tensors(model: InceptionResnetV1) -> dict[str, NDArray[Any]]:
    """Copies of all but the counters of batches."""
    return {k: v.numpy().copy() for k, v in model.state_dict().items() if v.is_floating_point()}


def _images(batch: TrainingBatch) -> Tensor:
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


@contextmanager
def _left_as_it_was(model: InceptionResnetV1) -> Iterator[None]:
    """Put weights, statistics and modes back at the end, and drop the gradients."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = {module: module.training for module in model.modules()}
    was_classifying = model.classify
    try:
        yield
    finally:
        model.load_state_dict(state)
        model.zero_grad()
        model.classify = was_classifying
        for module, training in modes.items():
            module.training = training


@contextmanager
def _shared_mask(model: InceptionResnetV1, batch: TrainingBatch) -> Iterator[None]:
    """Have dropout keep what the batch's mask keeps, scaled by its own rate."""
    mask = torch.from_numpy(batch.mask)

    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if not (isinstance(module, nn.Dropout) and module.training):
            return output
        return inputs[0] * mask.view_as(inputs[0]) / (1 - module.p)

    handle = model.dropout.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
