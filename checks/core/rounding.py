"""The rounding of each layer, measured on the layer's own input against what its precision allows.

Every layer is fed its own rounded input: its output is compared with the float64 result of the same input. So
errors of the layers before it play no part, and neither does another implementation.

Rounding errors are taken as independent, with mean zero (Higham and Mary, "A New Approach to Probabilistic
Rounding Error Analysis", SIAM J. Sci. Comput. 41, 2019). Their bound on an inner product of n terms,
|error| <= lambda sqrt(n) u sum |x_i w_i|, supposes that partial sums are as large as that sum. Weights have
either sign, and partial sums then grow as a random walk: the sum is replaced by sqrt(sum (x_i w_i)^2) (the
same, "Sharper Probabilistic Backward Error Analysis for Basic Linear Algebra Kernels with Random Data", 42,
2020). The bound is on the root mean square over all outputs of a layer, which varies little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks.core import thresholds
from checks.core.activations import (
    LAYERS,
    STAGES,
    Model,
    MtcnnModel,
    facenet_flatten,
    name_of,
    one_thread,
    run_module,
)
from checks.core.mtcnn_network import MTCNN_LAYERS, MTCNN_MODULES
from checks.core.network import BOTTLENECK, NETWORK, NORM_FLOOR, LayerKind, NetworkLayer
from checks.core.types import Array, Arrays
from reference import InceptionResnetV1
from reference.inception_resnet_v1 import Residual


@dataclass(frozen=True, slots=True)
class LayerRounding:
    """The rounding of one layer.

    Attributes:
        activation: TensorFlow scope of the layer.
        error: Relative L2 of its output from the float64 result of the same input.
        bound: The largest error that rounding allows.
    """

    activation: str
    error: float
    bound: float

    @property
    def share(self) -> float:
        """The error as a share of the bound."""
        return self.error / self.bound

    @property
    def exceeds(self) -> bool:
        """True if the error is larger than rounding allows; NaN is."""
        return not self.error <= self.bound


def worst_share(layers: Sequence[LayerRounding]) -> float:
    """The largest share of the bound; 0 without layers."""
    return max((layer.share for layer in layers), default=0.0)


def describe_share(share: float) -> str:
    """Format a share of the bound, such as "0.16" or "5e+03"; a dash stands for one that is not finite."""
    if not math.isfinite(share):
        return "-"
    return f"{share:.2f}" if share < 1000 else f"{share:.0e}"


def describe_worst(share: float) -> str:
    """Describe the largest share of the bound, as the object of "the worst layer has"."""
    if not math.isfinite(share):
        return "values that are not finite"
    return f"{describe_share(share)} of the error that rounding allows"


def measure_rounding(
    exact: Model,
    images: Array | None,
    activations: Arrays,
    roundoff: float = thresholds.UNIT_ROUNDOFF,
) -> tuple[LayerRounding, ...]:
    """Measure every layer whose output and inputs are given.

    Args:
        exact: The network with the same weights, float64, in evaluation mode.
        images: (N, H, W, 3), the input of the first layer; None leaves that layer out.
        activations: Activation to array, in the precision that is judged: maps as (N, H', W', channels).
        roundoff: The unit roundoff of that precision.

    Returns:
        The layers in the order of evaluation.
    """
    outputs: dict[str | None, Tensor] = {name: _float64(array) for name, array in activations.items()}
    if images is not None:
        outputs[None] = _float64(images)
    measured = []
    with one_thread(), torch.inference_mode():
        layers = NETWORK if isinstance(exact, InceptionResnetV1) else MTCNN_LAYERS[name_of(exact)]
        for name, layer in layers.items():
            if name in outputs and all(each in outputs for each in layer.inputs):
                try:
                    expected, variance = _run(exact, layer, [outputs[each] for each in layer.inputs])
                except RuntimeError:  # PyTorch's, where a wrong layer before it gives another size
                    measured.append(LayerRounding(name, math.inf, thresholds.ROUNDING * roundoff))
                    continue
                measured.append(_measure(name, outputs[name], expected, variance, roundoff))
    return tuple(measured)


def first_image(images: Array, activations: Arrays) -> tuple[Array, Arrays]:
    """Take the first image of a batch, with its activations: enough for a root mean square."""
    return images[:1], {name: array[:1] for name, array in activations.items()}


def _measure(name: str, actual: Tensor, expected: Tensor, variance: Tensor, roundoff: float) -> LayerRounding:
    """Measure the output of one layer.

    Args:
        name: The layer.
        actual: Its output.
        expected: The float64 result of the same input.
        variance: The variance of each element's error, in squared roundoffs.
        roundoff: The unit roundoff.
    """
    limit = thresholds.ROUNDING * roundoff
    if actual.numel() != expected.numel():
        return LayerRounding(name, math.inf, limit)
    actual = actual.reshape(expected.shape)  # a graph may keep a vector as a map of one pixel
    open_ = (actual != 0) | (expected != 0)  # a closed ReLU hides errors
    norm = float(expected.norm()) or float(actual.norm())
    if norm == 0.0:
        return LayerRounding(name, 0.0, limit)
    error = float((actual - expected).norm()) / norm
    allowed = math.sqrt(float((variance * open_).sum())) / norm
    if not math.isfinite(error) or not math.isfinite(allowed):
        return LayerRounding(name, math.inf, limit)
    return LayerRounding(name, error, limit * max(1.0, allowed))


def _run(model: Model, layer: NetworkLayer, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Run a layer in float64; return its output and the variance of each element, in squared roundoffs."""
    if not isinstance(model, InceptionResnetV1):
        return _run_mtcnn(model, layer, inputs[0])
    match layer.kind:
        case LayerKind.RESIDUAL:
            block = model.get_submodule(STAGES[layer.activation])
            assert isinstance(block, Residual)
            shortcut, update = inputs[0], block.scale * inputs[1]
            total = shortcut + update
            return F.relu(total) if layer.relu else total, 2 * (shortcut**2 + update**2)
        case LayerKind.MAX_POOL | LayerKind.REDUCTION:
            pool = F.max_pool2d(inputs[-1], 3, stride=2)
            joined = torch.cat([*inputs[:-1], pool], dim=1)
            return joined, joined**2  # copies: at most stored anew
        case LayerKind.AVERAGE_POOL:
            # All terms have one sign, so the partial sums are as large as they can be.
            mean = inputs[0].mean((2, 3), keepdim=True)
            return mean, inputs[0][0, 0].numel() * mean**2
        case LayerKind.EMBEDDINGS:
            embeddings = F.normalize(inputs[0].flatten(start_dim=1), eps=NORM_FLOOR)
            return embeddings, embeddings.shape[1] * embeddings**2
    x = torch.cat(inputs, dim=1)
    if layer.kind is LayerKind.UNIT:
        unit = model.get_submodule(LAYERS[layer.activation])
        output, variance = _run_linear(unit.get_submodule("conv"), unit.get_submodule("bn"), x)
    elif layer.kind is LayerKind.PROJECTION:
        output, variance = _run_linear(model.get_submodule(LAYERS[layer.activation]), nn.Identity(), x)
    elif layer.activation == BOTTLENECK:
        output, variance = _run_linear(model.last_linear, model.last_bn, x.flatten(start_dim=1))
    else:
        assert model.logits is not None
        output, variance = _run_linear(model.logits, nn.Identity(), x.flatten(start_dim=1))
    return F.relu(output) if layer.relu else output, variance


def _run_mtcnn(model: MtcnnModel, layer: NetworkLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a layer of MTCNN, as `_run` does."""
    match layer.kind:
        case LayerKind.CONVOLUTION | LayerKind.FULLY_CONNECTED:
            module = model.get_submodule(MTCNN_MODULES[name_of(model)][layer.activation])
            flat = facenet_flatten(x) if layer.kind is LayerKind.FULLY_CONNECTED else x
            return _run_linear(module, nn.Identity(), flat)
        case LayerKind.SOFTMAX:
            output = run_module(model, layer.activation, x)
            # A share is 1 / (1 + exp(difference)). The difference is rounded, and then its exponential: both
            # move a share by its distance from one at most. The sum and the quotient are rounded last.
            difference = x[:, :1] - x[:, 1:]
            return output, output**2 * ((1 - output) ** 2 * (difference**2 + 1) + 2)
        case _:  # a product at most, or a copy
            output = run_module(model, layer.activation, x)
            return output, output**2


def _run_linear(linear: nn.Module, norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a convolution or matrix product, and the normalisation after it, as one inner product.

    Its terms are the products with the weights, times the factor of the normalisation, and the summands.
    """
    assert isinstance(linear, nn.Conv2d | nn.Linear)
    square, weight = x.float() ** 2, linear.weight.float() ** 2  # float32 has digits enough for a variance
    if isinstance(linear, nn.Conv2d):
        squares = F.conv2d(square, weight, None, linear.stride, linear.padding)
    else:
        squares = F.linear(square, weight)
    channels = (len(weight), 1, 1) if squares.ndim == 4 else (len(weight),)
    bias = torch.zeros(channels, dtype=x.dtype) if linear.bias is None else linear.bias.view(channels)
    shift, end = norm(torch.stack([torch.zeros_like(bias), torch.ones_like(bias)]))
    factor = end - shift
    terms = linear.weight[0].numel() + 2
    return norm(linear(x)), terms * (factor**2 * (squares + bias**2) + shift**2)


def _float64(array: Array) -> Tensor:
    """Widen an array, and turn a map into (N, channels, H, W)."""
    tensor = torch.from_numpy(array).double()
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor
