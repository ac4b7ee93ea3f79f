"""The rounding of a layer on its own input: right arithmetic is far below the bound, wrong far above."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from checks.core import thresholds
from checks.core.activations import LAYERS, activation_names, run_pytorch
from checks.core.models import Port, build_port
from checks.core.network import AVERAGE_POOL, BOTTLENECK, EMBEDDINGS, NETWORK
from checks.core.rounding import measure_rounding, worst_share
from converter.convert import to_numpy_state_dict
from converter.plan import describe, infer_variant

IMAGES = np.random.default_rng(5).standard_normal((1, 107, 91, 3)).astype(np.float32)
NAMES = activation_names(every_layer=True, logits=True)
LONGEST = "InceptionResnetV1/Mixed_7a/Branch_2/Conv2d_1a_3x3"  # 2,304 terms, where a fault shows least


@pytest.fixture(scope="module")
def port(tensors):
    built = build_port(to_numpy_state_dict(tensors), infer_variant(describe(tensors)))
    assert isinstance(built, Port)
    return built


@pytest.fixture(scope="module")
def activations(port):
    return run_pytorch(port.float32, IMAGES, NAMES)


def shares(port, activations, **changes):
    return {
        layer.activation: layer.share
        for layer in measure_rounding(port.float64, IMAGES, {**activations, **changes})
    }


def test_every_layer_of_a_right_network_is_below_half_the_bound(port, activations):
    measured = shares(port, activations)
    assert list(measured) == list(NETWORK)
    assert max(measured.values()) <= 0.5
    # Maxima and copies are exact.
    assert [measured[name] for name in NETWORK if name.endswith(("MaxPool_3a_3x3", "Mixed_6a"))] == [0, 0]


def test_sums_in_the_worst_order_are_below_half_the_bound(port, activations):
    """One term after another, each product and each sum rounded to float32."""
    features = activations[AVERAGE_POOL].reshape(1, -1)
    sums = np.zeros((1, port.float32.last_linear.out_features), np.float32)
    for feature, weights in zip(features.T, port.float32.last_linear.weight.detach().numpy().T, strict=True):
        sums += feature[:, None] * weights
    with torch.inference_mode():
        bottleneck = port.float32.last_bn(torch.from_numpy(sums)).numpy()
    assert 0 < shares(port, activations, **{BOTTLENECK: bottleneck})[BOTTLENECK] <= 0.5
    pool = activations["InceptionResnetV1/Block8"]
    total = np.cumsum(pool.reshape(1, -1, pool.shape[-1]), axis=1, dtype=np.float32)[:, -1]
    mean = total / np.float32(pool.shape[1] * pool.shape[2])
    assert shares(port, activations, **{AVERAGE_POOL: mean})[AVERAGE_POOL] <= 0.5


def tensor_float32(module: nn.Module, inputs):
    """Round a convolution's input to the ten bits of fraction that TF32 multiplies with."""
    bits = inputs[0].contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def half_output(module: nn.Module, inputs, output):
    return output.half().float()


@pytest.mark.parametrize("fault", ["products in TF32", "output in half precision", "epsilon"])
@pytest.mark.parametrize("layer", [LONGEST, "InceptionResnetV1/Conv2d_1a_3x3"])
def test_a_fault_in_the_arithmetic_of_one_layer_is_above_twice_the_bound(port, layer, fault):
    unit = port.float32.get_submodule(LAYERS[layer])
    if fault == "epsilon":
        unit.bn.eps = 1e-5
        remove = lambda: setattr(unit.bn, "eps", 1e-3)  # noqa: E731
    elif fault == "products in TF32":
        remove = unit.conv.register_forward_pre_hook(tensor_float32).remove
    else:
        remove = unit.register_forward_hook(half_output).remove
    try:
        faulty = run_pytorch(port.float32, IMAGES, NAMES)
    finally:
        remove()
    measured = shares(port, faulty)
    assert measured.pop(layer) >= 2
    assert max(measured.values()) <= 0.5  # the layers behind it are right, on their own input


def test_what_is_not_finite_or_of_another_shape_exceeds_the_bound(port, activations):
    broken = activations[LONGEST].copy()
    broken.flat[0] = np.nan
    assert shares(port, activations, **{LONGEST: broken})[LONGEST] == np.inf
    assert shares(port, activations, **{LONGEST: broken[:, 1:]})[LONGEST] == np.inf
    # Squares that overflow leave no bound.
    measured = shares(port, activations, **{AVERAGE_POOL: activations[AVERAGE_POOL] * np.float32(1e30)})
    assert measured[AVERAGE_POOL] > 2
    assert measured[BOTTLENECK] == np.inf
    # A layer cannot even be computed on maps that do not fit together.
    small = activations["InceptionResnetV1/Repeat/block35_1"][:, 1:]
    measured = shares(port, activations, **{"InceptionResnetV1/Repeat/block35_1": small})
    assert measured["InceptionResnetV1/Repeat/block35_2"] == np.inf


def test_a_layer_without_its_input_is_left_out(port, activations):
    layers = measure_rounding(port.float64, None, {EMBEDDINGS: activations[EMBEDDINGS]})
    assert layers == ()
    assert worst_share(layers) == 0.0


def test_half_precision_is_measured_in_its_own_roundoff(port, activations):
    rounded = {name: array.astype(np.float16) for name, array in activations.items()}
    layers = measure_rounding(port.float64, IMAGES, rounded, thresholds.HALF_ROUNDOFF)
    assert worst_share(layers) <= 0.5
    assert worst_share(measure_rounding(port.float64, IMAGES, rounded)) >= 2
