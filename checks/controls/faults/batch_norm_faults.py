"""Faults in BatchNorm's tensors and in biases, and averages taken for weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from checks.controls.faults.change_port import (
    copied,
    in_variables,
    in_weights,
    planted,
)
from checks.controls.faults.fault import Fault, Site, activation_of
from checks.controls.port_pipeline import Pipeline
from checks.core.types import Array, Arrays
from checks.diagnosis.causes import Cause
from converter.plan import AVERAGE

_OLD_EPSILON = 1e-5  # PyTorch's default for BatchNorm
_EPSILON = 1e-3


# BatchNorm and biases


def _statistics(name: str, shipped: str, order: Mapping[str, str], *scopes: str) -> Fault:
    sites = tuple(
        copied(
            scope,
            {f"{scope}/BatchNorm/{name}": f"{scope}/BatchNorm/{other}" for name, other in order.items()},
            label=scope,
        )
        for scope in scopes
    )
    return Fault(name, "weights", shipped, Cause.STATISTICS, sites)


def _old_initial_scale(scope: str, seed: int) -> Site:
    def changes(port: Pipeline) -> Arrays:
        key = port.row(f"{scope}/BatchNorm/beta").key.removesuffix("bias") + "weight"
        return {key: np.random.default_rng(seed).uniform(0, 1, port.state(key).shape).astype(np.float32)}

    return Site(scope, activation_of(scope), planted(changes))


def _drawn(values: Array) -> Array:
    bound = 1 / np.sqrt(np.prod(values.shape[1:]))  # as torch.nn.Conv2d and Linear initialise
    return np.random.default_rng(0).uniform(-bound, bound, values.shape)


def _folded_with_epsilon(scope: str) -> Site:
    def changes(port: Pipeline) -> Arrays:
        kernel, mean = f"{scope}/weights", f"{scope}/BatchNorm/moving_mean"
        variance = port.tensor(f"{scope}/BatchNorm/moving_variance").astype(np.float64)
        factor = np.sqrt((variance + _EPSILON) / (variance + _OLD_EPSILON))
        wide = factor.reshape(-1, *[1] * (port.tensor(kernel).ndim - 1))
        return {
            port.row(kernel).key: (port.tensor(kernel) * wide).astype(np.float32),
            port.row(mean).key: (port.tensor(mean) * factor).astype(np.float32),
        }

    return Site(scope, activation_of(scope), planted(changes))


# Averages


def _from_averages(label: str, activation: str, select: Callable[[str], bool]) -> Site:
    def changes(port: Pipeline) -> Arrays:
        rows = [row for row in port.plan.converted if select(row.variable)]
        return {row.key: row.layout.apply(port.source[f"{row.variable}/{AVERAGE}"]) for row in rows}

    return Site(label, activation_of(activation), planted(changes))


STATISTICS: tuple[Fault, ...] = (
    in_weights(
        "deviation-for-variance",
        "A BatchNorm stores a variance in one library, a deviation or its inverse in another: code that "
        "copies the tensor forgets the square.",
        Cause.STANDARD_DEVIATION,
        np.sqrt,
        "Repeat/block35_2/Branch_0/Conv2d_1x1/BatchNorm/moving_variance",
        "Repeat_1/block17_7/Branch_0/Conv2d_1x1/BatchNorm/moving_variance",
        "Bottleneck/BatchNorm/moving_variance",
    ),
    _statistics(
        "offset-and-mean",
        "Beta and moving mean exchanged: both have the same shape and values around zero, so that nothing "
        "looks wrong.",
        {"beta": "moving_mean", "moving_mean": "beta"},
        "Conv2d_1a_3x3",
        "Repeat_1/block17_3/Branch_1/Conv2d_0c_7x1",
        "Mixed_7a/Branch_2/Conv2d_0a_1x1",
    ),
    _statistics(
        "mean-and-variance",
        "Keras lists beta, mean, variance and Caffe mean, variance, factor: positional loading exchanges "
        "them.",
        {"moving_mean": "moving_variance", "moving_variance": "moving_mean"},
        "Conv2d_4b_3x3",
        "Repeat/block35_5/Branch_1/Conv2d_0a_1x1",
        "Bottleneck",
    ),
    Fault(
        "scale-left-random",
        "weights",
        "The checkpoints have no gamma, and until PyTorch 1.1 a BatchNorm's weight was drawn from U(0, 1): "
        "a port that does not set it to one leaves it random.",
        Cause.UNLOADED,
        (
            _old_initial_scale("Repeat_1/block17_2/Branch_0/Conv2d_1x1", 2),
            _old_initial_scale("Repeat_2/block8_4/Branch_1/Conv2d_0a_1x1", 3),
            _old_initial_scale("Bottleneck", 4),
        ),
    ),
    Fault(
        "not-loaded",
        "weights",
        "`load_state_dict(strict=False)` with a misspelled key leaves a statistic at zero or one, and a "
        "kernel as PyTorch drew it.",
        Cause.UNLOADED,
        (
            *in_variables(
                np.zeros_like,
                "Conv2d_4a_3x3/BatchNorm/moving_mean",
                "Repeat/block35_3/Branch_1/Conv2d_0b_3x3/BatchNorm/beta",
            ),
            *in_variables(
                np.ones_like,
                "Repeat_1/block17_6/Branch_1/Conv2d_0a_1x1/BatchNorm/moving_variance",
            ),
            *in_variables(_drawn, "Mixed_7a/Branch_1/Conv2d_0a_1x1/weights"),
        ),
    ),
    in_weights(
        "bias-dropped",
        "Only the residual 1x1 convolutions and the classifier have a bias; a port that gives every "
        "convolution `bias=False` drops it.",
        Cause.UNLOADED,
        np.zeros_like,
        "Repeat/block35_2/Conv2d_1x1/biases",
        "Repeat_1/block17_9/Conv2d_1x1/biases",
        "Block8/Conv2d_1x1/biases",
        "Logits/biases",
    ),
    Fault(
        "folded-with-another-epsilon",
        "weights",
        "BatchNorm folded into the kernel with PyTorch's default epsilon and unfolded with the correct one, "
        "as on the way through a runtime that folds.",
        Cause.FOLDED,
        (
            _folded_with_epsilon("Conv2d_2b_3x3"),
            _folded_with_epsilon("Repeat_1/block17_4/Branch_1/Conv2d_0b_1x7"),
            _folded_with_epsilon("Bottleneck"),
        ),
    ),
    Fault(
        "averages-for-weights",
        "weights",
        "A checkpoint may hold an ExponentialMovingAverage beside every variable, and a port takes the "
        "average for the variable.",
        Cause.AVERAGES,
        (
            _from_averages("every tensor", "Conv2d_1a_3x3", lambda name: True),
            _from_averages("Mixed_6a", "Mixed_6a/Branch_0/Conv2d_1a_3x3", lambda name: "/Mixed_6a/" in name),
            _from_averages(
                "kernels of Repeat_2",
                "Repeat_2/block8_1/Branch_0/Conv2d_1x1",
                lambda name: "/Repeat_2/" in name and name.endswith("/weights"),
            ),
        ),
    ),
)
"""Every class of faults in statistics and biases."""
