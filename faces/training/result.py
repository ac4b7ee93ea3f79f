"""The result of a training, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faces.dataset import LabelledFace
from faces.model import Standardisation
from faces.training.config import TrainConfig
from faces.training.validation import Validation


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A training, or the validation of weights alone.

    Attributes:
        folder: The folder of the run; None if nothing was trained.
        config: The configuration.
        standardisation: The standardisation of the images.
        people: The people who were trained on.
        trained_faces: Number of the faces that were trained on.
        validated_faces: The faces that were validated on.
        frozen_batch_norm: Whether BatchNorm kept its statistics and biases.
        before: The figures before the training; None if nothing was trained.
        after: The figures at its end, or of the weights that were measured.
        rows: The figures of each epoch, as in metrics.csv.
        best_epoch: The epoch whose weights are in the folder `best`, from 1; 0 if nothing was trained.
        notes: Sentences on what is left out of the data, or has no effect.
        warnings: Sentences on what went wrong without stopping the training.
        environment: As `checks.core.environment.environment` gives it.
    """

    folder: Path | None
    config: TrainConfig
    standardisation: Standardisation
    people: tuple[str, ...]
    trained_faces: int
    validated_faces: tuple[LabelledFace, ...]
    frozen_batch_norm: bool
    before: Validation | None
    after: Validation
    rows: tuple[Mapping[str, Any], ...]
    best_epoch: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    environment: Mapping[str, Any]

    @property
    def validated_people(self) -> tuple[str, ...]:
        """The people who were validated on."""
        return tuple(sorted({face.person for face in self.validated_faces}))

    def as_json(self) -> dict[str, Any]:
        """The result in the form that `--json` writes."""
        return {
            "folder": None if self.folder is None else str(self.folder),
            "config": asdict(self.config),
            "standardisation": self.standardisation,
            "people": list(self.people),
            "trained_faces": self.trained_faces,
            "validated_faces": len(self.validated_faces),
            "validated_people": list(self.validated_people),
            "frozen_batch_norm": self.frozen_batch_norm,
            "before": None if self.before is None else self.before.figures,
            "after": self.after.figures,
            "scores": []
            if self.after.scores is None
            else [asdict(person) | {"f1": person.f1} for person in self.after.scores.classes],
            "epochs": [dict(row) for row in self.rows],
            "best_epoch": self.best_epoch,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "environment": dict(self.environment),
        }
