"""Facts about the runtime that computes embeddings, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BackendName = Literal["torch", "onnxruntime", "litert"]
"""The runtimes, as `--backend` names them."""

RUNTIMES: Mapping[str, BackendName] = {".onnx": "onnxruntime", ".tflite": "litert"}
"""The endings of exported files, and what runs these."""


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """The runtime of embeddings, or of the detector.

    Attributes:
        name: Its name.
        file_sha256: The SHA-256 of the exported file that it runs; None for PyTorch, and for the detector,
            which has three.
        distance: The largest Euclidean distance of its embeddings from PyTorch's on the images of the check
            on this machine, or of the detector the largest difference of an output; None for PyTorch, and for
            a file of the user's, whose weights are not at hand.
        stated_weights: The `weights_digest` that the metadata of a file of the user's state; None without.
        note: Why another runtime is not used, a sentence; empty for no reason.
    """

    name: BackendName = "torch"
    file_sha256: str | None = None
    distance: float | None = None
    note: str = ""
    stated_weights: str | None = None

    @property
    def statement(self) -> str:
        """The runtime that replaces PyTorch, or the reason why none does; empty for PyTorch."""
        if self.note or self.name == "torch":
            return self.note
        checked = "" if self.distance is None else f", {self.distance:.1e} from torch on this machine"
        return f"run by {self.name}{checked}"


TORCH = BackendFacts()
"""PyTorch, which is checked against nothing."""
