"""A checkpoint's own graph against the rebuilt network, and refused graphs and checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("tensorflow")

from checks.core.tensorflow_side import find_own_graph
from converter.formats.detect import open_source
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from facenet_tf import checkpoint as checkpoint_writer
from facenet_tf import graph
from facenet_tf.checkpoint import write_checkpoint
from facenet_tf.graph_nodes import GraphError, rename_nodes
from facenet_tf.own_graph import OwnGraph, read_graph
from facenet_tf.rebuilt_network import RebuiltNetwork
from facenet_tf.session import legacy_graph, open_session
from facenet_tf.variables import BOTTLENECK
from tests.conftest import Checkpoint
from tests.facenet_tf.conftest import (
    Activations,
    Tensors,
    assert_same_activations,
    older_variant,
    seeded_tensors,
)

pytestmark = pytest.mark.slow

tf1 = graph.tf1


@pytest.fixture(scope="module")
def from_meta(checkpoint: Checkpoint) -> Iterator[OwnGraph]:
    with OwnGraph.from_checkpoint(checkpoint.meta, checkpoint.prefix) as network:
        yield network


@pytest.fixture(scope="module")
def from_pb(checkpoint: Checkpoint) -> Iterator[OwnGraph]:
    with OwnGraph.from_frozen(checkpoint.frozen) as network:
        yield network


@pytest.fixture(scope="module")
def published(from_pb: OwnGraph, images: NDArray) -> Activations:
    """What the frozen graph computes."""
    return from_pb.run(images)


@pytest.fixture(scope="module")
def frozen_def(checkpoint: Checkpoint) -> Any:
    return tf1.GraphDef.FromString(checkpoint.frozen.read_bytes())


def test_training_graph_equals_the_rebuilt_network(
    from_meta: OwnGraph, rebuilt: RebuiltNetwork, images: NDArray, activations: Activations
) -> None:
    assert from_meta.has_logits
    assert from_meta.activations == rebuilt.activations
    assert_same_activations(from_meta.run(images), activations)


def test_frozen_graph_equals_the_rebuilt_network(
    from_pb: OwnGraph, rebuilt: RebuiltNetwork, published: Activations, activations: Activations
) -> None:
    assert not from_pb.has_logits
    assert from_pb.activations == rebuilt.activations[:-1]
    assert_same_activations(published, activations)


def test_the_meta_graph_of_a_frozen_graph_is_its_own_graph(frozen_def: Any, tmp_path: Path) -> None:
    meta = tf1.MetaGraphDef(graph_def=frozen_def)
    meta.meta_info_def.tensorflow_version = "2"
    (tmp_path / "frozen.meta").write_bytes(meta.SerializeToString())
    with open_source(tmp_path / "frozen.meta") as source:
        assert find_own_graph(source) == (tmp_path / "frozen.meta", "frozen_meta")
    assert read_graph(tmp_path / "frozen.meta", "frozen_meta") == frozen_def


def test_values_come_back_bit_for_bit(tensors: Tensors, from_meta: OwnGraph, from_pb: OwnGraph) -> None:
    assert from_meta.tensors.keys() == tensors.keys()
    assert from_pb.tensors.keys() == tensors.keys() - {"Logits/weights", "Logits/biases"}
    for network in (from_meta, from_pb):
        for name, value in network.tensors.items():
            assert value.dtype == np.float32
            assert value.tobytes() == tensors[name].tobytes(), name


def test_layout_is_the_published_one(checkpoint: Checkpoint) -> None:
    assert sorted(path.name for path in checkpoint.prefix.parent.iterdir()) == [
        "20990101-000000.pb",
        "model-20990101-000000.ckpt-90.data-00000-of-00001",
        "model-20990101-000000.ckpt-90.index",
        "model-20990101-000000.meta",
    ]


def test_frozen_graph_keeps_its_conditionals(frozen_def: Any) -> None:
    ops = Counter(node.op for node in frozen_def.node)
    assert (ops["Conv2D"], ops["FusedBatchNormV3"], ops["Switch"]) == (132, 224, 2019)
    assert not {"VariableV2", "RefSwitch", "AssignSub"} & ops.keys()
    assert {"embeddings", "label_batch", "input", "phase_train", "batch_size"} <= {
        node.name for node in frozen_def.node
    }


def test_an_existing_file_is_not_overwritten(checkpoint: Checkpoint, tensors: Tensors) -> None:
    before = checkpoint.meta.stat()
    with pytest.raises(FileExistsError, match=r"ckpt-90\.data"):
        write_checkpoint(checkpoint.prefix.parent, tensors, model_name="20990101-000000", step=90)
    assert checkpoint.meta.stat() == before


OTHER_NAMES = {"embeddings": "output", "input": "input_1", "phase_train": "keras_learning_phase"}


def test_activations_do_not_depend_on_the_names_of_operations_input_and_end(
    frozen_def: Any, from_pb: OwnGraph, published: Activations, images: NDArray, tmp_path: Path
) -> None:
    kept = from_pb.tensors.keys() | {"batch_size", "label_batch"}
    shuffled = np.random.default_rng(2).permutation(len(frozen_def.node))
    new = {node.name: f"op{i}" for node, i in zip(frozen_def.node, shuffled, strict=True)}
    new |= {name: name for name in kept} | OTHER_NAMES
    renamed = tf1.GraphDef()
    renamed.CopyFrom(frozen_def)
    for node in renamed.node:
        node.name = new[node.name]
        node.attr.pop("_class", None)
        for i, reference in enumerate(node.input):
            name, colon, port = reference.removeprefix("^").partition(":")
            node.input[i] = "^" * reference.startswith("^") + new[name] + colon + port
    path = tmp_path / "renamed.pb"
    path.write_bytes(renamed.SerializeToString())
    with OwnGraph.from_frozen(path) as network:
        assert network.activations == from_pb.activations
        assert network.is_normalised
        values = network.run(images)
    assert values.keys() == published.keys()
    for activation, value in values.items():
        np.testing.assert_array_equal(value, published[activation], err_msg=activation)


def cut_before_the_normalisation(definition: Any) -> None:
    kept = [node for node in definition.node if node.name.partition("/")[0] != "embeddings"]
    del definition.node[:]
    definition.node.extend(kept)


def cut_at_both_ends(definition: Any) -> None:
    nodes = {node.name: node for node in definition.node}
    nodes["input"].Clear()
    nodes["input"].name, nodes["input"].op = "input", "Placeholder"
    nodes["input"].attr["dtype"].type = graph.tf.float32.as_datatype_enum
    rename_nodes(definition, {"input": "image_input"})
    cut_before_the_normalisation(definition)


def test_both_ends_may_be_cut_off(
    frozen_def: Any, from_pb: OwnGraph, images: NDArray, tmp_path: Path
) -> None:
    changed = tf1.GraphDef()
    changed.CopyFrom(frozen_def)
    cut_at_both_ends(changed)
    (tmp_path / "changed.pb").write_bytes(changed.SerializeToString())
    with OwnGraph.from_frozen(tmp_path / "changed.pb") as network:
        assert network.activations == from_pb.activations
        assert not network.is_normalised
        value = network.run(images[:1], ["embeddings"])["embeddings"]
    np.testing.assert_array_equal(value, from_pb.run(images[:1], ["embeddings"])["embeddings"])


def test_an_end_that_is_not_the_networks_is_not_taken_for_the_embeddings(
    frozen_def: Any, tmp_path: Path
) -> None:
    changed = tf1.GraphDef()
    changed.CopyFrom(frozen_def)
    cut_before_the_normalisation(changed)
    bottleneck = next(node.name for node in changed.node if node.name.endswith("Bottleneck/MatMul"))
    changed.node.add(name="probabilities", op="Softmax", input=[bottleneck])
    (tmp_path / "changed.pb").write_bytes(changed.SerializeToString())
    with pytest.raises(GraphError, match=r"no node 'embeddings', .* its last nodes are .*'probabilities'"):
        OwnGraph.from_frozen(tmp_path / "changed.pb")


def test_triplet_checkpoint_of_an_older_release(
    tensors: Tensors, tmp_path: Path, images: NDArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without gradients, Adam and averages, which this test does not need, the graph takes half of the time.
    monkeypatch.setattr(checkpoint_writer, "_moving_averages", lambda variables: [])
    monkeypatch.setattr(tf1.train.AdamOptimizer, "minimize", lambda *_: graph.tf.no_op())
    features = older_variant(tensors)
    files = write_checkpoint(tmp_path, features, model_name="triplet", step=1, frozen=False)
    assert files.frozen is None
    with OwnGraph.from_checkpoint(files.meta, files.prefix) as network:
        assert not network.has_logits
        assert network.tensors.keys() == features.keys()
        values = network.run(images)
    with RebuiltNetwork(features) as rebuilt:
        assert_same_activations(values, rebuilt.run(images))


def test_averages_are_another_set_of_weights(
    checkpoint: Checkpoint, tensors: Tensors, tmp_path: Path
) -> None:
    averages = seeded_tensors({name: value.shape for name, value in tensors.items()}, seed=5)
    stored = tensors | {f"{name}/ExponentialMovingAverage": value for name, value in averages.items()}
    prefix = tmp_path / "averaged"
    write_tensor_bundle(prefix, stored)
    with OwnGraph.from_checkpoint(checkpoint.meta, prefix, weights="average") as network:
        for name, value in averages.items():
            np.testing.assert_array_equal(network.tensors[name], value)
    with pytest.raises(GraphError, match=r"lacks .*weights/ExponentialMovingAverage"):
        OwnGraph.from_checkpoint(checkpoint.meta, checkpoint.prefix, weights="average")


def test_published_graph_runs_only_where_its_pool_covers_the_map(
    from_pb: OwnGraph, rebuilt: RebuiltNetwork
) -> None:
    assert from_pb.pool_size == (3, 3)
    other = np.ones((1, 165, 150, 3), np.float32)
    assert from_pb.supports(165, 150)
    assert_same_activations(from_pb.run(other), rebuilt.run(other))
    assert not from_pb.supports(160, 200)
    with pytest.raises(ValueError, match=r"fixed to \(3, 3\).* give \(3, 4\)"):
        from_pb.run(np.ones((1, 160, 200, 3), np.float32))


def another_network() -> bytes:
    with legacy_graph() as other:
        images = tf1.placeholder("float32", (None, 160, 160, 3), name="input")
        graph.tf.math.l2_normalize(graph.tf.reduce_mean(images, [1, 2]), 1, name="embeddings")
        return bytes(other.as_graph_def().SerializeToString())


@pytest.mark.parametrize("shape", [(160, 160, 3), (1, 3, 160, 160), (1, 74, 160, 3)])
def test_other_shapes_of_images_are_refused(from_pb: OwnGraph, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must be"):
        from_pb.run(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "the file is damaged, cut off or not a graph"),
        (b"", "it has no node 'embeddings'"),
        (another_network, "0 convolutions have weights here, not 132"),
    ],
)
def test_a_file_that_is_no_such_graph_is_refused(
    content: bytes | Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.pb"
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(GraphError, match=rf"other\.pb: {message}"):
        OwnGraph.from_frozen(path)


def test_a_graph_without_weights_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "unfrozen.pb"
    path.write_bytes(tf1.MetaGraphDef.FromString(checkpoint.meta.read_bytes()).graph_def.SerializeToString())
    with pytest.raises(GraphError, match=r"unfrozen\.pb: the graph is not frozen"):
        OwnGraph.from_frozen(path)


def test_a_checkpoint_that_does_not_fit_the_graph_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="does not read the checkpoint"):
        OwnGraph.from_checkpoint(checkpoint.meta, tmp_path / "absent")
    with legacy_graph() as other, open_session(other) as session:
        tf1.get_variable("Logits/weights", (512, 8), initializer=tf1.zeros_initializer())
        session.run(tf1.global_variables_initializer())
        prefix = tf1.train.Saver().save(session, str(tmp_path / "other"), write_meta_graph=False)
    with pytest.raises(GraphError, match=f"lacks .*{BOTTLENECK}/weights"):
        OwnGraph.from_checkpoint(checkpoint.meta, Path(prefix))
