"""The detector's three networks in ONNX Runtime or LiteRT: exported files in place of PyTorch's networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from checks.core.weights_digest import weights_digest
from converter.errors import PortError
from converter.hub.locate import find_model
from converter.mtcnn_layer_map import NETWORKS, MtcnnNetwork
from faces.backends.choose import ENDINGS, FORMATS, check_backend_device, describe_machine, is_installed
from faces.backends.export_cache import find_export, make_export
from faces.backends.facts import TORCH, BackendFacts
from faces.backends.graph_backend import GraphFile
from faces.backends.rewrite_detector import REWRITTEN
from faces.detect.cascade import standardise
from faces.detect.network import Network, in_pytorch
from faces.options import MANY_PHOTOGRAPHS
from reference.mtcnn import O_NET_SIZE, R_NET_SIZE
from reference.weights import load_mtcnn

GraphRuntime = Literal["onnxruntime", "litert"]

_OUTPUTS = ("offsets", "landmarks", "probabilities")  # in PyTorch's order
_CHECKED = {  # the shapes of the images on which each is checked
    "P-Net": (1, 90, 77, 3),
    "R-Net": (16, R_NET_SIZE, R_NET_SIZE, 3),
    "O-Net": (16, O_NET_SIZE, O_NET_SIZE, 3),
}


class GraphNetwork:
    """An exported network of the detector.

    Args:
        file: The file.
    """

    def __init__(self, file: GraphFile) -> None:
        self._file = file

    def __call__(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Compute the outputs of the network of images, (N, H, W, 3), on the CPU."""
        if self._file.name == "onnxruntime":
            outputs = self._file.run(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        else:  # its channels are last
            run = self._file.run(np.ascontiguousarray(images))
            outputs = {name: _channels_first(output) for name, output in run.items()}
        return tuple(outputs[name] for name in _OUTPUTS if name in outputs)


def _channels_first(output: NDArray[Any]) -> NDArray[Any]:
    return output.transpose(0, 3, 1, 2) if output.ndim == 4 else output


Networks = tuple[Sequence[nn.Module | Network], BackendFacts]
"""P-Net, R-Net and O-Net, and what runs them."""


def choose_networks(
    pytorch: tuple[nn.Module, ...], device: str, *, images: int, offline: bool = False
) -> Networks:
    """Open the networks in ONNX Runtime, if they are ready, by the rule of `choose_backend`.

    It is the fastest that makes its files without TensorFlow.

    Args:
        pytorch: facenet's P-Net, R-Net and O-Net in PyTorch.
        device: The device of PyTorch. ONNX Runtime runs on the CPU.
        images: The number of photographs that are going to be searched; for `MANY_PHOTOGRAPHS` or more the
            files are made.
        offline: Never download.

    Returns:
        The networks, or those of PyTorch.
    """
    if device != "cpu" or not (is_installed("onnxruntime") and is_installed("onnx")):
        return pytorch, TORCH
    try:
        pairs = zip(map(MtcnnNetwork, NETWORKS), pytorch, strict=True)
        is_ready = all(find_export(*_wanted("onnxruntime", *pair)) for pair in pairs)
        if not is_ready and images < MANY_PHOTOGRAPHS:
            return pytorch, TORCH
        return open_networks("onnxruntime", device, pytorch=pytorch, offline=offline)
    except PortError as error:
        return pytorch, BackendFacts(note=f"onnxruntime is not used for the detector: {error}")


def open_networks(
    backend: GraphRuntime, device: str, *, pytorch: tuple[nn.Module, ...] = (), offline: bool = False
) -> Networks:
    """Open the exported files of facenet's P-Net, R-Net and O-Net, which are made once, audited and kept.

    Each is checked against PyTorch on seeded images, once on each machine.

    Args:
        backend: The runtime.
        device: The device that was asked for.
        pytorch: The networks in PyTorch, if they are loaded.
        offline: Never download.

    Raises:
        UsageError: The device is not the CPU.
        DifferenceError: The outputs of a file differ from PyTorch's.
        RequirementError: A package is not installed, the weights cannot be downloaded, or the cache cannot be
            used.
    """
    check_backend_device(backend, device)
    FORMATS[backend].require(f"--backend {backend}")
    model = find_model("mtcnn", offline=offline)
    assert model is not None  # the catalog has it
    pairs = zip(map(MtcnnNetwork, NETWORKS), pytorch or load_mtcnn(offline=offline), strict=True)
    opened = [_open(backend, str(model.files[network.npy_name]), network, one) for network, one in pairs]
    networks, distances = zip(*opened, strict=True)
    return networks, BackendFacts(backend, distance=max(distances))


def _wanted(backend: GraphRuntime, network: MtcnnNetwork, pytorch: nn.Module) -> tuple[str, str, str]:
    """The digest of a network's weights, and the ending and the name of its exported file."""
    digest = weights_digest({name: tensor.numpy() for name, tensor in pytorch.state_dict().items()})
    return digest, ENDINGS[backend], network.state_dict_stem


def _open(
    backend: GraphRuntime, source: str, network: MtcnnNetwork, pytorch: nn.Module
) -> tuple[GraphNetwork, float]:
    """Open a network; returns it, and the largest difference of its outputs from PyTorch's."""
    wanted = _wanted(backend, network, pytorch)
    export = find_export(*wanted) or make_export(source, *wanted)
    opened = GraphNetwork(GraphFile(export.path, is_detector=True))
    key = describe_machine(backend)
    difference = export.check(
        f"{key}; {REWRITTEN}" if backend == "onnxruntime" else key,
        f"{network.name} in {backend} gives results",
        lambda: measure_difference(in_pytorch(pytorch), opened, _CHECKED[network.name]),
    )
    return opened, difference


def measure_difference(one: Network, other: Network, shape: tuple[int, ...]) -> float:
    """Measure the largest difference of two networks' outputs on seeded images of a shape (N, H, W, 3)."""
    images = standardise(np.random.default_rng(0).integers(0, 256, shape))
    return max(float(np.abs(a - b).max()) for a, b in zip(one(images), other(images), strict=True))
