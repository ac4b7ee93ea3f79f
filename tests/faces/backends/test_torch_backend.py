"""PyTorch as a runtime: folding BatchNorm costs no accuracy, and the proofs run the network as it is."""

from __future__ import annotations

import copy
from unittest.mock import patch

import numpy as np
import pytest
import torch

from faces.backends.torch_backend import TorchBackend, fold_batch_norm
from faces.threads import run_side_by_side
from reference import load

IMAGES = 6


@pytest.fixture(scope="module")
def built(single_files):
    """A network, and seeded images."""
    images = np.random.default_rng(5).standard_normal((IMAGES, 80, 80, 3)).astype(np.float32)
    return load(single_files / "weights.pt"), images


def error(network, reference, images):
    """The root mean square error of embeddings before normalisation, against float64."""
    with torch.inference_mode():
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        apart = network.prelogits(batch).double() - reference.prelogits(batch.double())
        return float(apart.square().mean().sqrt())


def test_a_folded_network_errs_no_more_than_twice_as_much(built):
    network, images = built
    reference = copy.deepcopy(network).double()
    unfolded = error(network, reference, images)
    assert error(fold_batch_norm(network), reference, images) < 2 * unfolded


def test_an_epsilon_left_out_is_far_above(built):
    network, images = built
    without = copy.deepcopy(network)
    for module in without.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0
    reference = copy.deepcopy(network).double()
    assert error(fold_batch_norm(without), reference, images) > 20 * error(network, reference, images)


def test_an_embedding_depends_on_the_batch_by_rounding_alone(built):
    network, images = built
    backend = TorchBackend(network)
    whole = backend.embed(images)
    assert all(layer.bn.__class__ is torch.nn.Identity for layer in backend.network.repeat_1[0].branch1)
    for size in (1, 2, 4):
        parts = [backend.embed(images[start : start + size]) for start in range(0, IMAGES, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    memory = np.empty(images.size + 1, np.float32)  # images that begin at an odd address
    odd = memory[1:].reshape(images.shape)
    odd[:] = images
    np.testing.assert_allclose(backend.embed(odd), whole, atol=1e-6)


def test_the_network_itself_stays_as_it_is(built):
    network, images = built
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    TorchBackend(network).embed(images[:1])
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with patch("faces.backends.torch_backend.fold_batch_norm", side_effect=AssertionError):
        TorchBackend(network, fold=False).embed(images[:1])


def test_work_side_by_side_is_bounded_in_order_and_fails_as_it_would_alone():
    taken = []

    def works():
        for number in range(9):
            taken.append(number)
            yield number

    for threads in (1, 3):
        taken.clear()
        for place, result in enumerate(run_side_by_side(threads, lambda number: number**2, works())):
            assert result == place**2
            assert len(taken) <= place + 1 + threads
        assert len(taken) == 9
        with pytest.raises(ZeroDivisionError):
            list(run_side_by_side(threads, lambda number: 1 // number, works()))
