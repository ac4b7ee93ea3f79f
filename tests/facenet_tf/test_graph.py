"""The rebuilt network: its variables, activations and arithmetic, and refused inputs."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("tensorflow")

from facenet_tf import LEGACY_KERAS, graph, import_tensorflow
from facenet_tf.rebuilt_network import RebuiltNetwork
from facenet_tf.session import legacy_graph, open_session
from facenet_tf.variables import BOTTLENECK, load_variables
from tests.facenet_tf.conftest import (
    POOL,
    SCOPE,
    Activations,
    Tensors,
    older_variant,
    relative_error,
)

pytestmark = pytest.mark.slow


def test_keras_is_there_for_a_program_that_uses_it_after_the_import():
    keras = import_tensorflow().keras
    assert LEGACY_KERAS not in os.environ
    assert keras.layers.Dense.__module__.startswith("keras.src.")


tf1 = graph.tf1


def test_activations_are_the_stages_and_the_convolutions(
    rebuilt: RebuiltNetwork, activations: Activations
) -> None:
    convolutions = {name for name in rebuilt.activations if "Conv2d_" in name}
    assert len(convolutions) == 132
    assert set(rebuilt.activations) == convolutions | set(graph.STAGES)
    assert (
        tuple(activation for activation in rebuilt.activations if activation in graph.STAGES) == graph.STAGES
    )
    assert activations[f"{SCOPE}/Mixed_6a"].shape == (2, 8, 8, 896)
    assert activations[POOL].shape == (2, 1, 1, 1792)
    assert activations[BOTTLENECK].shape == activations["embeddings"].shape == (2, 512)


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


def test_two_networks_of_one_variant_keep_their_own_weights(
    tensors: Tensors, rebuilt: RebuiltNetwork, images: NDArray, activations: Activations
) -> None:
    """They share a graph, whose variables belong to a session."""
    beta = f"{BOTTLENECK}/BatchNorm/beta"
    with RebuiltNetwork(tensors | {beta: tensors[beta] + np.float32(1)}) as other:
        (moved,) = other.run(images, [BOTTLENECK]).values()
        (kept,) = rebuilt.run(images, [BOTTLENECK]).values()
    np.testing.assert_array_equal(kept, activations[BOTTLENECK])
    np.testing.assert_allclose(moved - kept, 1, atol=1e-5)


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


def training_step(
    tensors: Tensors, images: NDArray, dtype: Any, phases: tuple[bool, ...]
) -> tuple[list[NDArray], Tensors]:
    """Embeddings with each value of `phase_train`, then the moving statistics that they left."""
    with legacy_graph() as network:
        source = tf1.placeholder(dtype, (None, None, None, 3))
        phase_train = tf1.placeholder("bool", ())
        endpoints = graph.build(
            source, embedding_size=512, training=phase_train, dtype=dtype, keep_probability=1.0
        )
        with open_session(network) as session:
            load_variables(session, {k: v for k, v in tensors.items() if not k.startswith("Logits/")})
            embeddings = [
                session.run(endpoints["embeddings"], {source: images, phase_train: phase}) for phase in phases
            ]
            moving = {v.op.name: v for v in tf1.global_variables() if "/moving_" in v.op.name}
            return embeddings, session.run(moving)


def test_training_branch_normalises_and_updates_as_the_fused_operation(
    tensors: Tensors, rebuilt: RebuiltNetwork
) -> None:
    # The last maps have two pixels in each of four images, so that n / (n - 1) is far from one.
    images = np.random.default_rng(3).standard_normal((4, 107, 80, 3), dtype=np.float32)
    (off, on), fused = training_step(tensors, images, graph.tf.float32, (False, True))
    (truth,), decomposed = training_step(tensors, images, graph.tf.float64, (True,))
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


def test_other_variables_are_all_named(tensors: Tensors) -> None:
    beta = f"{BOTTLENECK}/BatchNorm/beta"
    changed = tensors | {"global_step": np.zeros(()), beta: np.zeros(3)}
    del changed["Logits/biases"]
    with pytest.raises(ValueError, match="not the variables") as caught:
        RebuiltNetwork(changed)
    assert str(caught.value) == (
        "not the variables of this network: missing Logits/biases; unexpected global_step; "
        f"{beta} has shape (3,), not (512,)"
    )
    del changed[f"{BOTTLENECK}/weights"]
    with pytest.raises(ValueError, match=f"missing {BOTTLENECK}/weights"):
        RebuiltNetwork(changed)


@pytest.mark.parametrize("shape", [(160, 160, 3), (1, 3, 160, 160), (1, 74, 160, 3)])
def test_other_shapes_of_images_are_refused(rebuilt: RebuiltNetwork, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must be"):
        rebuilt.run(np.zeros(shape, np.float32))


def test_an_unknown_activation_is_named(rebuilt: RebuiltNetwork, images: NDArray) -> None:
    with pytest.raises(ValueError, match="no such activation: Mixed_6a"):
        rebuilt.run(images, ["embeddings", "Mixed_6a"])
