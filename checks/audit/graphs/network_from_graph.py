"""The network in PyTorch with a graph's own weights, as the graph has them: folded where they are folded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from checks.audit.graphs.find_layers import GraphLayers
from checks.audit.port_layers import BOTTLENECK, PortTensor, Role
from checks.core.activations import LAYERS
from converter.layer_map import LOGITS_SCOPE
from converter.layouts import CONVOLUTION, FULLY_CONNECTED
from reference import InceptionResnetV1
from reference.inception_resnet_v1 import Residual

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


class _Affine(nn.Module):
    """A product and a sum for each channel of a matrix."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def network_from_graph(graph_layers: GraphLayers, dtype: torch.dtype) -> InceptionResnetV1:
    """Build the network in evaluation mode; its arithmetic is in `dtype`.

    Whatever the graph does otherwise than the network, the network does right: they then differ.
    """
    layers = graph_layers.weights.layers
    size = layers[BOTTLENECK]["weights"].array.shape
    outputs = layers[BOTTLENECK]["weights"].layout.inverse.shape(size)[-1]
    classes = len(layers[LOGITS_SCOPE]["biases"].array) if LOGITS_SCOPE in layers else None
    model = InceptionResnetV1(num_classes=classes, embedding_size=outputs)
    for scope, module in LAYERS.items():
        _set_convolution(model, module, layers[scope])
    bottleneck = layers[BOTTLENECK]
    model.last_linear = _linear(bottleneck)
    model.last_bn = _norm(bottleneck, model.last_bn)  # type: ignore[assignment]
    if LOGITS_SCOPE in layers:
        model.logits = _linear(layers[LOGITS_SCOPE])
    return model.to(dtype).eval()


def _set_convolution(model: InceptionResnetV1, module: str, tensors: Mapping[Role, PortTensor]) -> None:
    parent = model.get_submodule(module)
    if isinstance(parent, nn.Conv2d):
        block = model.get_submodule(module.rpartition(".")[0])
        assert isinstance(block, Residual)
        block.scale = float(tensors["factor"].array[0]) if "factor" in tensors else 1.0
        _fill(parent, tensors)
        return
    convolution = parent.get_submodule("conv")
    assert isinstance(convolution, nn.Conv2d)
    _fill(convolution, tensors)
    parent.bn = _norm(tensors, parent.get_submodule("bn"))


def _fill(convolution: nn.Conv2d, tensors: Mapping[Role, PortTensor]) -> None:
    convolution.weight = nn.Parameter(_kernel(tensors["weights"]))
    convolution.bias = nn.Parameter(_vector(tensors["biases"])) if "biases" in tensors else None


def _linear(tensors: Mapping[Role, PortTensor]) -> nn.Linear:
    kernel = _kernel(tensors["weights"])
    kernel = kernel.reshape(kernel.shape[:2])
    linear = nn.Linear(kernel.shape[1], kernel.shape[0], bias="biases" in tensors)
    linear.weight = nn.Parameter(kernel)
    if "biases" in tensors:
        linear.bias = nn.Parameter(_vector(tensors["biases"]))
    return linear


def _norm(tensors: Mapping[Role, PortTensor], norm: nn.Module) -> nn.Module:
    """What follows the weights: a BatchNorm, a product and a sum, or nothing where it is folded in."""
    if "moving_variance" in tensors:
        for role, name in _NORM.items():
            value = _vector(tensors[role])  # type: ignore[index]
            setattr(norm, name, nn.Parameter(value) if name in ("weight", "bias") else value)
        return norm
    if "scale" in tensors:
        scale = _vector(tensors["scale"])
        shift = _vector(tensors["shift"]) if "shift" in tensors else torch.zeros_like(scale)
        return _Affine(scale, shift)
    return nn.Identity()


def _kernel(tensor: PortTensor) -> Tensor:
    array = tensor.layout.inverse.apply(tensor.array)
    return _float64((CONVOLUTION if array.ndim == 4 else FULLY_CONNECTED).apply(array))


def _vector(tensor: PortTensor) -> Tensor:
    return _float64(tensor.array.reshape(-1))


def _float64(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))
