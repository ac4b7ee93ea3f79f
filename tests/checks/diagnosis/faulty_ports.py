"""Faulty ports: each fault, with the cause and the place that a diagnosis should name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from checks.core.activations import activation_names
from checks.core.models import build_exact
from checks.core.network import EMBEDDINGS
from checks.diagnosis.causes import Cause
from converter.layer_map import Variant
from reference import InceptionResnetV1

Arrays = dict[str, NDArray[Any]]
CLASSES = 7
ACTIVATIONS = activation_names(every_layer=True, logits=True)
UNIT = "repeat_1.2.branch1.1"  # a 3x3 convolution of 32 channels, with as many inputs
UNIT_ACTIVATION = "Repeat/block35_3/Branch_1/Conv2d_0b_3x3"
UNITS = {
    f"repeat_1.{block}.{module}": f"Repeat/block35_{block + 1}/{layer}"
    for block in (0, 2, 4)
    for module, layer in (
        ("branch1.1", "Branch_1/Conv2d_0b_3x3"),
        ("branch2.1", "Branch_2/Conv2d_0b_3x3"),
        ("branch2.2", "Branch_2/Conv2d_0c_3x3"),
    )
}
"""Each unit that is as `UNIT`, which is one of them, to its activation."""

PIXELS = np.random.default_rng(7).integers(0, 256, (2, 123, 107, 3)).astype(np.uint8)
IMAGES = ((PIXELS - 127.5) / 128).astype(np.float32)


def port_of(state_dict: Mapping[str, NDArray[Any]]) -> InceptionResnetV1:
    arrays = {key: array.copy() for key, array in state_dict.items()}
    classes = len(arrays["logits.bias"]) if "logits.bias" in arrays else None
    model = build_exact(arrays, Variant(embedding_size=128, num_classes=classes))
    assert isinstance(model, InceptionResnetV1)
    return model


def same_bytes(first: NDArray[Any], second: NDArray[Any]) -> bool:
    same_type = (first.dtype, first.shape) == (second.dtype, second.shape)
    return same_type and first.tobytes() == second.tobytes()


# Faults in the weights


def _changed(key: str, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Arrays], None]:
    def fault(state_dict: Arrays) -> None:
        changed = function(state_dict[key].copy())
        state_dict[key] = np.ascontiguousarray(changed, dtype=np.float32)

    return fault


def _swapped(*pairs: tuple[str, str]) -> Callable[[Arrays], None]:
    def fault(state_dict: Arrays) -> None:
        for first, second in pairs:
            state_dict[first], state_dict[second] = state_dict[second], state_dict[first]

    return fault


def weights_in(unit: str, fault: Callable[[Arrays], None]) -> Callable[[Arrays], None]:
    """Move a fault from the weights of `UNIT` to those of another unit."""

    def moved(state_dict: Arrays) -> None:
        keys = [key for key in state_dict if key.startswith(f"{UNIT}.") and unit != UNIT]
        swap = _swapped(*((key, key.replace(UNIT, unit)) for key in keys))
        swap(state_dict)
        fault(state_dict)
        swap(state_dict)

    return moved


def _mean_for_variance(state_dict: Arrays) -> None:
    mean, variance = f"{UNIT}.bn.running_mean", f"{UNIT}.bn.running_var"
    state_dict[mean], state_dict[variance] = state_dict[variance], np.abs(state_dict[mean])


def _one_step(kernel: NDArray[Any]) -> NDArray[Any]:
    kernel.reshape(-1)[1000] = np.nextafter(kernel.reshape(-1)[1000], np.float32(9))
    return kernel


def _to_int8(kernel: NDArray[Any]) -> NDArray[Any]:
    scale = np.abs(kernel).max() / 127
    return np.round(kernel / scale) * scale


def _fresh(kernel: NDArray[Any]) -> NDArray[Any]:
    torch.manual_seed(0)
    return nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2:]).weight.detach().numpy()


def _fold(state_dict: Arrays) -> None:
    variance = state_dict[f"{UNIT}.bn.running_var"].astype(np.float64)
    factor = np.sqrt((variance + 1e-3) / (variance + 1e-5))[:, None, None, None]
    state_dict[f"{UNIT}.conv.weight"] = (state_dict[f"{UNIT}.conv.weight"] * factor).astype(np.float32)


def _swap_blocks(state_dict: Arrays) -> None:
    keys = [key for key in state_dict if key.startswith("repeat_1.1.")]
    _swapped(*((key, key.replace("repeat_1.1.", "repeat_1.3.")) for key in keys))(state_dict)


KERNEL, VARIANCE = f"{UNIT}.conv.weight", f"{UNIT}.bn.running_var"
ONE_BY_SEVEN = "repeat_2.3.branch1.1.conv.weight", "repeat_2.6.branch1.1.conv.weight"
WEIGHTS = {
    "height and width": (_changed(KERNEL, lambda k: k.swapaxes(2, 3)), Cause.HEIGHT_WIDTH, UNIT_ACTIVATION),
    "flipped": (_changed(KERNEL, lambda k: k[:, :, ::-1, ::-1]), Cause.FLIPPED, UNIT_ACTIVATION),
    "flipped along height": (_changed(KERNEL, lambda k: k[:, :, ::-1]), Cause.FLIPPED, UNIT_ACTIVATION),
    "flipped along width": (_changed(KERNEL, lambda k: k[..., ::-1]), Cause.FLIPPED, UNIT_ACTIVATION),
    "flipped 7x1": (
        _changed("repeat_2.0.branch1.2.conv.weight", lambda k: k[:, :, ::-1]),
        Cause.FLIPPED,
        "Repeat_1/block17_1/Branch_1/Conv2d_0c_7x1",
    ),
    "inputs and outputs": (_changed(KERNEL, lambda k: k.swapaxes(0, 1)), Cause.IN_OUT, UNIT_ACTIVATION),
    "reshaped": (
        _changed("conv2d_4b.conv.weight", lambda k: k.transpose(2, 3, 1, 0).reshape(k.shape)),
        Cause.RESHAPED,
        "Conv2d_4b_3x3",
    ),
    "reshaped matrix": (
        _changed("last_linear.weight", lambda k: k.T.reshape(k.shape)),
        Cause.RESHAPED,
        "Bottleneck",
    ),
    "two kernels": (_swapped(ONE_BY_SEVEN), Cause.OTHER_TENSOR, "Repeat_1/block17_4/Branch_1/Conv2d_0b_1x7"),
    "two offsets": (
        _swapped(("repeat_1.0.branch0.bn.bias", "repeat_1.4.branch0.bn.bias")),
        Cause.OTHER_TENSOR,
        "Repeat/block35_1/Branch_0/Conv2d_1x1",
    ),
    "two blocks": (_swap_blocks, Cause.OTHER_TENSOR, "Repeat/block35_2/Branch_0/Conv2d_1x1"),
    "beta and mean": (
        _swapped((f"{UNIT}.bn.bias", f"{UNIT}.bn.running_mean")),
        Cause.STATISTICS,
        UNIT_ACTIVATION,
    ),
    "mean and variance": (_mean_for_variance, Cause.STATISTICS, UNIT_ACTIVATION),
    "standard deviation": (_changed(VARIANCE, np.sqrt), Cause.STANDARD_DEVIATION, UNIT_ACTIVATION),
    "no beta": (_changed(f"{UNIT}.bn.bias", np.zeros_like), Cause.UNLOADED, UNIT_ACTIVATION),
    "gamma": (_changed(f"{UNIT}.bn.weight", lambda v: v * 1.01), Cause.UNLOADED, UNIT_ACTIVATION),
    "no biases": (
        _changed("repeat_3.1.conv2d.bias", np.zeros_like),
        Cause.UNLOADED,
        "Repeat_2/block8_2/Conv2d_1x1",
    ),
    "no biases of the classifier": (_changed("logits.bias", np.zeros_like), Cause.UNLOADED, "Logits"),
    "never loaded": (_changed(KERNEL, _fresh), Cause.UNLOADED, UNIT_ACTIVATION),
    "float16": (_changed(KERNEL, lambda k: k.astype(np.float16)), Cause.PRECISION, UNIT_ACTIVATION),
    "8 decimals": (
        _changed(KERNEL, lambda k: np.round(k.astype(np.float64), 8)),
        Cause.PRECISION,
        UNIT_ACTIVATION,
    ),
    "int8": (_changed(KERNEL, _to_int8), Cause.PRECISION, UNIT_ACTIVATION),
    "one step": (_changed(KERNEL, _one_step), Cause.VALUES, UNIT_ACTIVATION),
    "outputs permuted": (_changed(KERNEL, lambda k: np.roll(k, 5, 0)), Cause.PERMUTED, UNIT_ACTIVATION),
    "inputs reversed": (
        _changed("conv2d_1a.conv.weight", lambda k: k[:, ::-1]),
        Cause.PERMUTED,
        "Conv2d_1a_3x3",
    ),
    "folded": (_fold, Cause.FOLDED, UNIT_ACTIVATION),
    "branches of a projection": (
        _changed("repeat_2.4.conv2d.weight", lambda k: np.roll(k, 128, 1)),
        Cause.BRANCH_ORDER,
        "Repeat_1/block17_5/Conv2d_1x1",
    ),
}


# Faults in the modules


def unit_of(port: InceptionResnetV1) -> Any:
    return port.get_submodule(UNIT)


def module_in(
    path: str, other: str, fault: Callable[[InceptionResnetV1], None]
) -> Callable[[InceptionResnetV1], None]:
    """Move a fault from a module to another one."""

    def swap(port: InceptionResnetV1) -> None:
        modules = [port.get_submodule(each) for each in (other, path)]
        for each, module in zip((path, other), modules, strict=True):
            parent, _, name = each.rpartition(".")
            setattr(port.get_submodule(parent), name, module)

    def moved(port: InceptionResnetV1) -> None:
        swap(port)
        fault(port)
        swap(port)

    return moved


def computing(path: str, forward: Callable[..., Tensor]) -> Callable[[InceptionResnetV1], None]:
    def fault(port: InceptionResnetV1) -> None:
        module = port.get_submodule(path) if path else port
        module.forward = MethodType(forward, module)

    return fault


def _head(embeddings: Callable[[Tensor], Tensor], given: Callable[[Tensor], Tensor] = lambda p: p) -> Any:
    def fault(port: InceptionResnetV1) -> None:
        def head(self: Any, prelogits: Tensor) -> Tensor:
            return self.logits(given(prelogits)) if self.classify else embeddings(prelogits)

        port.head = MethodType(head, port)

    return fault


def _epsilon_outside(self: Any, x: Tensor) -> Tensor:
    bn, shape = self.bn, (1, -1, 1, 1)
    scale = bn.weight / (bn.running_var.sqrt() + 1e-3)
    return F.relu((self.conv(x) - bn.running_mean.view(shape)) * scale.view(shape) + bn.bias.view(shape))


def _shortcut_scaled(self: Any, x: Tensor) -> Tensor:
    mixed = torch.cat([self.branch0(x), self.branch1(x)], 1)
    return F.relu(self.scale * x + self.conv2d(mixed))


def _reversed_branches(self: Any, x: Tensor) -> Tensor:
    mixed = torch.cat([self.branch1(x), self.branch0(x)], 1)
    return F.relu(x + self.scale * self.conv2d(mixed))


def _set(path: str, name: str, value: Any) -> Callable[[InceptionResnetV1], None]:
    def fault(port: InceptionResnetV1) -> None:
        setattr(port.get_submodule(path) if path else port, name, value)

    return fault


BLOCK17 = "repeat_2.3"
MODULES = {
    "epsilon": (_set(f"{UNIT}.bn", "eps", 1e-5), Cause.EPSILON, UNIT_ACTIVATION, "1e-05, not 0.001"),
    "odd epsilon": (_set(f"{UNIT}.bn", "eps", 0.00237), Cause.EPSILON, UNIT_ACTIVATION, "0.00237"),
    "epsilon in float32": (
        _set("last_bn", "eps", float(np.float32(1e-3))),
        Cause.EPSILON,
        "Bottleneck",
        "0.00100000004",
    ),
    "epsilon outside": (
        computing(UNIT, _epsilon_outside),
        Cause.EPSILON_PLACE,
        UNIT_ACTIVATION,
        "standard deviation",
    ),
    "residual scale": (
        _set(BLOCK17, "scale", 0.17),
        Cause.RESIDUAL_SCALE,
        "Repeat_1/block17_4",
        "0.17, not 0.1",
    ),
    "shortcut": (
        computing(BLOCK17, _shortcut_scaled),
        Cause.SCALED_SHORTCUT,
        "Repeat_1/block17_4",
        "scaled by 0.1",
    ),
    "branches of a block": (
        computing(BLOCK17, _reversed_branches),
        Cause.BRANCH_ORDER,
        "Repeat_1/block17_4/Conv2d_1x1",
        "order 1, 0",
    ),
    "branches of a reduction": (
        computing(
            "mixed_6a", lambda self, x: torch.cat([self.branch1(x), self.branch0(x), self.branch2(x)], 1)
        ),
        Cause.BRANCH_ORDER,
        "Mixed_6a",
        "order 1, 0, 2",
    ),
    "a ReLU too many": (_set("block8", "relu", True), Cause.RELU, "Block8", "with a ReLU"),
    "a ReLU too few": (
        computing(UNIT, lambda self, x: self.bn(self.conv(x))),
        Cause.RELU,
        UNIT_ACTIVATION,
        "with no ReLU",
    ),
    "ReLU before BatchNorm": (
        computing(UNIT, lambda self, x: self.bn(F.relu(self.conv(x)))),
        Cause.RELU_ORDER,
        UNIT_ACTIVATION,
        "before BatchNorm",
    ),
    "batch statistics": (
        lambda port: unit_of(port).bn.train(),
        Cause.BATCH_STATISTICS,
        UNIT_ACTIVATION,
        "the batch's own",
    ),
    "no BatchNorm": (_set(UNIT, "bn", nn.Identity()), Cause.BATCH_NORM, UNIT_ACTIVATION, "left out"),
    "BatchNorm not run": (
        computing(UNIT, lambda self, x: F.relu(self.conv(x))),
        Cause.BATCH_NORM,
        UNIT_ACTIVATION,
        "left out",
    ),
    "kernel flipped along width": (
        computing(UNIT, lambda self, x: F.relu(self.bn(F.conv2d(x, self.conv.weight.flip(3), padding=1)))),
        Cause.FLIPPED,
        UNIT_ACTIVATION,
        "along width",
    ),
    "padding of the stem": (
        _set("conv2d_1a.conv", "padding", (1, 1)),
        Cause.PADDING,
        "Conv2d_1a_3x3",
        "left 1, right 1",
    ),
    "zeros on one side": (
        computing(UNIT, lambda self, x: F.relu(self.bn(F.conv2d(F.pad(x, (0, 2, 0, 2)), self.conv.weight)))),
        Cause.PADDING,
        UNIT_ACTIVATION,
        "left 0, right 2",
    ),
    "pool": (_set("", "maxpool_3a", nn.AvgPool2d(3, 2)), Cause.POOLING, "MaxPool_3a_3x3", "the average"),
    "pool of a reduction": (
        _set("mixed_7a", "branch3", nn.MaxPool2d(3, 2, padding=1)),
        Cause.POOLING,
        "Mixed_7a",
        "padding 1",
    ),
    "last pool": (
        _set("", "avgpool_1a", nn.AdaptiveMaxPool2d(1)),
        Cause.POOLING,
        "Logits/AvgPool_1a_8x8",
        "the maximum",
    ),
    "no L2": (_head(lambda p: p), Cause.NORMALISATION, EMBEDDINGS, "not normalised"),
    "L1": (_head(lambda p: F.normalize(p, p=1)), Cause.NORMALISATION, EMBEDDINGS, "L1"),
    "logits of embeddings": (
        _head(lambda p: F.normalize(p, eps=1e-5), F.normalize),
        Cause.CLASSIFIER_INPUT,
        "Logits",
        "after L2",
    ),
    "dropout": (lambda port: port.dropout.train(), Cause.DROPOUT, "Bottleneck", "multiplied by 2.5"),
}
