"""Triplets of an anchor, another face of the same person and a face of somebody else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def squared_distances(embeddings: Tensor) -> Tensor:
    """The squared Euclidean distances of all pairs: (N, E) to (N, N), in float32 or float64.

    They are computed row by row, with N x E numbers in memory beside the result. Sums of squares are never
    negative, while |a|^2 + |b|^2 - 2ab rounds the distance of near embeddings to anything around zero.

    Args:
        embeddings: Without gradients, of any floating-point dtype.
    """
    rows = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    distances = rows.new_empty(len(rows), len(rows))
    for place, row in enumerate(rows):
        torch.sum((rows - row).square(), dim=1, out=distances[place])
    return distances


def select_semi_hard(
    embeddings: Tensor, labels: Tensor, margin: float, drawn: np.random.Generator
) -> tuple[Tensor, int]:
    """Select triplets as facenet trains on: for each pair of a person, a random negative within the margin.

    Source: davidsandberg/facenet, src/train_tripletloss.py: select_triplets. Each pair of faces of one person
    is a candidate, the earlier face the anchor. Of the faces of others that are less than the margin further
    from the anchor than the positive is, one is drawn. As in the original, they may also be nearer.

    Args:
        embeddings: (N, E).
        labels: (N,), the person of each.
        margin: Margin between squared distances.
        drawn: Draws the negatives.

    Returns:
        The triplets, (T, 3) places of anchor, positive and negative, and the number of candidates. A pair
        that has no such negative gives no triplet.
    """
    distances = squared_distances(embeddings.detach()).cpu().numpy()
    people = labels.cpu().numpy()
    triplets, candidates = [], 0
    for anchor, near in enumerate(distances):
        others = people != people[anchor]
        for positive in anchor + 1 + np.flatnonzero(~others[anchor + 1 :]):
            candidates += 1
            negatives = np.flatnonzero(others & (near - near[positive] < margin))
            if len(negatives):
                triplets.append((anchor, int(positive), int(drawn.choice(negatives))))
    return torch.tensor(triplets, device=embeddings.device).reshape(-1, 3), candidates


def select_batch_hard(embeddings: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, int]:
    """Select for each face the furthest of its person and the nearest of another.

    Source: Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for Person Re-Identification"
    (arXiv:1703.07737), section 2.

    Args:
        embeddings: (N, E).
        labels: (N,), the person of each.
        margin: A triplet whose negative is further by this margin or more is left out: its loss is zero.

    Returns:
        As `select_semi_hard`.
    """
    distances = squared_distances(embeddings.detach())
    same = labels[:, None] == labels[None]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    furthest, positives = distances.masked_fill(~same | itself, -torch.inf).max(dim=1)
    nearest, negatives = distances.masked_fill(same, torch.inf).min(dim=1)
    complete = torch.isfinite(furthest) & torch.isfinite(nearest)
    (anchors,) = torch.nonzero(complete & (nearest - furthest < margin), as_tuple=True)
    triplets = torch.stack([anchors, positives[anchors], negatives[anchors]], dim=1)
    return triplets, int(complete.sum())
