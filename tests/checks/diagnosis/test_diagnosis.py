"""Faulty ports are diagnosed: the layer that is wrong, why, and what puts it right."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from checks.compare import __main__ as compare_command
from checks.compare.activation_file import ActivationWriter
from checks.compare.expected import Checkpoint
from checks.compare.expected_from_file import provenance
from checks.compare.measure import measure
from checks.compare.run import compare
from checks.core.activations import activation_names
from checks.core.builtin_checkpoint import built_in_tensors
from checks.core.inputs import SEEDED, InputBatch
from checks.core.network import EMBEDDINGS
from checks.core.source_tensors import plan_source
from checks.core.tensorflow_side import Activations, TensorFlowSide
from checks.diagnosis import diagnose
from checks.diagnosis.causes import Cause
from converter.convert import tensorflow_tensors, to_numpy_state_dict
from converter.errors import UsageError
from converter.formats.detect import open_source
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.layer_map import Variant
from facenet_tf.rebuilt_network import RebuiltNetwork
from reference import InceptionResnetV1
from tests.support.package_index import KERAS_FACENET, IndexUnreachableError, download, extract

Arrays = dict[str, NDArray[Any]]
CLASSES = 7
ACTIVATIONS = activation_names(every_layer=True, logits=True)
UNIT = "repeat_1.2.branch1.1"  # a 3x3 convolution of 32 channels, with as many inputs
UNIT_ACTIVATION = "Repeat/block35_3/Branch_1/Conv2d_0b_3x3"
PIXELS = np.random.default_rng(7).integers(0, 256, (2, 123, 107, 3)).astype(np.uint8)
IMAGES = ((PIXELS - 127.5) / 128).astype(np.float32)


@pytest.fixture(scope="module")
def tensors() -> Mapping[str, NDArray[Any]]:
    """Weights with embeddings near each other, so that float32 judgements hold on small images too."""
    tensors = built_in_tensors(Variant(embedding_size=128, num_classes=CLASSES))
    beta = "InceptionResnetV1/Bottleneck/BatchNorm/beta"
    return {**tensors, beta: tensors[beta] * np.float32(4)}


@pytest.fixture(scope="module")
def right(tensors: Mapping[str, NDArray[Any]]) -> Arrays:
    return to_numpy_state_dict(tensors)


@pytest.fixture(scope="module")
def averages(right: Arrays) -> Arrays:
    random = np.random.default_rng(1)
    return {
        key: (array + random.normal(0, 1e-3, array.shape)).astype(np.float32)
        for key, array in right.items()
        if array.dtype == np.float32 and np.ptp(array) > 0
    }


@pytest.fixture(scope="module")
def reference(tensors: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    with RebuiltNetwork(tensors, "float64") as network:
        return network.run(IMAGES, ACTIVATIONS)


def _port(state_dict: Mapping[str, NDArray[Any]]) -> InceptionResnetV1:
    model = InceptionResnetV1(num_classes=CLASSES, embedding_size=128)
    model.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in state_dict.items()})
    return model.double().eval()


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


# Weights


def _changed(key: str, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Arrays], None]:
    def fault(state_dict: Arrays) -> None:
        changed = function(state_dict[key].copy())
        state_dict[key] = np.ascontiguousarray(changed, dtype=np.float32)

    return fault


def _swapped(*pairs: tuple[str, str]) -> Callable[[Arrays], None]:
    def fault(state_dict: Arrays) -> None:
        for one, other in pairs:
            state_dict[one], state_dict[other] = state_dict[other], state_dict[one]

    return fault


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
    "one axis flipped": (
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


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_fault_in_the_weights_is_named_placed_and_put_right(
    name: str, right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    fault, cause, activation = WEIGHTS[name]
    state_dict = dict(right)
    fault(state_dict)
    found = diagnose(_port(state_dict), reference, IMAGES, source=right)
    assert found.findings[0].cause == cause, found.findings
    assert found.findings[0].activation.endswith(activation)
    assert found.findings[0].in_weights
    assert {finding.cause for finding in found.findings} == {cause}
    assert {str(cause) in line for line in found.summary} == {True}
    repaired = {**state_dict, **found.repair}
    assert all(_same(repaired[key], right[key]) for key in right)


@pytest.mark.parametrize("only", [None, KERNEL])
def test_averages_for_weights_are_named(
    only: str | None, right: Arrays, averages: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = _port({**right, **{key: averages[key] for key in averages if only in (None, key)}})
    found = diagnose(port, reference, IMAGES, source=right, averages=averages)
    assert {finding.cause for finding in found.findings} == {Cause.AVERAGES}
    assert set(found.repair) == ({only} if only else set(averages))


def test_a_finding_names_the_tensor_and_its_first_value_that_differs(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    kernel = right[KERNEL].copy()
    kernel[3, 1, 2, 0], kernel[30, 0, 0, 0] = 0.5, np.nan
    port = _port({**right, KERNEL: kernel})
    (found,) = diagnose(port, reference, IMAGES, source=right).findings
    assert (found.cause, found.key, found.count) == (Cause.VALUES, KERNEL, 2)
    assert found.variable == f"InceptionResnetV1/{UNIT_ACTIVATION}/weights"
    assert (found.index, found.expected, found.actual) == ((3, 1, 2, 0), right[KERNEL][3, 1, 2, 0], 0.5)
    (stated,) = diagnose(port, reference, IMAGES, source=right).as_json()
    assert (stated["key"], stated["variable"], stated["index"]) == (KERNEL, found.variable, (3, 1, 2, 0))
    gamma = f"{UNIT}.bn.weight"
    port = _port({**right, gamma: 2 * right[gamma]})
    (found,) = diagnose(port, reference, IMAGES, source=right).findings
    assert (found.key, found.variable, found.index, found.expected, found.actual) == (gamma, None, (0,), 1, 2)
    assert found.count == 32
    old = Variant(128, CLASSES, bottleneck_scope="Bottleneck")
    port = _port({**right, "last_linear.weight": right["last_linear.weight"] * np.float32(2)})
    (found,) = diagnose(port, reference, IMAGES, source=right, variant=old).findings
    assert found.variable == "Bottleneck/weights"


def test_the_first_wrong_layers_alone_may_be_asked_for(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = _port(right)
    for module in port.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e-5
    found = diagnose(port, reference, IMAGES, source=right, most_layers=2)
    assert [finding.activation.partition("/")[2] for finding in found.findings] == [
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
    ]


def test_a_difference_that_does_not_show_is_found(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    hidden = right[KERNEL].copy()
    smallest = np.abs(hidden).argmin()
    hidden.reshape(-1)[smallest] = np.nextafter(hidden.reshape(-1)[smallest], np.float32(9))
    port = _port({**right, KERNEL: hidden})
    (found,) = diagnose(port, reference, IMAGES, source=right).findings
    assert found.cause == Cause.VALUES
    assert found.activation.endswith(UNIT_ACTIVATION)
    assert "the layer agrees all the same" in found.statement
    assert _same(found.repair[KERNEL], right[KERNEL])


def test_a_kernel_of_another_shape_is_diagnosed_as_well(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    """All 1x7 and 7x1 kernels turned, with the modules that go with them."""
    port = _port(right)
    for block in port.repeat_2:
        for number, padding in ((1, (3, 0)), (2, (0, 3))):
            conv = block.branch1[number].conv
            conv.weight = nn.Parameter(conv.weight.mT.contiguous())
            conv.padding = padding
    found = diagnose(port, reference, IMAGES, source=right)
    assert [finding.cause for finding in found.findings] == [Cause.HEIGHT_WIDTH] * 20
    assert all(_same(array, right[key]) for key, array in found.repair.items())
    assert len(found.summary) == 1
    assert "block17_1/Branch_1/Conv2d_0b_1x7" in found.summary[0]


# Modules


def _unit(port: InceptionResnetV1) -> Any:
    return port.get_submodule(UNIT)


def _computing(path: str, forward: Callable[..., Tensor]) -> Callable[[InceptionResnetV1], None]:
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
        _computing(UNIT, _epsilon_outside),
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
        _computing(BLOCK17, _shortcut_scaled),
        Cause.SCALED_SHORTCUT,
        "Repeat_1/block17_4",
        "scaled by 0.1",
    ),
    "branches of a block": (
        _computing(BLOCK17, _reversed_branches),
        Cause.BRANCH_ORDER,
        "Repeat_1/block17_4/Conv2d_1x1",
        "order 1, 0",
    ),
    "branches of a reduction": (
        _computing(
            "mixed_6a", lambda self, x: torch.cat([self.branch1(x), self.branch0(x), self.branch2(x)], 1)
        ),
        Cause.BRANCH_ORDER,
        "Mixed_6a",
        "order 1, 0, 2",
    ),
    "a ReLU too many": (_set("block8", "relu", True), Cause.RELU, "Block8", "with a ReLU"),
    "a ReLU too few": (
        _computing(UNIT, lambda self, x: self.bn(self.conv(x))),
        Cause.RELU,
        UNIT_ACTIVATION,
        "with no ReLU",
    ),
    "ReLU before BatchNorm": (
        _computing(UNIT, lambda self, x: self.bn(F.relu(self.conv(x)))),
        Cause.RELU_ORDER,
        UNIT_ACTIVATION,
        "before BatchNorm",
    ),
    "batch statistics": (
        lambda port: _unit(port).bn.train(),
        Cause.BATCH_STATISTICS,
        UNIT_ACTIVATION,
        "the batch's own",
    ),
    "no BatchNorm": (_set(UNIT, "bn", nn.Identity()), Cause.BATCH_NORM, UNIT_ACTIVATION, "left out"),
    "BatchNorm not run": (
        _computing(UNIT, lambda self, x: F.relu(self.conv(x))),
        Cause.BATCH_NORM,
        UNIT_ACTIVATION,
        "left out",
    ),
    "padding of the stem": (
        _set("conv2d_1a.conv", "padding", (1, 1)),
        Cause.PADDING,
        "Conv2d_1a_3x3",
        "left 1, right 1",
    ),
    "zeros on one side": (
        _computing(UNIT, lambda self, x: F.relu(self.bn(F.conv2d(F.pad(x, (0, 2, 0, 2)), self.conv.weight)))),
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


@pytest.mark.parametrize("name", MODULES)
def test_a_fault_in_a_module_is_named_and_placed(
    name: str, right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    fault, cause, activation, words = MODULES[name]
    port = _port(right)
    fault(port)
    (found,) = diagnose(port, reference, IMAGES, source=right).findings
    assert found.cause == cause
    assert found.activation.endswith(activation)
    assert words in found.statement
    assert not found.repair
    assert not found.in_weights


def test_a_module_that_nobody_knows_is_placed_without_a_cause(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = _port(right)
    _unit(port).forward = MethodType(lambda self, x: self.bn(self.conv(x)).relu().sqrt(), _unit(port))
    (found,) = diagnose(port, reference, IMAGES, source=right).findings
    assert found.cause is None
    assert found.activation.endswith(UNIT_ACTIVATION)
    _unit(port).forward = MethodType(lambda self, x: 1 / 0, _unit(port))
    (found,) = diagnose(port, reference, IMAGES, source=right).findings
    assert found.cause is None
    assert "ZeroDivisionError" in found.statement


# Input


def _prewhiten(pixels: NDArray[Any]) -> NDArray[Any]:
    each = pixels.astype(np.float64)
    mean, deviation = (f(each, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    return (each - mean) / np.maximum(deviation, 1 / np.sqrt(each[0].size))


INPUTS: dict[str, tuple[Callable[[NDArray[Any]], NDArray[Any]], Cause, str]] = {
    "BGR": (lambda p: (p[..., ::-1] - 127.5) / 128, Cause.CHANNEL_ORDER, "BGR"),
    "divided by 127.5": (lambda p: (p - 127.5) / 127.5, Cause.STANDARDISATION, "/ 127.5"),
    "0 to 1": (lambda p: p / 255.0, Cause.STANDARDISATION, "x / 255"),
    "prewhitened": (_prewhiten, Cause.STANDARDISATION, "prewhiten"),
    "overflow": (lambda p: p.view(np.int8) / 128, Cause.STANDARDISATION, "64 becomes 0.5, 128 becomes -1"),
    "mirrored": (lambda p: (p[:, :, ::-1] - 127.5) / 128, Cause.ORIENTATION, "mirrored"),
    "layout": (
        lambda p: ((p.reshape(2, 3, 123, 107) - 127.5) / 128).transpose(0, 2, 3, 1),
        Cause.IMAGE_LAYOUT,
        "NHWC buffer is read as NCHW",
    ),
    "4 decimals": (lambda p: np.round((p - 127.5) / 128, 4), Cause.INPUT_PRECISION, "4 decimals"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_another_input_is_named(name: str, right: Arrays, reference: Mapping[str, NDArray[Any]]) -> None:
    prepare, cause, words = INPUTS[name]
    given = prepare(PIXELS).astype(np.float32)
    (found,) = diagnose(_port(right), reference, IMAGES, given=given, pixels=PIXELS, source=right).findings
    assert found.cause == cause
    assert found.activation.endswith("Conv2d_1a_3x3")
    assert words in found.statement


def test_a_port_that_prepares_its_images_inside_is_diagnosed_as_well(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = _port(right)
    prelogits = port.prelogits
    port.prelogits = lambda images: prelogits(images.flip(1).mT.mT)  # type: ignore[method-assign]
    (found,) = diagnose(port, reference, IMAGES, source=right).findings
    assert found.cause == Cause.CHANNEL_ORDER


# Several faults, none, and many at once


def test_several_faults_are_all_found_in_one_pass(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    state_dict = dict(right)
    WEIGHTS["inputs and outputs"][0](state_dict)
    WEIGHTS["two kernels"][0](state_dict)
    port = _port(state_dict)
    for module in port.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e-5
    port.repeat_1[1].scale = 0.1
    port.block8.relu = True
    found = diagnose(port, reference, IMAGES, source=right)
    count = {cause: sum(finding.cause == cause for finding in found.findings) for cause in Cause}
    assert {cause: number for cause, number in count.items() if number} == {
        Cause.EPSILON: 112,
        Cause.RESIDUAL_SCALE: 1,
        Cause.IN_OUT: 1,
        Cause.OTHER_TENSOR: 2,
        Cause.RELU: 1,
    }
    assert len(found.summary) == 5
    assert found.summary[0].startswith("another epsilon at Conv2d_1a_3x3 (and at Conv2d_2a_3x3, ")
    assert "and 107 more" in found.summary[0]
    assert set(found.repair) == {KERNEL, *ONE_BY_SEVEN}


def test_a_clean_port_has_no_findings_and_is_left_as_it_was(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = _port(right)
    before = {key: tensor.clone() for key, tensor in port.state_dict().items()}
    assert diagnose(port, reference, IMAGES, source=right).findings == ()
    port.train()  # BatchNorm would move its statistics
    found = diagnose(port, reference, IMAGES, source=right)
    assert {finding.cause for finding in found.findings} == {Cause.BATCH_STATISTICS, Cause.DROPOUT}
    assert all(torch.equal(tensor, before[key]) for key, tensor in port.state_dict().items())
    for module in port.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_port_that_works_in_place_is_no_fault_and_leaves_the_reference_alone(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    def in_place(self: Any, x: Tensor) -> Tensor:
        mixed = torch.cat([self.branch0(x), self.branch1(x), self.branch2(x)], 1)
        x += self.scale * self.conv2d(mixed)
        return x.relu_()

    port = _port(right)
    _computing("repeat_1.2", in_place)(port)
    before = {activation: array.copy() for activation, array in reference.items()}
    assert diagnose(port, reference, IMAGES, source=right).findings == ()
    assert all(np.array_equal(array, before[activation]) for activation, array in reference.items())


def test_a_source_that_was_read_by_a_wrong_table_is_not_taken_for_the_cause(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    wrong = {**right, KERNEL: np.ascontiguousarray(right[KERNEL].swapaxes(2, 3))}
    (finding,) = diagnose(_port(wrong), reference, IMAGES, source=wrong).findings
    assert finding.cause is None
    assert finding.activation.endswith(UNIT_ACTIVATION)
    assert "the source's own tensors" in finding.statement
    assert not finding.repair


def test_ports_are_diagnosed_in_several_threads_at_once(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    names = ["epsilon", "dropout", "residual scale", "L1"]

    def run(name: str) -> Cause | None:
        port = _port(right)
        MODULES[name][0](port)
        return diagnose(port, reference, IMAGES, source=right).findings[0].cause

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, names)) == [MODULES[name][1] for name in names]


def test_an_array_of_another_shape_is_infinitely_far() -> None:
    exact = {EMBEDDINGS: np.eye(5)}
    other = {EMBEDDINGS: np.eye(5, 4)}
    batch = InputBatch(SEEDED[0], np.zeros((5, 2, 2, 3), np.float32))
    single = {EMBEDDINGS: exact[EMBEDDINGS].astype(np.float32)}
    measured = measure(Activations(batch, exact, single, False, {}, {}), other, other)
    assert measured.first_divergence == EMBEDDINGS
    assert measured.distance64 == measured.distance32 == np.inf


# The command


@pytest.fixture(scope="module")
def stored(tensors: Mapping[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TensorFlow's side at every layer, on small images, as --save-activations stores it."""
    folder = tmp_path_factory.mktemp("stored")
    write_tensor_bundle(folder / "model.ckpt-1", dict(tensors))
    random = np.random.default_rng(3)
    with open_source(folder / "model.ckpt-1") as opened:
        named, plan = plan_source(opened, "variable")
        stated = provenance(Checkpoint(opened.path, opened, named, plan), None, 0, ACTIVATIONS)
        arrays = {name: np.array(named[name]) for name in named}
        with (
            TensorFlowSide(opened, arrays, "variable") as side,
            ActivationWriter(folder / "activations.h5", stated) as writer,
        ):
            for name in SEEDED:
                # Large enough for a last map of 2x2: on a single pixel a 1x3 kernel is its middle alone.
                images = random.standard_normal((5 if name == SEEDED[0] else 1, 111, 111, 3))
                writer.add(side.run(InputBatch(name, images.astype(np.float32)), ACTIVATIONS))
    return folder / "activations.h5"


def _save(state_dict: Arrays, path: Path) -> Path:
    torch.save({key: torch.from_numpy(array.copy()) for key, array in state_dict.items()}, path)
    return path


def test_a_port_is_diagnosed_and_repaired_without_tensorflow(
    right: Arrays, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One kernel with height and width exchanged, two that are swapped, and all the others flipped."""
    kernels = [key for key, array in right.items() if array.ndim == 4 and max(array.shape[2:]) > 1]
    flipped = {key: right[key][:, :, ::-1, ::-1] for key in kernels if key not in (KERNEL, *ONE_BY_SEVEN)}
    state_dict = {**right, **flipped}
    WEIGHTS["height and width"][0](state_dict)
    WEIGHTS["two kernels"][0](state_dict)
    faulty, out = _save(state_dict, tmp_path / "faulty.pt"), tmp_path / "repaired.safetensors"
    source = str(stored.with_name("model.ckpt-1"))
    options = [source, "--state-dict", str(faulty), "--activations", str(stored), "--repair", str(out)]
    assert compare_command.main([*options, "--json", str(tmp_path / "report.json")]) == 1
    output = capsys.readouterr().out
    assert "Cause: kernel flipped at Conv2d_1a_3x3 (and at Conv2d_2a_3x3, " in output
    assert f"Cause: height and width exchanged at {UNIT_ACTIVATION}: " in output
    assert "Cause: another tensor of the same shape at Repeat_1/block17_4/" in output
    assert f"{len(kernels)} tensors put right; all four judgements hold on the result" in output
    report = json.loads((tmp_path / "report.json").read_text())
    assert sum(len(finding["repaired_by"]) for finding in report["diagnosis"]) == len(kernels)
    assert report["repair"]["path"] == str(out)
    again = load_file(out)
    assert set(again) == set(right)
    assert all(_same(again[key].numpy(), right[key]) for key in right)


def test_without_the_source_no_cause_is_given_and_the_next_command_is_named(
    right: Arrays, stored: Path, tmp_path: Path
) -> None:
    state_dict = dict(right)
    WEIGHTS["float16"][0](state_dict)
    faulty = _save(state_dict, tmp_path / "faulty.pt")
    report = compare(state_dict=faulty, activations=stored, repair=tmp_path / "repaired.pt")
    assert report.diagnosis is None
    assert report.inputs[0].first_divergence == f"InceptionResnetV1/{UNIT_ACTIVATION}"
    assert f"facenet-port compare SOURCE --activations {stored}" in report.undiagnosed
    assert report.repair is not None
    assert report.repair.path is None
    assert [file.name for file in tmp_path.iterdir()] == ["faulty.pt"]


def test_weights_that_do_not_load_for_their_shape_are_diagnosed_and_repaired(
    right: Arrays, stored: Path, tmp_path: Path
) -> None:
    turned = ("repeat_2.0.branch1.1.conv.weight", "last_linear.weight")
    state_dict = {**right, turned[0]: right[turned[0]].swapaxes(2, 3), turned[1]: right[turned[1]].T}
    faulty = _save(state_dict, tmp_path / "faulty.pt")
    source = stored.with_name("model.ckpt-1")
    report = compare(source, state_dict=faulty, activations=stored, repair=tmp_path / "repaired.pt")
    assert report.diagnosis is not None
    assert [finding.cause for finding in report.diagnosis.findings] == [Cause.HEIGHT_WIDTH, Cause.IN_OUT]
    again = torch.load(tmp_path / "repaired.pt", weights_only=True)
    assert all(_same(again[key].numpy(), right[key]) for key in right)


def test_an_exact_port_needs_no_repair(right: Arrays, stored: Path, tmp_path: Path) -> None:
    clean = _save(right, tmp_path / "clean.pt")
    report = compare(state_dict=clean, activations=stored, repair=tmp_path / "repaired.pt")
    assert report.passed, report.judgements
    assert report.diagnosis is None
    assert report.repair is not None
    assert report.repair.statement.startswith("nothing to repair")
    assert [file.name for file in tmp_path.iterdir()] == ["clean.pt"]


def test_a_file_to_repair_into_is_refused_before_any_work(tmp_path: Path) -> None:
    precious = tmp_path / "precious.pt"
    precious.write_text("precious")
    with pytest.raises(UsageError, match=r"precious\.pt exists"):
        compare(tmp_path / "nowhere", repair=precious)
    assert precious.read_text() == "precious"
    with pytest.raises(UsageError, match="no folder"):
        compare(tmp_path / "nowhere", repair=tmp_path / "none" / "out.pt")
    with pytest.raises(UsageError, match=r"--repair writes \.pt"):
        compare(tmp_path / "nowhere", repair=tmp_path / "out.onnx")


# Real weights


@pytest.mark.real
def test_real_weights_are_clean_and_a_fault_in_them_is_found(tmp_path: Path) -> None:
    try:
        archive = download(KERAS_FACENET)
    except IndexUnreachableError as error:
        pytest.skip(f"no package index serves {KERAS_FACENET.requirement}: {error}")
    (path,) = extract(archive, tmp_path, "/model/facenet_keras.h5")
    with open_source(path) as source:
        tensors = {name: np.array(array) for name, array in tensorflow_tensors(source).items()}
    with RebuiltNetwork(tensors, "float64") as network:
        reference = network.run(IMAGES, activation_names(every_layer=True, logits=False))
    right = to_numpy_state_dict(tensors)

    def port(state_dict: Arrays) -> InceptionResnetV1:
        model = InceptionResnetV1(embedding_size=128)
        model.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in state_dict.items()})
        return model.double().eval()

    assert diagnose(port(right), reference, IMAGES, source=right).findings == ()
    for name in ("height and width", "two kernels", "beta and mean", "inputs reversed", "folded", "one step"):
        fault, cause, activation = WEIGHTS[name]
        state_dict = dict(right)
        fault(state_dict)
        found = diagnose(port(state_dict), reference, IMAGES, source=right)
        assert {finding.cause for finding in found.findings} == {cause}, name
        assert found.findings[0].activation.endswith(activation)
