"""The selection of triplets against the original's rule, and their loss against closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from faces.training.triplets import select_batch_hard, select_semi_hard, squared_distances
from reference.losses import triplet_loss

MARGIN = 0.2


def draw(seed: int, spread: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of five people with one to six faces each, one person after the other."""
    drawn = np.random.default_rng(seed)
    counts = drawn.integers(1, 7, 5)
    centres = np.repeat(drawn.normal(size=(5, 8)), counts, axis=0)
    rows = centres + drawn.normal(0, spread, centres.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(rows), torch.from_numpy(np.repeat(np.arange(5), counts))


def candidates(embeddings: np.ndarray, labels: np.ndarray) -> dict[tuple[int, int], set[int]]:
    """Each pair of a person and the negatives that facenet's select_triplets draws from, face by face."""
    found = {}
    for anchor, positive in itertools.combinations(range(len(labels)), 2):
        if labels[anchor] == labels[positive]:
            near = np.sum(np.square(embeddings[anchor] - embeddings[positive]))
            found[anchor, positive] = {
                negative
                for negative in range(len(labels))
                if labels[negative] != labels[anchor]
                and np.sum(np.square(embeddings[anchor] - embeddings[negative])) - near < MARGIN
            }
    return found


@pytest.mark.parametrize("seed", range(20))
def test_semi_hard_triplets_are_those_of_the_originals_rule(seed):
    embeddings, labels = draw(seed)
    triplets, count = select_semi_hard(embeddings, labels, MARGIN, np.random.default_rng(seed))
    expected = candidates(embeddings.numpy(), labels.numpy())
    assert count == len(expected)
    chosen = {(a, p): n for a, p, n in triplets.tolist()}
    assert chosen.keys() == {pair for pair, negatives in expected.items() if negatives}
    assert all(negative in expected[pair] for pair, negative in chosen.items())


def test_every_negative_within_the_margin_is_drawn_as_often():
    embeddings, labels = draw(3, spread=1.0)
    expected = candidates(embeddings.numpy(), labels.numpy())
    pair, negatives = max(expected.items(), key=lambda item: len(item[1]))
    drawn = np.random.default_rng(0)
    picks = []
    for _ in range(400):
        triplets, _ = select_semi_hard(embeddings, labels, MARGIN, drawn)
        picks += [n for a, p, n in triplets.tolist() if (a, p) == pair]
    counts = [picks.count(negative) for negative in negatives]
    expected_count = 400 / len(negatives)
    assert len(negatives) > 2
    assert max(abs(count - expected_count) for count in counts) < 5 * expected_count**0.5


def test_distances_of_near_embeddings_are_exact_and_never_negative():
    drawn = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(5, 128, generator=drawn)).repeat_interleave(4, dim=0)
    rows = centres + 1e-5 * torch.randn(20, 128, generator=drawn)
    rows[1] = rows[0]
    distances = squared_distances(rows)
    assert distances.dtype == torch.float32
    exact = (rows[:, None].double() - rows[None].double()).square().sum(dim=2)
    assert torch.allclose(distances.double(), exact, rtol=1e-6, atol=0)
    assert (distances == distances.T).all()
    assert distances[0, 1] == 0
    assert squared_distances(rows.bfloat16()).dtype == torch.float32


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that is computed."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_the_selection_takes_memory_for_all_pairs_alone():
    faces, size = 300, 64
    rows = torch.randn(faces, size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(faces) // 10
    with Largest() as largest:
        select_semi_hard(rows, labels, MARGIN, np.random.default_rng(0))
        select_batch_hard(rows, labels, MARGIN)
    assert largest.numbers <= faces * faces


@pytest.mark.parametrize("seed", range(20))
def test_batch_hard_triplets_are_the_furthest_and_the_nearest(seed):
    embeddings, labels = draw(seed)
    triplets, count = select_batch_hard(embeddings, labels, MARGIN)
    rows, people = embeddings.numpy(), labels.numpy()
    expected = set()
    complete = 0
    for anchor, person in enumerate(people):
        distances = np.sum(np.square(rows - rows[anchor]), axis=1)
        own = [face for face in np.flatnonzero(people == person) if face != anchor]
        if own:
            complete += 1
            positive = max(own, key=lambda face: distances[face])
            negative = min(np.flatnonzero(people != person), key=lambda face: distances[face])
            if distances[negative] - distances[positive] < MARGIN:
                expected.add((anchor, int(positive), int(negative)))
    assert set(map(tuple, triplets.tolist())) == expected
    assert count == complete


def test_the_loss_is_the_mean_hinge_of_squared_distances():
    embeddings = torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.0, 0.4], [2.0, 0.0]], requires_grad=True)
    loss = triplet_loss(embeddings, torch.tensor([[0, 1, 2], [0, 1, 3]]), MARGIN)
    assert loss.item() == pytest.approx((0.09 - 0.16 + 0.2) / 2)  # the second triplet is beyond the margin
    loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad[3].tolist() == [0, 0]
    assert embeddings.grad[1].tolist() == pytest.approx([0.3, 0])  # 2 (p - a) / 2 triplets


def test_without_triplets_the_loss_is_zero_and_so_are_its_gradients():
    embeddings = torch.ones(2, 3, requires_grad=True)
    loss = triplet_loss(embeddings, torch.empty(0, 3, dtype=torch.int64), MARGIN)
    loss.backward()
    assert loss.item() == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()
