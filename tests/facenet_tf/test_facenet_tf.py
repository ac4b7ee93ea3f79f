"""The TensorFlow side: names, the rebuilt network against a checkpoint's own graph, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("tensorflow")

from facenet_tf import graph
from facenet_tf.checkpoint import CheckpointFiles, write_checkpoint
from facenet_tf.graph import variable_shapes
from facenet_tf.graph_nodes import GraphError
from facenet_tf.own_graph import OwnGraph
from facenet_tf.rebuilt_network import RebuiltNetwork
from facenet_tf.session import legacy_graph, open_session
from facenet_tf.variables import BOTTLENECK, load_variables

tf1 = graph.tf1

SCOPE = "InceptionResnetV1"
POOL = f"{SCOPE}/Logits/AvgPool_1a_8x8"
Tensors = dict[str, NDArray[np.float32]]
Activations = dict[str, NDArray]


def seeded_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Weights that keep activations near one: He-scaled kernels, moving statistics of that order."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        leaf = name.rpartition("/")[2]
        if leaf == "weights":
            value = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif leaf in ("moving_variance", "gamma"):
            value = generator.uniform(0.5, 1.5, shape)
        else:
            value = generator.standard_normal(shape) * 0.1
        tensors[name] = value.astype(np.float32)
    return tensors


def older_variant(tensors: Tensors) -> Tensors:
    """The same network with a top-level Bottleneck, a gamma of two in every BatchNorm, and no head."""
    moved = {
        name.replace(f"{BOTTLENECK}/", "Bottleneck/"): value
        for name, value in tensors.items()
        if not name.startswith("Logits/")
    }
    betas = {name: value for name, value in moved.items() if name.endswith("/beta")}
    return moved | {name.replace("/beta", "/gamma"): np.full_like(v, 2.0) for name, v in betas.items()}


def relative_error(value: NDArray, truth: NDArray) -> float:
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return seeded_tensors(variable_shapes(512, 7))


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((2, 160, 160, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def files(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> CheckpointFiles:
    folder = tmp_path_factory.mktemp("20990101-000000")
    return write_checkpoint(folder, tensors, model_name="20990101-000000", step=90)


@pytest.fixture(scope="module")
def from_meta(files: CheckpointFiles) -> Iterator[OwnGraph]:
    with OwnGraph.from_checkpoint(files.meta, files.prefix) as network:
        yield network


@pytest.fixture(scope="module")
def from_pb(files: CheckpointFiles) -> Iterator[OwnGraph]:
    assert files.frozen is not None
    with OwnGraph.from_frozen(files.frozen) as network:
        yield network


@pytest.fixture(scope="module")
def rebuilt(tensors: Tensors) -> Iterator[RebuiltNetwork]:
    with RebuiltNetwork(tensors) as network:
        yield network


@pytest.fixture(scope="module")
def activations(rebuilt: RebuiltNetwork, images: NDArray) -> Activations:
    return rebuilt.run(images)


@pytest.fixture(scope="module")
def frozen_def(files: CheckpointFiles) -> Any:
    assert files.frozen is not None
    return tf1.GraphDef.FromString(files.frozen.read_bytes())


def assert_same_activations(published: Activations, rebuilt: Activations) -> None:
    """Equal bits down to the last map; after it, equal to rounding.

    The published graph pools with AvgPool over a fixed window, the rebuilt one with Mean over any map, and
    nothing says that the two add in the same order.
    """
    assert published
    for activation, value in published.items():
        assert value.shape == rebuilt[activation].shape, activation
        if activation in (POOL, BOTTLENECK) or not activation.startswith(SCOPE):
            assert relative_error(value, rebuilt[activation]) < 1e-6, activation
        else:
            np.testing.assert_array_equal(value, rebuilt[activation], err_msg=activation)


# Names and shapes


def test_the_graph_has_the_published_variables(tensors: Tensors) -> None:
    assert len(tensors) == 492
    leaves = Counter(name.rpartition("/")[2] for name in tensors)
    assert leaves == {"weights": 134, "biases": 22, "beta": 112, "moving_mean": 112, "moving_variance": 112}
    for name, shape in {
        "InceptionResnetV1/Conv2d_1a_3x3/weights": (3, 3, 3, 32),
        "InceptionResnetV1/Repeat/block35_1/Branch_1/Conv2d_0b_3x3/BatchNorm/beta": (32,),
        "InceptionResnetV1/Repeat_1/block17_10/Branch_1/Conv2d_0c_7x1/weights": (7, 1, 128, 128),
        "InceptionResnetV1/Repeat_2/block8_5/Conv2d_1x1/biases": (1792,),
        "InceptionResnetV1/Block8/Branch_1/Conv2d_0b_1x3/weights": (1, 3, 192, 192),
        "InceptionResnetV1/Mixed_6a/Branch_0/Conv2d_1a_3x3/weights": (3, 3, 256, 384),
        "InceptionResnetV1/Bottleneck/weights": (1792, 512),
        "Logits/weights": (512, 7),
    }.items():
        assert tensors[name].shape == shape, name
    sizes = {leaf: sum(t.size for n, t in tensors.items() if n.endswith(leaf)) for leaf in leaves}
    # facenet-pytorch counts 23,482,624 parameters: these, without the head, and a weight beside every beta.
    head = 512 * 7 + 7
    assert sizes["weights"] + sizes["biases"] + 2 * sizes["beta"] - head == 23_482_624


def test_variants_have_their_own_variables() -> None:
    names = variable_shapes(128, None, True, "Bottleneck")
    assert len(names) == 490 + 112
    assert names["Bottleneck/weights"] == (1792, 128)
    assert f"{SCOPE}/Block8/Branch_0/Conv2d_1x1/BatchNorm/gamma" in names
    assert not any(name.startswith((BOTTLENECK, "Logits")) for name in names)


def test_taps_are_the_stages_and_the_convolutions(rebuilt: RebuiltNetwork, activations: Activations) -> None:
    convolutions = {name for name in rebuilt.activations if "Conv2d_" in name}
    assert len(convolutions) == 132
    assert set(rebuilt.activations) == convolutions | set(graph.STAGES)
    assert (
        tuple(activation for activation in rebuilt.activations if activation in graph.STAGES) == graph.STAGES
    )
    assert activations[f"{SCOPE}/Mixed_6a"].shape == (2, 8, 8, 896)
    assert activations[POOL].shape == (2, 1, 1, 1792)
    assert activations[BOTTLENECK].shape == activations["embeddings"].shape == (2, 512)


# The written checkpoint, run by its own graph


def test_training_graph_equals_the_rebuilt_network(
    from_meta: OwnGraph, rebuilt: RebuiltNetwork, images: NDArray, activations: Activations
) -> None:
    assert from_meta.has_logits
    assert from_meta.activations == rebuilt.activations
    assert_same_activations(from_meta.run(images), activations)


def test_frozen_graph_equals_the_rebuilt_network(
    from_pb: OwnGraph, rebuilt: RebuiltNetwork, images: NDArray, activations: Activations
) -> None:
    assert not from_pb.has_logits
    assert from_pb.activations == rebuilt.activations[:-1]
    assert_same_activations(from_pb.run(images), activations)


def test_values_come_back_bit_for_bit(tensors: Tensors, from_meta: OwnGraph, from_pb: OwnGraph) -> None:
    assert from_meta.tensors.keys() == tensors.keys()
    assert from_pb.tensors.keys() == tensors.keys() - {"Logits/weights", "Logits/biases"}
    for network in (from_meta, from_pb):
        for name, value in network.tensors.items():
            assert value.dtype == np.float32
            assert value.tobytes() == tensors[name].tobytes(), name


def test_layout_is_the_published_one(files: CheckpointFiles) -> None:
    assert sorted(path.name for path in files.prefix.parent.iterdir()) == [
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


def test_an_existing_file_is_not_overwritten(files: CheckpointFiles, tensors: Tensors) -> None:
    before = files.meta.stat()
    with pytest.raises(FileExistsError, match=r"ckpt-90\.data"):
        write_checkpoint(files.prefix.parent, tensors, model_name="20990101-000000", step=90)
    assert files.meta.stat() == before


def test_taps_do_not_depend_on_the_names_of_operations(
    frozen_def: Any, from_pb: OwnGraph, images: NDArray, tmp_path: Path
) -> None:
    kept = from_pb.tensors.keys() | {"input", "phase_train", "batch_size", "embeddings", "label_batch"}
    shuffled = np.random.default_rng(2).permutation(len(frozen_def.node))
    new = {node.name: f"op{i}" for node, i in zip(frozen_def.node, shuffled, strict=True)}
    new |= {name: name for name in kept}
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
        values = network.run(images)
    expected = from_pb.run(images)
    assert values.keys() == expected.keys()
    for activation, value in values.items():
        np.testing.assert_array_equal(value, expected[activation], err_msg=activation)


def test_triplet_checkpoint_of_an_older_release(tensors: Tensors, tmp_path: Path, images: NDArray) -> None:
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
    files: CheckpointFiles, tensors: Tensors, tmp_path: Path
) -> None:
    averages = seeded_tensors({name: value.shape for name, value in tensors.items()}, seed=5)
    stored = tensors | {f"{name}/ExponentialMovingAverage": value for name, value in averages.items()}
    with legacy_graph() as variables, open_session(variables) as session:
        for name, value in stored.items():
            tf1.get_variable(name, value.shape, initializer=tf1.zeros_initializer())
        load_variables(session, stored)
        prefix = Path(tf1.train.Saver().save(session, str(tmp_path / "averaged"), write_meta_graph=False))
    with OwnGraph.from_checkpoint(files.meta, prefix, weights="average") as network:
        for name, value in averages.items():
            np.testing.assert_array_equal(network.tensors[name], value)
    with pytest.raises(GraphError, match=r"lacks .*weights/ExponentialMovingAverage"):
        OwnGraph.from_checkpoint(files.meta, files.prefix, weights="average")


# Arithmetic


def test_float64_shows_the_rounding_of_float32(
    tensors: Tensors, images: NDArray, activations: Activations
) -> None:
    with RebuiltNetwork(tensors, "float64") as network:
        truth = network.run(images)
    for activation, value in truth.items():
        assert value.dtype == np.float64
        assert 1e-8 < relative_error(activations[activation], value) < 5e-6, activation
    norms = np.linalg.norm(truth[BOTTLENECK], axis=1, keepdims=True)
    assert relative_error(truth[BOTTLENECK] / norms, truth["embeddings"]) < 1e-14
    logits = truth[BOTTLENECK] @ tensors["Logits/weights"].astype(np.float64) + tensors["Logits/biases"]
    assert relative_error(logits, truth["Logits"]) < 1e-14


def test_gamma_and_the_old_bottleneck_take_effect(
    tensors: Tensors, images: NDArray, activations: Activations
) -> None:
    with RebuiltNetwork(older_variant(tensors)) as network:
        values = network.run(images, [f"{SCOPE}/Conv2d_1a_3x3", BOTTLENECK])
        assert "Logits" not in network.activations
    first = f"{SCOPE}/Conv2d_1a_3x3"
    beta = tensors[f"{first}/BatchNorm/beta"]
    positive = (values[first] > 0) & (activations[first] > 0)
    doubled = 2 * activations[first] - beta
    np.testing.assert_allclose(values[first][positive], doubled[positive], rtol=1e-4, atol=1e-5)
    assert values[BOTTLENECK].shape == (2, 512)


@pytest.mark.parametrize(("height", "width", "last"), [(75, 75, (1, 1)), (107, 203, (2, 5))])
def test_other_image_sizes(rebuilt: RebuiltNetwork, height: int, width: int, last: tuple[int, int]) -> None:
    values = rebuilt.run(np.ones((1, height, width, 3), np.float32), [f"{SCOPE}/Block8", "embeddings"])
    assert values[f"{SCOPE}/Block8"].shape == (1, *last, 1792)
    assert np.linalg.norm(values["embeddings"]) == pytest.approx(1, abs=1e-6)


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


def training_step(tensors: Tensors, images: NDArray, dtype: Any) -> tuple[NDArray, NDArray, Tensors]:
    """Embeddings with `phase_train` off and on, then the moving statistics that the latter left."""
    with legacy_graph() as network:
        source = tf1.placeholder(dtype, (None, None, None, 3))
        phase_train = tf1.placeholder("bool", ())
        endpoints = graph.build(
            source, embedding_size=512, training=phase_train, dtype=dtype, keep_probability=1.0
        )
        with open_session(network) as session:
            load_variables(session, {k: v for k, v in tensors.items() if not k.startswith("Logits/")})
            off = session.run(endpoints["embeddings"], {source: images, phase_train: False})
            on = session.run(endpoints["embeddings"], {source: images, phase_train: True})
            moving = {v.op.name: v for v in tf1.global_variables() if "/moving_" in v.op.name}
            return off, on, session.run(moving)


def test_training_branch_normalises_and_updates_as_the_fused_operation(
    tensors: Tensors, rebuilt: RebuiltNetwork
) -> None:
    # The last maps have two pixels in each of four images, so that n / (n - 1) is far from one.
    images = np.random.default_rng(3).standard_normal((4, 107, 80, 3), dtype=np.float32)
    off, on, fused = training_step(tensors, images, graph.tf.float32)
    _, truth, decomposed = training_step(tensors, images, graph.tf.float64)
    np.testing.assert_array_equal(off, rebuilt.run(images, ["embeddings"])["embeddings"])
    assert relative_error(on, off) > 0.1
    assert relative_error(on, truth) < 1e-4
    assert len(fused) == 224
    for name, value in decomposed.items():
        change = value - tensors[name]
        assert relative_error(fused[name] - tensors[name], change) < 2e-3, name
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))[:, ::2, ::2]
    first = f"{SCOPE}/Conv2d_1a_3x3"
    kernel = tensors[f"{first}/weights"].astype(np.float64)
    maps = np.einsum("nhwcij,ijco->nhwo", windows, kernel).reshape(-1, 32)
    for name, batch in (("moving_mean", maps.mean(0)), ("moving_variance", maps.var(0, ddof=1))):
        before = tensors[f"{first}/BatchNorm/{name}"].astype(np.float64)
        after = decomposed[f"{first}/BatchNorm/{name}"]
        np.testing.assert_allclose(after, 0.995 * before + 0.005 * batch, rtol=1e-12)


# What is refused


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("Logits/biases"), "missing Logits/biases"),
        (without(f"{BOTTLENECK}/weights"), f"missing {BOTTLENECK}/weights"),
        (lambda t: t | {"global_step": np.zeros(())}, "unexpected global_step"),
        (lambda t: t | {f"{BOTTLENECK}/BatchNorm/beta": np.zeros(3)}, r"has shape \(3,\), not \(512,\)"),
    ],
)
def test_other_variables_are_named(
    tensors: Tensors, change: Callable[[Tensors], Tensors], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RebuiltNetwork(change(tensors))


@pytest.mark.parametrize("shape", [(160, 160, 3), (1, 3, 160, 160), (1, 74, 160, 3)])
def test_other_shapes_of_images_are_refused(
    rebuilt: RebuiltNetwork, from_pb: OwnGraph, shape: tuple[int, ...]
) -> None:
    for network in (rebuilt, from_pb):
        with pytest.raises(ValueError, match="images must be"):
            network.run(np.zeros(shape, np.float32))


def test_an_unknown_tap_is_named(rebuilt: RebuiltNetwork, images: NDArray) -> None:
    with pytest.raises(ValueError, match="no such activation: Mixed_6a"):
        rebuilt.run(images, ["embeddings", "Mixed_6a"])


def another_network() -> bytes:
    with legacy_graph() as other:
        images = tf1.placeholder("float32", (None, 160, 160, 3), name="input")
        graph.tf.math.l2_normalize(graph.tf.reduce_mean(images, [1, 2]), 1, name="embeddings")
        return bytes(other.as_graph_def().SerializeToString())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "not a GraphDef"),
        (b"", "no node 'embeddings'"),
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


def test_a_graph_without_weights_is_refused(files: CheckpointFiles, tmp_path: Path) -> None:
    path = tmp_path / "unfrozen.pb"
    path.write_bytes(tf1.MetaGraphDef.FromString(files.meta.read_bytes()).graph_def.SerializeToString())
    with pytest.raises(GraphError, match=r"unfrozen\.pb: the graph is not frozen"):
        OwnGraph.from_frozen(path)


def test_a_checkpoint_that_does_not_fit_the_graph_is_refused(files: CheckpointFiles, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="does not read the checkpoint"):
        OwnGraph.from_checkpoint(files.meta, tmp_path / "absent")
    with legacy_graph() as other, open_session(other) as session:
        tf1.get_variable("Logits/weights", (512, 8), initializer=tf1.zeros_initializer())
        session.run(tf1.global_variables_initializer())
        prefix = tf1.train.Saver().save(session, str(tmp_path / "other"), write_meta_graph=False)
    with pytest.raises(GraphError, match=f"lacks .*{BOTTLENECK}/weights"):
        OwnGraph.from_checkpoint(files.meta, Path(prefix))
