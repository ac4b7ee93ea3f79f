"""Decide whether two photographs show the same person."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from faces.crops import FaceImage
from faces.distance import DISTANCES, squared_euclidean
from faces.embedder import Embedder
from faces.match.result import MatchResult


def match(
    first: str | Path,
    second: str | Path,
    *,
    threshold: str | Path | None = None,
    embedder: Embedder | None = None,
) -> MatchResult:
    """Decide whether two photographs show the same person.

    Args:
        first: A photograph, of which one face is chosen, or a crop of 160x160 or 182x182 pixels.
        second: Likewise.
        threshold: A result of `facenet-port evaluate --json` with the same model. None takes the one that was
            measured for the default model; with another there is no decision.
        embedder: The model and the options; None takes the defaults.

    Raises:
        UsageError: The threshold is of another model or crop, or the two are crops of different kinds.
        SourceError: A file cannot be read, or has no face.
        RequirementError: Weights are not in the cache and cannot be downloaded.
    """
    embedder = embedder or Embedder()
    images = [FaceImage(Path(first)), FaceImage(Path(second))]
    found = embedder.find_threshold(threshold, embedder.check_images(images))
    one, other = embedder.embed_all(images)
    rows = one.embedding[None].astype(np.float64), other.embedding[None].astype(np.float64)
    return MatchResult(
        faces=(one, other),
        cosine=float(np.sum(rows[0] * rows[1]) / np.prod([np.linalg.norm(row) for row in rows])),
        squared_euclidean=float(squared_euclidean(*rows)[0]),
        distance=None if found is None else float(DISTANCES[found.distance](*rows)[0]),
        threshold=found,
        model=embedder.model.facts,
        detector=embedder.detector_facts,
    )
