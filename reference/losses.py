"""facenet's losses beside the softmax cross-entropy: triplets, and the L2 penalty on kernels."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F


def triplet_loss(embeddings: Tensor, triplets: Tensor, margin: float) -> Tensor:
    """The mean hinge of squared distances: max(|a - p|^2 - |a - n|^2 + margin, 0).

    Source: davidsandberg/facenet, src/facenet.py: triplet_loss.

    Args:
        embeddings: (N, E).
        triplets: (T, 3), integers: places of anchor, positive and negative among them. Without any the loss
            is zero.
        margin: The margin.

    Returns:
        A scalar of the embeddings' dtype.
    """
    if not len(triplets):
        return embeddings.sum() * 0
    anchors, positives, negatives = (embeddings[column] for column in triplets.T)
    near = (anchors - positives).square().sum(dim=1)
    far = (anchors - negatives).square().sum(dim=1)
    return F.relu(near - far + margin).mean()


def decay_kernels(parameters: Collection[Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Group parameters for an optimiser: kernels with weight decay; biases and BatchNorm without.

    With `TensorFlowAdam` or `SGD` this is the L2 penalty of facenet, weight_decay / 2 |kernel|^2, which is
    `tf.nn.l2_loss`. `AdamW` shrinks the same parameters by another rule.

    Args:
        parameters: Parameters of a network.
        weight_decay: The factor, 0 or above.
    """
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
