"""Find the person of a photograph in embeddings of known people."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.errors import UsageError
from faces.crops import FaceImage
from faces.distance import DISTANCES, Distance
from faces.embedder import Embedder
from faces.embeddings import Embeddings
from faces.identify.result import IdentifyResult, Neighbour


def identify(
    photograph: str | Path,
    gallery: Embeddings,
    *,
    threshold: str | Path | None = None,
    most: int = 5,
    embedder: Embedder | None = None,
) -> IdentifyResult:
    """Find the people of a gallery that are nearest to the face of a photograph.

    Args:
        photograph: A photograph, of which one face is chosen, or a crop of 160x160 or 182x182 pixels.
        gallery: Embeddings, as `faces.embeddings.read_embeddings` gives them. A face without a person counts
            as a person of its own.
        threshold: A result of `facenet-port evaluate --json` with the same model. None takes that of the
            gallery, or the one that was measured for the default model.
        most: People that are listed, at least one.
        embedder: The model and the options. None takes those of the gallery.

    Raises:
        UsageError: The gallery or the threshold is of another model, or the gallery of another crop or size.
        SourceError: The photograph cannot be read, or has no face.
        RequirementError: Weights are not in the cache and cannot be downloaded.
    """
    origin = gallery.origin
    embedder = embedder or Embedder(origin.model, standardisation=origin.standardisation, crop=origin.crop)
    image = FaceImage(Path(photograph))
    crop = embedder.check_images([image])
    if crop != origin.crop:
        raise UsageError(
            f"{photograph} has the crop {crop}, and the gallery {origin.crop}. Give the photograph itself."
        )
    origin.check(embedder.model.facts, "the gallery")
    found = embedder.find_threshold(threshold, crop, origin.threshold)
    (face,) = embedder.embed_all([image])
    size, needed = gallery.values.shape[1], len(face.embedding)
    if size != needed:
        raise UsageError(
            f"the embeddings of the gallery have {size} numbers, and those of {origin.model} {needed}. "
            "Embed the gallery again."
        )
    measure = "squared-euclidean" if found is None else found.distance
    people = rank_people(face.embedding, gallery, measure)
    return IdentifyResult(
        face=face,
        neighbours=people[:most],
        people=len(people),
        gallery_faces=len(gallery.files),
        distance=measure,
        threshold=found,
        model=replace(embedder.model.facts, origin="the gallery"),
        detector=embedder.detector_facts,
    )


def rank_people(
    embedding: NDArray[np.float32], gallery: Embeddings, distance: Distance
) -> tuple[Neighbour, ...]:
    """Rank the people of a gallery by the distance of their nearest face, the nearest first.

    Args:
        embedding: (E,), of the network of the gallery.
        gallery: The gallery; a face without a person counts as a person of its own.
        distance: The measure of distance.
    """
    distances = DISTANCES[distance](gallery.values.astype(np.float64), embedding[None].astype(np.float64))
    names = gallery.names
    faces = Counter(names)
    nearest: dict[str, int] = {}
    for place in np.argsort(distances, kind="stable"):
        nearest.setdefault(names[place], int(place))
    return tuple(
        Neighbour(name, float(distances[place]), gallery.files[place], faces[name])
        for name, place in nearest.items()
    )
