"""The network's layers as functions in float64, with any tensors and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.core.activations import facenet_flatten
from checks.core.network import EPSILON, NORM_FLOOR, LayerKind, NetworkLayer

Tensors = Mapping[str, Tensor]
"""A layer's tensors by role: weight, and gamma, beta, mean, variance, or bias."""


def zeros_around(layer: NetworkLayer, weight: Tensor) -> tuple[int, int, int, int]:
    """The zeros around the input of a convolution: left, right, top, bottom, as `F.pad` takes them."""
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
    """Run the convolution or matrix product of a layer, without BatchNorm or biases."""
    if layer.kind is LayerKind.FULLY_CONNECTED:
        return F.linear(facenet_flatten(x), weight)
    if layer.kind in (LayerKind.BOTTLENECK, LayerKind.LOGITS):
        return F.linear(x.flatten(start_dim=1), weight)
    return convolve(x, weight, layer.stride, zeros_around(layer, weight))


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """Reshape a vector so that it runs along the channels of a map or matrix."""
    return vector.view(1, -1, *(1,) * (like.ndim - 2))


def batch_norm(x: Tensor, tensors: Tensors, epsilon: float = EPSILON, *, outside: bool = False) -> Tensor:
    """BatchNorm in inference: (x - mean) * gamma / sqrt(variance + epsilon) + beta.

    Args:
        x: (N, channels, ...).
        tensors: gamma, beta, mean, variance.
        epsilon: Added to the variance.
        outside: Whether to add epsilon to the root instead.
    """
    variance = tensors["variance"]
    root = variance.sqrt() + epsilon if outside else (variance + epsilon).sqrt()
    gamma, beta, mean = (per_channel(tensors[role], x) for role in ("gamma", "beta", "mean"))
    return (x - mean) * gamma / per_channel(root, x) + beta


def run_weights(layer: NetworkLayer, x: Tensor, tensors: Tensors) -> Tensor:
    """Run a layer with weights: unit, projection, bottleneck, logits; or one of MTCNN's."""
    if layer.kind is LayerKind.PRELU:
        return F.prelu(x, tensors["weight"])
    linear = linear_part(layer, x, tensors["weight"])
    if "bias" in tensors:
        return linear + per_channel(tensors["bias"], linear)
    normalised = batch_norm(linear, tensors)
    return F.relu(normalised) if layer.relu else normalised


def residual_sum(
    shortcut: Tensor, update: Tensor, a: float, b: float, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """The sum at the end of a residual block: activation(a * shortcut + b * update)."""
    return activation(a * shortcut + b * update)


def expected_output(layer: NetworkLayer, inputs: tuple[Tensor, ...], tensors: Tensors) -> Tensor:
    """The expected output of a layer with these inputs and tensors.

    Args:
        layer: The layer.
        inputs: As `NetworkLayer.inputs` orders them.
        tensors: By role; empty for a layer without tensors.
    """
    match layer.kind:
        case LayerKind.RESIDUAL:
            shortcut, update = inputs
            total = shortcut + layer.scale * update
            return F.relu(total) if layer.relu else total
        case LayerKind.REDUCTION:
            return torch.cat([*inputs[:-1], F.max_pool2d(inputs[-1], 3, stride=2)], dim=1)
        case LayerKind.MAX_POOL:
            assert layer.kernel is not None
            return F.max_pool2d(inputs[0], layer.kernel, layer.stride, ceil_mode=layer.padding == "SAME")
        case LayerKind.SOFTMAX:
            return F.softmax(inputs[0], dim=1)
        case LayerKind.AVERAGE_POOL:
            return inputs[0].mean((2, 3), keepdim=True)
        case LayerKind.EMBEDDINGS:
            return normalise(inputs[0])
        case _:
            return run_weights(layer, concatenated(inputs), tensors)


def normalise(prelogits: Tensor, floor: float = NORM_FLOOR) -> Tensor:
    """Divide each row by its L2 norm, or by `floor` if the norm is smaller."""
    return F.normalize(prelogits, eps=floor)


def distance(actual: Tensor | str, expected: Tensor) -> float:
    """Relative L2; infinite if there is no tensor, the shape differs, or a value is not finite."""
    if not isinstance(actual, Tensor) or actual.shape != expected.shape:
        return float("inf")
    gap, norm = float((actual - expected).norm()), float(expected.norm())
    if gap == 0.0:
        return 0.0
    return gap / norm if norm and gap < float("inf") else float("inf")


def layer_input(layer: NetworkLayer, images: Tensor, reference: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The reference's inputs of a layer, as `NetworkLayer.inputs` orders them."""
    return tuple(images if activation is None else reference[activation] for activation in layer.inputs)


def concatenated(parts: tuple[Tensor, ...]) -> Tensor:
    """Concatenate maps along the channels."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
