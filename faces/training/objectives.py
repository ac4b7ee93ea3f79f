"""The objective of a training: a network with the loss of a classifier or of triplets, as one module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faces.training.config import TrainConfig
from faces.training.triplets import select_batch_hard, select_semi_hard, squared_distances
from reference import InceptionResnetV1
from reference.losses import triplet_loss

Gather = Callable[[Tensor, "Batch"], Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of all processes, and the share of one of them.

    Attributes:
        labels: (N,) place of the person of each face of the whole batch.
        share: The rows of this process.
        processes: The number of processes.
        seed: Numbers that seed what is drawn for this batch.
    """

    labels: Tensor
    share: slice
    processes: int
    seed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of an objective for a batch.

    Attributes:
        loss: What this process differentiates. The gradients of all processes add up to the batch's.
        value: The share of this process in the batch's loss: those of all processes add up to it.
        score: Likewise, in the accuracy of a classifier, or in the share of candidates that gave a triplet.
        spread: Likewise, in the mean squared distance between people; zero for a classifier.
    """

    loss: Tensor
    value: float
    score: float
    spread: float = 0.0


class SeededDropout(nn.Module):
    """Dropout whose mask of a row depends on a seed and the row alone: with any number of processes the same.

    Attributes:
        batch: The batch that comes next.

    Args:
        probability: Share of features that are zeroed in training.
    """

    batch: Batch

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.p = probability

    def forward(self, features: Tensor) -> Tensor:
        """Zero features, and scale the others up: (N, F, 1, 1) to the same shape."""
        if not self.training or not self.p:
            return features
        drawn = np.random.default_rng(self.batch.seed)
        kept = drawn.random((len(self.batch.labels), *features.shape[1:]), np.float32) >= self.p
        mask = torch.from_numpy(kept[self.batch.share]).to(features.device)
        return features * mask / (1 - self.p)


class Objective(nn.Module):
    """A network with a loss; `forward` is what a process computes in a step.

    Attributes:
        network: The network. Its dropout is seeded.
        head: The parameters that are no part of the network that gives embeddings.
        gather: Gives the rows of all processes for those of this one, without gradients.

    Args:
        network: The network.
        config: The configuration.
    """

    def __init__(self, network: InceptionResnetV1, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.head: list[nn.Parameter] = []
        self.gather: Gather = lambda rows, batch: rows
        dropout = config.dropout if config.task == "classifier" else 0.0  # it would blur the distances
        network.dropout = SeededDropout(dropout)  # type: ignore[assignment]

    def forward(self, images: Tensor, batch: Batch) -> Outcome:
        """Compute the loss of a batch, or this process's share of it.

        Args:
            images: (n, 3, H, W), float32, the rows of this process.
            batch: The whole batch.
        """
        self.network.dropout.batch = batch  # type: ignore[assignment]
        return self.compute(self.network.prelogits(images), batch)

    def compute(self, prelogits: Tensor, batch: Batch) -> Outcome:
        """Compute the loss of embeddings before normalisation: (n, E)."""
        raise NotImplementedError

    def logits(self, prelogits: Tensor) -> Tensor | None:
        """Compute the logits of people: (n, E) to (n, people); None without a classifier."""
        return None

    @torch.no_grad()
    def start_at_means(self, prelogits: Tensor, labels: Tensor) -> None:
        """Start a classifier as the one that chooses the nearest mean.

        Args:
            prelogits: (N, E), of all faces to train on.
            labels: (N,), the person of each.
        """


class Classifier(Objective):
    """A classifier of people with the mean loss over the faces of a batch."""

    def compute(self, prelogits: Tensor, batch: Batch) -> Outcome:
        """Compute the share of this process in the mean over the batch."""
        labels = batch.labels[batch.share]
        logits = self.logits(prelogits)
        loss = self.loss(prelogits, logits, labels) * (len(labels) / len(batch.labels))
        correct = int((logits.argmax(dim=1) == labels).sum())
        return Outcome(loss, loss.item(), correct / len(batch.labels))

    def logits(self, prelogits: Tensor) -> Tensor:
        """Compute the logits of people: (n, E) to (n, people)."""
        raise NotImplementedError

    def loss(self, prelogits: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss of faces: (n, E), (n, people) and (n,) to a number."""
        raise NotImplementedError


class SoftmaxClassifier(Classifier):
    """A linear classifier of the embedding before normalisation, as the published models have.

    The loss is the softmax cross-entropy. With `head = "centre"` facenet's centre loss is added: the mean
    square of the difference of each embedding from its person's centre. The faces of a batch then move the
    centres. Source: davidsandberg/facenet, src/facenet.py: center_loss.

    Args:
        network: The network, whose logits are the classifier.
        config: The configuration.
    """

    centres: Tensor

    def __init__(self, network: InceptionResnetV1, config: TrainConfig) -> None:
        super().__init__(network, config)
        assert network.logits is not None
        self.head = list(network.logits.parameters())
        if config.head == "centre":
            self.register_buffer("centres", torch.zeros_like(network.logits.weight.detach()))

    def compute(self, prelogits: Tensor, batch: Batch) -> Outcome:
        """Compute the share of this process in the mean over the batch, and move the centres."""
        outcome = super().compute(prelogits, batch)
        if self.config.head == "centre" and self.training:
            rows, labels = self.gather(prelogits.detach(), batch), batch.labels
            moves = self.config.centre_rate * (self.centres[labels] - rows)
            self.centres = self.centres.index_add(0, labels, -moves)
        return outcome

    def loss(self, prelogits: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss of faces."""
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        if self.config.head == "centre":
            loss = loss + self.config.centre_factor * (prelogits - self.centres[labels]).square().mean()
        return loss

    def logits(self, prelogits: Tensor) -> Tensor:
        """Compute the logits of people: (n, E) to (n, people)."""
        assert self.network.logits is not None
        logits: Tensor = self.network.logits(prelogits)
        return logits

    @torch.no_grad()
    def start_at_means(self, prelogits: Tensor, labels: Tensor) -> None:
        """Start with minus the squared distance from a person's mean, in units of the mean spread."""
        assert self.network.logits is not None
        means = class_means(prelogits, labels)
        spread = (prelogits - means[labels]).square().sum(dim=1).mean()
        if not spread:  # one face of each person
            spread = means.var(dim=0, correction=0).sum() / 2  # a quarter of the mean squared distance
        self.network.logits.weight.copy_(2 * means / spread)
        self.network.logits.bias.copy_(-means.square().sum(dim=1) / spread)
        if self.config.head == "centre":
            self.centres.copy_(means)


class ArcFaceClassifier(Classifier):
    """ArcFace by pytorch-metric-learning: cosines of embeddings and people, with a margin on the angle.

    Its logits are those of the network's classifier afterwards: the cosines times the scale, for an embedding
    whose norm before normalisation is `norm`. They rank people as the cosines do.

    Args:
        network: The network, whose logits are the classifier.
        config: The configuration.
    """

    norm: Tensor

    def __init__(self, network: InceptionResnetV1, config: TrainConfig) -> None:
        from pytorch_metric_learning.losses import ArcFaceLoss

        super().__init__(network, config)
        assert network.logits is not None
        people, size = network.logits.weight.shape
        self.arcface = ArcFaceLoss(people, size, config.arcface_margin, config.arcface_scale)
        self.head = [self.arcface.W]
        self.register_buffer("norm", torch.ones(()))

    def loss(self, prelogits: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss of faces, in float32, since the scale multiplies what is rounded."""
        with torch.autocast(prelogits.device.type, enabled=False):
            # It casts its weights to the dtype of the embeddings, for good.
            loss: Tensor = self.arcface(prelogits.float(), labels)
        return loss

    def logits(self, prelogits: Tensor) -> Tensor:
        """Compute the logits of people: (n, E) to (n, people)."""
        return prelogits @ self._weight()

    def _weight(self) -> Tensor:
        return F.normalize(self.arcface.W, dim=0) * self.config.arcface_scale / self.norm

    @torch.no_grad()
    def start_at_means(self, prelogits: Tensor, labels: Tensor) -> None:
        """Start with the direction of each person's mean."""
        self.arcface.W.copy_(class_means(F.normalize(prelogits), labels).T)
        self.norm.copy_(prelogits.norm(dim=1).mean())

    @torch.no_grad()
    def write_logits(self) -> None:
        """Make the network's classifier compute `logits`."""
        assert self.network.logits is not None
        self.network.logits.weight.copy_(self._weight().T)
        self.network.logits.bias.zero_()


class Triplets(Objective):
    """The triplet loss on embeddings of length one, within the batch of all processes."""

    def compute(self, prelogits: Tensor, batch: Batch) -> Outcome:
        """Compute the loss of the whole batch, differentiable in this process's rows."""
        own = self.network.head(prelogits.float())  # mixed precision would round distances to 8 bits
        embeddings = self.gather(own.detach(), batch)
        start, stop = batch.share.start, batch.share.stop
        embeddings = torch.cat([embeddings[:start], own, embeddings[stop:]])
        margin = self.config.margin
        if self.config.selection == "batch-hard":
            triplets, candidates = select_batch_hard(embeddings, batch.labels, margin)
        else:
            drawn = np.random.default_rng(batch.seed)
            triplets, candidates = select_semi_hard(embeddings, batch.labels, margin, drawn)
        loss = triplet_loss(embeddings, triplets, margin)
        between = batch.labels[:, None] != batch.labels[None]
        spread = float(squared_distances(embeddings.detach())[between].mean())
        count = batch.processes
        return Outcome(loss, loss.item() / count, len(triplets) / max(candidates, 1) / count, spread / count)


def class_means(rows: Tensor, labels: Tensor) -> Tensor:
    """The mean of the rows of each label: (N, E) and (N,) to (labels, E)."""
    sums = rows.new_zeros(int(labels.max()) + 1, rows.shape[1]).index_add(0, labels, rows)
    return sums / torch.bincount(labels)[:, None]


def make_objective(network: InceptionResnetV1, config: TrainConfig) -> Objective:
    """Make the objective that a configuration asks for."""
    if config.task == "triplet":
        return Triplets(network, config)
    return (ArcFaceClassifier if config.head == "arcface" else SoftmaxClassifier)(network, config)
