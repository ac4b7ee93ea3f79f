"""The stages from a photograph to a decision, each run on stored inputs and judged by the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from checks.core import thresholds
from checks.core.judgement import Judgement
from checks.core.types import Array
from faces import crops
from faces.controls import inputs
from faces.controls.faults import StageName
from faces.controls.inputs import ProtocolCase
from faces.controls.original import Original, digest
from faces.detect.detector import FaceDetector
from faces.detect.result import Face
from faces.distance import DISTANCES
from faces.evaluate.judge import FIGURES
from faces.evaluate.measure import measure
from faces.evaluate.protocol import Pairs, pair_distances
from faces.images import to_rgb
from faces.model import STANDARDISATIONS, Model


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A stage, with the original's result.

    Attributes:
        name: Its name.
        command: The command whose users it concerns.
        judge: The original's code, a noun.
        unit: Of the difference, such as "px"; empty without one.
        bound: The largest difference that is no fault; 0 if the results are equal or not.
        expected: The original's result.
        observe: Runs the stage; gives a result of the same kind.
        difference: From two results to how far they are apart: the number of unequal ones if `bound` is 0.
    """

    name: StageName
    command: str
    judge: str
    unit: str
    bound: float
    expected: Any
    observe: Callable[[], Any]
    difference: Callable[[Any, Any], float]

    def is_same(self, some: Any, other: Any) -> bool:
        """Return whether two results are as near as the bound asks for; one that is not a number never is."""
        return self.difference(some, other) <= self.bound

    def judge_result(self, result: Any) -> Judgement:
        """Judge a result by the original's."""
        apart = self.difference(self.expected, result)
        if not self.bound:
            statement = f"{apart:g} of {len(self.expected)} differ"
        else:
            statement = f"{apart:.1e}{self.unit and ' '}{self.unit} from the original's; limit {self.bound:g}"
        share = apart / self.bound if self.bound else None
        return Judgement(self.name, self.is_same(self.expected, result), statement, share=share)


def make_stages(
    original: Original, photographs: Sequence[Path], detector: FaceDetector, network: Model
) -> tuple[Stage, ...]:
    """Make every stage, in the order of the path: one table, which is longer than a function should be.

    Args:
        original: The original's results.
        photographs: The files of `original.photographs`, in their order.
        detector: The detector.
        network: The network whose embeddings `original` has.
    """
    faces = [_as_rows(photograph.boxes, photograph.landmarks) for photograph in original.photographs]
    pixels = [photograph.pixels for photograph in original.photographs]
    embeddings = np.array([original.embeddings[name] for name in STANDARDISATIONS])
    distances = np.array([original.distances[name] for name in DISTANCES])
    cases = inputs.protocol_cases()
    figures = np.array([original.figures[case.name] for case in cases])
    return (
        Stage(
            "photograph",
            "detect",
            "the pixels that the original was given",
            "",
            0,
            pixels,
            partial(_read, photographs),
            _count_unequal,
        ),
        Stage(
            "detector",
            "detect",
            "detect_face.py",
            "px",
            thresholds.FACE_BOX,
            faces,
            partial(_detect, detector, photographs),
            _farthest_face,
        ),
        Stage(
            "crop",
            "align",
            "align_dataset_mtcnn.py",
            "",
            0,
            original.crops,
            partial(_crop, inputs.photographs_with_boxes()),
            _count_unequal,
        ),
        Stage(
            "standardisation",
            "embed",
            "TensorFlow's graph on the original's formula",
            "",
            thresholds.FACE_EMBEDDING,
            embeddings,
            partial(_embed, network, inputs.crops()),
            _farthest_row,
        ),
        Stage(
            "distance",
            "match",
            "distance of facenet.py",
            "",
            thresholds.FACE_PROTOCOL,
            distances,
            partial(_measure_pairs, *inputs.pairs_of_embeddings()),
            _farthest_number,
        ),
        Stage(
            "protocol",
            "evaluate",
            "evaluate of lfw.py, validate_on_lfw.py",
            "",
            thresholds.FACE_PROTOCOL,
            figures,
            partial(_measure_cases, cases),
            _farthest_number,
        ),
    )


def _as_rows(boxes: Any, landmarks: Any) -> Array:
    """Give faces as rows of 14 numbers in pixels: box, and landmarks as shares of the bound of a box."""
    weight = thresholds.FACE_BOX / thresholds.FACE_LANDMARK
    points = np.array(landmarks, np.float64).reshape(-1, 10) * weight
    return np.hstack([np.array(boxes, np.float64).reshape(-1, 4), points])


def _read(photographs: Sequence[Path]) -> list[str]:
    return [digest(to_rgb(photograph)) for photograph in photographs]


def _detect(detector: FaceDetector, photographs: Sequence[Path]) -> list[Array]:
    return [
        _as_rows([face.box for face in faces], [face.landmarks for face in faces])
        for faces in detector.detect(photographs)
    ]


def _crop(photographs: Sequence[tuple[Array, Array]]) -> list[str]:
    digests = []
    for pixels, boxes in photographs:
        height, width = pixels.shape[:2]
        faces = [Face((left, top, right, bottom), 1.0, ()) for left, top, right, bottom in boxes.tolist()]
        chosen = faces[crops.choose_face(faces, width, height, "facenet")]
        digests.append(digest(crops.crop_face(pixels, chosen.box, "facenet")))
    return digests


def _embed(network: Model, pixels: Array) -> Array:
    models = [replace(network, standardisation=name) for name in STANDARDISATIONS]
    return np.stack([model.embed(model.standardise(pixels)) for model in models])


def _measure_pairs(embeddings: Array, pairs: Pairs) -> Array:
    return np.stack([pair_distances(embeddings, pairs, name) for name in DISTANCES])


def _measure_cases(cases: Sequence[ProtocolCase]) -> Array:
    rows = []
    for case in cases:
        measured = measure(case.embeddings, case.pairs, case.settings)
        rows.append([figure(measured) for figure in FIGURES.values()])
    return np.array(rows, np.float64)  # a figure that cannot be computed is None, and becomes NaN


def _count_unequal(some: Sequence[str], other: Sequence[str]) -> float:
    return float(sum(first != second for first, second in zip(some, other, strict=True)))


def _farthest_face(some: Sequence[Array], other: Sequence[Array]) -> float:
    """The distance of the face that is farthest from all of the other side (Hausdorff's), in pixels."""
    return max(_faces_apart(first, second) for first, second in zip(some, other, strict=True))


def _faces_apart(some: Array, other: Array) -> float:
    if len(some) != len(other):
        return float("inf")
    if not len(some):
        return 0.0
    apart = np.abs(some[:, None] - other[None]).max(axis=2)
    return float(max(apart.min(axis=0).max(), apart.min(axis=1).max()))


def _farthest_row(some: Array, other: Array) -> float:
    return float(np.linalg.norm(some - other, axis=-1).max())


def _farthest_number(some: Array, other: Array) -> float:
    return float(np.abs(some - other).max())
