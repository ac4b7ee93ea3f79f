"""The scores of a classifier: accuracy, precision, recall and confusion matrix."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faces.evaluate.result import ClassScores


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores; the attributes are those of `faces.evaluate.result.ClassificationResult`."""

    accuracy: float
    precision: float
    recall: float
    classes: tuple[ClassScores, ...]
    confusion: NDArray[np.int64]


def score(labels: Sequence[str], predicted: Sequence[str]) -> Scores:
    """Score predicted labels.

    The classes are all labels that occur on either side, in the order of numbers or else of the alphabet.

    Args:
        labels: The label of each face, at least one.
        predicted: The predicted label of each.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    names = sorted({*labels, *predicted}, key=_order)
    with warnings.catch_warnings():  # of one class it warns that `labels` should name all, as it does
        warnings.simplefilter("ignore", UserWarning)
        confusion: NDArray[np.int64] = confusion_matrix(labels, predicted, labels=names)
    precision, recall, _, faces = precision_recall_fscore_support(
        labels, predicted, labels=names, zero_division=np.nan
    )
    classes = tuple(
        ClassScores(name, int(count), _known(ratio), _known(share))
        for name, count, ratio, share in zip(names, faces, precision, recall, strict=True)
    )
    return Scores(
        accuracy=float(np.trace(confusion) / confusion.sum()),
        precision=float(np.mean(np.nan_to_num(precision[faces > 0]))),
        recall=float(np.mean(recall[faces > 0])),
        classes=classes,
        confusion=confusion,
    )


def _order(label: str) -> tuple[int, str]:
    return (int(label), "") if label.isascii() and label.isdigit() else (1 << 62, label)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
