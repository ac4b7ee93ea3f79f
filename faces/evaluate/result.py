"""The result of `evaluate`, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.core.judgement import Judgement
from faces.backends.facts import BackendFacts
from faces.crops import CropMethod
from faces.detect.result import Box
from faces.evaluate.comparison import Comparison
from faces.evaluate.measure import Measurement, Settings
from faces.evaluate.protocol import Pairs
from faces.model import ModelFacts
from faces.threshold import Threshold


@dataclass(frozen=True, slots=True)
class Applied:
    """A threshold that was measured elsewhere, applied to every pair.

    Attributes:
        threshold: The threshold.
        accuracy: Share of the pairs that it decides rightly.
        val: Share of the same pairs that it accepts; None without same pairs.
        far: Share of the different pairs that it accepts; None without different pairs.
    """

    threshold: Threshold
    accuracy: float
    val: float | None
    far: float | None


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """The figures of a network on pairs of faces.

    Attributes:
        source: The list of pairs, or the table.
        folder: The folder of the images; empty for a table.
        images: The file of each image.
        boxes: The box of the face in each image, in pixels; None for a crop.
        crop: The crop of every face.
        pairs: The pairs, by places among `images`.
        skipped: The number of pairs of which a file is missing, or shows no face.
        model: The network.
        settings: The options of the protocol.
        measured: The figures.
        threshold: The threshold at `settings.far`, with what it was measured on; None without pairs of
            both kinds.
        applied: The threshold that the user gave, on these pairs.
        against: TensorFlow's graph that was run on the same images, or the weights; empty for none.
        judgements: distances, decisions and figures against TensorFlow's; empty without it.
        comparison: What an exported file changes; None for no such comparison.
        notes: Sentences on what limits the figures.
        environment: As `checks.core.environment.environment` gives it.
        files: Every file that was read, except images.
        detector: What ran the detector; None if it was not needed.
    """

    source: str
    folder: str
    images: tuple[str, ...]
    boxes: tuple[Box | None, ...]
    crop: CropMethod
    pairs: Pairs
    skipped: int
    model: ModelFacts
    settings: Settings
    measured: Measurement
    threshold: Threshold | None
    applied: Applied | None
    against: str
    judgements: tuple[Judgement, ...]
    comparison: Comparison | None
    notes: tuple[str, ...]
    environment: Mapping[str, Any]
    files: tuple[str, ...]
    detector: BackendFacts | None = None

    @property
    def same(self) -> int:
        """The number of pairs that show the same person."""
        return int(np.count_nonzero(self.pairs.same))

    @property
    def passed(self) -> bool:
        """True if every judgement holds; without TensorFlow nothing is judged."""
        return all(judgement.passed for judgement in self.judgements)

    def as_json(self) -> dict[str, Any]:
        """The result in the form that `--json` writes; null is a figure that cannot be computed."""
        measured, accuracy, validation = self.measured, self.measured.accuracy, self.measured.validation
        return {
            "pairs": len(self.pairs),
            "same": self.same,
            "skipped": self.skipped,
            "accuracy": None if accuracy is None else accuracy.mean,
            "accuracy_std": None if accuracy is None else accuracy.std,
            "threshold": measured.threshold,
            "val": None if validation is None else validation.mean,
            "val_std": None if validation is None else validation.std,
            "far": None if validation is None else validation.mean_far,
            "auc": measured.auc,
            "eer": measured.eer,
            "missing": dict(measured.missing),
            "best_accuracy": None if measured.best is None else measured.best.mean,
            "best_threshold": None if measured.best is None else float(measured.best.thresholds[0]),
            "accuracy_by_fold": None if accuracy is None else accuracy.by_fold.tolist(),
            "thresholds_by_fold": None if accuracy is None else accuracy.thresholds.tolist(),
            "images": len(self.images),
            "crop": self.crop,
            "source": self.source,
            "folder": self.folder or None,
            "model": asdict(self.model),
            "detector": self.detector and asdict(self.detector),
            "settings": asdict(self.settings),
            "mirrored": self.settings.mirrored,
            "measured_threshold": None if self.threshold is None else self.threshold.as_json(),
            "applied_threshold": None if self.applied is None else asdict(self.applied),
            "against": self.against or None,
            "passed": self.passed if self.judgements else None,
            "judgements": [asdict(judgement) for judgement in self.judgements],
            "comparison": None if self.comparison is None else self.comparison.as_json(),
            "notes": list(self.notes),
            "environment": dict(self.environment),
        }


@dataclass(frozen=True, slots=True)
class ClassScores:
    """The scores of one class.

    Attributes:
        label: The class.
        faces: The number of its faces.
        precision: Share of the faces given this label that have it; None if none is given it.
        recall: Share of its faces that are given this label; None if it has no faces.
    """

    label: str
    faces: int
    precision: float | None
    recall: float | None

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; zero if one of them is zero or not defined."""
        both = (self.precision or 0.0) + (self.recall or 0.0)
        return 2 * (self.precision or 0.0) * (self.recall or 0.0) / both if both else 0.0


@dataclass(frozen=True, slots=True)
class ClassificationResult:
    """The figures of a classifier on labelled faces.

    Attributes:
        source: The table.
        model: The network; None if the table has the predicted labels.
        accuracy: Share of the faces that are given their label.
        precision: Mean of the classes' precision; one that is never given counts as 0.
        recall: Mean of the recall of the classes that have faces.
        classes: The scores of each class, in order of labels.
        confusion: (K, K) number of faces, by label (row) and predicted label (column), in that order.
        faceless: The number of rows whose image shows no face; they are left out.
        environment: As `checks.core.environment.environment` gives it.
        files: Every file that was read, except images.
        detector: What ran the detector; None if it was not needed.
    """

    source: str
    model: ModelFacts | None
    accuracy: float
    precision: float
    recall: float
    classes: tuple[ClassScores, ...]
    confusion: NDArray[np.int64]
    faceless: int
    environment: Mapping[str, Any]
    files: tuple[str, ...]
    detector: BackendFacts | None = None
    passed: bool = True  # a classifier is not judged

    def as_json(self) -> dict[str, Any]:
        """The result in the form that `--json` writes."""
        return {
            "faces": int(self.confusion.sum()),
            "faceless": self.faceless,
            "accuracy": self.accuracy,
            "precision": self.precision,
            "recall": self.recall,
            "classes": [asdict(scores) for scores in self.classes],
            "confusion": self.confusion.tolist(),
            "source": self.source,
            "model": None if self.model is None else asdict(self.model),
            "detector": self.detector and asdict(self.detector),
            "environment": dict(self.environment),
        }
