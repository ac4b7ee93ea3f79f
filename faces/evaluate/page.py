"""The HTML page of `facenet-port evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from checks.report.charts import Chart, Drawer
from checks.report.content import Head
from checks.report.distance_chart import Distances
from checks.report.page import write_html
from checks.report.pictures import data_url
from checks.report.provenance import digests, provenance, shown_path
from checks.report.roc_chart import Roc, RocCurve
from faces.crops import CropMethod, FaceImage, read_face
from faces.evaluate.comparison import Comparison, change_table, describe_comparison, pair_table
from faces.evaluate.measure import Measurement
from faces.evaluate.protocol import Pairs
from faces.evaluate.result import ClassificationResult, VerificationResult
from faces.evaluate.table import (
    confusion_table,
    describe_settings,
    describe_standardisation,
    figure_table,
    headline,
    score_table,
)

_PAIRS = 12  # of each kind that are shown
_MOST_CLASSES = 40  # classes whose confusion matrix is shown


@dataclass(frozen=True, slots=True)
class _PicturedPair:
    """A pair as the page shows it: data URLs, the distance, the names, and whether the decision is wrong."""

    pictures: tuple[str, str]
    distance: str
    names: str
    wrong: bool


PicturedPairs = tuple[tuple[str, tuple[_PicturedPair, ...]], ...]
"""A title for each kind of pair, and its pairs."""


def write_page(path: str | Path, result: VerificationResult | ClassificationResult, *, command: str) -> None:
    """Write the page of an evaluation.

    Args:
        path: The file; an older page is replaced.
        result: The result. Its images are read again for the pictures.
        command: The command as it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
        SourceError: An image has gone since.
    """
    if isinstance(result, ClassificationResult):
        content = _classification(result)
        head = _classification_head(result)
    else:
        content = _verification(result)
        head = _verification_head(result)
    foot = provenance(command, digests(result.files), result.environment, None)
    empty = {"comparison": None, "roc": None, "distances": None, "worst": (), "confusion": None, "notes": ()}
    write_html(Path(path), "faces/evaluate/page.html", head, foot, **(empty | content))


def _verification(result: VerificationResult) -> dict[str, object]:
    drawer = Drawer()
    return {
        "figures": figure_table(result),
        "notes": result.notes,
        "comparison": None if result.comparison is None else _comparison(result.comparison),
        "roc": _roc(drawer, result),
        "distances": _distances(drawer, result),
        "worst": _worst(result),
    }


def _comparison(comparison: Comparison) -> dict[str, object]:
    changed = pair_table(comparison) if comparison.changed else None
    return {
        "figures": change_table(comparison),
        "sentences": describe_comparison(comparison),
        "changed": changed,
    }


def _roc(drawer: Drawer, result: VerificationResult) -> Chart | None:
    roc = result.measured.roc
    if roc is None:
        return None
    rates = f"area {result.measured.auc:.4f}, equal error rate {result.measured.eer:.4f}"
    description = f"Receiver operating characteristic: {rates}"
    label = "same pairs accepted, by different pairs accepted"
    curve = RocCurve(label, roc.fpr.tolist(), roc.tpr.tolist())
    return drawer.roc(Roc(description, (curve,), result.settings.far))


def _distances(drawer: Drawer, result: VerificationResult) -> Chart:
    measured, same = result.measured, result.pairs.same
    thresholds = []
    if measured.best is not None:
        thresholds.append(("best", float(measured.best.thresholds[0])))
    if measured.threshold is not None:
        thresholds.append((f"FAR {result.settings.far:g}", measured.threshold))
    return drawer.distances(
        Distances(
            f"Distances of {np.count_nonzero(same)} same and {np.count_nonzero(~same)} different pairs",
            measured.distances[same],
            measured.distances[~same],
            tuple(thresholds),
        )
    )


def _worst(result: VerificationResult) -> PicturedPairs:
    images = [FaceImage(Path(file), box) for file, box in zip(result.images, result.boxes, strict=True)]
    return picture_worst_pairs(images, result.crop, result.pairs, result.measured)


def picture_worst_pairs(
    images: Sequence[FaceImage], crop: CropMethod, pairs: Pairs, measured: Measurement
) -> PicturedPairs:
    """Picture the pairs furthest on the wrong side: the same person far apart, different people close.

    Args:
        images: The images, which are read again.
        crop: The crop of photographs.
        pairs: Pairs of the images.
        measured: The figures of these pairs.

    Returns:
        A title for each kind of pair that there is, and its worst pairs.

    Raises:
        SourceError: An image has gone since.
    """
    distances, same = measured.distances, pairs.same
    order = np.argsort(distances, kind="stable")
    of_same, different = order[same[order]][::-1][:_PAIRS], order[~same[order]][:_PAIRS]
    kinds = (("The same person, farthest apart", of_same), ("Different people, closest", different))
    accuracy = measured.accuracy or measured.best

    def picture(place: int) -> _PicturedPair:
        shown = [images[int(side[place])] for side in (pairs.first, pairs.second)]
        first, second = (data_url(Image.fromarray(read_face(image, crop))) for image in shown)
        return _PicturedPair(
            (first, second),
            f"{distances[place]:.3f}",
            ", ".join(image.file.name for image in shown),
            accuracy is not None and bool(accuracy.same[place] != same[place]),
        )

    return tuple((title, tuple(map(picture, places.tolist()))) for title, places in kinds if len(places))


def _verification_head(result: VerificationResult) -> Head:
    model, judged = result.model, bool(result.judgements)
    sentence = headline(result)
    if judged:
        sentence = (
            "The network decides as TensorFlow's graph."
            if result.passed
            else "The network differs from TensorFlow's graph."
        )
    published = () if model.lfw_accuracy is None else (("published on LFW", f"{model.lfw_accuracy:.4f}"),)
    against = (("against", result.against),) if result.against else ()
    return Head(
        command="evaluate",
        passed=result.passed,
        word=("Proven" if result.passed else "Differs") if judged else "Measured",
        sentence=sentence,
        facts=(
            ("pairs", shown_path(result.source)),
            ("network", shown_path(model.name)),
            ("standardisation", describe_standardisation(model)),
            ("distance", describe_settings(result)),
            *against,
            *published,
        ),
        judgements=result.judgements,
        reasons=tuple(
            (judgement.name, judgement.statement) for judgement in result.judgements if not judgement.passed
        ),
    )


def _classification(result: ClassificationResult) -> dict[str, object]:
    few = len(result.classes) <= _MOST_CLASSES
    return {"figures": score_table(result), "confusion": confusion_table(result) if few else None}


def _classification_head(result: ClassificationResult) -> Head:
    origin = "the table's predictions" if result.model is None else shown_path(result.model.name)
    return Head(
        command="evaluate",
        passed=True,
        word="Measured",
        sentence=f"{result.accuracy:.4f} of the faces are given their label.",
        facts=(
            ("faces", shown_path(result.source)),
            ("classifier", origin),
            ("number", f"{int(result.confusion.sum()):,} faces, {len(result.classes):,} classes"),
        ),
        judgements=(),
    )
