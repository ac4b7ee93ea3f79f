"""PyTorch's side: gradients and training steps of a port, in float64."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from checks.core.types import Array, Arrays
from checks.gradients.result import INPUT, Mode, TrainingName
from checks.gradients.training_setup import LEARNING_RATE, MARGIN, STEPS, TRAININGS, TrainingBatch
from reference import InceptionResnetV1
from reference.adam import TensorFlowAdam
from reference.losses import decay_kernels, triplet_loss

Loss = Callable[[InceptionResnetV1, Tensor, TrainingBatch], Tensor]
MakeOptimiser = Callable[[TrainingName, Collection[Parameter]], Optimizer]


@dataclass(frozen=True, slots=True)
class PyTorchGradients:
    """PyTorch's loss, and its gradients as in `TrainingReference`; None for a parameter without one."""

    loss: float
    gradients: Mapping[str, Array | None]


@dataclass(frozen=True, slots=True)
class PyTorchTraining:
    """The float tensors of PyTorch's state_dict, before and after training, and the loss before each step."""

    before: Arrays
    after: Arrays
    losses: tuple[float, ...]


def training_loss(model: InceptionResnetV1, images: Tensor, batch: TrainingBatch) -> Tensor:
    """The mean softmax cross-entropy of the logits; without labels, the mean linear functional.

    Args:
        model: The model, in the mode to train in.
        images: (N, 3, H, W), float64.
        batch: The batch of these images.
    """
    model.classify = batch.labels is not None
    output: Tensor = model(images)
    if batch.labels is not None:
        return F.cross_entropy(output, torch.from_numpy(batch.labels))
    return (output * torch.from_numpy(batch.functional)).sum(dim=1).mean()


def batch_triplet_loss(model: InceptionResnetV1, images: Tensor, batch: TrainingBatch) -> Tensor:
    """The triplet loss of the batch's triplets. The arguments are those of `training_loss`."""
    model.classify = False
    return triplet_loss(model(images), torch.from_numpy(batch.triplets), MARGIN)


def loss_of(name: TrainingName) -> Loss:
    """The loss that a training minimises."""
    return batch_triplet_loss if TRAININGS[name].triplets else training_loss


def make_optimiser(name: TrainingName, parameters: Collection[Parameter]) -> Optimizer:
    """Make SGD or TensorFlow's Adam for a training, with learning rate and L2 of TensorFlow's side."""
    training = TRAININGS[name]
    optimiser = SGD if training.optimiser == "sgd" else TensorFlowAdam
    return optimiser(decay_kernels(parameters, training.weight_decay), lr=LEARNING_RATE)


def take_gradients(
    model: InceptionResnetV1, batch: TrainingBatch, mode: Mode, loss: Loss = training_loss
) -> PyTorchGradients:
    """Differentiate PyTorch's loss.

    Args:
        model: float64, with the checkpoint's weights. It is left as it was, bit for bit, without gradients.
        batch: The batch.
        mode: "inference" is `model.eval()`; "training" is `model.train()` with the batch's dropout mask and
            the model's own `dropout.p`.
        loss: The loss to differentiate.
    """
    images = _images(batch).requires_grad_()
    with _left_as_it_was(model), _shared_mask(model, batch):
        model.train(mode == "training")
        value = loss(model, images, batch)
        value.backward()  # type: ignore[no-untyped-call]
        taken = {INPUT: None if images.grad is None else images.grad.permute(0, 2, 3, 1)}
        taken |= {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = {key: None if gradient is None else gradient.numpy() for key, gradient in taken.items()}
    return PyTorchGradients(value.item(), gradients)


def train_pytorch(
    model: InceptionResnetV1,
    batch: TrainingBatch,
    trained: Collection[str],
    training: TrainingName,
    *,
    steps: int = STEPS,
    loss: Loss | None = None,
    make: MakeOptimiser = make_optimiser,
) -> PyTorchTraining:
    """Train PyTorch's model for some steps.

    Args:
        model: float64, with the checkpoint's weights. It is left as it was, bit for bit, without gradients.
        batch: The batch, the same in every step.
        trained: The parameters that the optimiser moves, by state_dict key.
        training: Name of the training.
        steps: Number of steps.
        loss: The loss to minimise instead of the training's own.
        make: Makes the optimiser for the parameters.
    """
    images = _images(batch)
    with _left_as_it_was(model) as before, _shared_mask(model, batch):
        model.train()
        parameters = [parameter for key, parameter in model.named_parameters() if key in trained]
        optimiser = make(training, parameters)
        minimise, losses = loss or loss_of(training), []
        for _ in range(steps):
            optimiser.zero_grad()
            value = minimise(model, images, batch)
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(value.item())
        return PyTorchTraining(_floats(before), _floats(_copy(model)), tuple(losses))


def _copy(model: InceptionResnetV1) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _floats(state_dict: Mapping[str, Tensor]) -> dict[str, Array]:
    """All tensors but the counters of batches, without copies."""
    return {key: tensor.numpy() for key, tensor in state_dict.items() if tensor.is_floating_point()}


def _images(batch: TrainingBatch) -> Tensor:
    """The batch's images as (N, 3, H, W)."""
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


@contextmanager
def _left_as_it_was(model: InceptionResnetV1) -> Iterator[dict[str, Tensor]]:
    """Restore weights, statistics and modes at the end, and drop the gradients; gives the state_dict."""
    state = _copy(model)
    modes = {module: module.training for module in model.modules()}
    was_classifying = model.classify
    try:
        yield state
    finally:
        model.load_state_dict(state)
        model.zero_grad()
        model.classify = was_classifying
        for module, training in modes.items():
            module.training = training


@contextmanager
def _shared_mask(model: InceptionResnetV1, batch: TrainingBatch) -> Iterator[None]:
    """Make dropout use the batch's mask, scaled by its own rate, while open."""
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
