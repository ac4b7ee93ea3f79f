"""Put the standardisation of images into a network, as an app runs it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from faces.model import Standardisation
from reference import InceptionResnetV1


def bake_in(network: InceptionResnetV1, standardisation: Standardisation) -> None:
    """Let a network take the pixels of RGB images, (N, H, W, 3) in uint8, and standardise them itself.

    Args:
        network: The network, which is changed.
        standardisation: The standardisation that it was trained with.
    """
    standardise = _whiten if standardisation == "per-image" else _scale

    def prepare(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return standardise(inputs[0].permute(0, 3, 1, 2).to(torch.float32))

    network.register_forward_pre_hook(prepare)


def _scale(images: Tensor) -> Tensor:
    """(x - 127.5) / 128: facenet's `--use_fixed_image_standardization`."""
    return (images - 127.5) / 128.0


def _whiten(images: Tensor) -> Tensor:
    """(x - mean) / max(std, 1 / sqrt(x.size)) over each image: `prewhiten` in facenet's `src/facenet.py`."""
    centred = images - _mean(images)
    deviation = _mean(centred.square()).sqrt()
    return centred / deviation.clamp(min=1.0 / math.sqrt(images[0].numel()))


def _mean(images: Tensor) -> Tensor:
    """Average each image axis by axis.

    A runtime may add up 76,800 numbers one after another: onnxruntime's result is then up to 1e-5 off on
    photographs, and axis by axis 3e-7.
    """
    for axis in (3, 2, 1):
        images = images.mean(dim=axis, keepdim=True)
    return images
