"""The faces of a photograph, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import SourceError
from faces.backends.facts import TORCH, BackendFacts

Box = tuple[float, float, float, float]
Point = tuple[float, float]

LANDMARKS = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")
"""The landmarks of a face in their order; left and right are the viewer's."""


@dataclass(frozen=True, slots=True)
class Face:
    """A face of a photograph.

    Attributes:
        box: Left, top, right and bottom in pixels of the photograph; it may reach over the edge.
        score: The probability of a face, by O-Net.
        landmarks: (x, y) in pixels, in the order of `LANDMARKS`.
    """

    box: Box
    score: float
    landmarks: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph that was searched.

    Attributes:
        path: Its file.
        width: In pixels, upright.
        height: Likewise.
        faces: Its faces, by falling score.
    """

    path: Path
    width: int
    height: int
    faces: tuple[Face, ...]


@dataclass(frozen=True, slots=True)
class DetectionResult:
    """The result of `detect`.

    Attributes:
        photographs: The photographs that were read, in order.
        problems: The files that could not be read, and the folders without photographs.
        backend: What ran the detector's networks.
    """

    photographs: tuple[Photograph, ...]
    problems: tuple[SourceError, ...]
    backend: BackendFacts = TORCH

    @property
    def faces(self) -> int:
        """The number of faces in all photographs."""
        return sum(len(photograph.faces) for photograph in self.photographs)

    @property
    def without_face(self) -> int:
        """The number of photographs without a face."""
        return sum(not photograph.faces for photograph in self.photographs)

    def as_json(self) -> Sequence[Mapping[str, Any]]:
        """The photographs in the form that `--json` writes."""
        return [
            {
                "path": str(photograph.path),
                "width": photograph.width,
                "height": photograph.height,
                "faces": [
                    {"box": face.box, "score": face.score, "landmarks": face.landmarks}
                    for face in photograph.faces
                ],
            }
            for photograph in self.photographs
        ]
