"""The set-up of training on both sides: batch, modes, trainings, learning rate, number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np

from checks.core.types import Array
from checks.gradients.result import Mode, TrainingName
from converter.layer_map import BOTTLENECK_INPUTS, ConvertedRow, Variant, table

MODES: tuple[Mode, ...] = ("inference", "training")

LEARNING_RATE = 0.0005
"""For every training: the last learning rate of the checkpoints of 2018 (facenet,
data/learning_rate_schedule_classifier_vggface2.txt)."""

IMAGE_SIZE = (107, 115)
"""Height and width: small, odd and unequal. The last blocks have maps of 2x2, so that every value of a kernel
has a gradient."""

STEPS = 10
"""Number of training steps."""

WEIGHT_DECAY = 5e-4
"""Factor of the L2 penalty, as in the training of the checkpoints of 2018."""

MARGIN = 0.2
"""Margin of the triplet loss; the default of facenet's src/train_tripletloss.py."""

KEEP_PROBABILITY = 0.4
"""Share of the features that the dropout mask keeps, as in the training of the checkpoints of 2018."""


@dataclass(frozen=True, slots=True)
class Training:
    """The loss and the optimiser of a training.

    Attributes:
        optimiser: Plain SGD, or TensorFlow's Adam with facenet's epsilon.
        weight_decay: Factor of facenet's L2 penalty on kernels.
        triplets: Whether the loss is that of the batch's triplets.
    """

    optimiser: Literal["sgd", "adam"]
    weight_decay: float = 0.0
    triplets: bool = False


TRAININGS: dict[TrainingName, Training] = {
    "sgd": Training("sgd"),
    "adam": Training("adam", weight_decay=WEIGHT_DECAY),
    "triplet": Training("adam", triplets=True),
}
"""The trainings by the name of their judgement."""


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The batch that both sides train on.

    Attributes:
        images: (N, H, W, 3), float64, standardised pixels.
        labels: (N,), int64; None if the network has no logits.
        functional: (N, embedding size), float64: the weights of a linear functional of the embeddings, which
            is the loss of a network without logits; None if the network has logits.
        mask: (N, 1792), float64: 1 for a feature that dropout keeps, 0 for a feature that it drops.
        triplets: (T, 3), int64: places of anchor, positive and negative; half of all triplets of different
            images, drawn at random, so that an image has several roles.
    """

    images: Array
    labels: Array | None
    functional: Array | None
    mask: Array
    triplets: Array

    @property
    def loss_name(self) -> str:
        """A short name of the loss."""
        if self.labels is None:
            return "mean linear functional of the embeddings"
        return "mean softmax cross-entropy of the logits"


def draw_batch(
    variant: Variant, *, seed: int = 0, image_size: tuple[int, int] = IMAGE_SIZE, images: int = 4
) -> TrainingBatch:
    """Draw a batch; the same seed gives the same batch.

    Args:
        variant: The variant of the network.
        seed: For numpy's PCG64.
        image_size: Height and width.
        images: Number of images, at least 3.
    """
    random = np.random.default_rng(seed)
    classes, size = variant.num_classes, variant.embedding_size
    triplets = np.array(list(permutations(range(images), 3)))
    return TrainingBatch(
        images=random.standard_normal((images, *image_size, 3)),
        mask=(random.random((images, BOTTLENECK_INPUTS)) < KEEP_PROBABILITY).astype(np.float64),
        labels=None if classes is None else random.integers(0, classes, images),
        functional=random.standard_normal((images, size)) if classes is None else None,
        triplets=random.permutation(triplets)[: len(triplets) // 2],
    )


def trained_keys(variant: Variant) -> frozenset[str]:
    """The state_dict keys that training moves by a gradient: those of the checkpoint's own variables.

    They leave out the running statistics, and the weights of BatchNorm if the checkpoint has no gamma.
    """
    rows = [row for row in table(variant) if isinstance(row, ConvertedRow)]
    return frozenset(
        row.key for row in rows if not row.variable.endswith(("/moving_mean", "/moving_variance"))
    )
