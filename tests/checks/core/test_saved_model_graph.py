"""The own graph of a SavedModel, at full size: written by TensorFlow, and judged by TensorFlow's session."""

from __future__ import annotations

import numpy as np
import pytest

from checks.compare.run import compare
from checks.core.tensorflow_side import open_own_graph
from converter.convert import to_numpy_state_dict
from converter.formats.detect import open_source
from tests.conftest import same_bits
from tests.support.shared_files import shared_folder

tf = pytest.importorskip("tensorflow")
tf1 = tf.compat.v1

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).standard_normal((2, 160, 160, 3)).astype(np.float32)


def write_tf1(folder, checkpoint):
    """Save the training graph under a signature, as a script for TensorFlow Serving does."""
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        saver = tf1.train.import_meta_graph(str(checkpoint.meta), clear_devices=True)
        session.run(tf1.global_variables_initializer())
        saver.restore(session, str(checkpoint.prefix))
        tensor = graph.get_tensor_by_name
        tf1.saved_model.simple_save(
            session,
            str(folder / "tf1"),
            {"images": tensor("input:0"), "phase_train": tensor("phase_train:0")},
            {"embeddings": tensor("embeddings:0")},
        )
        feeds = {"input:0": IMAGES, "phase_train:0": False}
        np.save(folder / "expected.npy", session.run("embeddings:0", feeds))


def write_tf2(folder, tensors):
    """Save the network with variables of TensorFlow 2, under names of the author's own for the signature."""
    from facenet_tf.graph import build

    def network():
        pixels = tf1.placeholder(tf.float32, (None, 160, 160, 3), "pixels")
        with tf1.variable_scope("", use_resource=True):
            build(pixels, embedding_size=512, num_classes=None)
        return ()

    wrapped = tf1.wrap_function(network, [])
    module = tf.Module()
    module.held = wrapped.graph.variables
    for variable in module.held:
        variable.assign(tensors[variable.name.removesuffix(":0")])
    end = wrapped.graph.get_tensor_by_name("embeddings:0")
    module.serve = wrapped.prune("pixels:0", {"face_embedding": end})
    tf.saved_model.save(module, str(folder / "tf2"), signatures=module.serve)


@pytest.fixture(scope="module")
def folder(checkpoint, tensors, tmp_path_factory):
    def write(folder):
        write_tf1(folder, checkpoint)
        write_tf2(folder, tensors)

    return shared_folder(tmp_path_factory, "saved-models", write)


@pytest.mark.parametrize("name", ["tf1", "tf2"])
def test_the_own_graph_gives_the_embeddings_of_tensorflow(folder, tensors, name):
    with open_source(folder / name) as source:
        assert all(same_bits(source[key], tensors[key]) for key in source if key in tensors)
        graph = open_own_graph(source, "variable")
        assert graph is not None
        with graph:
            assert graph.path == folder / name / "saved_model.pb"
            assert set(graph.tensors) <= set(tensors)
            assert len(graph.tensors) == (492 if name == "tf1" else 490)
            assert all(same_bits(array, tensors[key]) for key, array in graph.tensors.items())
            actual = graph.run(IMAGES, ["embeddings"])["embeddings"]
    assert np.abs(actual - np.load(folder / "expected.npy")).max() < 1e-6


def test_compare_takes_it_for_a_source_and_its_graph_for_a_judge(folder):
    result = compare(folder / "tf2")
    assert result.passed
    assert result.own_graph == "saved_model.pb"


def test_both_formats_give_the_same_state_dict(folder, tensors):
    expected = to_numpy_state_dict(tensors)
    for name in ("tf1", "tf2"):
        with open_source(folder / name) as source:
            actual = to_numpy_state_dict(source)
        assert all(same_bits(array, expected[key]) for key, array in actual.items())
