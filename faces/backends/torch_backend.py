"""PyTorch as a runtime: BatchNorm folded into the convolutions, and the channels last in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from faces.threads import network_threads
from reference import InceptionResnetV1
from reference.inception_resnet_v1 import BasicConv2d


class TorchBackend:
    """Runs a network in PyTorch.

    Args:
        network: The network, in evaluation mode.
        fold: Whether to fold BatchNorm into the convolutions, which is faster. The proofs run the network as
            it is.

    Attributes:
        original: The network as it was given.
    """

    name = "torch"
    takes_pixels = False

    def __init__(self, network: InceptionResnetV1, *, fold: bool = True) -> None:
        self.original, self._fold = network, fold

    @cached_property
    def network(self) -> InceptionResnetV1:
        """The network that runs."""
        return fold_batch_norm(self.original) if self._fold else self.original

    @property
    def embedding_size(self) -> int:
        """The length of an embedding."""
        return self.original.last_linear.out_features

    def embed(self, images: NDArray[Any]) -> NDArray[Any]:
        """Compute the embeddings of standardised images: (N, H, W, 3) to (N, E), float32."""
        return self.run(self.network.head, images)

    def run(self, head: Callable[[torch.Tensor], torch.Tensor], images: NDArray[Any]) -> NDArray[Any]:
        """Run the network, and a head on its output: on a CPU each core takes a part of the images."""
        device = self.original.device

        @torch.inference_mode()
        def run(part: NDArray[Any]) -> NDArray[Any]:
            # The channels stay last in memory, as images have them: on a CPU convolutions are faster so.
            channels_last = torch.from_numpy(np.ascontiguousarray(part)).to(device).permute(0, 3, 1, 2)
            output: NDArray[Any] = head(network.prelogits(channels_last)).cpu().numpy()
            return output

        network = self.network
        cores = torch.get_num_threads() if device.type == "cpu" else 1
        parts = min(cores, len(images))
        with network_threads(parts, cores // parts) as pool:
            return np.concatenate(list(pool.map(run, np.array_split(images, parts))))


def fold_batch_norm(network: InceptionResnetV1) -> InceptionResnetV1:
    """Copy a network with BatchNorm folded into its convolutions, whose kernels have the channels last.

    The products are computed in float64 and rounded once, so the copy errs no more than the network.

    Args:
        network: The network, in evaluation mode; it stays as it is.
    """
    device, folded = network.device, copy.deepcopy(network).cpu()  # a device may have no float64
    for module in folded.modules():
        if isinstance(module, BasicConv2d):
            dtype = module.conv.weight.dtype
            module.conv = fuse_conv_bn_eval(module.conv.double(), module.bn.double()).to(dtype)
            module.bn = nn.Identity()  # type: ignore[assignment]
    return folded.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
