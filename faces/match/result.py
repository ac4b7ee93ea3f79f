"""The result of `match`, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from faces.backends.facts import BackendFacts
from faces.embedder import EmbeddedFace
from faces.model import ModelFacts
from faces.threshold import Threshold


@dataclass(frozen=True, slots=True)
class MatchResult:
    """The distance of two faces, and the decision.

    Attributes:
        faces: The two faces.
        cosine: The cosine of the angle between their embeddings, -1 to 1.
        squared_euclidean: The squared Euclidean distance of their embeddings, 0 to 4.
        distance: The distance that the threshold is of; None without a threshold.
        threshold: The threshold below which two faces count as the same person's; None if none is known.
        model: The network.
        detector: What ran the detector; None if it was not needed.
    """

    faces: tuple[EmbeddedFace, EmbeddedFace]
    cosine: float
    squared_euclidean: float
    distance: float | None
    threshold: Threshold | None
    model: ModelFacts
    detector: BackendFacts | None = None

    @property
    def euclidean(self) -> float:
        """The Euclidean distance of the embeddings, 0 to 2."""
        return math.sqrt(self.squared_euclidean)

    @property
    def same(self) -> bool | None:
        """True if the faces count as the same person's; None without a threshold."""
        if self.threshold is None or self.distance is None:
            return None
        return self.distance < self.threshold.value

    @property
    def exit_code(self) -> int:
        """0 the same person; 1 different people; 4 no decision, as there is no threshold."""
        return {True: 0, False: 1, None: 4}[self.same]

    def as_json(self) -> Mapping[str, Any]:
        """The result in the form that `--json` writes."""
        return {
            "same": self.same,
            "cosine": self.cosine,
            "euclidean": self.euclidean,
            "squared_euclidean": self.squared_euclidean,
            "distance": self.distance,
            "threshold": None if self.threshold is None else self.threshold.as_json(),
            "model": self.model.name,
            "model_sha256": self.model.sha256,
            "standardisation": self.model.standardisation,
            "backend": asdict(self.model.backend),
            "detector": self.detector and asdict(self.detector),
            "faces": [
                {"path": str(face.file), "box": face.box, "faces": face.faces, "crop": face.crop}
                for face in self.faces
            ],
        }
