"""Name the people of photographs with a trained classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.counts import counted
from converter.errors import SourceError, UsageError
from faces.backends.graph_backend import find_runtime
from faces.crops import FaceImage, find_crop
from faces.detect.run import find_files
from faces.embedder import Embedder, Progress
from faces.model import Model
from faces.predict.result import Candidate, PredictedFace, PredictResult
from faces.training.run_folder import PEOPLE, read_people


def predict(
    sources: Sequence[str | Path],
    weights: str | Path,
    *,
    top: int = 5,
    embedder: Embedder | None = None,
    progress: Progress = lambda done, total: None,
) -> PredictResult:
    """Find the most probable people of each photograph.

    A file that cannot be read or has no face is listed in the result, and the others are named. The
    classifier knows the people it was trained on alone: a stranger is given one of their names, too.

    Args:
        sources: Photographs or crops of 160x160 or 182x182 pixels, and folders of them. Of the faces of a
            photograph one is chosen.
        weights: The folder `best` or `last` of a run of `facenet-port train`, or the weights in it.
        top: People that are listed of each photograph, at least one.
        embedder: The options, with these weights as its model; None takes the defaults.
        progress: Progress callback: photographs done, and their number.

    Raises:
        UsageError: The weights are an exported file or have no classifier, there are crops of several kinds,
            or of another than the classifier was trained on.
        SourceError, MappingError: The weights or their people cannot be read, or do not go together.
        RequirementError: The detector's weights are not in the cache and cannot be downloaded.
    """
    weights = Path(weights)
    if find_runtime(weights) is not None:
        raise UsageError(
            f"{weights}: predict takes the folder of a training, not an exported file, which does not hold "
            "the names of the people. Give the folder best or last of a run of `facenet-port train`."
        )
    people, crop = read_people(weights)
    if not people:
        raise UsageError(
            f'{weights}: these weights have no classifier; task = "triplet" trains none. Train a classifier, '
            "or name people by their embeddings with `facenet-port identify`."
        )
    embedder = embedder or Embedder(weights)
    files, problems = find_files(sources)
    embedder.expect(len(files), logits=True)
    _check_people(weights, people, embedder.model)
    actual = find_crop(files, embedder.crop)
    if actual != crop:
        raise UsageError(
            f"{weights}: it was trained on faces with the crop {crop}, and these have {actual}. Give "
            + (f"--crop {crop}." if embedder.crop == actual else f"photographs, with --crop {crop}.")
        )
    embedded = embedder.embed(list(map(FaceImage, files)), progress, compute=Model.logits)
    return PredictResult(
        weights,
        embedder.model.facts,
        people,
        tuple(PredictedFace(face, _rank(face.embedding, people)[:top]) for face in embedded.faces),
        embedded.without_face,
        (*problems, *embedded.problems),
        embedder.detector_facts,
    )


def _check_people(weights: Path, people: Sequence[str], model: Model) -> None:
    outputs = model.classifier.out_features
    if outputs != len(people):
        raise SourceError(
            weights,
            f"{PEOPLE} names {counted(len(people), 'person', 'people')}, and the classifier has "
            f"{counted(outputs, 'output')}",
            next_step="Give a folder best or last as `facenet-port train` wrote it",
        )


def _rank(logits: NDArray[np.float32], people: Sequence[str]) -> tuple[Candidate, ...]:
    """Rank people by the softmax of logits: (people,), the most probable first."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = powers / powers.sum()
    order = np.argsort(-probabilities, kind="stable")
    return tuple(Candidate(people[place], float(probabilities[place])) for place in order)
