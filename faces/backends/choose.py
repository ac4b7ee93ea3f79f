"""The choice of the runtime that computes embeddings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from checks.audit.graphs.graph_formats import GRAPH_FORMATS, GraphFormat
from checks.core.environment import machine
from checks.core.inputs import IMAGE_SIZE
from converter.errors import PortError, UsageError
from faces.backends.export_cache import CachedExport, find_export, make_export
from faces.backends.facts import RUNTIMES, BackendFacts, BackendName
from faces.backends.graph_backend import GraphBackend
from faces.options import MANY_IMAGES

if TYPE_CHECKING:
    from faces.model import Model

_CHECKED = 4  # images
FORMATS: Mapping[str, GraphFormat] = {
    "onnxruntime": GRAPH_FORMATS[0],
    "litert": GRAPH_FORMATS[1],
}
ENDINGS = {name: ending for ending, name in RUNTIMES.items()}


def choose_backend(model: Model, asked: BackendName | None, *, device: str, images: int = 0) -> Model:
    """Choose the runtime of a model's embeddings.

    Without a wish it is ONNX Runtime if it is installed and the exported file of these weights is in the
    cache, or if there are so many images that it pays to make it; otherwise PyTorch. A runtime is used only
    if its embeddings are PyTorch's within `thresholds.BACKEND_DISTANCE` on a few seeded images; the result is
    kept for this machine and these versions.

    Args:
        model: The model, with PyTorch as its runtime or as an exported file.
        asked: The runtime that is wanted; None for the default.
        device: The device of PyTorch; the others run on the CPU.
        images: The number of images that are going to be embedded.

    Raises:
        UsageError: The wish does not fit the device or the model, which is an exported file.
        DifferenceError: The embeddings of the runtime that is wanted differ from PyTorch's.
        RequirementError: A package that it needs is not installed, or the cache cannot be used.
    """
    check_backend_device(asked, device)
    if model.pytorch is None:
        if asked not in (None, model.backend.name):
            raise UsageError(f"{model.name} runs in {model.backend.name}. Leave out --backend {asked}.")
        return model
    if asked == "torch" or (asked is None and (device != "cpu" or not is_installed("onnxruntime"))):
        return model
    if asked is not None:
        FORMATS[asked].require(f"--backend {asked}")
        return _use(model, asked, _find(model, asked) or _make(model, asked))
    try:
        export = _find(model, "onnxruntime")
        if export is None and images >= MANY_IMAGES and is_installed("onnx"):
            export = _make(model, "onnxruntime")
        return model if export is None else _use(model, "onnxruntime", export)
    except PortError as error:
        return replace(model, checked=BackendFacts(note=f"onnxruntime is not used: {error}"))


def check_backend_device(asked: BackendName | None, device: str) -> None:
    """Refuse a runtime that does not run on a device.

    Raises:
        UsageError: It does not.
    """
    if asked not in (None, "torch") and device != "cpu":
        raise UsageError(f"--backend {asked}: it runs on the CPU. Leave out --device {device}.")


def _find(model: Model, name: BackendName) -> CachedExport | None:
    return find_export(model.sha256, ENDINGS[name])


def _make(model: Model, name: BackendName) -> CachedExport:
    return make_export(model.name, model.sha256, ENDINGS[name])


def _use(model: Model, name: BackendName, export: CachedExport) -> Model:
    """Open an exported file as the runtime of a model, after it has been checked on this machine."""
    FORMATS[name].require_runtime(f"--backend {name}")
    backend = GraphBackend(export.path, export.sha256, **_interface(name, model.backend.embedding_size))
    key = f"{describe_machine(name)}; {model.standardisation}"
    distance = export.check(key, f"{name} gives embeddings", lambda: measure_distance(model, backend))
    return replace(model, backend=backend, checked=BackendFacts(name, export.sha256, distance))


def _interface(name: BackendName, embedding_size: int) -> dict[str, Any]:
    """The interface of the files that are exported into the cache."""
    shape = (1, None, None, 3) if name == "litert" else (None, 3, None, None)
    return {"shape": shape, "embedding_size": embedding_size}


def measure_distance(model: Model, backend: Any) -> float:
    """Measure the largest Euclidean distance of a runtime's embeddings from PyTorch's on seeded images."""
    pixels = np.random.default_rng(0).integers(0, 256, (_CHECKED, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    assert model.pytorch is not None
    images = model.standardise(pixels)
    apart = model.pytorch.embed(images).astype(np.float64) - backend.embed(images)
    return float(np.linalg.norm(apart, axis=1).max())


def describe_machine(name: str) -> str:
    """Describe what the result of a check depends on: the processor and the versions."""
    processor = machine()["processor"]
    return f"{processor}; torch {torch.__version__}; {FORMATS[name].runtime_version()}"


def is_installed(module: str) -> bool:
    """Return whether a module can be imported."""
    return importlib.util.find_spec(module) is not None
