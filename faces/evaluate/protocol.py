"""The LFW protocol of davidsandberg/facenet on embeddings: pure functions, all in float64.

The definitions are those of `calculate_roc`, `calculate_val` and `distance` in `src/facenet.py`, and of
`src/validate_on_lfw.py`; only what they cannot compute differs, and each function says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faces.distance import DISTANCES, Distance, Floats

Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]

# `evaluate` in src/lfw.py.
ACCURACY_THRESHOLDS: Floats = np.arange(0, 4, 0.01)
FAR_THRESHOLDS: Floats = np.arange(0, 4, 0.001)

_CHUNK = 1 << 14  # pairs whose differences are in memory at a time: 64 MB at 512 numbers each


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of images, by their places among the embeddings.

    Attributes:
        first: (P,) place of the first image of each pair.
        second: (P,) place of the second.
        same: (P,) whether both show the same person.
    """

    first: Indices
    second: Indices
    same: Flags

    def __len__(self) -> int:
        return len(self.same)


@dataclass(frozen=True, slots=True)
class Fold:
    """A fold: the pairs that choose a threshold, and those that it is applied to."""

    train: Indices
    test: Indices


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The accuracy by folds.

    Attributes:
        by_fold: Accuracy of each fold at its threshold.
        thresholds: The threshold of each fold: the first of `ACCURACY_THRESHOLDS` that is right on most of
            the other folds' pairs.
        same: (P,) the decision on each pair, at the threshold of its fold.
    """

    by_fold: Floats
    thresholds: Floats
    same: Flags

    @property
    def mean(self) -> float:
        """Mean over the folds."""
        return float(np.mean(self.by_fold))

    @property
    def std(self) -> float:
        """Standard deviation over the folds (of the population)."""
        return float(np.std(self.by_fold))


@dataclass(frozen=True, slots=True)
class Validation:
    """The validation rate at a false accept rate, by folds.

    Attributes:
        val: Share of the fold's same pairs that its threshold accepts.
        far: Share of the fold's different pairs that it accepts.
        thresholds: The threshold of each fold.
    """

    val: Floats
    far: Floats
    thresholds: Floats

    @property
    def mean(self) -> float:
        """Mean validation rate over the folds."""
        return float(np.mean(self.val))

    @property
    def std(self) -> float:
        """Standard deviation of the validation rate over the folds (of the population)."""
        return float(np.std(self.val))

    @property
    def mean_far(self) -> float:
        """Mean false accept rate over the folds."""
        return float(np.mean(self.far))


@dataclass(frozen=True, slots=True)
class Roc:
    """The mean receiver operating characteristic over the folds, at `ACCURACY_THRESHOLDS`.

    Attributes:
        tpr: Share of the same pairs that are accepted, mean over the folds.
        fpr: Share of the different pairs that are accepted, mean over the folds.
    """

    tpr: Floats
    fpr: Floats


def pair_distances(
    embeddings: NDArray[Any], pairs: Pairs, distance: Distance, mean: Floats | float = 0.0
) -> Floats:
    """Compute the distance of each pair.

    Args:
        embeddings: (N, E).
        pairs: P pairs among them.
        distance: A key of `faces.distance.DISTANCES`.
        mean: (E,) subtracted from every embedding.

    Returns:
        (P,).
    """
    result = np.empty(len(pairs))
    for start in range(0, len(pairs), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        first = embeddings[pairs.first[chunk]].astype(np.float64) - mean
        second = embeddings[pairs.second[chunk]].astype(np.float64) - mean
        result[chunk] = DISTANCES[distance](first, second)
    return result


def split_folds(pairs: int, folds: int) -> tuple[Fold, ...]:
    """Cut a list of pairs into consecutive folds, without shuffling: `KFold` of scikit-learn.

    Where the number of pairs is not a multiple, the first folds have one pair more. One fold alone is both
    halves: its threshold is chosen on the pairs that it is applied to.

    Args:
        pairs: Number of pairs, at least `folds`.
        folds: Number of folds, at least 1.
    """
    every = np.arange(pairs)
    if folds == 1:
        return (Fold(every, every),)
    from sklearn.model_selection import KFold

    return tuple(Fold(train, test) for train, test in KFold(folds, shuffle=False).split(every))


def distances_by_fold(
    embeddings: NDArray[Any],
    pairs: Pairs,
    folds: Sequence[Fold],
    distance: Distance,
    *,
    subtract_mean: bool = False,
) -> list[Floats]:
    """Compute the distances of all pairs for each fold.

    Args:
        embeddings: (N, E).
        pairs: P pairs among them.
        folds: The folds.
        distance: As in `pair_distances`.
        subtract_mean: Whether to subtract the mean of the embeddings of the fold's `train` pairs. An image
            counts as often as it stands in a pair. It changes no Euclidean distance.

    Returns:
        (P,) for each fold; without the mean, the same array for all.
    """
    if not subtract_mean:
        return [pair_distances(embeddings, pairs, distance)] * len(folds)
    return [
        pair_distances(embeddings, pairs, distance, pair_mean(embeddings, pairs, fold.train))
        for fold in folds
    ]


def pair_mean(embeddings: NDArray[Any], pairs: Pairs, chosen: Indices) -> Floats:
    """Compute the mean embedding of the images of some pairs, at least one: (E,)."""
    places = np.concatenate([pairs.first[chosen], pairs.second[chosen]])
    times = np.bincount(places, minlength=len(embeddings)).astype(np.float64)
    mean: Floats = times @ embeddings.astype(np.float64) / len(places)
    return mean


def measure_accuracy(distances: Sequence[Floats], same: Flags, folds: Sequence[Fold]) -> Accuracy:
    """Apply to each fold the threshold that is right most often on the other folds.

    A pair is decided to show the same person if its distance is below the threshold.

    Args:
        distances: As `distances_by_fold` gives them.
        same: (P,).
        folds: At least two.
    """
    accuracy, thresholds = np.empty(len(folds)), np.empty(len(folds))
    decisions = np.empty(len(same), np.bool_)
    for number, (fold, apart) in enumerate(zip(folds, distances, strict=True)):
        true, false = _accepted(apart, same, fold.train, ACCURACY_THRESHOLDS)
        different = np.count_nonzero(~same[fold.train])
        thresholds[number] = ACCURACY_THRESHOLDS[np.argmax(true + different - false)]
        decisions[fold.test] = apart[fold.test] < thresholds[number]
        accuracy[number] = np.mean(decisions[fold.test] == same[fold.test])
    return Accuracy(accuracy, thresholds, decisions)


def mean_roc(distances: Sequence[Floats], same: Flags, folds: Sequence[Fold]) -> Roc:
    """Average the receiver operating characteristics of the folds.

    The share of no pairs counts as 0, as in the original: a fold without same pairs pulls `tpr` down.

    Args:
        distances: As `distances_by_fold` gives them.
        same: (P,).
        folds: The folds.
    """
    rates = []
    for fold, apart in zip(folds, distances, strict=True):
        true, false = _accepted(apart, same, fold.test, ACCURACY_THRESHOLDS)
        positive = int(np.count_nonzero(same[fold.test]))
        negative = len(fold.test) - positive
        rates.append((true / max(positive, 1), false / max(negative, 1)))
    tpr, fpr = np.mean(rates, axis=0)
    return Roc(tpr, fpr)


def measure_validation(
    distances: Sequence[Floats], same: Flags, folds: Sequence[Fold], far: float
) -> Validation:
    """Measure the share of same pairs that are accepted at a false accept rate.

    The other folds choose the threshold, by `threshold_at_far`.

    Args:
        distances: As `distances_by_fold` gives them.
        same: (P,).
        folds: At least two, each with pairs of both kinds.
        far: The false accept rate, between 0 and 1.
    """
    val, measured, thresholds = np.empty((3, len(folds)))
    for number, (fold, apart) in enumerate(zip(folds, distances, strict=True)):
        different = fold.train[~same[fold.train]]
        threshold = threshold_at_far(apart[different], far)
        accepted = apart[fold.test] < threshold
        of_same = same[fold.test]
        thresholds[number] = threshold
        val[number] = np.mean(accepted[of_same])
        measured[number] = np.mean(accepted[~of_same])
    return Validation(val, measured, thresholds)


def threshold_at_far(different: Floats, far: float) -> float:
    """Find the threshold at which a share of different pairs is accepted.

    The share is counted at each of `FAR_THRESHOLDS` and interpolated linearly in between; where several
    have the wanted share, the largest of them is taken.

    Args:
        different: Distances of the different pairs, at least one.
        far: The share, between 0 and 1.

    Returns:
        The threshold; 0, which accepts nothing, if no threshold accepts that many.
    """
    shares = np.searchsorted(np.sort(different), FAR_THRESHOLDS) / len(different)
    return float(np.interp(far, shares, FAR_THRESHOLDS)) if shares[-1] >= far else 0.0


def area_under_curve(roc: Roc) -> float:
    """Compute the area under the mean characteristic, by trapezoids: `sklearn.metrics.auc`."""
    from sklearn.metrics import auc

    return float(auc(*_complete(roc)))


def equal_error_rate(roc: Roc) -> float:
    """Find the rate at which the mean characteristic rejects as many same pairs as it accepts different ones.

    The characteristic is interpolated linearly; the root is Brent's, within 2e-12.
    """
    from scipy.interpolate import interp1d
    from scipy.optimize import brentq

    tpr_at = interp1d(*_complete(roc))
    return float(brentq(lambda rate: 1.0 - rate - tpr_at(rate), 0.0, 1.0))


def _complete(roc: Roc) -> tuple[Floats, Floats]:
    """Return false and true positive rates up to 1, beyond the last threshold if need be."""
    if roc.fpr[-1] == 1.0:
        return roc.fpr, roc.tpr
    return np.append(roc.fpr, 1.0), np.append(roc.tpr, 1.0)


def _accepted(
    distances: Floats, same: Flags, chosen: Indices, thresholds: Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Count the same and the different pairs among the chosen ones that each threshold accepts."""
    apart, of_same = distances[chosen], same[chosen]
    return (
        np.searchsorted(np.sort(apart[of_same]), thresholds),
        np.searchsorted(np.sort(apart[~of_same]), thresholds),
    )
