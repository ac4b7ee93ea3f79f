"""An exported file of the user's as the model of a command."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from checks.audit import metadata as keys
from converter.errors import UsageError
from converter.manifest import file_digest
from faces.backends.facts import BackendFacts
from faces.backends.graph_backend import GraphBackend, try_file
from faces.model import STATED, Model, Standardisation


def load_exported(path: Path, standardisation: Standardisation | None, device: str) -> Model:
    """Load an exported file, .onnx or .tflite.

    Its metadata name the standardisation and the weights. A file whose weights are stored in float32 counts
    as these weights, so that their thresholds hold for it; one that rounds them is a model of its own. What
    the metadata say is not verified here: `facenet-port audit` does that.

    Args:
        path: The file.
        standardisation: The standardisation of its images; None takes that of its metadata.
        device: It has to be "cpu".

    Raises:
        UsageError: The standardisation is not known, or contradicts that in the graph, or another device is
            wanted.
        SourceError: The file is damaged, or does not turn images into embeddings.
        RequirementError: Its runtime is not installed.
    """
    if device != "cpu":
        raise UsageError(f"{path}: exported files run on the CPU. Leave out --device {device}.")
    (graph, embedding_size), digest = try_file(path), file_digest(path)
    metadata, taken = graph.metadata, graph.inputs[0]
    backend = GraphBackend(
        path,
        digest,
        shape=taken.shape,
        takes_pixels=taken.dtype == "uint8",
        embedding_size=embedding_size,
    )
    stated = STATED.get(metadata.get(keys.STANDARDISATION))
    if backend.takes_pixels and stated and standardisation not in (None, stated):
        raise UsageError(
            f"{path}: the graph standardises its images itself, {stated}. Leave out --standardise."
        )
    needed = standardisation or stated
    if needed is None:
        raise UsageError(
            f"{path}: its metadata do not tell how its images are standardised. Give --standardise fixed, "
            "(x - 127.5) / 128 as for the published models of 2018, or per-image."
        )
    stored = {array.dtype for array in graph.constants.values() if array.ndim > 1}
    is_exact = stored == {np.dtype(np.float32)} and not graph.quantised
    weights = metadata.get(keys.WEIGHTS)
    sha256 = weights if weights and is_exact else digest
    origin = "--standardise" if standardisation else "its metadata"
    facts = BackendFacts(backend.name, digest, stated_weights=weights)
    return Model(str(path), None, sha256, needed, origin, None, backend, facts)
