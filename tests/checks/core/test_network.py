"""The checks' description of the network, against the PyTorch module and the TensorFlow graph."""

from __future__ import annotations

import re

import numpy as np
import pytest
from torch import nn

from checks.core.activations import LAYERS, STAGES
from checks.core.network import (
    AVERAGE_POOL,
    BOTTLENECK,
    EMBEDDINGS,
    EPSILON,
    LOGITS,
    MAX_POOL,
    NETWORK,
    NORM_FLOOR,
    LayerKind,
    network_layers,
    residual_scale,
    short_name,
    stage_of,
)
from converter.layer_map import BLOCKS, NETWORK_SCOPE, SynthesisedRow, Variant, table
from reference import InceptionResnetV1

CLASSES = 7
MODULES = {**LAYERS, **STAGES}
POOLS = {MAX_POOL: "maxpool_3a", "InceptionResnetV1/Mixed_6a": "mixed_6a.branch2"}
POOLS["InceptionResnetV1/Mixed_7a"] = "mixed_7a.branch3"


@pytest.fixture(scope="module")
def model() -> InceptionResnetV1:
    return InceptionResnetV1(num_classes=CLASSES)


def _of(*kinds: LayerKind):
    return [layer for layer in NETWORK.values() if layer.kind in kinds]


def test_it_has_every_activation_and_every_tensor_of_the_layer_map():
    assert NETWORK.keys() == {*LAYERS, *STAGES, EMBEDDINGS, LOGITS}
    keys = [key for layer in NETWORK.values() for key in layer.keys.values()]
    rows = table(Variant(num_classes=CLASSES))
    counters = {row.key for row in rows if isinstance(row, SynthesisedRow) and row.dtype == "int64"}
    assert sorted(keys) == sorted({row.key for row in rows} - counters)


def test_a_layer_follows_its_inputs():
    seen: set[str | None] = {None}
    for activation, layer in NETWORK.items():
        assert seen.issuperset(layer.inputs), activation
        seen.add(activation)


# Against the PyTorch module


def test_convolutions_slide_as_the_modules_do(model):
    for layer in _of(LayerKind.UNIT, LayerKind.PROJECTION):
        name = layer.keys["weight"].removesuffix(".weight")
        module = model.get_submodule(name)
        assert isinstance(module, nn.Conv2d)
        zeros = tuple((size - 1) // 2 for size in layer.kernel) if layer.padding == "SAME" else (0, 0)
        expected = (layer.kernel, (layer.stride, layer.stride), zeros)
        assert (module.kernel_size, module.stride, module.padding) == expected, name
        assert (module.dilation, module.groups) == ((1, 1), 1)


def test_pools_slide_as_the_modules_do(model):
    for activation, name in POOLS.items():
        layer, module = NETWORK[activation], model.get_submodule(name)
        assert isinstance(module, nn.MaxPool2d)
        assert (module.kernel_size, module.stride, module.padding, module.ceil_mode) == (3, 2, 0, False)
        assert (layer.kernel, layer.stride, layer.padding) == ((3, 3), 2, "VALID")


def test_batch_norms_and_residuals_have_the_modules_settings(model):
    for layer in _of(LayerKind.UNIT, LayerKind.BOTTLENECK):
        assert model.get_submodule(layer.keys["mean"].removesuffix(".running_mean")).eps == EPSILON
    for layer in _of(LayerKind.RESIDUAL):
        module = model.get_submodule(MODULES[layer.activation])
        assert (module.scale, module.relu) == (layer.scale, layer.relu), layer.activation


def test_convolutions_take_as_many_channels_as_their_inputs_give(model):
    """A branch of another width fits in its own place only."""
    widths = {None: 3}
    for activation, layer in NETWORK.items():
        inputs = [widths[name] for name in layer.inputs]
        match layer.kind:
            case LayerKind.UNIT | LayerKind.PROJECTION:
                module = model.get_submodule(layer.keys["weight"].removesuffix(".weight"))
                assert module.in_channels == sum(inputs), activation
                widths[activation] = module.out_channels
            case LayerKind.REDUCTION:
                widths[activation] = sum(inputs)
            case LayerKind.BOTTLENECK:
                assert model.last_linear.in_features == sum(inputs)
                widths[activation] = model.last_linear.out_features
            case _:
                widths[activation] = inputs[0]


# Against the TensorFlow graph


@pytest.fixture(scope="module")
def operations():
    pytest.importorskip("tensorflow")
    from facenet_tf.graph import build
    from facenet_tf.session import legacy_graph, tf1

    with legacy_graph() as graph:
        images = tf1.placeholder("float32", (None, 160, 160, 3))
        build(images, embedding_size=512, num_classes=CLASSES)
        return graph.get_operations()


def _scope(tensor) -> str:
    """The activation that a tensor belongs to: its name without its operation's."""
    return tensor.op.name.rpartition("/")[0]


def test_convolutions_and_pools_slide_as_the_graphs_do(operations):
    seen = set()
    for operation in operations:
        if operation.type not in ("Conv2D", "MaxPool"):
            continue
        activation = re.sub(r"/Branch_\d+$", "", operation.name.rpartition("/")[0])
        layer = NETWORK[activation]
        strides = list(operation.get_attr("strides"))
        assert strides == [1, layer.stride, layer.stride, 1], operation.name
        assert operation.get_attr("padding").decode() == layer.padding, operation.name
        if operation.type == "Conv2D":
            assert tuple(operation.inputs[1].shape.as_list()[:2]) == layer.kernel, operation.name
        else:
            assert tuple(operation.get_attr("ksize")) == (1, *layer.kernel, 1), operation.name
        seen.add(activation)
    assert seen == {activation for activation, layer in NETWORK.items() if layer.kernel}


def test_branches_are_concatenated_in_the_graphs_order(operations):
    joined = {}
    for operation in operations:
        if operation.type == "ConcatV2":
            block = operation.name.rpartition("/")[0]
            joined[block] = [_scope(tensor) for tensor in list(operation.inputs)[:-1]]
    assert len(joined) == 23
    for block, ends in joined.items():
        if block in POOLS:
            *branches, pool = ends
            assert pool == f"{block}/Branch_{len(branches)}"
            assert NETWORK[block].inputs[:-1] == tuple(branches)
        else:
            assert NETWORK[f"{block}/Conv2d_1x1"].inputs == tuple(ends)


def test_scales_activations_epsilon_and_floor_are_the_graphs(operations):
    from facenet_tf.graph import L2_FLOOR

    relus = {_scope(operation.outputs[0]) for operation in operations if operation.type == "Relu"}
    assert relus == {activation for activation, layer in NETWORK.items() if layer.relu}
    norms = [operation for operation in operations if operation.type.startswith("FusedBatchNorm")]
    assert len(norms) == 112
    assert {np.float32(norm.get_attr("epsilon")) for norm in norms} == {np.float32(EPSILON)}
    scales = {
        _scope(operation.outputs[0]): operation.get_attr("value").float_val[0]
        for operation in operations
        if operation.type == "Const" and re.fullmatch(r".*(block\d+_\d+|Block8)/Const", operation.name)
    }
    expected = {layer.activation: np.float32(layer.scale) for layer in _of(LayerKind.RESIDUAL)}
    assert {block: np.float32(scale) for block, scale in scales.items()} == expected
    assert pytest.approx(L2_FLOOR) == NORM_FLOOR**2


# Names


def test_stages_and_scales_of_layers():
    layers = network_layers(Variant(num_classes=CLASSES))
    assert len(layers) == 134
    assert [layer.scope for layer in layers[-2:]] == [BOTTLENECK, LOGITS]
    assert {stage_of(layer.scope) for layer in layers} == {
        *(scope or layer.scope for scope, _, rows in BLOCKS for layer in rows),
        "Bottleneck",
        "Logits",
    }
    scales = {stage_of(layer.scope).partition("/")[0]: residual_scale(layer.scope) for layer in layers}
    blocks = {"Repeat": 0.17, "Repeat_1": 0.10, "Repeat_2": 0.20}
    assert scales == {**dict.fromkeys(scales, 1.0), **blocks}
    assert short_name(AVERAGE_POOL) == AVERAGE_POOL.removeprefix(f"{NETWORK_SCOPE}/")
