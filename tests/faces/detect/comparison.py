"""Faces beside the original's: how many are missed, and how far the others are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from checks.core import thresholds
from faces.detect.result import Face

BOX_LIMIT, LANDMARK_LIMIT = thresholds.FACE_BOX, thresholds.FACE_LANDMARK
LEAST_EQUAL, LEAST_OVERLAP = 0.98, 0.8
Found = tuple[np.ndarray, np.ndarray]
"""Boxes (n, 4), or (n, 5) with scores, and landmarks (n, 5, 2) of a photograph."""


@dataclass
class Comparison:
    """The original's faces beside others.

    Attributes:
        box: Largest difference of a coordinate of each pair of faces, in pixels.
        landmark: Likewise of the landmarks.
        overlap: Common area of each pair as a share of the whole.
        place: The photograph of each pair, by number, and the original's face in it.
        missed: Faces of the original without a partner.
        extra: Other faces without one.
    """

    box: list[float] = field(default_factory=list)
    landmark: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    place: list[tuple[int, int]] = field(default_factory=list)
    missed: int = 0
    extra: int = 0

    @property
    def different(self) -> list[int]:
        """The pairs that are further apart than the limits."""
        pairs = zip(self.box, self.landmark, strict=True)
        return [
            number
            for number, (box, mark) in enumerate(pairs)
            if not (box <= BOX_LIMIT and mark <= LANDMARK_LIMIT)
        ]

    @property
    def equal(self) -> float:
        """The share of the original's faces that have an equal partner."""
        faces = len(self.box) + self.missed
        return (len(self.box) - len(self.different)) / faces


def as_arrays(faces: Sequence[Face]) -> Found:
    """Turn faces into arrays."""
    boxes = np.array([[*face.box, face.score] for face in faces]).reshape(-1, 5)
    return boxes, np.array([face.landmarks for face in faces]).reshape(-1, 5, 2)


def compare_faces(expected: Sequence[Found], actual: Sequence[Found], least: float = 0.5) -> Comparison:
    """Compare the faces of photographs with the original's; partners overlap by at least `least`."""
    result = Comparison()
    for number, ((boxes, landmarks), (others, other_landmarks)) in enumerate(
        zip(expected, actual, strict=True)
    ):
        overlaps = np.array([[_overlap(box, other) for other in others] for box in boxes])
        overlaps = overlaps.reshape(len(boxes), len(others))
        for _ in range(min(overlaps.shape)):
            face, other = np.unravel_index(overlaps.argmax(), overlaps.shape)
            if overlaps[face, other] < least:
                break
            result.overlap.append(float(overlaps[face, other]))
            result.box.append(float(np.abs(boxes[face, :4] - others[other, :4]).max()))
            result.landmark.append(float(np.abs(landmarks[face] - other_landmarks[other]).max()))
            result.place.append((number, int(face)))
            overlaps[face], overlaps[:, other] = -1, -1
        pairs = sum(place[0] == number for place in result.place)
        result.missed += len(boxes) - pairs
        result.extra += len(others) - pairs
    return result


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(box[2:4], other[2:4]) - np.maximum(box[:2], other[:2])
    common = np.maximum(sides, 0).prod()
    return float(common / ((box[2:4] - box[:2]).prod() + (other[2:4] - other[:2]).prod() - common))
