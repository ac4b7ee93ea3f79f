"""Faults between the layers: residual sums, the order of branches, pooling, dropout, and the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.controls.faults.change_port import Forward, forward_replaced, in_forwards, modules_set
from checks.controls.faults.fault import Apply, Fault, Site, activation_of, module_of
from checks.core.network import EMBEDDINGS, LOGITS
from checks.diagnosis.causes import Cause
from reference.inception_resnet_v1 import NORM_FLOOR

_POOL, _MIXED_6A, _MIXED_7A = "MaxPool_3a_3x3", "Mixed_6a", "Mixed_7a"
_POOLS = {_POOL: "maxpool_3a", _MIXED_6A: "mixed_6a.branch2", _MIXED_7A: "mixed_7a.branch3"}
_AVERAGE_POOL = "Logits/AvgPool_1a_8x8"


def _fault(name: str, shipped: str, cause: Cause | None, *sites: Site) -> Fault:
    return Fault(name, "hyperparameters", shipped, cause, sites)


def _branches(module: Any, x: Tensor) -> list[Tensor]:
    return [module.get_submodule(f"branch{index}")(x) for index in range(module.branches)]


# Residual blocks


def _scale_site(scope: str, scale: float) -> Site:
    return Site(f"{scope}: {scale}", activation_of(scope), modules_set(module_of(scope), scale=scale))


def _scaled_shortcut(module: Any, x: Tensor) -> Tensor:
    x = module.scale * x + module.conv2d(torch.cat(_branches(module, x), dim=1))
    return F.relu(x) if module.relu else x


def _reversed_branches(module: Any, x: Tensor) -> Tensor:
    x = x + module.scale * module.conv2d(torch.cat(_branches(module, x)[::-1], dim=1))
    return F.relu(x) if module.relu else x


def _branch_order_site(scope: str) -> Site:
    return Site(
        scope,
        activation_of(f"{scope}/Conv2d_1x1"),
        forward_replaced(module_of(scope), _reversed_branches),
    )


def _reduced(*order: int) -> Forward:
    def forward(module: Any, x: Tensor) -> Tensor:
        return torch.cat([module.get_submodule(f"branch{index}")(x) for index in order], dim=1)

    return forward


def _reduction_order_site(scope: str, *order: int) -> Site:
    return Site(
        f"{scope}: {order}", activation_of(scope), forward_replaced(module_of(scope), _reduced(*order))
    )


# Pooling


def _pools(forward: Forward) -> tuple[Site, ...]:
    return tuple(
        Site(scope, activation_of(scope), forward_replaced(path, forward)) for scope, path in _POOLS.items()
    )


def _shifted(module: Any, x: Tensor) -> Tensor:
    size = x.shape[2] - 1, x.shape[3] - 1
    return F.max_pool2d(F.pad(x, (1, 0, 1, 0))[:, :, : size[0] + 1, : size[1] + 1], 3, 2)


def _global_pool_site(label: str, forward: Forward) -> Site:
    return Site(label, activation_of(_AVERAGE_POOL), forward_replaced("avgpool_1a", forward))


# Dropout


def _dropout_site(label: str, forward: Forward) -> Site:
    return Site(label, activation_of("Bottleneck"), forward_replaced("dropout", forward))


def dropout_mask(x: Tensor, rate: float) -> Tensor:
    """Draw a seeded mask of 0 and 1 / (1 - rate), the same for both dtypes and in every run."""
    drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn >= rate).to(x.dtype) / (1 - rate)


# The head


def _head(forward: Forward) -> Apply:
    return forward_replaced("", forward, method="head")


def _embedding(normalise: Forward) -> Apply:
    def head(module: Any, prelogits: Tensor) -> Tensor:
        if module.classify:
            logits: Tensor = module.logits(prelogits)
            return logits
        return normalise(prelogits)

    return _head(head)


def _classifier(prepare: Forward) -> Apply:
    def head(module: Any, prelogits: Tensor) -> Tensor:
        if not module.classify:
            return F.normalize(prelogits, eps=NORM_FLOOR)
        logits: Tensor = module.logits(prepare(prelogits))
        return logits

    return _head(head)


def _normalisation_site(label: str, normalise: Forward) -> Site:
    return Site(label, EMBEDDINGS, _embedding(normalise))


def _floor_site(floor: float) -> Site:
    apply = _embedding(lambda prelogits: F.normalize(prelogits, eps=floor))
    return Site(f"{floor:.0e}", EMBEDDINGS, apply, "tiny embeddings")


def _classifier_input_site(label: str, prepare: Forward) -> Site:
    return Site(label, LOGITS, _classifier(prepare))


STRUCTURE: tuple[Fault, ...] = (
    _fault(
        "residual-scale",
        "Three kinds of block have three scales, 0.17, 0.10 and 0.20, and the last block has 1.0: a block "
        "copied from another kind keeps its scale.",
        Cause.RESIDUAL_SCALE,
        _scale_site("Repeat/block35_1", 0.1),
        _scale_site("Repeat_1/block17_6", 0.17),
        _scale_site("Repeat_2/block8_3", 0.1),
        _scale_site("Block8", 0.2),
    ),
    _fault(
        "shortcut-scaled",
        "The scale on the shortcut and not on the residual: the sum has the same two terms.",
        Cause.SCALED_SHORTCUT,
        *in_forwards(_scaled_shortcut, "Repeat/block35_5", "Repeat_1/block17_2", "Repeat_2/block8_1"),
    ),
    _fault(
        "branch-order",
        "Branches concatenated in another order than TensorFlow's: the 1x1 behind them takes any order with "
        "as many channels.",
        Cause.BRANCH_ORDER,
        _branch_order_site("Repeat/block35_2"),
        _branch_order_site("Repeat_1/block17_9"),
        _branch_order_site("Block8"),
    ),
    _fault(
        "reduction-order",
        "The pool before the convolutions, or two convolution branches exchanged: the next layer takes any "
        "order with as many channels.",
        Cause.BRANCH_ORDER,
        _reduction_order_site(_MIXED_6A, 1, 0, 2),
        _reduction_order_site(_MIXED_7A, 3, 0, 1, 2),
        _reduction_order_site(_MIXED_7A, 0, 2, 1, 3),
    ),
    _fault(
        "max-pool-padded",
        "Padding before the first pixel of a pool without padding, as TensorFlow's SAME or Caffe's pad: the "
        "windows begin one pixel earlier.",
        Cause.POOLING,
        *_pools(_shifted),
    ),
    _fault(
        "average-for-max-pool",
        "The branches of other Inception networks pool the average, and these pool the maximum.",
        Cause.POOLING,
        *_pools(lambda module, x: F.avg_pool2d(x, 3, 2)),
    ),
    _fault(
        "ceil-mode",
        "Caffe rounds the size of a pool's output up and ports of its networks set ceil_mode: at 160 pixels "
        "the first two pools here divide evenly and nothing shows.",
        Cause.POOLING,
        Site(_POOL, activation_of(_POOL), modules_set(_POOLS[_POOL], ceil_mode=True), "odd size"),
        Site(_MIXED_6A, activation_of(_MIXED_6A), modules_set(_POOLS[_MIXED_6A], ceil_mode=True), "odd size"),
        Site(_MIXED_7A, activation_of(_MIXED_7A), modules_set(_POOLS[_MIXED_7A], ceil_mode=True)),
    ),
    _fault(
        "global-pool",
        "A maximum, a sum, or a fixed window that does not cover the map, instead of the mean over the map.",
        Cause.POOLING,
        _global_pool_site("maximum", lambda module, x: F.adaptive_max_pool2d(x, 1)),
        _global_pool_site("sum", lambda module, x: x.sum(dim=(2, 3), keepdim=True)),
        _global_pool_site("window of 2x2", lambda module, x: x[:, :, :2, :2].mean(dim=(2, 3), keepdim=True)),
    ),
    _fault(
        "dropout-in-inference",
        "F.dropout is active by default, also in a module in evaluation mode.",
        Cause.DROPOUT,
        _dropout_site("before the Bottleneck", lambda module, x: x * dropout_mask(x, module.p)),
        _dropout_site("at half the rate", lambda module, x: x * dropout_mask(x, module.p / 2)),
        _dropout_site("channels of the map", lambda module, x: x * dropout_mask(x[:1], module.p)),
    ),
    _fault(
        "another-normalisation",
        "facenet_keras.h5 ends before the L2 normalisation, and its users leave it out, or take another axis "
        "or norm.",
        Cause.NORMALISATION,
        _normalisation_site("not at all", lambda prelogits: prelogits),
        _normalisation_site("over the batch", lambda prelogits: F.normalize(prelogits, dim=0)),
        _normalisation_site("L1", lambda prelogits: F.normalize(prelogits, p=1.0)),
    ),
    _fault(
        "norm-floor",
        "F.normalize has a floor of 1e-12 under the norm and tf.nn.l2_normalize one of 1e-10 under its "
        "square: ports take the default or forget the root.",
        Cause.NORMALISATION,
        _floor_site(1e-12),
        _floor_site(1e-10),
        _floor_site(1e-6),
    ),
    _fault(
        "logits-of-another-input",
        "The classifier was trained on the embedding before its normalisation, and ports give it the "
        "normalised embedding, as for margin losses.",
        Cause.CLASSIFIER_INPUT,
        _classifier_input_site("normalised", lambda prelogits: F.normalize(prelogits)),
        _classifier_input_site("rectified", F.relu),
        _classifier_input_site("normalised and scaled by 64", lambda prelogits: 64 * F.normalize(prelogits)),
    ),
)
"""Every class of faults between the layers."""
