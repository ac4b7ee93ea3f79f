"""Faults in a layer: its tensors are correct; its epsilon, activation, padding or arithmetic is not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks.controls.faults.change_port import (
    Forward,
    forward_replaced,
    in_batch_norms,
    in_forwards,
    modules_set,
)
from checks.controls.faults.fault import Fault, Site, activation_of
from checks.diagnosis.causes import Cause

_EPSILON = 1e-5  # PyTorch's default for BatchNorm
_LEAK = 0.01  # PyTorch's default slope


def _fault(name: str, shipped: str, cause: Cause | None, *sites: Site) -> Fault:
    return Fault(name, "hyperparameters", shipped, cause, sites)


def _in_layers(
    name: str, shipped: str, cause: Cause, forward: Forward, *scopes: str, part: str = ""
) -> Fault:
    return _fault(name, shipped, cause, *in_forwards(forward, *scopes, part=part))


# BatchNorm


def _epsilon_outside(module: Any, x: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.ndim - 2))
    deviation = torch.sqrt(module.running_var) + module.eps
    normalised = (x - module.running_mean.view(shape)) / deviation.view(shape)
    output: Tensor = normalised * module.weight.view(shape) + module.bias.view(shape)
    return output


# ReLU


def _no_relu_after_sum(module: Any, x: Tensor) -> Tensor:
    mixed = torch.cat([module.get_submodule(f"branch{index}")(x) for index in range(module.branches)], dim=1)
    output: Tensor = x + module.scale * module.conv2d(mixed)
    return output


# Padding


def _shifted(module: Any, x: Tensor) -> Tensor:
    vertical, horizontal = module.padding
    padded = F.pad(x, (2 * horizontal, 0, 2 * vertical, 0))
    return F.conv2d(padded, module.weight, module.bias, module.stride)


def _same(module: Any, x: Tensor) -> Tensor:
    pads: list[int] = []
    for size, kernel, stride in zip(
        x.shape[:1:-1], module.kernel_size[::-1], module.stride[::-1], strict=True
    ):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), module.weight, module.bias, module.stride)


def _padding_mode(mode: str) -> Forward:
    def forward(module: Any, x: Tensor) -> Tensor:
        vertical, horizontal = module.padding
        padded = F.pad(x, (horizontal, horizontal, vertical, vertical), mode=mode)
        return F.conv2d(padded, module.weight, module.bias, module.stride)

    return forward


def _turned(module: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, module.weight.transpose(2, 3), module.bias, module.stride, module.padding[::-1])


# Arithmetic


def truncated(values: Tensor) -> Tensor:
    """Truncate float32 to the ten bits of fraction that TF32 multiplies with."""
    bits = values.contiguous().view(torch.int32)
    return (bits & ~0x1FFF).view(torch.float32)


def _tf32(module: Any, x: Tensor) -> Tensor:
    kernel = truncated(module.weight)
    if isinstance(module, nn.Linear):
        return F.linear(truncated(x), kernel)
    return F.conv2d(truncated(x), kernel, module.bias, module.stride, module.padding)


HYPERPARAMETERS: tuple[Fault, ...] = (
    _fault(
        "epsilon-of-pytorch",
        "PyTorch's 1e-5 for slim's 1e-3. Left in the last BatchNorm alone it moves an embedding by 1.75e-5 "
        "and passes a gate of 5e-5.",
        Cause.EPSILON,
        *in_batch_norms("Repeat/block35_4/Branch_1/Conv2d_0b_3x3", "Bottleneck", eps=_EPSILON),
    ),
    _in_layers(
        "epsilon-outside-root",
        "A BatchNorm written by hand as (x - mean) / (sqrt(variance) + epsilon), as it stands in optimisers.",
        Cause.EPSILON_PLACE,
        _epsilon_outside,
        "Conv2d_2b_3x3",
        "Repeat_1/block17_3/Branch_1/Conv2d_0c_7x1",
        "Bottleneck",
        part="bn",
    ),
    _in_layers(
        "batch-norm-left-out",
        "A unit written without its BatchNorm, or a fold that forgets one.",
        Cause.BATCH_NORM,
        lambda module, x: x,
        "Repeat/block35_1/Branch_1/Conv2d_0a_1x1",
        "Repeat_1/block17_10/Branch_0/Conv2d_1x1",
        "Bottleneck",
        part="bn",
    ),
    _fault(
        "batch-statistics",
        "A BatchNorm left in training mode: `eval()` forgotten, or phase_train fed as True.",
        Cause.BATCH_STATISTICS,
        *in_batch_norms(
            "Repeat_1/block17_6/Branch_1/Conv2d_0b_1x7",
            "Bottleneck",
            training=True,
            track_running_stats=False,  # keeps the statistics as they are
        ),
    ),
    _fault(
        "relu-missing",
        "slim's conv2d includes a ReLU and PyTorch's Conv2d does not: a layer written without the wrapper "
        "loses it.",
        Cause.RELU,
        *in_forwards(
            lambda module, x: module.bn(module.conv(x)), "Conv2d_4b_3x3", "Mixed_6a/Branch_1/Conv2d_0b_3x3"
        ),
        *in_forwards(_no_relu_after_sum, "Repeat/block35_3", "Repeat_2/block8_4"),
    ),
    _fault(
        "relu-too-many",
        "The last block has no ReLU, but ports that repeat a Block8 six times give it one. slim's default "
        "of a ReLU on every layer, applied to the residual 1x1 or the Bottleneck, is the same slip.",
        Cause.RELU,
        Site("Block8", activation_of("Block8"), modules_set("block8", relu=True)),
        *in_forwards(
            lambda module, x: F.relu(nn.Conv2d.forward(module, x)),
            "Repeat/block35_2/Conv2d_1x1",
            "Repeat_1/block17_7/Conv2d_1x1",
        ),
        *in_forwards(lambda module, x: F.relu(nn.BatchNorm1d.forward(module, x)), "Bottleneck", part="bn"),
    ),
    _in_layers(
        "relu-before-batch-norm",
        "Convolution, ReLU, BatchNorm, as in some Keras examples, instead of convolution, BatchNorm, ReLU.",
        Cause.RELU_ORDER,
        lambda module, x: module.bn(F.relu(module.conv(x))),
        "Conv2d_2a_3x3",
        "Repeat_1/block17_8/Branch_1/Conv2d_0c_7x1",
        "Mixed_7a/Branch_2/Conv2d_0b_3x3",
    ),
    _in_layers(
        "relu-leaky",
        "PReLU and leaky ReLU of other face networks (MTCNN, SphereFace) in a shared convolution unit.",
        Cause.RELU,
        lambda module, x: F.leaky_relu(module.bn(module.conv(x)), _LEAK),
        "Conv2d_1a_3x3",
        "Repeat/block35_5/Branch_2/Conv2d_0a_1x1",
        "Repeat_2/block8_1/Branch_1/Conv2d_0b_1x3",
    ),
    _in_layers(
        "padding-on-one-side",
        "TensorFlow's SAME padding is uneven at stride 2: ports that pad unevenly at stride 1 as well shift "
        "the map.",
        Cause.PADDING,
        _shifted,
        "Conv2d_2b_3x3",
        "Repeat_1/block17_1/Branch_1/Conv2d_0b_1x7",
        "Repeat_2/block8_3/Branch_1/Conv2d_0c_3x1",
        part="conv",
    ),
    _fault(
        "same-for-valid",
        "slim's conv2d pads by default (SAME), and the stem and the reductions of this network say VALID: a "
        "port that misses it gives larger maps.",
        Cause.PADDING,
        *in_forwards(_same, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4b_3x3", part="conv"),
    ),
    _fault(
        "padding-not-of-zeros",
        "Reflected or replicated borders, the default of image libraries, instead of TensorFlow's zeros.",
        Cause.PADDING,
        *in_forwards(_padding_mode("reflect"), "Conv2d_2b_3x3", part="conv"),
        *in_forwards(_padding_mode("replicate"), "Repeat_1/block17_4/Branch_1/Conv2d_0c_7x1", part="conv"),
        *in_forwards(_padding_mode("circular"), "Mixed_7a/Branch_2/Conv2d_0b_3x3", part="conv"),
    ),
    _in_layers(
        "one-by-seven-turned",
        "1x7 computed as 7x1: (width, height), the order of image libraries, instead of (height, width).",
        Cause.HEIGHT_WIDTH,
        _turned,
        "Repeat_1/block17_2/Branch_1/Conv2d_0b_1x7",
        "Repeat_2/block8_4/Branch_1/Conv2d_0b_1x3",
        "Block8/Branch_1/Conv2d_0c_3x1",
        part="conv",
    ),
    _fault(
        "tf32-products",
        "On Ampere and later, PyTorch by default lets cuDNN multiply float32 in TF32: neither float64 nor a "
        "gate on the weights shows it.",
        None,
        *in_forwards(_tf32, "Conv2d_2b_3x3", "Mixed_6a/Branch_0/Conv2d_1a_3x3", part="conv", only32=True),
        *in_forwards(_tf32, "Repeat_2/block8_2/Conv2d_1x1", only32=True),
        Site("Bottleneck", activation_of("Bottleneck"), forward_replaced("last_linear", _tf32, only32=True)),
    ),
)
"""Every class of faults in the layers."""
