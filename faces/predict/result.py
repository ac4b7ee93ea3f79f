"""The result of `predict`, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.errors import SourceError
from faces.backends.facts import BackendFacts
from faces.embedder import EmbeddedFace
from faces.model import ModelFacts


@dataclass(frozen=True, slots=True)
class Candidate:
    """A person whom a face may be, and the probability, 0 to 1, that the classifier gives."""

    person: str
    probability: float


@dataclass(frozen=True, slots=True)
class PredictedFace:
    """A face, and the most probable people, the most probable first."""

    face: EmbeddedFace
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class PredictResult:
    """The people of photographs.

    Attributes:
        weights: The folder or file of the weights.
        model: The network.
        people: The people that its classifier tells apart.
        faces: The faces, one for each photograph that has any.
        without_face: The photographs without a face.
        problems: The errors on files that could not be read.
        detector: What ran the detector; None if it was not needed.
    """

    weights: Path
    model: ModelFacts
    people: tuple[str, ...]
    faces: tuple[PredictedFace, ...]
    without_face: tuple[Path, ...]
    problems: tuple[SourceError, ...]
    detector: BackendFacts | None = None

    @property
    def exit_code(self) -> int:
        """0 if every photograph has a face; 1 if one has none; 3 if a file could not be read."""
        return 3 if self.problems else 1 if self.without_face else 0

    def as_json(self) -> Mapping[str, Any]:
        """The result in the form that `--json` writes."""
        return {
            "weights": str(self.weights),
            "model_sha256": self.model.sha256,
            "standardisation": self.model.standardisation,
            "detector": self.detector and asdict(self.detector),
            "people": list(self.people),
            "photographs": [
                {
                    "path": str(predicted.face.file),
                    "box": predicted.face.box,
                    "faces": predicted.face.faces,
                    "crop": predicted.face.crop,
                    "people": [asdict(candidate) for candidate in predicted.candidates],
                }
                for predicted in self.faces
            ],
            "without_face": [str(file) for file in self.without_face],
            "problems": [str(problem) for problem in self.problems],
        }
