"""Triplets of an anchor, another face of the same person and a face of somebody else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def squared_distances(embeddings: Tensor) -> Tensor:
    """The squared Euclidean distances of all pairs: (N, E) to (N, N)."""
    return (embeddings[:, None] - embeddings[None]).square().sum(dim=2)


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
    distances = squared_distances(embeddings.detach())
    same = labels[:, None] == labels[None]
    anchors, positives = torch.nonzero(torch.triu(same, diagonal=1), as_tuple=True)
    near = distances[anchors] - distances[anchors, positives][:, None] < margin
    eligible = (near & ~same[anchors]).cpu().numpy()
    triplets = [
        (int(anchor), int(positive), int(drawn.choice(np.flatnonzero(row))))
        for anchor, positive, row in zip(anchors, positives, eligible, strict=True)
        if row.any()
    ]
    return torch.tensor(triplets, device=embeddings.device).reshape(-1, 3), len(anchors)


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
