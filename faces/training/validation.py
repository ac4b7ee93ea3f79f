"""The figures on the faces to validate on: of a classifier, and of verification on all their pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from faces.evaluate.classifier import Scores, score
from faces.evaluate.measure import EVERY_FIGURE, Measurement, Settings, measure
from faces.evaluate.pairs import draw_pairs
from faces.evaluate.protocol import Pairs
from faces.training.objectives import Objective

MOST_PAIRS = 500_000
"""Pairs that verification is measured on after each epoch, those of 1,000 faces."""


@dataclass(frozen=True, slots=True)
class Validation:
    """The figures of a network on the faces to validate on.

    Attributes:
        embeddings: (N, E), of length one.
        pairs: All their pairs, or `MOST_PAIRS` drawn of more.
        measured: The figures of verification on these pairs.
        predicted: (N,) the predicted person of each face; empty without a classifier.
        loss: The mean cross-entropy; None without a classifier.
        scores: The scores of the classifier; None without one.
        probabilities: (N, people), in the order of its outputs; None without one.
    """

    embeddings: NDArray[np.float32]
    pairs: Pairs
    measured: Measurement
    predicted: tuple[str, ...] = ()
    loss: float | None = None
    scores: Scores | None = None
    probabilities: NDArray[np.float32] | None = None

    @property
    def figures(self) -> dict[str, float | None]:
        """The figures by name; None for one that cannot be computed."""
        figures: dict[str, float | None] = {}
        if self.scores is not None:
            f1 = [person.f1 for person in self.scores.classes if person.faces]
            figures = {
                "accuracy": self.scores.accuracy,
                "precision": self.scores.precision,
                "recall": self.scores.recall,
                "f1": float(np.mean(f1)),
                "loss": self.loss,
            }
        best = self.measured.best
        return figures | {
            "eer": self.measured.eer,
            "auc": self.measured.auc,
            "pairs_accuracy": None if best is None else best.mean,
        }

    @property
    def rank(self) -> tuple[float, float] | None:
        """The smaller, the better: wrong names and loss of a classifier; without one the equal error rate.

        None if it is not defined.
        """
        if self.scores is None:
            eer, auc = self.measured.eer, self.measured.auc
            return None if eer is None or auc is None else (eer, -auc)
        assert self.loss is not None
        return -self.scores.accuracy, self.loss


def _no_pairs() -> Measurement:
    return Measurement(np.empty(0), missing=dict.fromkeys(EVERY_FIGURE, "one face makes no pair"))


@torch.inference_mode()
def embed_faces(
    objective: Objective, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Tensor:
    """Compute the embeddings before normalisation of faces, in evaluation mode: (N, E), on the CPU.

    Args:
        objective: The objective. Its mode is restored.
        batches: Images (n, 3, H, W), float32, each with its places.
        device: The device of the network.
    """
    modes = {module: module.training for module in objective.modules()}
    objective.eval()
    rows = [objective.network.prelogits(images.to(device)).float().cpu() for images, _ in batches]
    for module, training in modes.items():
        module.training = training
    return torch.cat(rows)


def validate(
    prelogits: Tensor, logits: Tensor | None, owners: Sequence[str], people: Sequence[str]
) -> Validation:
    """Measure the embeddings of the faces to validate on, and the names that a classifier gives them.

    Args:
        prelogits: (N, E), embeddings before normalisation, as `embed_faces` gives them.
        logits: (N, people); None without a classifier.
        owners: (N,) the person of each.
        people: The people of the classifier, in the order of its outputs.
    """
    embeddings = F.normalize(prelogits).numpy()
    pairs = draw_pairs(owners, MOST_PAIRS)
    measured = measure(embeddings, pairs, Settings(folds=1)) if len(pairs) else _no_pairs()
    if logits is None:
        return Validation(embeddings, pairs, measured)
    labels = torch.tensor([people.index(owner) for owner in owners])
    predicted = tuple(people[place] for place in logits.argmax(dim=1).tolist())
    return Validation(
        embeddings,
        pairs,
        measured,
        predicted,
        float(F.cross_entropy(logits, labels)),
        score(list(owners), list(predicted)),
        logits.softmax(dim=1).numpy(),
    )
