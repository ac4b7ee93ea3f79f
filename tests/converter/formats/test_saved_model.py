"""SavedModels and checkpoints of TensorFlow 2, written by TensorFlow and Keras."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from converter.__main__ import main
from converter.errors import SourceError
from converter.formats.detect import open_source
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from tests.conftest import same_bits

UNIT = "InceptionResnetV1/Conv2d_1a_3x3"
KERNEL = np.random.default_rng(0).standard_normal((3, 3, 3, 4)).astype(np.float32)
VALUES = {f"{UNIT}/weights": KERNEL, f"{UNIT}/BatchNorm/moving_variance": np.arange(4, dtype=np.float32)}
KERAS_VALUES = {
    "Conv2d_1a_3x3/kernel:0": KERNEL,
    "Conv2d_1a_3x3_BatchNorm/beta:0": np.zeros(4, np.float32),
    "Conv2d_1a_3x3_BatchNorm/moving_mean:0": np.zeros(4, np.float32),
    "Conv2d_1a_3x3_BatchNorm/moving_variance:0": np.ones(4, np.float32),
}


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


def holds(path, values, source_format):
    with open_source(path) as source:
        assert source.format == source_format
        assert set(source) == set(values)
        assert all(same_bits(source[name], value) for name, value in values.items())
        with pytest.raises(KeyError):
            source["another"]
        assert all(file.is_file() for file in source.files)
        return source


def save_tf1(tf, folder, *, frozen=False, resource=False, **options):
    """Save a graph of TensorFlow 1, with variables or with constants."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, (None, 8, 8, 3), "input")
        if frozen:
            tensors = {name: tf.constant(value, name=name) for name, value in VALUES.items()}
        else:
            with v1.variable_scope("", use_resource=resource):
                tensors = {name: v1.get_variable(name, initializer=value) for name, value in VALUES.items()}
            session.run(v1.global_variables_initializer())
        kernel, variance = map(tf.identity, tensors.values())
        output = tf.nn.conv2d(images, kernel, 1, "SAME") * variance
        v1.saved_model.simple_save(
            session, str(folder), {"images": images}, {"embeddings": output}, **options
        )
    return folder


def module(tf, values):
    class Module(tf.Module):
        def __init__(self):
            self.held = [tf.Variable(value, name=name) for name, value in values.items()]

        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32, name="images")])
        def serve(self, images):
            return {"embeddings": tf.nn.conv2d(images, self.held[0], 1, "SAME") * self.held[1]}

    return Module()


@pytest.fixture(scope="module")
def tf1_folder(tf, tmp_path_factory):
    return save_tf1(tf, tmp_path_factory.mktemp("tf1") / "export")


@pytest.fixture(scope="module")
def keras_model(tf):
    keras = pytest.importorskip("keras")
    images = keras.Input((8, 8, 3))
    net = keras.layers.Conv2D(4, 3, use_bias=False, name="Conv2d_1a_3x3")(images)
    net = keras.layers.BatchNormalization(scale=False, name="Conv2d_1a_3x3_BatchNorm")(net)
    model = keras.Model(images, net)
    model.get_layer("Conv2d_1a_3x3").set_weights([KERNEL])
    return model


# SavedModels


@pytest.mark.parametrize(
    "name", ["", "saved_model.pb", "variables", "variables/variables", "variables/variables.index"]
)
def test_ways_to_name_a_saved_model(tf1_folder, name):
    assert holds(tf1_folder / name, VALUES, "TensorFlow SavedModel").path == tf1_folder


def test_the_working_folder_is_a_saved_model(tf1_folder, monkeypatch):
    monkeypatch.chdir(tf1_folder)
    assert holds(".", VALUES, "TensorFlow SavedModel").path.name == "export"


def test_resource_variables(tf, tmp_path):
    holds(save_tf1(tf, tmp_path / "export", resource=True), VALUES, "TensorFlow SavedModel")


def test_a_frozen_graph_of_tensorflow_1(tf, tmp_path):
    folder = save_tf1(tf, tmp_path / "export", frozen=True)
    holds(folder, VALUES, "TensorFlow SavedModel of a frozen graph")
    renamed = (folder / "saved_model.pb").rename(tmp_path / "facenet.pb")
    holds(renamed, VALUES, "TensorFlow SavedModel of a frozen graph")


def test_a_module_of_tensorflow_2(tf, tmp_path):
    saved = module(tf, VALUES)
    tf.saved_model.save(saved, str(tmp_path / "export"), signatures=saved.serve)
    holds(tmp_path / "export", VALUES, "TensorFlow SavedModel")


def test_a_frozen_function_of_tensorflow_2(tf, tmp_path):
    """The constants are in functions of the library; the checkpoint holds no variables."""

    def constants():
        images = tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 3), "input")
        kernel, variance = (tf.constant(value, name=name) for name, value in VALUES.items())
        return tf.identity(tf.nn.conv2d(images, kernel, 1, "SAME") * variance, "embeddings")

    saved = tf.Module()
    saved.serve = tf.compat.v1.wrap_function(constants, []).prune("input:0", {"embeddings": "embeddings:0"})
    tf.saved_model.save(saved, str(tmp_path / "export"), signatures=saved.serve)
    holds(tmp_path / "export", VALUES, "TensorFlow SavedModel of a frozen graph")


def test_a_model_of_keras(keras_model, tmp_path):
    """Keras exports every variable twice."""
    keras_model.export(str(tmp_path / "export"), verbose=False)
    assert holds(tmp_path / "export", KERAS_VALUES, "TensorFlow SavedModel").naming == "keras"


def test_a_saved_model_without_its_variables(capsys, tf1_folder, tmp_path):
    shutil.copy(tf1_folder / "saved_model.pb", tmp_path)
    assert main([str(tmp_path), "-o", str(tmp_path / "w.pt")]) == 3
    assert capsys.readouterr().err == (
        f"python -m converter: error: {tmp_path / 'saved_model.pb'}: this is a graph without weights (2 "
        "variables, not frozen). Copy the whole SavedModel, with its folder variables/.\n"
    )
    assert not (tmp_path / "w.pt").exists()


def test_a_saved_model_that_is_cut_off(tf1_folder, tmp_path):
    content = (tf1_folder / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match="the graph of this SavedModel is damaged or cut off"):
        open_source(tmp_path)


def test_a_saved_model_in_a_numbered_folder(tf1_folder, tmp_path):
    shutil.copytree(tf1_folder, tmp_path / "facenet" / "1")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "facenet")
    assert str(caught.value).endswith(f"Give the SavedModel in it: {tmp_path / 'facenet' / '1'}.")


def test_a_saved_model_that_lacks_its_data(tf1_folder, tmp_path):
    folder = shutil.copytree(tf1_folder, tmp_path / "export")
    next(folder.glob("variables/*.data-*")).unlink()
    with pytest.raises(SourceError, match=r"variables\.data-00000-of-00001: there is no such file"):
        open_source(folder)


# Checkpoints of TensorFlow 2


def test_a_checkpoint_of_a_module(tf, tmp_path):
    tf.train.Checkpoint(model=module(tf, VALUES)).save(str(tmp_path / "ckpt"))
    counter = {"save_counter": np.array(1)}
    holds(tmp_path, VALUES | counter, "TensorFlow 2 checkpoint (object-based)")


def test_a_checkpoint_of_keras(tf, keras_model, tmp_path):
    tf.train.Checkpoint(model=keras_model).write(str(tmp_path / "ckpt"))
    path = holds(tmp_path, KERAS_VALUES, "TensorFlow 2 checkpoint (object-based)")
    assert path.naming == "keras"


def test_two_variables_of_one_name_are_both_listed(tf, tmp_path):
    values = [np.zeros(3, np.float32), np.ones(3, np.float32)]
    held = tf.train.Checkpoint(
        a=tf.Variable(values[0], name="x/beta"), b=tf.Variable(values[1], name="x/beta")
    )
    held.write(str(tmp_path / "ckpt"))
    expected = {"x/beta": values[0], "b/.ATTRIBUTES/VARIABLE_VALUE": values[1]}
    holds(tmp_path, expected, "TensorFlow 2 checkpoint (object-based)")


@pytest.mark.parametrize("value", [b"\x0a\xff", b"\x0a\x05\x12\x03\x12\x01\xff", ["one", "two"], 3])
def test_a_damaged_list_of_variables(tf, tmp_path, value):
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "ckpt"),
        tensor_names=["_CHECKPOINTABLE_OBJECT_GRAPH"],
        shape_and_slices=[""],
        tensors=[tf.constant(value)],
    )
    with pytest.raises(
        SourceError, match="_CHECKPOINTABLE_OBJECT_GRAPH': the list of its variables is damaged"
    ):
        open_source(tmp_path)


def test_names_that_are_not_of_the_network_are_listed(tf, capsys, tmp_path):
    tf.train.Checkpoint(w=tf.Variable(KERNEL, name="conv/kernel")).write(str(tmp_path / "ckpt"))
    assert main([str(tmp_path), "-o", str(tmp_path / "w.pt")]) == 3
    assert "unexpected (1):\n    conv/kernel:0: float32 (3, 3, 3, 4)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["conv/w", "Variable", ""])
def test_a_checkpoint_without_names_is_called_object_based(tf, capsys, tmp_path, name):
    tf.train.Checkpoint(model=tf.train.Checkpoint(w=tf.Variable(KERNEL, name=name))).write(
        str(tmp_path / "ckpt")
    )
    assert main([str(tmp_path), "-o", str(tmp_path / "w.pt")]) == 3
    message = capsys.readouterr().err
    assert (
        "this is a TensorFlow 2 checkpoint (object-based), and its variables do not have the names of"
        in message
    )
    assert (
        "save its variables under the network's names with tf.compat.v1.train.Saver({NAME: VARIABLE})"
        in message
    )


def test_layers_of_keras_in_a_checkpoint_of_tensorflow_1(tf, tmp_path):
    names = [name.removesuffix(":0") for name in KERAS_VALUES]
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "ckpt"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(value) for value in KERAS_VALUES.values()],
    )
    assert holds(tmp_path, KERAS_VALUES, "TensorFlow checkpoint (TensorBundle)").naming == "keras"


def test_a_head_by_tf_layers_beside_the_network_of_slim(tmp_path):
    tensors = VALUES | {"Logits_finetune/kernel": np.zeros((4, 2), np.float32)}
    write_tensor_bundle(tmp_path / "model.ckpt-1", tensors)
    assert holds(tmp_path, tensors, "TensorFlow checkpoint (TensorBundle)").naming == "tensorflow"
