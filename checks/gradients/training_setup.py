"""The set-up of training on both sides: batch, modes, optimisers, learning rate, number of steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from checks.core.types import Array
from checks.gradients.result import Mode, OptimiserName
from converter.layer_map import BOTTLENECK_INPUTS, ConvertedRow, Variant, table

MODES: tuple[Mode, ...] = ("inference", "training")
OPTIMISERS: tuple[OptimiserName, ...] = ("sgd", "adam")

LEARNING_RATE = 0.0005
"""For both optimisers: the last learning rate of the checkpoints of 2018 (facenet,
data/learning_rate_schedule_classifier_vggface2.txt)."""

IMAGE_SIZE = (107, 115)
"""Height and width: small, odd and unequal. The last blocks have maps of 2x2, so that every value of a kernel
has a gradient."""

STEPS = 10
"""Number of training steps."""

KEEP_PROBABILITY = 0.4
"""Share of the features that the dropout mask keeps, as in the training of the checkpoints of 2018."""


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The batch that both sides train on.

    Attributes:
        images: (N, H, W, 3), float64, standardised pixels.
        labels: (N,), int64; None if the network has no logits.
        functional: (N, embedding size), float64: the weights of a linear functional of the embeddings, which
            is the loss of a network without logits; None if the network has logits.
        mask: (N, 1792), float64: 1 for a feature that dropout keeps, 0 for a feature that it drops.
    """

    images: Array
    labels: Array | None
    functional: Array | None
    mask: Array

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
        images: Number of images.
    """
    random = np.random.default_rng(seed)
    classes, size = variant.num_classes, variant.embedding_size
    return TrainingBatch(
        images=random.standard_normal((images, *image_size, 3)),
        mask=(random.random((images, BOTTLENECK_INPUTS)) < KEEP_PROBABILITY).astype(np.float64),
        labels=None if classes is None else random.integers(0, classes, images),
        functional=random.standard_normal((images, size)) if classes is None else None,
    )


def trained_keys(variant: Variant) -> frozenset[str]:
    """The state_dict keys that training moves by a gradient: those of the checkpoint's own variables.

    They leave out the running statistics, and the weights of BatchNorm if the checkpoint has no gamma.
    """
    rows = [row for row in table(variant) if isinstance(row, ConvertedRow)]
    return frozenset(
        row.key for row in rows if not row.variable.endswith(("/moving_mean", "/moving_variance"))
    )
