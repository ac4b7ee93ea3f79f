"""The triplet loss and the L2 penalty against TensorFlow's, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from converter.layer_map import ConvertedRow, Variant, table
from reference import InceptionResnetV1
from reference.losses import decay_kernels, triplet_loss

TRIPLETS = 20


def test_the_triplet_loss_and_its_gradient_are_those_of_the_training_graph() -> None:
    pytest.importorskip("tensorflow")
    from facenet_tf.checkpoint import TRIPLET_MARGIN
    from facenet_tf.checkpoint import triplet_loss as tensorflows
    from facenet_tf.session import legacy_graph, open_session, tf, tf1

    rows = np.random.default_rng(0).standard_normal((3 * TRIPLETS, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with legacy_graph() as graph:
        embeddings = tf.constant(rows)
        expected = tensorflows(embeddings, 8)
        with open_session(graph) as session:
            value, gradient = session.run((expected, tf1.gradients(expected, embeddings)[0]))

    actual = torch.tensor(rows, requires_grad=True)
    loss = triplet_loss(actual, torch.arange(3 * TRIPLETS).reshape(-1, 3), TRIPLET_MARGIN)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(actual.grad.numpy(), gradient, rtol=1e-12, atol=1e-14)
    active = gradient[::3].any(axis=1).sum()
    assert 0 < active < TRIPLETS  # some are beyond the margin, and count in the mean


def test_kernels_have_weight_decay_and_nothing_else() -> None:
    model = InceptionResnetV1(num_classes=7)
    keys = {parameter: key for key, parameter in model.named_parameters()}
    kernels, others = decay_kernels(list(keys), 5e-4)
    rows = [row for row in table(Variant(num_classes=7)) if isinstance(row, ConvertedRow)]
    weights = {row.key for row in rows if row.variable.endswith("/weights")}
    assert {keys[parameter] for parameter in kernels["params"]} == weights
    assert len(kernels["params"]) + len(others["params"]) == len(keys)
    assert (kernels["weight_decay"], others["weight_decay"]) == (5e-4, 0.0)
