"""The peer's detector, facenet-pytorch's MTCNN, without torchvision, which it takes its suppression from."""

from __future__ import annotations

import importlib
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, limit: float) -> Tensor:
    """Do what `torchvision.ops.boxes.batched_nms` does: greedy suppression within each group, by overlap."""
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


def load_peer_detector(wheel: Path, folder: Path) -> Any:
    """Load facenet-pytorch's MTCNN, which finds all faces of a photograph.

    Args:
        wheel: The package.
        folder: An empty folder to unpack it in.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    root = folder / "facenet_pytorch"
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
    try:
        for name, path in packages.items():
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = path
        sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
        sys.modules["torchvision.ops.boxes"].batched_nms = batched_nms
        module = importlib.import_module("facenet_pytorch.models.mtcnn")
        return module.MTCNN(keep_all=True)
    finally:
        for name in [name for name in sys.modules if name.startswith("facenet_pytorch.")]:
            del sys.modules[name]  # the next caller has another folder
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
