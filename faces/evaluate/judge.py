"""The judgements of a network's distances, decisions and figures against TensorFlow's on the same crops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from checks.core import thresholds
from checks.core.judgement import Judgement
from faces.evaluate.measure import Measurement
from faces.evaluate.protocol import Flags

_MOST_NAMED = 12  # pairs in the details

FIGURES: dict[str, Callable[[Measurement], float | None]] = {
    "accuracy": lambda measured: None if measured.accuracy is None else measured.accuracy.mean,
    "VAL": lambda measured: None if measured.validation is None else measured.validation.mean,
    "FAR": lambda measured: None if measured.validation is None else measured.validation.mean_far,
    "AUC": lambda measured: measured.auc,
    "EER": lambda measured: measured.eer,
}


def judge(
    measured: Measurement, expected: Measurement, name_pair: Callable[[int], str]
) -> tuple[Judgement, ...]:
    """Judge one network's measurement by TensorFlow's of the same pairs and settings.

    Args:
        measured: The network's.
        expected: TensorFlow's.
        name_pair: Gives the names of a pair's images.
    """
    return (
        _judge_distances(measured, expected, name_pair),
        _judge_decisions(measured, expected, name_pair),
        _judge_figures(measured, expected),
    )


def _judge_distances(
    measured: Measurement, expected: Measurement, name_pair: Callable[[int], str]
) -> Judgement:
    apart = np.abs(measured.distances - expected.distances)
    worst = int(np.argmax(apart))
    limit = thresholds.FACE_DISTANCE
    beyond = np.flatnonzero(~(apart <= limit))
    details = [f"{name_pair(place)}: {apart[place]:.1e} apart" for place in beyond[:_MOST_NAMED]]
    statement = (
        f"at most {apart[worst]:.1e} apart on {len(apart):,} pairs, at {name_pair(worst)}; limit {limit:.0e}"
    )
    if len(beyond):
        statement += f"; {len(beyond)} beyond it"
    return Judgement("distances", not len(beyond), statement, tuple(details), float(apart[worst] / limit))


def _judge_decisions(
    measured: Measurement, expected: Measurement, name_pair: Callable[[int], str]
) -> Judgement:
    """Compare the decisions at every threshold that the protocol chooses, each side by its own thresholds."""
    sides = [_decisions(side) for side in (measured, expected)]
    differing = np.zeros(len(measured.distances), np.bool_)
    for ours, theirs in zip(*sides, strict=True):
        differing |= ours != theirs
    places = np.flatnonzero(differing)
    count = len(differing)
    if not sides[0]:
        return Judgement("decisions", True, "pairs of one kind give no threshold to decide by")
    statement = f"alike on {count - len(places):,} of {count:,} pairs"
    details = [
        f"{name_pair(place)}: {measured.distances[place]:.7f}, TensorFlow's {expected.distances[place]:.7f}"
        for place in places[:_MOST_NAMED]
    ]
    return Judgement("decisions", not len(places), statement, tuple(details))


def _decisions(side: Measurement) -> list[Flags]:
    decisions = []
    if side.accuracy is not None:
        decisions.append(side.accuracy.same)
    if side.best is not None:
        decisions.append(side.best.same)
    if side.threshold is not None:
        decisions.append(side.distances < side.threshold)
    return decisions


def _judge_figures(measured: Measurement, expected: Measurement) -> Judgement:
    limit = thresholds.FACE_FIGURE
    apart, details = [0.0], []
    for name, figure in FIGURES.items():
        ours, theirs = figure(measured), figure(expected)
        if ours is None or theirs is None:
            continue
        apart.append(abs(ours - theirs))
        if not apart[-1] <= limit:
            details.append(f"{name}: {ours:.6f}, TensorFlow's {theirs:.6f}")
    names = ", ".join(name for name, figure in FIGURES.items() if figure(expected) is not None)
    statement = f"{names} at most {max(apart):.1e} apart; limit {limit:.0e}" if names else "none to compare"
    return Judgement("figures", not details, statement, tuple(details), max(apart) / limit)
