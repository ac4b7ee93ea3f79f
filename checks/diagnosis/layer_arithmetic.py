"""The network's layers as functions in float64, each to be run by itself with any tensors and settings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.core.network import EPSILON, NORM_FLOOR, LayerKind, NetworkLayer

Tensors = Mapping[str, Tensor]
"""A layer's tensors by role: weight, and gamma, beta, mean, variance, or bias."""


def zeros_around(layer: NetworkLayer, weight: Tensor) -> tuple[int, int, int, int]:
    """Zeros around the input of a convolution: left, right, top, bottom, as `F.pad` takes them."""
    if layer.padding == "VALID":
        return (0, 0, 0, 0)
    height, width = weight.shape[2:]
    return ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)


def convolve(
    x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int, int, int], mode: str = "constant"
) -> Tensor:
    """Cross-correlation after padding (left, right, top, bottom)."""
    return F.conv2d(F.pad(x, padding, mode) if any(padding) else x, weight, stride=stride)


def linear_part(layer: NetworkLayer, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution or matrix product of a layer, without BatchNorm or biases."""
    if layer.kind in (LayerKind.BOTTLENECK, LayerKind.LOGITS):
        return F.linear(x.flatten(start_dim=1), weight)
    return convolve(x, weight, layer.stride, zeros_around(layer, weight))


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """A vector in the shape that lies along the channels of a map or matrix."""
    return vector.view(1, -1, *(1,) * (like.ndim - 2))


def batch_norm(x: Tensor, tensors: Tensors, epsilon: float = EPSILON, *, outside: bool = False) -> Tensor:
    """BatchNorm in inference: (x - mean) * gamma / sqrt(variance + epsilon) + beta.

    Args:
        x: (N, channels, ...).
        tensors: gamma, beta, mean, variance.
        epsilon: What is added to the variance.
        outside: Whether it is added to the root instead.
    """
    variance = tensors["variance"]
    root = variance.sqrt() + epsilon if outside else (variance + epsilon).sqrt()
    gamma, beta, mean = (per_channel(tensors[role], x) for role in ("gamma", "beta", "mean"))
    return (x - mean) * gamma / per_channel(root, x) + beta


def finish(layer: NetworkLayer, linear: Tensor, tensors: Tensors) -> Tensor:
    """What follows a layer's convolution or matrix product: BatchNorm or biases, and the ReLU."""
    if "bias" in tensors:
        return linear + per_channel(tensors["bias"], linear)
    normalised = batch_norm(linear, tensors)
    return F.relu(normalised) if layer.relu else normalised


def run_weights(layer: NetworkLayer, x: Tensor, tensors: Tensors) -> Tensor:
    """A layer that has tensors: unit, projection, bottleneck, logits."""
    return finish(layer, linear_part(layer, x, tensors["weight"]), tensors)


def residual(layer: NetworkLayer, shortcut: Tensor, update: Tensor) -> Tensor:
    """The sum at the end of a residual block."""
    total = shortcut + layer.scale * update
    return F.relu(total) if layer.relu else total


def normalise(prelogits: Tensor, floor: float = NORM_FLOOR) -> Tensor:
    """Embeddings: each row over its L2 norm, which counts as `floor` at least."""
    return F.normalize(prelogits, eps=floor)


def distance(found: Tensor | str | None, wanted: Tensor) -> float:
    """Relative L2; infinite where there is nothing, another shape, or a value that is not finite."""
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return float("inf")
    gap, norm = float((found - wanted).norm()), float(wanted.norm())
    if gap == 0.0:
        return 0.0
    return gap / norm if norm and gap < float("inf") else float("inf")


def layer_input(layer: NetworkLayer, images: Tensor, reference: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The reference's activations that a layer takes, as `NetworkLayer.inputs` orders them."""
    return tuple(images if activation is None else reference[activation] for activation in layer.inputs)


def concatenated(parts: tuple[Tensor, ...]) -> Tensor:
    """Maps side by side along the channels; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
