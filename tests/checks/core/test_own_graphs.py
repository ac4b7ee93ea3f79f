"""Own graphs at full size, in SavedModels, under a prefix and of averages: judged by TensorFlow's session."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from checks.compare.run import compare
from checks.core.tensorflow_side import open_own_graph
from checks.gradients.running_statistics import read_updates
from converter.convert import to_numpy_state_dict
from converter.formats.detect import open_source
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.network_names import NetworkTensors
from converter.plan import MappingError
from tests.conftest import same_bits
from tests.support.first_images import TAKEN_FROM, first_images
from tests.support.shared_files import shared_folder

pytest.importorskip("tensorflow")

from facenet_tf.graph import build
from facenet_tf.session import open_session, tf, tf1

VariableDef = importlib.import_module("tensorflow.core.framework.variable_pb2").VariableDef

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).standard_normal((2, 160, 160, 3)).astype(np.float32)


@dataclass(frozen=True)
class TrainingGraph:
    """A training graph up to its loss, and the definitions of the network's variables by name.

    What follows the loss, gradients, Adam and averages, is most of the graph, and the tests do not need it.
    """

    graph_def: Any
    variables: dict[str, Any]

    @classmethod
    def read(cls, meta, tensors):
        graph = tf1.MetaGraphDef.FromString(meta.read_bytes())
        stored = map(VariableDef.FromString, graph.collection_def["variables"].bytes_list.value)
        kept = {name: each for each in stored if (name := each.variable_name.removesuffix(":0")) in tensors}
        ends = ["embeddings", "cross_entropy", *(each.initializer_name for each in kept.values())]
        return cls(tf1.graph_util.extract_sub_graph(graph.graph_def, ends), kept)

    def load(self, session, tensors, scope=""):
        """Import the graph into the session's, with the values of the variables."""
        tf.import_graph_def(self.graph_def, name=scope)
        variables = [tf1.Variable.from_proto(each, import_scope=scope) for each in self.variables.values()]
        for variable in variables:
            tf1.add_to_collection(tf1.GraphKeys.GLOBAL_VARIABLES, variable)
        values = {each.initial_value: tensors[n] for each, n in zip(variables, self.variables, strict=True)}
        session.run([variable.initializer for variable in variables], values)


def write_tf1(folder, training_graph, tensors):
    """Save the training graph under a signature, as a script for TensorFlow Serving does."""
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        training_graph.load(session, tensors)
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


def write_under_a_prefix(folder, training_graph, checkpoint, tensors):
    """Save the training graph as a script does that imports it into a graph of its own, under `import/`."""
    folder.mkdir()
    with tf.Graph().as_default() as graph, open_session(graph) as session:
        training_graph.load(session, tensors, "import")
        tf1.train.Saver(tf1.global_variables()).save(session, str(folder / "model.ckpt-1"))
    frozen = tf1.GraphDef.FromString(checkpoint.frozen.read_bytes())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen, name="import")
        (folder / "frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())


def write_averages_alone(folder, checkpoint, tensors):
    """Write moving averages of all that is trained, and the statistics, beside the training graph."""
    folder.mkdir()
    average = "ExponentialMovingAverage"
    statistics = ("moving_mean", "moving_variance")
    stored = {
        name if name.endswith(statistics) else f"{name}/{average}": array for name, array in tensors.items()
    }
    write_tensor_bundle(folder / "model.ckpt-1", stored)
    shutil.copy(checkpoint.meta, folder / "model.meta")


@pytest.fixture(scope="module")
def folder(checkpoint, tensors, tmp_path_factory):
    def write(folder):
        training_graph = TrainingGraph.read(checkpoint.meta, tensors)
        write_tf1(folder, training_graph, tensors)
        write_tf2(folder, tensors)
        write_under_a_prefix(folder / "prefix", training_graph, checkpoint, tensors)
        write_averages_alone(folder / "averages", checkpoint, tensors)

    return shared_folder(tmp_path_factory, "saved-models", write)


@pytest.mark.parametrize(
    ("name", "file", "weights", "count"),
    [
        ("tf1", "saved_model.pb", "variable", 492),
        ("tf2", "saved_model.pb", "variable", 490),
        ("prefix/model.ckpt-1", "model.ckpt-1.meta", "variable", 492),
        ("prefix/frozen.pb", "frozen.pb", "variable", 490),
        ("averages", "model.meta", "average", 492),
    ],
)
def test_the_own_graph_gives_the_embeddings_of_tensorflow(folder, tensors, name, file, weights, count):
    with open_source(folder / name) as source:
        assert all(same_bits(source[key], tensors[key]) for key in source if key in tensors)
        graph = open_own_graph(source, weights)
        assert graph is not None
        with graph:
            assert graph.path.name == file
            assert set(graph.tensors) <= set(tensors)
            assert len(graph.tensors) == count
            assert all(same_bits(array, tensors[key]) for key, array in graph.tensors.items())
            actual = graph.run(IMAGES, ["embeddings"])["embeddings"]
    assert np.abs(actual - np.load(folder / "expected.npy")).max() < 1e-6


def test_the_updates_of_running_variances_are_read_wherever_the_training_graph_is(folder, checkpoint):
    with open_source(checkpoint.meta) as source:
        expected, _ = read_updates(NetworkTensors(source), "variable")
    assert len(expected) == 112
    for name, weights in (
        ("tf1", "variable"),
        ("prefix/model.ckpt-1", "variable"),
        ("prefix/frozen.pb", "variable"),
        ("averages", "average"),
    ):
        with open_source(folder / name) as source:
            assert read_updates(NetworkTensors(source), weights)[0] == expected, name
    with open_source(folder / "tf2") as source:  # its signature has no training
        assert read_updates(NetworkTensors(source), "variable")[0] == {}


@pytest.fixture
def one_image(monkeypatch):
    """Comparisons take one image of noise."""
    monkeypatch.setattr(TAKEN_FROM, lambda network, seed: first_images(network, seed)[:1])


def test_compare_takes_it_for_a_source_and_its_graph_for_a_judge(folder, one_image):
    result = compare(folder / "tf1")
    assert result.passed
    assert result.own_graph == "saved_model.pb"


def test_averages_alone_are_compared_when_they_are_asked_for(folder, one_image):
    with pytest.raises(MappingError, match="--weights average"):
        compare(folder / "averages")
    result = compare(folder / "averages", weights="average")
    assert result.passed, result.judgements
    assert result.own_graph == "model.meta"


def test_both_formats_give_the_same_state_dict(folder, tensors):
    expected = to_numpy_state_dict(tensors)
    for name in ("tf1", "tf2"):
        with open_source(folder / name) as source:
            actual = to_numpy_state_dict(source)
        assert all(same_bits(array, expected[key]) for key, array in actual.items())
