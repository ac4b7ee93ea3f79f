"""facenet-pytorch's classes, from its package, and the time they take: `python -m checks.benchmark.peer`.

The package is unpacked, not installed. It imports torchvision, which is not here: its suppression and its
`to_tensor` are written out below.
"""

from __future__ import annotations

import importlib
import sys
import time
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from converter.hub.catalog_entry import PackageSource

PEER = PackageSource(
    package="facenet-pytorch",
    version="2.6.0",
    sha256="ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
    members={},
)
"""The package of the classes."""

_BATCH = 32  # faces that the network takes at a time


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, limit: float) -> Tensor:
    """Do what `torchvision.ops.boxes.batched_nms` does: greedy suppression within each group, by overlap.

    Args:
        boxes: (n, 4).
        scores: (n).
        groups: (n), the group of each box.
        limit: The largest overlap that is kept.

    Returns:
        The indices of the boxes that stay, by falling score.
    """
    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64)
    # As there: boxes of different groups are moved apart.
    moved = (boxes + groups[:, None].to(boxes) * (boxes.max() + 1)).numpy()
    left, top, right, bottom = moved.T
    areas = (right - left) * (bottom - top)
    waiting = scores.argsort(descending=True).numpy()
    kept = []
    while waiting.size:
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        width = np.minimum(right[best], right[waiting]) - np.maximum(left[best], left[waiting])
        height = np.minimum(bottom[best], bottom[waiting]) - np.maximum(top[best], top[waiting])
        common = np.maximum(width, 0) * np.maximum(height, 0)
        waiting = waiting[common <= limit * (areas[best] + areas[waiting] - common)]
    return torch.from_numpy(np.array(kept))


def _to_tensor(image: NDArray[Any]) -> Tensor:
    """Do what torchvision's `to_tensor` does with floats."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def load_peer(wheel: Path, folder: Path) -> tuple[Any, Any]:
    """Load facenet-pytorch's MTCNN and InceptionResnetV1.

    Args:
        wheel: The package.
        folder: An empty folder to unpack it in.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    with _modules(folder / "facenet_pytorch"):
        detector = importlib.import_module("facenet_pytorch.models.mtcnn")
        network = importlib.import_module("facenet_pytorch.models.inception_resnet_v1")
        return detector.MTCNN, network.InceptionResnetV1


@contextmanager
def _modules(root: Path) -> Iterator[None]:
    """Stand-ins for torchvision, and for the package's own __init__.py, which imports all of it."""
    packages = {
        "facenet_pytorch": [str(root)],
        "facenet_pytorch.models": [str(root / "models")],
        "facenet_pytorch.models.utils": [str(root / "models" / "utils")],
        "torchvision": [],
        "torchvision.transforms": [],
        "torchvision.transforms.functional": [],
        "torchvision.ops": [],
        "torchvision.ops.boxes": [],
    }
    before = {name: sys.modules.get(name) for name in packages}
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in packages}
    for name, path in packages.items():
        modules[name].__path__ = path
    modules["torchvision.transforms"].functional = modules["torchvision.transforms.functional"]
    modules["torchvision.transforms.functional"].to_tensor = _to_tensor
    modules["torchvision.ops.boxes"].batched_nms = batched_nms
    try:
        sys.modules.update(modules)
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith("facenet_pytorch.")]:
            del sys.modules[name]  # the next caller has another folder
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def load_network(network_class: Any, weights: Path) -> nn.Module:
    """Load the peer's network with the weights of a state_dict, whatever the size of its embeddings."""
    state_dict = torch.load(weights, weights_only=True)
    network: nn.Module = network_class()
    size, features = state_dict["last_linear.weight"].shape
    network.last_linear = nn.Linear(features, size, bias=False)
    network.last_bn = nn.BatchNorm1d(size, eps=0.001, momentum=0.1, affine=True)
    network.load_state_dict(state_dict)
    return network.eval()


@torch.no_grad()
def embed(detector: Any, network: nn.Module, photographs: list[Path]) -> Tensor:
    """Embed the largest face of each photograph, as the package's examples do: (n, E)."""
    faces = [detector(Image.open(photograph).convert("RGB")) for photograph in photographs]
    shown = torch.stack([face for face in faces if face is not None])
    return torch.cat([network(batch) for batch in torch.split(shown, _BATCH)])


def main() -> None:
    """Print the seconds that detection or embedding takes: WORK WHEEL FOLDER PHOTOGRAPHS WEIGHTS."""
    work, wheel, folder, root, weights = sys.argv[1], *map(Path, sys.argv[2:])
    photographs = sorted(root.glob("*/*.jpg"))
    detector_class, network_class = load_peer(wheel, folder)
    detector = detector_class(keep_all=work == "detect")
    network = load_network(network_class, weights) if work == "embed" else None

    def run(files: list[Path]) -> None:
        if network is not None:
            embed(detector, network, files)
            return
        for file in files:
            detector.detect(Image.open(file).convert("RGB"), landmarks=True)

    run(photographs[:1])  # the first photograph takes longer
    start = time.perf_counter()
    run(photographs)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
