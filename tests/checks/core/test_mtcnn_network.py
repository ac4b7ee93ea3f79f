"""The accounts of MTCNN's networks agree: layer map, PyTorch module, TensorFlow graph, the checks' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from checks.core.activations import run_pytorch
from checks.core.mtcnn_network import MTCNN_LAYERS, MTCNN_MODULES, outputs_among
from checks.report.network_parts import activation_groups
from converter.mtcnn_layer_map import NETWORKS, MtcnnNetwork
from reference.weights import build_network

SIZES = {"P-Net": 12, "R-Net": 24, "O-Net": 48}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_four_accounts_agree(name: str) -> None:
    pytest.importorskip("tensorflow")
    from facenet_tf.mtcnn import RebuiltMtcnn

    rows = NETWORKS[name]
    layers = MTCNN_LAYERS[name]
    assert {key for layer in layers.values() for key in layer.keys.values()} == {row.key for row in rows}
    model = build_network(MtcnnNetwork(name))
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == {
        row.key: row.info.shape for row in rows
    }
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape) - 0.5)
    state_dict = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    tensors = {row.variable: row.layout.inverse.apply(state_dict[row.key]) for row in rows}
    assert {variable: array.shape for variable, array in tensors.items()} == {
        row.variable: row.shape for row in rows
    }
    side = SIZES[name]
    images = np.random.default_rng(0).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    with RebuiltMtcnn(name, tensors, "float64") as rebuilt:
        expected = rebuilt.run(images)
    assert list(expected) == list(layers) == list(MTCNN_MODULES[name])
    actual = run_pytorch(model.double().eval(), images, tuple(layers))
    for activation, array in expected.items():
        np.testing.assert_allclose(actual[activation], array, rtol=0, atol=1e-12 * np.abs(array).max())


def test_outputs_and_the_groups_of_a_chart() -> None:
    assert [outputs_among(layers) for layers in MTCNN_LAYERS.values()] == [
        ("conv4-2", "prob1"),
        ("conv5-2", "prob1"),
        ("conv6-2", "conv6-3", "prob1"),
    ]
    assert activation_groups(list(MTCNN_LAYERS["O-Net"])) == (
        ("conv1", 0),
        ("conv2", 3),
        ("conv3", 6),
        ("conv4", 9),
        ("conv5", 11),
        ("outputs", 13),
    )
