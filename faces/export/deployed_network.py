"""The network as an app runs it: pixels or standardised images in, embeddings or logits out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from faces.model import Standardisation
from reference import InceptionResnetV1


class DeployedNetwork(nn.Module):
    """A network that takes the pixels of images, and standardises them itself.

    Args:
        network: The network, in evaluation mode.
        standardisation: The standardisation that it was trained with.
    """

    def __init__(self, network: InceptionResnetV1, standardisation: Standardisation) -> None:
        super().__init__()
        self.network = network
        self._standardise = _whiten if standardisation == "per-image" else _scale

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute what the network does.

        Args:
            pixels: (N, H, W, 3), uint8, RGB, as image libraries have them.

        Returns:
            (N, embedding_size) of length one, or (N, num_classes).
        """
        images = pixels.permute(0, 3, 1, 2).to(torch.float32)
        result: Tensor = self.network(self._standardise(images))
        return result


def _scale(images: Tensor) -> Tensor:
    """(x - 127.5) / 128: `FIXED_STANDARDIZATION` of davidsandberg/facenet."""
    return (images - 127.5) / 128.0


def _whiten(images: Tensor) -> Tensor:
    """(x - mean) / max(std, 1 / sqrt(x.size)) over each image: `prewhiten` in facenet's `src/facenet.py`."""
    centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return centred / deviation.clamp(min=1.0 / math.sqrt(images[0].numel()))
