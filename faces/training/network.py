"""The network of a training: its weights at the start, what each stage trains, and the learning rates."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from faces.model import Standardisation, load_model
from faces.training.config import FieldError, TrainConfig, with_option
from faces.training.objectives import Objective
from reference import InceptionResnetV1
from reference.adam import EPSILON, TensorFlowAdam
from reference.losses import decay_kernels

Stage = Literal["head", "last", "all"]

LAST_BLOCKS = ("repeat_3.", "block8.", "last_linear.", "last_bn.")
"""The start of the keys of the last blocks: the 3x3 map and what follows."""

_ADAM_EPSILON = 1e-8  # PyTorch's own


def build_network(
    config: TrainConfig, people: int, *, offline: bool, keep_classifier: bool = False
) -> tuple[InceptionResnetV1, Standardisation, str | None]:
    """Build the network of a training.

    Args:
        config: The configuration.
        people: The number of people.
        offline: Never download.
        keep_classifier: Whether to keep the classifier of the weights.

    Returns:
        The network, float32, with a randomly initialised classifier if the task is one, the standardisation
        of its images, and the SHA-256 of its weights as `faces.model.weights_digest` computes it, if they
        are not random.

    Raises:
        UsageError: There are no such weights, their embeddings have another size, or the standardisation is
            not known.
        SourceError, MappingError, RequirementError: As for `faces.model.load_model`.
    """
    torch.manual_seed(config.seed)
    stated: Standardisation | None = config.standardisation or None  # type: ignore[assignment]
    classes = people if config.task == "classifier" else None
    if config.from_nothing:
        network = InceptionResnetV1(num_classes=classes, embedding_size=config.embedding_size or None)
        return network, stated or "fixed", None
    model = load_model(config.weights, standardisation=stated, offline=offline)
    network, size = model.network, model.network.last_linear.out_features
    if config.embedding_size not in (0, size):
        raise FieldError(
            "embedding_size",
            f"the embeddings of {config.weights} have {size} numbers, not {config.embedding_size}. Leave it "
            f"out, or take {with_option('weights')} none.",
        )
    if not keep_classifier:
        network.logits = None if classes is None else nn.Linear(size, classes)
    return network, model.standardisation, model.sha256


def stage_of(config: TrainConfig, epoch: int) -> Stage:
    """Return what an epoch trains: the head, the last blocks as well, or the whole network.

    Triplets train the last blocks alone by default, since the whole network learns a few people at the cost
    of others. docs/training.md has what was measured.
    """
    if config.from_nothing:
        return "all"
    if config.task == "triplet":
        return "all" if config.trained_blocks == "all" else "last"
    if epoch < config.head_epochs:
        return "head"
    return "last" if epoch < config.head_epochs + config.last_epochs else "all"


def freezes_batch_norm(config: TrainConfig) -> bool:
    """Return True if BatchNorm keeps its statistics and biases."""
    return config.freeze_batch_norm and not config.from_nothing


def set_stage(objective: Objective, config: TrainConfig, stage: Stage) -> None:
    """Put an objective in training mode, and choose the parameters of the network that are trained.

    The weights of BatchNorm stay ones, since the checkpoints have none. The statistics of a layer that is not
    trained stay as they are.

    Args:
        objective: The objective; its head is always trained.
        config: The configuration.
        stage: What is trained.
    """
    objective.train()
    frozen = freezes_batch_norm(config)
    starts = {"head": (), "last": LAST_BLOCKS, "all": ("",)}[stage]
    for name, module in objective.network.named_modules():
        trained = bool(starts) and f"{name}.".startswith(starts) and name != "logits"  # the head's, if used
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.train(trained and not frozen)
            module.weight.requires_grad_(False)
            module.bias.requires_grad_(trained and not frozen)
        else:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(trained)
    for parameter in objective.head:
        parameter.requires_grad_(True)


def make_optimiser(objective: Objective, config: TrainConfig) -> Optimizer:
    """Make the optimiser of every stage: a group each of network and head, with weight decay and without.

    Args:
        objective: The objective. Its kernels have weight decay; biases and BatchNorm have none.
        config: The configuration.
    """
    heads = set(objective.head)
    network = [
        parameter
        for name, parameter in objective.named_parameters()
        if parameter not in heads and not name.endswith("bn.weight")
    ]
    rates = ((network, config.learning_rate), (objective.head, config.head_learning_rate))
    settings = [
        {**group, "lr": rate}
        for parameters, rate in rates
        for group in decay_kernels(parameters, config.weight_decay)
    ]
    if config.optimiser == "sgd":
        return SGD(settings, lr=config.learning_rate, momentum=config.momentum)
    if config.optimiser == "adamw":
        return AdamW(settings, lr=config.learning_rate, eps=config.adam_epsilon or _ADAM_EPSILON)
    return TensorFlowAdam(settings, lr=config.learning_rate, eps=config.adam_epsilon or EPSILON)


def learning_rate_factor(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The factor on the learning rates of a step.

    Args:
        config: The configuration.
        step: Number of the step, from 0.
        steps_per_epoch: Steps of the optimiser in an epoch.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return config.step_factor ** (step // steps_per_epoch // config.step_epochs)
    rest = max(config.epochs * steps_per_epoch - config.warmup_steps, 1)
    return (1 + math.cos(math.pi * (step - config.warmup_steps) / rest)) / 2
