"""The judgement of distances, decisions and figures: the least that it finds, and what it lets pass."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from faces.evaluate.judge import judge
from faces.evaluate.measure import Settings, measure
from tests.faces.evaluate.test_protocol import at_distances, shuffled

SETTINGS = Settings(folds=5, far=0.05)


def verdict(change):
    """Judge distances that were changed, by pair, against those that were not."""
    random = np.random.default_rng(0)
    same = np.arange(200) < 100
    distances = np.where(same, random.uniform(0.1, 1.2, 200), random.uniform(0.8, 2, 200))
    embeddings, pairs = at_distances(distances, same)
    pairs = shuffled(pairs)
    other, _ = at_distances(change(distances.copy()), same)
    judgements = judge(
        measure(other, pairs, SETTINGS), measure(embeddings, pairs, SETTINGS), lambda place: f"pair {place}"
    )
    return {judgement.name: judgement for judgement in judgements}


def test_rounding_passes_with_a_margin():
    judgements = verdict(lambda distances: distances + 1e-6 * np.sin(np.arange(200)))
    assert all(judgement.passed for judgement in judgements.values())
    assert judgements["distances"].share < 0.5


def test_one_distance_that_is_further_off_is_named():
    def change(distances):
        distances[7] += 2.1e-5
        return distances

    judgements = verdict(change)
    assert not judgements["distances"].passed
    assert judgements["distances"].share > 2
    assert len(judgements["distances"].details) == 1
    assert judgements["distances"].details[0].endswith(": 2.1e-05 apart")


def test_one_decision_that_differs_fails_and_shows_in_the_figures():
    def change(distances):
        distances[7] = 3.0
        return distances

    judgements = verdict(change)
    assert not judgements["decisions"].passed
    assert judgements["decisions"].statement == "alike on 199 of 200 pairs"
    assert not judgements["figures"].passed


def test_a_distance_that_is_not_a_number_fails():
    def change(distances):
        distances[7] = np.nan
        return distances

    assert not verdict(change)["distances"].passed


@pytest.mark.parametrize(("same", "folds"), [([True] * 4, 2), ([True, False, True, False], 1)])
def test_pairs_of_one_kind_and_one_fold_are_judged_by_what_they_have(same, folds):
    embeddings, pairs = at_distances([0.1, 0.9, 0.2, 1.4], same)
    measured = measure(embeddings, pairs, Settings(folds=folds))
    judgements = judge(measured, measured, str)
    assert all(judgement.passed for judgement in judgements)
    assert judgements[2].statement.startswith("none to compare" if all(same) else "AUC, EER at most")
