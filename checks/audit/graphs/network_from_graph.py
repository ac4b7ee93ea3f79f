"""Build the network in PyTorch with a graph's own weights, folded as in the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from checks.audit.graphs.find_layers import GraphLayers
from checks.audit.port_layers import PortTensor, Role
from checks.core.activations import LAYERS
from checks.core.network import BOTTLENECK, LOGITS
from reference import InceptionResnetV1
from reference.inception_resnet_v1 import Residual

Tensors = Mapping[Role, PortTensor]
_BATCH_NORM: Mapping[Role, str] = {
    "gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var",
}  # fmt: skip


class _Affine(nn.Module):
    """A product and a sum for each channel of a matrix."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def embedding_size_of(graph_layers: GraphLayers) -> int:
    """The size of a graph's embeddings, by the weights of its Bottleneck."""
    kernel = graph_layers.weights.layers[BOTTLENECK]["weights"]
    size: int = kernel.layout.inverse.shape(kernel.array.shape)[-1]
    return size


def network_from_graph(graph_layers: GraphLayers) -> InceptionResnetV1:
    """Build the network in evaluation mode; it computes in float64.

    Only the weights are the graph's. A fault in the graph's structure makes the two results differ.
    """
    layers = graph_layers.weights.layers
    embedding_size = embedding_size_of(graph_layers)
    classes = len(layers[LOGITS]["biases"].array) if LOGITS in layers else None
    with torch.device("meta"):  # no memory and no initial values, which the weights replace
        model = InceptionResnetV1(num_classes=classes, embedding_size=embedding_size)
    for scope, module in LAYERS.items():
        _set_convolution(model, module, layers[scope])
    model.last_linear = _linear(layers[BOTTLENECK])
    model.last_bn = _batch_norm(layers[BOTTLENECK], model.last_bn)  # type: ignore[assignment]
    if LOGITS in layers:
        model.logits = _linear(layers[LOGITS])
    return model.double().eval()


def _set_convolution(model: InceptionResnetV1, module: str, tensors: Tensors) -> None:
    """Put the tensors of a layer into its module: a residual's last convolution, or a unit with BatchNorm."""
    unit = model.get_submodule(module)
    if isinstance(unit, nn.Conv2d):
        block = model.get_submodule(module.rpartition(".")[0])
        assert isinstance(block, Residual)
        block.scale = float(tensors["factor"].array[0]) if "factor" in tensors else 1.0
        _fill(unit, tensors)
        return
    convolution = unit.get_submodule("conv")
    assert isinstance(convolution, nn.Conv2d)
    _fill(convolution, tensors)
    unit.bn = _batch_norm(tensors, unit.get_submodule("bn"))


def _fill(convolution: nn.Conv2d, tensors: Tensors) -> None:
    convolution.weight = nn.Parameter(_kernel(tensors["weights"]))
    convolution.bias = nn.Parameter(_vector(tensors["biases"])) if "biases" in tensors else None


def _linear(tensors: Tensors) -> nn.Linear:
    kernel = _kernel(tensors["weights"])
    kernel = kernel.reshape(kernel.shape[:2])
    linear = nn.Linear(kernel.shape[1], kernel.shape[0], bias="biases" in tensors)
    linear.weight = nn.Parameter(kernel)
    if "biases" in tensors:
        linear.bias = nn.Parameter(_vector(tensors["biases"]))
    return linear


def _batch_norm(tensors: Tensors, module: nn.Module) -> nn.Module:
    """Build the module after the weights: a BatchNorm, a product and a sum, or the identity if folded in."""
    if "moving_variance" in tensors:
        for role, name in _BATCH_NORM.items():
            value = _vector(tensors[role])
            setattr(module, name, nn.Parameter(value) if name in ("weight", "bias") else value)
        module.num_batches_tracked = torch.tensor(0)
        return module
    if "scale" in tensors:
        scale = _vector(tensors["scale"])
        return _Affine(scale, _vector(tensors["shift"]) if "shift" in tensors else torch.zeros_like(scale))
    return nn.Identity()


def _kernel(tensor: PortTensor) -> Tensor:
    array = tensor.channels_first()
    assert array is not None  # the kernel of a unit has the rank of its layout
    return _float64(array)


def _vector(tensor: PortTensor) -> Tensor:
    return _float64(tensor.array.reshape(-1))


def _float64(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))
