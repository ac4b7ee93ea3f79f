"""The HTML page of `facenet-port train`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from checks.core.render import Row, Table
from checks.report.charts import Chart, Drawer
from checks.report.content import Head
from checks.report.curve_chart import Curve, CurvePanel
from checks.report.page import write_html
from checks.report.pictures import data_url
from checks.report.provenance import provenance, shown_path
from checks.report.roc_chart import Roc, RocCurve
from checks.report.scatter_chart import MOST_GROUPS, Scatter
from converter.counts import counted
from faces.crops import read_face
from faces.evaluate.page import PicturedPairs, picture_worst_pairs
from faces.evaluate.table import confusion_table
from faces.training.result import TrainResult
from faces.training.table import NAMES
from faces.training.validation import Validation

_MOST_CLASSES = 40  # people whose confusion matrix is shown
_MISTAKES = 12  # faces that are shown
_LONG_WAIT = 0.1  # share of the time
_STAGES = {
    "head": "the head alone",
    "last": "the head and the last blocks",
    "all": "the whole network",
}


def write_page(path: str | Path, result: TrainResult, *, command: str) -> None:
    """Write the page of a training, or of the validation of weights alone.

    Args:
        path: The file; an older page is replaced.
        result: The result. Its faces are read again for the pictures.
        command: The command as it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
        SourceError: A face has gone since.
    """
    drawer = Drawer()
    after, before = result.after, result.before
    few = after.scores is not None and len(after.scores.classes) <= _MOST_CLASSES
    content: dict[str, Any] = {
        "figures": _figures(after, before),
        "notes": result.notes,
        "curves": _curves(drawer, result, before) if result.rows else None,
        "stages": _describe_stages(result) + (" Epoch 0 is before the training." if before else ""),
        "waiting": _describe_waiting(result),
        "confusion": confusion_table(after.scores) if few and after.scores is not None else None,
        "mistakes": _mistakes(result),
        "worst": _worst(result),
        "roc": _roc(drawer, after, before),
    }
    wrong = after.scores is not None and after.scores.accuracy < 1
    content["mistakes_title"] = "Worst mistakes" if wrong else "Least certain faces"
    content["projection"], content["shown"] = _projection(drawer, result, before)
    foot = provenance(command, {}, result.environment, result.config.seed)
    write_html(Path(path), "faces/training/page.html", _head(result, before), foot, **content)


def _head(result: TrainResult, before: Validation | None) -> Head:
    config, after = result.config, result.after
    faces = counted(len(result.validated_faces), "face")
    if after.scores is not None:
        correct = int(np.trace(after.scores.confusion))
        sentence = f"{correct} of {faces} are given their person."
    elif after.measured.eer is None:
        sentence = f"{faces} give no equal error rate: {after.measured.missing['eer']}."
    elif before is None or before.measured.eer is None:
        sentence = f"The equal error rate is {after.measured.eer:.4f}."
    else:
        rates = f"{before.measured.eer:.4f} before the training and {after.measured.eer:.4f} after it"
        sentence = f"The equal error rate is {rates}."
    trained = f"{counted(result.trained_faces, 'face')} of {len(result.people)} people"
    kept = "kept as in the weights" if result.frozen_batch_norm else "trained"
    facts = [("data", shown_path(config.data))]
    if result.folder is not None:
        facts += [("run", shown_path(str(result.folder))), ("trained on", trained)]
    facts += [
        ("validated on", f"{faces} of {len(result.validated_people)} people"),
        ("weights", shown_path(config.weights)),
        ("task", config.task if config.task == "triplet" else f"{config.task}, {config.head}"),
        ("standardisation", result.standardisation),
        ("BatchNorm", kept),
    ]
    if result.folder is not None:
        facts.append(("best weights", f"of epoch {result.best_epoch} of {config.epochs}"))
    return Head(
        command="train",
        passed=not result.warnings,
        word="Look" if result.warnings else "Measured" if result.folder is None else "Trained",
        sentence=sentence,
        facts=tuple(facts),
        judgements=(),
        reasons=tuple(("warning", warning) for warning in result.warnings),
    )


def _figures(after: Validation, before: Validation | None) -> Table:
    """The figures of the faces to validate on, before and after."""
    earlier = {} if before is None else before.figures
    rows = tuple(
        Row(
            NAMES.get(name, name),
            (*((_figure(earlier.get(name)),) if earlier else ()), _figure(value)),
        )
        for name, value in after.figures.items()
    )
    return Table("figure", ("before", "after") if earlier else ("value",), rows)


def _figure(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def _curves(drawer: Drawer, result: TrainResult, before: Validation | None) -> Chart:
    """The figures by epoch; those of validation start before the training, as epoch 0."""

    def trained(name: str) -> Curve:
        values = tuple(row[name] for row in result.rows)
        return Curve("faces to train on", values, "pytorch", "circles")

    def validated(name: str) -> Curve:
        first = () if before is None else (before.figures[name],)
        values = (*first, *(row[f"val_{name}"] for row in result.rows))
        return Curve("faces to validate on", values, "fault", "squares", 0 if first else 1)

    panels = [CurvePanel("equal error rate", (validated("eer"),))]
    if result.after.scores is not None:
        panels = [
            CurvePanel("loss", (trained("loss"), validated("loss"))),
            CurvePanel("accuracy", (trained("accuracy"), validated("accuracy"))),
            *panels,
        ]
    else:
        panels = [
            CurvePanel("loss", (trained("loss"),)),
            CurvePanel("active triplets", (trained("active_triplets"),)),
            *panels,
        ]
    return drawer.curves(f"Figures of {counted(len(result.rows), 'epoch')}", panels)


def _describe_stages(result: TrainResult) -> str:
    """A sentence on what each epoch trains; empty if it is the same for all."""
    parts = []
    for stage, rows in groupby(result.rows, lambda row: str(row["stage"])):
        numbers = [int(row["epoch"]) for row in rows]
        span = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
        parts.append(f"{span}: {_STAGES[stage]}")
    return f"Epoch {'; '.join(parts)}." if len(parts) > 1 else ""


def _describe_waiting(result: TrainResult) -> str:
    """A sentence on the speed and the share of time that waited for images; empty without epochs."""
    if not result.rows:
        return ""
    seconds = np.array([1 / row["faces_per_second"] for row in result.rows])  # a face, in each epoch
    share = float(np.average([row["waited_for_data"] for row in result.rows], weights=seconds))
    sentence = f"{1 / seconds.mean():.3g} faces a second; {share:.1%} of the time waited for images."
    if share > _LONG_WAIT:
        sentence += f" More workers than {result.config.workers} would read them faster."
    return sentence


def _mistakes(result: TrainResult) -> tuple[dict[str, object], ...]:
    """The faces whose own person is least probable, as cards; none without a classifier."""
    after = result.after
    if after.probabilities is None:
        return ()
    places = {person: place for place, person in enumerate(result.people)}
    owners = [places[face.person] for face in result.validated_faces]
    own = after.probabilities[np.arange(len(owners)), owners]
    return tuple(_card(result, int(face), float(own[face])) for face in np.argsort(own)[:_MISTAKES])


def _card(result: TrainResult, place: int, own: float) -> dict[str, object]:
    face, predicted = result.validated_faces[place], result.after.predicted[place]
    assert result.after.probabilities is not None
    picture = Image.fromarray(read_face(face.image, "scaled"))
    taken_for = f"{predicted} {result.after.probabilities[place].max():.3f}"
    return {
        "picture": data_url(picture),
        "width": picture.width,
        "height": picture.height,
        "name": f"{face.person} {own:.3f}",
        "doubt": "" if predicted == face.person else f"taken for {taken_for}",
    }


def _worst(result: TrainResult) -> PicturedPairs:
    """The pairs on the wrong side of triplets' embeddings."""
    if result.after.scores is not None:
        return ()
    images = [face.image for face in result.validated_faces]
    return picture_worst_pairs(images, "scaled", result.after.pairs, result.after.measured)


def _roc(drawer: Drawer, after: Validation, before: Validation | None) -> Chart | None:
    curves = tuple(_roc_curves(after, before))
    return drawer.roc(Roc("Receiver operating characteristic", curves)) if curves else None


def _roc_curves(after: Validation, before: Validation | None) -> Iterator[RocCurve]:
    looks = ("before the training", before, "fault", "squares"), ("after", after, "pytorch", "circles")
    for label, validation, role, look in looks:
        roc = None if validation is None else validation.measured.roc
        if validation is not None and roc is not None:
            rate = f"{label}: equal error rate {validation.measured.eer:.4f}"
            yield RocCurve(rate, roc.fpr.tolist(), roc.tpr.tolist(), role, look)


def _projection(drawer: Drawer, result: TrainResult, before: Validation | None) -> tuple[Chart | None, str]:
    """The embeddings before and after on the same two principal components, and a sentence on them."""
    from sklearn.decomposition import PCA

    titled = [("after", result.after.embeddings)]
    if before is not None:
        titled = [("before the training", before.embeddings), *titled]
    if len(result.validated_faces) < 2:
        return None, ""
    fitted = PCA(2, svd_solver="full").fit(np.concatenate([rows for _, rows in titled]))
    people = [person for person, _ in Counter(face.person for face in result.validated_faces).most_common()]
    groups = people if len(people) <= MOST_GROUPS else [*people[: MOST_GROUPS - 1], "other people"]
    places = {person: min(place, len(groups) - 1) for place, person in enumerate(people)}
    members = np.array([places[face.person] for face in result.validated_faces])
    panels = tuple((title, fitted.transform(rows)) for title, rows in titled)
    chart = drawer.scatter(Scatter("Embeddings on two principal components", tuple(groups), members, panels))
    return chart, (
        "The faces to validate on, on the two principal components of their embeddings, which hold "
        f"{fitted.explained_variance_ratio_.sum():.0%} of the variance."
        + (" The axes are the same before and after." if before is not None else "")
    )
