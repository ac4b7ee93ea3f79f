"""Faults that only training shows: in BatchNorm's updates, dropout, gradients, loss and optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from checks.controls.faults.change_port import (
    Forward,
    all_set,
    attributes_set,
    forward_replaced,
    in_batch_norms,
    in_forwards,
    modules_set,
)
from checks.controls.faults.fault import (
    LOSS,
    OPTIMISER,
    Apply,
    Fault,
    Site,
    activation_of,
    module_of,
)
from checks.controls.faults.structure_faults import dropout_mask
from checks.controls.port_pipeline import Pipeline
from checks.diagnosis.causes import Cause
from checks.gradients.result import TrainingName
from checks.gradients.train_pytorch import make_optimiser, training_loss
from checks.gradients.training_setup import WEIGHT_DECAY, TrainingBatch
from reference import InceptionResnetV1
from reference.losses import decay_kernels

_MOMENTUM = 0.1  # PyTorch's default for BatchNorm
_ADAM_EPSILON = 0.1  # facenet's

Make = Callable[[Pipeline, TrainingName, list[Parameter]], Optimizer]


def _fault(name: str, shipped: str, cause: Cause | None, *sites: Site) -> Fault:
    return Fault(name, "training", shipped, cause, sites)


def _site(label: str, activation: str, apply: Apply) -> Site:
    return Site(label, activation, apply, "training")


# Running statistics


def _momentum(name: str, shipped: str, momentum: float) -> Fault:
    scopes = "Repeat/block35_1/Branch_1/Conv2d_0a_1x1", "Bottleneck"
    return _fault(
        name, shipped, Cause.MOMENTUM, *in_batch_norms(*scopes, setting="training", momentum=momentum)
    )


def _biased(module: Any, x: Tensor) -> Tensor:
    if not module.training:
        return _frozen(module, x)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    with torch.no_grad():
        mean, variance = x.mean(axes), x.var(axes, correction=0)
        module.running_mean.lerp_(mean, module.momentum)
        module.running_var.lerp_(variance, module.momentum)
    return F.batch_norm(x, None, None, module.weight, module.bias, True, eps=module.eps)


def _frozen(module: Any, x: Tensor) -> Tensor:
    return F.batch_norm(
        x, module.running_mean, module.running_var, module.weight, module.bias, False, eps=module.eps
    )


# Dropout


def _dropout_rate_site(share: float) -> Site:
    return _site(f"{share}", activation_of("Bottleneck"), modules_set("dropout", p=share))


def _without_dropout(*further: Apply) -> Apply:
    @contextmanager
    def apply(port: Pipeline) -> Iterator[None]:
        with ExitStack() as closing:
            for model in port.models:
                closing.enter_context(attributes_set(model, dropout=nn.Identity()))
            for plant in further:
                closing.enter_context(plant(port))
            yield

    return apply


def _dropping_after(norm: type[nn.Module]) -> Forward:
    def forward(module: Any, x: Tensor) -> Tensor:
        output: Tensor = norm.forward(module, x)
        return output * dropout_mask(output, 0.6) if module.training else output

    return forward


_BEHIND = forward_replaced("last_bn", _dropping_after(nn.BatchNorm1d))
_POOLED = forward_replaced("avgpool_1a", _dropping_after(nn.AdaptiveAvgPool2d))

# Gradients


def _branch_detached_site(scope: str, path: str) -> Site:
    return _site(
        scope.rpartition("/")[0],
        activation_of(scope),
        forward_replaced(path, lambda module, x: type(module).forward(module, x).detach()),
    )


def _not_trained(*keys: str) -> Apply:
    return lambda port: all_set(
        [model.get_parameter(key) for model in port.models for key in keys], requires_grad=False
    )


def _layer_frozen_site(scope: str, *leaves: str) -> Site:
    keys = [f"{module_of(scope)}.{leaf}" for leaf in leaves]
    return _site(f"{scope}: {', '.join(leaves)}", activation_of(scope), _not_trained(*keys))


# Loss and optimiser


def _loss_scaled_site(label: str, factor: Callable[[TrainingBatch], float]) -> Site:
    def loss(model: InceptionResnetV1, images: Tensor, batch: TrainingBatch) -> Tensor:
        return training_loss(model, images, batch) * factor(batch)

    return _site(label, LOSS, lambda port: attributes_set(port, loss=loss))


def _optimiser(label: str, make: Make) -> Site:
    def apply(port: Pipeline) -> AbstractContextManager[None]:
        return attributes_set(
            port, make_optimiser=lambda name, parameters: make(port, name, list(parameters))
        )

    return _site(label, OPTIMISER, apply)


def _instead(name: TrainingName, optimiser: Callable[[list[Parameter], float], Optimizer]) -> Make:
    """Replace the optimiser of this name by another, at the same learning rate."""

    def make(port: Pipeline, actual: TrainingName, parameters: list[Parameter]) -> Optimizer:
        expected = make_optimiser(actual, parameters)
        return optimiser(parameters, expected.param_groups[0]["lr"]) if actual == name else expected

    return make


def _decaying_weights(parameters: list[Parameter], rate: float) -> Optimizer:
    return SGD(decay_kernels(parameters, 5e-4), rate)


def _pytorchs_adam(epsilon: float) -> Callable[[list[Parameter], float], Optimizer]:
    return lambda parameters, rate: Adam(decay_kernels(parameters, WEIGHT_DECAY), rate, eps=epsilon)


def _scales(*modules: str) -> Make:
    def make(port: Pipeline, name: TrainingName, parameters: list[Parameter]) -> Optimizer:
        known = {id(parameter) for parameter in parameters}
        norms = (m for m in port.float64.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))
        chosen = [port.float64.get_submodule(path) for path in modules] or list(norms)
        weights = [norm.get_parameter("weight") for norm in chosen]
        return make_optimiser(name, [*parameters, *(w for w in weights if id(w) not in known)])

    return make


TRAINING: tuple[Fault, ...] = (
    _momentum(
        "momentum-default",
        "PyTorch's default of 0.1 for slim's decay of 0.995, as facenet-pytorch leaves it.",
        _MOMENTUM,
    ),
    _momentum(
        "momentum-inverted",
        "TensorFlow's decay is the share to keep, PyTorch's momentum the rest: a momentum of 0.995 forgets "
        "almost everything at each step.",
        0.995,
    ),
    _fault(
        "biased-running-variance",
        "TensorFlow's fused BatchNorm moves the variance towards n/(n-1) times the batch's, as PyTorch does; "
        "unfused and handwritten ones take the batch's own.",
        Cause.RUNNING_VARIANCE,
        *in_forwards(
            _biased,
            "Conv2d_1a_3x3",
            "Block8/Branch_1/Conv2d_0c_3x1",
            "Bottleneck",
            part="bn",
            setting="training",
        ),
    ),
    _fault(
        "batch-norm-frozen",
        "Keras' `trainable = False` puts a BatchNorm into inference mode, and so does code that freezes all "
        "BatchNorms: fine-tuning then differs from facenet's.",
        Cause.FROZEN,
        *in_forwards(
            _frozen,
            "Conv2d_2b_3x3",
            "Repeat/block35_4/Branch_2/Conv2d_0b_3x3",
            "Bottleneck",
            part="bn",
            setting="training",
        ),
    ),
    _fault(
        "dropout-rate",
        "TensorFlow 1 takes the share to keep and PyTorch the share to drop: facenet's keep_probability of "
        "0.4 is a rate of 0.6.",
        Cause.DROPOUT_RATE,
        _dropout_rate_site(0.4),
        _dropout_rate_site(0.5),
        _dropout_rate_site(0.2),
    ),
    _fault(
        "dropout-elsewhere",
        "Dropout behind the Bottleneck, as in many heads for fine-tuning, with another mask, or not at all.",
        Cause.DROPOUT_RATE,
        _site("none", activation_of("Bottleneck"), _without_dropout()),
        _site("behind the Bottleneck", activation_of("Bottleneck"), _without_dropout(_BEHIND)),
        _site("twice", activation_of("Bottleneck"), _POOLED),
    ),
    _fault(
        "branch-detached",
        "A no_grad or detach left from debugging or from feature extraction: the loss falls all the same.",
        Cause.FROZEN,
        _branch_detached_site("Repeat/block35_3/Branch_2/Conv2d_0a_1x1", "repeat_1.2.branch2"),
        _branch_detached_site("Repeat_1/block17_10/Branch_1/Conv2d_0a_1x1", "repeat_2.9.branch1"),
        _branch_detached_site("Mixed_7a/Branch_0/Conv2d_0a_1x1", "mixed_7a.branch0"),
    ),
    _fault(
        "layer-frozen",
        "requires_grad_(False) for a list of names that matches too much, or a parameter stored as a buffer.",
        Cause.FROZEN,
        _layer_frozen_site("Conv2d_1a_3x3", "conv.weight", "bn.bias"),
        _layer_frozen_site("Repeat_2/block8_2/Conv2d_1x1", "bias"),
        _site("Bottleneck", activation_of("Bottleneck"), _not_trained("last_linear.weight")),
    ),
    _fault(
        "loss-scaled",
        "A sum over the batch instead of the mean, a second mean over devices, or a scale of mixed precision "
        "that is not divided out again.",
        Cause.GRADIENT_SCALE,
        _loss_scaled_site("sum", lambda batch: float(len(batch.images))),
        _loss_scaled_site("mean over two devices", lambda batch: 0.5),
        _loss_scaled_site("scale of mixed precision", lambda batch: 2.0**16),
    ),
    _fault(
        "adam-epsilon",
        "TensorFlow adds epsilon before the bias correction of the second moment and PyTorch behind it: "
        "with facenet's epsilon of 0.1 the first steps differ by a factor of thirty.",
        Cause.OPTIMISER,
        _optimiser("0.1 in PyTorch's place", _instead("adam", _pytorchs_adam(_ADAM_EPSILON))),
        _optimiser("PyTorch's 1e-8", _instead("adam", _pytorchs_adam(1e-8))),
        _optimiser("AdamW", _instead("adam", lambda p, lr: AdamW(p, lr, eps=_ADAM_EPSILON))),
    ),
    _fault(
        "weight-decay-added",
        "facenet adds L2 to the loss, on weights only; weight_decay in an optimiser falls on every bias and "
        "beta as well, and comes on top.",
        Cause.OPTIMISER,
        _optimiser("SGD, 5e-4", _instead("sgd", lambda p, lr: SGD(p, lr, weight_decay=5e-4))),
        _optimiser("SGD, 5e-5", _instead("sgd", lambda p, lr: SGD(p, lr, weight_decay=5e-5))),
        _optimiser("SGD, weights only", _instead("sgd", _decaying_weights)),
    ),
    _fault(
        "scale-trained",
        "PyTorch's BatchNorm has a weight and trains it; the checkpoints have none, and cannot store it.",
        Cause.OPTIMISER,
        _optimiser("every BatchNorm", _scales()),
        _optimiser("Conv2d_4b_3x3", _scales("conv2d_4b.bn")),
        _optimiser("Bottleneck", _scales("last_bn")),
    ),
)
"""Every class of faults in training."""
