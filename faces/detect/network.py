"""A network of the detector, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Network = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]
"""A function from standardised images, (N, H, W, 3), to the outputs of a network of `reference.mtcnn`."""


def in_pytorch(module: nn.Module, device: torch.device | str = "cpu") -> Network:
    """Turn a module of `reference.mtcnn` into a `Network` that runs on a device."""
    module.to(device).eval()

    @torch.inference_mode()
    def run(images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        outputs = module(torch.from_numpy(images).to(device).permute(0, 3, 1, 2))
        return tuple(output.cpu().numpy() for output in outputs)

    return run
