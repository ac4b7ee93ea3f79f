"""The result of `identify`, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faces.backends.facts import BackendFacts
from faces.distance import Distance
from faces.embedder import EmbeddedFace
from faces.model import ModelFacts
from faces.threshold import Threshold


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A person of the gallery.

    Attributes:
        name: The person, or the path of the image if its person is not known.
        distance: The distance to the nearest of the person's faces.
        file: The image of this face.
        faces: The number of the person's faces in the gallery.
    """

    name: str
    distance: float
    file: Path
    faces: int


@dataclass(frozen=True, slots=True)
class IdentifyResult:
    """The people of a gallery by their distance to a face.

    Attributes:
        face: The face.
        neighbours: The nearest people, the nearest first.
        people: The number of people in the gallery.
        gallery_faces: The number of faces in it.
        distance: The measure of distance.
        threshold: The threshold below which two faces count as the same person's; None if none is known.
        model: The network.
        detector: What ran the detector; None if it was not needed.
    """

    face: EmbeddedFace
    neighbours: tuple[Neighbour, ...]
    people: int
    gallery_faces: int
    distance: Distance
    threshold: Threshold | None
    model: ModelFacts
    detector: BackendFacts | None = None

    @property
    def person(self) -> str | None:
        """The nearest person, if below the threshold; None for nobody, and without a threshold."""
        nearest = self.neighbours[0]
        return nearest.name if self.threshold and nearest.distance < self.threshold.value else None

    @property
    def exit_code(self) -> int:
        """0 somebody; 1 nobody; 4 no decision, as there is no threshold."""
        if self.threshold is None:
            return 4
        return 1 if self.person is None else 0

    def as_json(self) -> Mapping[str, Any]:
        """The result in the form that `--json` writes."""
        return {
            "path": str(self.face.file),
            "box": self.face.box,
            "faces": self.face.faces,
            "person": self.person,
            "distance": self.distance,
            "threshold": None if self.threshold is None else self.threshold.as_json(),
            "nearest": [
                {
                    "person": neighbour.name,
                    "distance": neighbour.distance,
                    "path": str(neighbour.file),
                    "faces": neighbour.faces,
                }
                for neighbour in self.neighbours
            ],
            "people": self.people,
            "gallery_faces": self.gallery_faces,
            "model": self.model.name,
            "model_sha256": self.model.sha256,
            "standardisation": self.model.standardisation,
            "backend": asdict(self.model.backend),
            "detector": self.detector and asdict(self.detector),
            "crop": self.face.crop,
        }
