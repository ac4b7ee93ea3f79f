"""Prints what `evaluate` found: the figure that counts first, then the others, each with what it rests on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from checks.core.render import Row, Table, print_judgements, print_table
from converter import command_line
from converter.counts import counted
from converter.home_folder import from_home
from faces.detect.table import print_detector
from faces.evaluate.classifier import Scores
from faces.evaluate.comparison import Comparison, change_table, describe_comparison, pair_table
from faces.evaluate.result import ClassificationResult, VerificationResult
from faces.model import ModelFacts

_WIDTH = 110  # columns; a line may wrap, a figure is not cut off
_MOST_CLASSES = 12  # classes whose confusion matrix is printed
_WORST = 5  # confusions that are printed of more classes


def print_result(result: VerificationResult | ClassificationResult) -> None:
    """Print a result on stdout."""
    console = command_line.console(_WIDTH)
    if isinstance(result, ClassificationResult):
        _print_classification(console, result)
    else:
        _print_verification(console, result)


def _print_verification(console: Console, result: VerificationResult) -> None:
    if result.judgements:
        console.print(
            "[bold green]The network decides as TensorFlow's graph.[/]"
            if result.passed
            else "[bold red]The network differs from TensorFlow's graph.[/]"
        )
    else:
        console.print(f"[bold]{headline(result)}[/]")
    different = len(result.pairs) - result.same
    skipped = f", {result.skipped:,} skipped: a file is missing or shows no face" if result.skipped else ""
    place = f"{from_home(result.folder)} by {from_home(result.source)}" if result.folder else result.source
    pairs = f"{len(result.pairs):,} pairs of {len(result.images):,} images"
    kinds = f"{result.same:,} of the same person and {different:,} of different people"
    console.print(f"{place}: {pairs}, {kinds}{skipped}", markup=False)
    network = f"{describe_network(result.model)}; crop {result.crop}"
    console.print(f"{network}; {describe_settings(result)}", markup=False)
    print_detector(console, result.detector)
    photographs = sum(box is not None for box in result.boxes)
    if photographs:
        detail = f"{counted(photographs, 'photograph')} cropped by `align`'s --crop {result.crop}"
        console.print(detail, markup=False)
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    print_table(console, figure_table(result))
    if result.comparison is not None:
        _print_comparison(console, result.comparison)
    if result.judgements:
        console.print(f"against TensorFlow: {result.against}", markup=False)
        print_judgements(console, result.judgements, most_details=3)


def _print_comparison(console: Console, comparison: Comparison) -> None:
    """Print what an exported file changes: the figures, the worst embedding, and every changed decision."""
    console.print(f"against {describe_network(comparison.weights)}", markup=False)
    print_table(console, change_table(comparison))
    for sentence in describe_comparison(comparison):
        console.print(sentence, markup=False)
    if comparison.changed:
        print_table(console, pair_table(comparison))


def figure_table(result: VerificationResult) -> Table:
    """Each figure with what it rests on, or why it is missing."""
    rows = tuple(Row(name, (value, basis)) for name, value, basis in _figures(result))
    return Table("figure", ("value", "rests on"), rows, text_columns=1)


def headline(result: VerificationResult) -> str:
    """The result in a sentence."""
    accuracy, best = result.measured.accuracy, result.measured.best
    if accuracy is not None:
        return f"{accuracy.mean:.4f} ± {accuracy.std:.4f} of the pairs are decided rightly."
    if best is not None:
        return f"{best.mean:.4f} of the pairs are decided rightly at the threshold that suits them best."
    return f"No decision can be judged: {result.measured.missing['accuracy']}."


def describe_settings(result: VerificationResult) -> str:
    """The protocol in a clause."""
    parts = [
        {"squared-euclidean": "squared Euclidean distance", "arc-cosine": "arc cosine"}[
            result.settings.distance
        ]
    ]
    parts += ["mean subtracted"] if result.settings.subtract_mean else []
    parts += ["mirrored images appended"] if result.settings.mirrored else []
    return ", ".join(parts)


def _figures(result: VerificationResult) -> Iterator[tuple[str, str, str]]:
    """Each figure: its name, its value and what it rests on, or why it is missing."""
    measured, settings = result.measured, result.settings
    accuracy, validation, missing = measured.accuracy, measured.validation, measured.missing
    folds = f"{settings.fold_count} consecutive folds, not shuffled"
    yield (
        "accuracy",
        "-" if accuracy is None else f"{accuracy.mean:.4f} ± {accuracy.std:.4f}",
        missing.get("accuracy", f"{folds}; each at the best threshold of the others"),
    )
    yield (
        "VAL",
        "-" if validation is None else f"{validation.mean:.4f} ± {validation.std:.4f}",
        missing.get("val", "")
        if validation is None
        else f"same pairs accepted at FAR {settings.far:g}, which came to {validation.mean_far:.5f}",
    )
    rates = "the mean ROC of the folds" if settings.fold_count > 1 else "the ROC of all pairs"
    yield "AUC", _figure(measured.auc), missing.get("auc", f"area under {rates}")
    yield "EER", _figure(measured.eer), missing.get("eer", f"equal error rate of {rates}")
    different = int(np.count_nonzero(~result.pairs.same))
    yield (
        "threshold",
        _figure(measured.threshold),
        missing.get("threshold", f"at FAR {settings.far:g}, on all {different:,} different pairs"),
    )
    if measured.best is not None:
        yield (
            "best",
            _figure(measured.best.mean),
            f"all pairs at {measured.best.thresholds[0]:.2f}, chosen on themselves: an upper bound",
        )
    if result.applied is not None:
        applied = result.applied
        yield (
            "applied",
            _figure(applied.accuracy),
            f"at the threshold {applied.threshold.value:.4f} of {Path(applied.threshold.source).name}; "
            f"VAL {_figure(applied.val)}, FAR {_figure(applied.far)}",
        )
    if result.model.lfw_accuracy is not None:
        yield "published", f"{result.model.lfw_accuracy:.4f}", f"{result.model.name} on LFW, by its author"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def describe_network(model: ModelFacts) -> str:
    """The name of a network, the standardisation of its images, and the runtime if it is not PyTorch."""
    described = f"{from_home(model.name)}, standardised {describe_standardisation(model)}"
    return "; ".join(filter(None, (described, model.backend.statement)))


def describe_standardisation(model: ModelFacts) -> str:
    """The standardisation of a network's images, and where it is stated."""
    kind = "per image" if model.standardisation == "per-image" else "by (x - 127.5) / 128"
    return f"{kind} (from {model.origin})"


def _print_classification(console: Console, result: ClassificationResult) -> None:
    faces = int(result.confusion.sum())
    console.print(f"[bold]{result.accuracy:.4f} of the faces are given their label.[/]")
    origin = "the predictions in the table" if result.model is None else describe_network(result.model)
    held = sum(scores.faces > 0 for scores in result.classes)
    classes = counted(held, "class", "classes")
    classes += f", {result.faceless:,} left out: no face" if result.faceless else ""
    console.print(
        f"{from_home(result.source)}: {counted(faces, 'face')} of {classes}; {origin}", markup=False
    )
    print_detector(console, result.detector)
    print_table(console, score_table(result))
    print_table(
        console, confusion_table(result) if len(result.classes) <= _MOST_CLASSES else _confusions(result)
    )


def score_table(result: ClassificationResult) -> Table:
    """The scores of a classifier over all classes."""
    faces, right = int(result.confusion.sum()), int(np.trace(result.confusion))
    rows = (
        Row("accuracy", (f"{result.accuracy:.4f}", f"{right:,} of {faces:,} faces are given their label")),
        Row(
            "precision",
            (f"{result.precision:.4f}", "mean over the classes; one that is never given counts as 0"),
        ),
        Row("recall", (f"{result.recall:.4f}", "mean over the classes")),
    )
    return Table("figure", ("value", "rests on"), rows, text_columns=1)


def confusion_table(result: ClassificationResult | Scores) -> Table:
    """The faces by label and predicted label, with the scores of each class."""
    labels = tuple(scores.label for scores in result.classes)
    rows = tuple(
        Row(
            scores.label,
            (
                *(str(count) if count else "." for count in row),
                _figure(scores.precision),
                _figure(scores.recall),
                _figure(scores.f1),
            ),
        )
        for scores, row in zip(result.classes, result.confusion, strict=True)
    )
    return Table("label \\ predicted", (*labels, "precision", "recall", "F1"), rows)


def _confusions(result: ClassificationResult) -> Table:
    """The most frequent confusions of many classes; --json has all of them."""
    wrong = result.confusion * ~np.eye(len(result.classes), dtype=np.bool_)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_WORST]
    places = [np.unravel_index(place, wrong.shape) for place in order]
    rows = tuple(
        Row(result.classes[row].label, (str(wrong[row, column]), result.classes[column].label))
        for row, column in places
        if wrong[row, column]
    )
    return Table("label", ("faces", "are given the label"), rows, text_columns=1)
