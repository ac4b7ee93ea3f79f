"""The figures of one set of embeddings by the protocol, and the reason for each that cannot be computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.counts import counted
from converter.errors import UsageError
from faces.distance import Distance, Floats
from faces.evaluate.protocol import (
    Accuracy,
    Flags,
    Fold,
    Pairs,
    Roc,
    Validation,
    area_under_curve,
    distances_by_fold,
    equal_error_rate,
    mean_roc,
    measure_accuracy,
    measure_validation,
    split_folds,
    threshold_at_far,
)

_FOLDS = 10  # of pairs.txt


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the protocol; the defaults are those of the original.

    Attributes:
        folds: The number of folds, consecutive and not shuffled; 1 measures what needs no other fold to
            choose a threshold on. None takes that of the list of pairs, or 10.
        distance: The measure of distance.
        subtract_mean: Whether to subtract the mean embedding of the other folds' pairs.
        far: The false accept rate of the validation rate and of the threshold, between 0 and 1.
        mirrored: Whether the embedding of the mirrored image is appended to each embedding.
    """

    folds: int | None = None
    distance: Distance = "squared-euclidean"
    subtract_mean: bool = False
    far: float = 1e-3
    mirrored: bool = False

    @property
    def fold_count(self) -> int:
        """The number of folds."""
        return _FOLDS if self.folds is None else self.folds


@dataclass(frozen=True, slots=True)
class Measurement:
    """The figures of one set of embeddings; None for one that cannot be computed.

    Attributes:
        distances: (P,) distance of each pair; with the mean of all pairs subtracted, if one is.
        best: The accuracy of all pairs at the threshold that suits them best: an upper bound.
        accuracy: The accuracy by folds.
        validation: The validation rate by folds.
        roc: The mean characteristic over the folds.
        auc: The area under it.
        eer: Its equal error rate.
        threshold: The threshold at which `Settings.far` of all different pairs are accepted.
        missing: Figure to the reason why it cannot be computed, a clause.
    """

    distances: Floats
    best: Accuracy | None = None
    accuracy: Accuracy | None = None
    validation: Validation | None = None
    roc: Roc | None = None
    auc: float | None = None
    eer: float | None = None
    threshold: float | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


BY_FOLD = ("accuracy", "val")
OF_BOTH_KINDS = ("val", "auc", "eer")
EVERY_FIGURE = ("accuracy", "val", "auc", "eer", "threshold")


def measure(embeddings: NDArray[Any], pairs: Pairs, settings: Settings) -> Measurement:
    """Measure embeddings by the protocol.

    Args:
        embeddings: (N, E).
        pairs: P pairs among them.
        settings: The options.

    Raises:
        UsageError: There are fewer pairs than folds.
    """
    if len(pairs) < settings.fold_count:
        raise UsageError(
            f"{counted(len(pairs), 'pair')} cannot make {settings.fold_count} folds. Give --folds "
            f"{max(1, len(pairs))} or fewer."
        )
    (whole,) = split_folds(len(pairs), 1)
    (overall,) = distances_by_fold(
        embeddings, pairs, [whole], settings.distance, subtract_mean=settings.subtract_mean
    )
    if pairs.same.all() or not pairs.same.any():
        reason = f"every pair shows {'the same person' if pairs.same.all() else 'different people'}"
        return Measurement(overall, missing=dict.fromkeys(EVERY_FIGURE, reason))
    folds = split_folds(len(pairs), settings.fold_count)
    distances = [overall]
    if settings.fold_count > 1:
        distances = distances_by_fold(
            embeddings, pairs, folds, settings.distance, subtract_mean=settings.subtract_mean
        )
    missing = find_missing(pairs.same, folds)
    roc = None if "auc" in missing else mean_roc(distances, pairs.same, folds)
    return Measurement(
        overall,
        best=measure_accuracy([overall], pairs.same, [whole]),
        accuracy=None if "accuracy" in missing else measure_accuracy(distances, pairs.same, folds),
        validation=None
        if "val" in missing
        else measure_validation(distances, pairs.same, folds, settings.far),
        roc=roc,
        auc=None if roc is None else area_under_curve(roc),
        eer=None if roc is None else equal_error_rate(roc),
        threshold=threshold_at_far(overall[~pairs.same], settings.far),
        missing=missing,
    )


def find_missing(same: Flags, folds: tuple[Fold, ...]) -> dict[str, str]:
    """Find the figures that folds of pairs of both kinds do not give, each with its reason."""
    if len(folds) == 1:
        reason = "one fold has no other folds to choose a threshold on"
        return dict.fromkeys(BY_FOLD, reason)
    for number, fold in enumerate(folds, 1):
        count = np.count_nonzero(same[fold.test])
        if count in (0, len(fold.test)):
            kind = "different" if count else "same"
            reason = f"fold {number} of {len(folds)} has no {kind} pairs"
            return dict.fromkeys(OF_BOTH_KINDS, reason)
    return {}
