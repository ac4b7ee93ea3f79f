"""The figures of the protocol against the original's own functions, scikit-learn and closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.metrics import roc_auc_score

from converter.errors import UsageError
from faces.controls.faults import FAULTS
from faces.evaluate import protocol
from faces.evaluate.measure import Settings, measure
from faces.evaluate.pairs import all_pairs
from faces.evaluate.protocol import Fold, Pairs, Roc, split_folds, threshold_at_far
from tests.faces.evaluate.original import load_original, original_measurement

EXACT = 1e-12


@pytest.fixture(scope="session")
def original():
    return load_original()


def drawn_faces(people=9, each=5, size=16, spread=0.8, offset=0.0, seed=0):
    """Embeddings of length one in float32, `each` of every person around a centre, and the person of each."""
    random = np.random.default_rng(seed)
    names = np.repeat(np.arange(people), each)
    centres = random.standard_normal((people, size)) + offset
    faces = centres[names] + spread * random.standard_normal((len(names), size))
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    return faces.astype(np.float32), [f"person {name}" for name in names]


def at_distances(distances, same):
    """Embeddings whose pairs have these squared distances: each pair has a first image of its own."""
    count = len(distances)
    embeddings = np.zeros((2 * count, 2))
    embeddings[1::2, 0] = np.sqrt(distances)
    return embeddings, Pairs(np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2), np.array(same))


def shuffled(pairs, seed=0):
    order = np.random.default_rng(seed).permutation(len(pairs))
    return Pairs(pairs.first[order], pairs.second[order], pairs.same[order])


def figures_of_case(name, original, computed={}):  # noqa: B006 - computed once
    if name not in computed:
        computed[name] = original_figures(original, *of_case(name))
    return computed[name]


def original_figures(original, embeddings, pairs, settings):
    tpr, fpr, accuracy, *figures = original_measurement(original, embeddings, pairs, settings)
    return np.array([*tpr, *fpr, *accuracy, np.mean(accuracy), np.std(accuracy), *figures])


def our_figures(measured):
    accuracy, validation = measured.accuracy, measured.validation
    return np.array(
        [
            *measured.roc.tpr,
            *measured.roc.fpr,
            *accuracy.by_fold,
            accuracy.mean,
            accuracy.std,
            validation.mean,
            validation.std,
            validation.mean_far,
            measured.auc,
            measured.eer,
        ]
    )


CASES = {
    "all pairs as listed": (drawn_faces(), False, Settings()),
    "arc cosine": (drawn_faces(), True, Settings(4, distance="arc-cosine")),
    "mean subtracted": (
        drawn_faces(offset=0.7),
        True,
        Settings(4, distance="arc-cosine", subtract_mean=True),
    ),
    "mean subtracted, squared": (drawn_faces(offset=0.7), True, Settings(4, subtract_mean=True)),
    "folds of unequal size": (drawn_faces(people=7, each=5), True, Settings(6)),
    "two folds": (drawn_faces(people=7, each=5), True, Settings(2)),
    "nearly perfect": (drawn_faces(spread=0.2), True, Settings(4)),
    "nobody is told apart": (drawn_faces(spread=9.0), True, Settings(4)),
    "mirrored, of length two": ((np.tile(drawn_faces(offset=2)[0], 2), drawn_faces()[1]), True, Settings(4)),
}


def dense_distances():
    """600 pairs of the same person that are up to 0.01 apart, among 600 others of all distances."""
    random = np.random.default_rng(2)
    distances = np.concatenate([random.uniform(0, 0.01, 600), random.uniform(0, 3.9, 600)])
    embeddings, pairs = at_distances(distances, np.arange(1200) < 600)
    return embeddings, shuffled(pairs), Settings(4)


def of_case(name):
    if name == "dense distances":
        return dense_distances()
    (embeddings, people), shuffle, settings = CASES[name]
    pairs = all_pairs(people)
    return embeddings, shuffled(pairs) if shuffle else pairs, settings


@pytest.mark.real
@pytest.mark.parametrize("name", [*CASES, "dense distances"])
def test_every_figure_is_the_originals(name, original):
    expected = figures_of_case(name, original)
    actual = our_figures(measure(*of_case(name)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=EXACT)


CASE_OF_FAULT = {
    "folds-shuffled": "all pairs as listed",
    "cosine-for-squared-distance": "all pairs as listed",
    "root-of-squared-distance": "all pairs as listed",
    "angle-not-over-pi": "arc cosine",
    "mean-not-subtracted": "mean subtracted",
    "mean-of-all-embeddings": "mean subtracted",
    "threshold-on-tested-pairs": "nearly perfect",
    "thresholds-by-0.02": "all pairs as listed",
    "rates-by-0.01": "dense distances",
    "rates-not-interpolated": "dense distances",
}
FAULTS_OF_FIGURES = [fault for fault in FAULTS if fault.stage in ("distance", "protocol")]


@pytest.mark.real
@pytest.mark.parametrize("fault", FAULTS_OF_FIGURES, ids=lambda fault: fault.name)
def test_a_fault_in_the_protocol_shows(fault, original):
    case = CASE_OF_FAULT[fault.name]
    expected = figures_of_case(case, original)
    with fault.planted():
        actual = our_figures(measure(*of_case(case)))
    farthest = np.inf if actual.shape != expected.shape else np.max(np.abs(actual - expected)[-7:])
    assert farthest > 1e6 * EXACT


def test_the_area_is_scikit_learns_where_the_thresholds_see_every_step():
    random = np.random.default_rng(1)
    same = random.random(500) < 0.4
    steps = random.integers(0, 300, 500) - 40 * same
    distances = (np.maximum(steps, 0) + 0.5) / 100  # between two thresholds; many of them tie
    folds = split_folds(len(same), 1)
    roc = protocol.mean_roc([distances], same, folds)
    assert protocol.area_under_curve(roc) == pytest.approx(roc_auc_score(same, -distances), abs=EXACT)


def test_the_equal_error_rate_of_a_straight_line_is_its_crossing():
    # From (0, 0) by (0.2, 0.6) to (1, 1): 1 - x = 0.6 + (x - 0.2) / 2 gives x = 1/3.
    roc = Roc(np.array([0.0, 0.6, 1.0]), np.array([0.0, 0.2, 1.0]))
    assert protocol.equal_error_rate(roc) == pytest.approx(1 / 3, abs=EXACT)
    assert protocol.area_under_curve(roc) == pytest.approx(0.06 + 0.64, abs=EXACT)


def test_distances_beyond_the_last_threshold_complete_the_characteristic():
    # Opposite embeddings are 4 apart, and the last threshold is 3.99.
    embeddings = np.array([[1, 0], [1, 0], [-1, 0], [0, 1]], np.float32)
    pairs = Pairs(np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    measured = measure(embeddings, pairs, Settings(folds=1))
    assert measured.roc.fpr[-1] == 0
    assert measured.auc == 1
    assert measured.eer == 0


def test_a_distance_equal_to_the_threshold_is_rejected():
    # 0.25 is a threshold, and 0.5 ** 2 is exactly 0.25: the first threshold that accepts it is 0.26.
    embeddings, pairs = at_distances([0.25, 0.25, 1.0, 1.0], [True, True, False, False])
    measured = measure(embeddings, pairs, Settings(folds=1))
    assert measured.best.thresholds == pytest.approx([0.26])
    assert measured.best.same.tolist() == [True, True, False, False]


def test_of_thresholds_that_are_right_as_often_the_first_is_taken():
    # Every threshold from 0.11 to 1.00 is right on both training pairs; 0.11 rejects the tested one.
    embeddings, pairs = at_distances([0.5, 0.1, 1.0], [True, True, False])
    folds = [Fold(np.array([1, 2]), np.array([0]))]
    distances = protocol.distances_by_fold(embeddings, pairs, folds, "squared-euclidean")
    accuracy = protocol.measure_accuracy(distances, pairs.same, folds)
    assert accuracy.thresholds == pytest.approx([0.11])
    assert accuracy.by_fold.tolist() == [0]


def test_folds_are_consecutive_and_the_first_are_larger():
    folds = split_folds(7, 3)
    assert [fold.test.tolist() for fold in folds] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [fold.train.tolist() for fold in folds] == [[3, 4, 5, 6], [0, 1, 2, 5, 6], [0, 1, 2, 3, 4]]


def test_accuracy_and_its_deviation_by_hand():
    # Two folds of two pairs. Each fold's pairs choose a threshold just above their same pair: 0.11 and 0.51.
    embeddings, pairs = at_distances([0.1, 0.3, 0.5, 1.0], [True, False, True, False])
    accuracy = measure(embeddings, pairs, Settings(folds=2)).accuracy
    assert accuracy.thresholds == pytest.approx([0.51, 0.11])
    assert accuracy.by_fold.tolist() == [0.5, 0.5]  # 0.3 is accepted at 0.51, 0.5 is rejected at 0.11
    assert (accuracy.mean, accuracy.std) == (0.5, 0.0)


def test_the_threshold_at_a_rate_by_hand():
    # A hundred distances of 0.0105, 0.0205, ...: 0.011 accepts one of them, 0.021 two.
    different = np.arange(1, 101) / 100 + 0.0005
    assert threshold_at_far(different, 0.01) == pytest.approx(
        0.020
    )  # the largest threshold with one in a hundred
    assert threshold_at_far(different, 0.015) == pytest.approx(0.0205)  # half way from 0.020 to 0.021
    assert threshold_at_far(different + 9, 0.01) == 0  # no threshold accepts any


def test_an_image_and_itself_are_0_apart_whatever_the_rounding():
    embeddings = drawn_faces(people=40)[0]
    places = np.arange(len(embeddings))
    pairs = Pairs(places, places, np.ones(len(places), np.bool_))
    distances = protocol.pair_distances(embeddings, pairs, "arc-cosine")
    assert np.isfinite(distances).all()
    assert distances.max() < 1e-7


@pytest.mark.parametrize("same", [True, False])
def test_pairs_of_one_kind_give_distances_and_a_reason(same):
    embeddings, pairs = at_distances([0.1, 0.2, 0.3], [same] * 3)
    measured = measure(embeddings, pairs, Settings(folds=3))
    assert measured.distances == pytest.approx([0.1, 0.2, 0.3])
    figures = (measured.accuracy, measured.validation, measured.auc, measured.eer, measured.threshold)
    assert figures == (None,) * 5
    kind = "the same person" if same else "different people"
    assert measured.missing == dict.fromkeys(
        ["accuracy", "val", "auc", "eer", "threshold"], f"every pair shows {kind}"
    )


def test_one_fold_gives_what_needs_no_other_fold():
    embeddings, people = drawn_faces()
    measured = measure(embeddings, all_pairs(people), Settings(folds=1))
    assert measured.accuracy is None
    assert measured.validation is None
    assert set(measured.missing) == {"accuracy", "val"}
    assert 0 < measured.eer < 0.5 < measured.auc < 1
    assert measured.best.mean > 0.9
    assert measured.threshold > 0


def test_a_fold_of_one_kind_is_named():
    # The same pairs first, then the different ones, as in pairsDevTest.txt.
    embeddings, pairs = at_distances(np.linspace(0.1, 2, 40), [True] * 20 + [False] * 20)
    measured = measure(embeddings, pairs, Settings())
    assert measured.missing == dict.fromkeys(["val", "auc", "eer"], "fold 1 of 10 has no different pairs")
    assert measured.accuracy is not None
    assert measured.threshold is not None


def test_fewer_pairs_than_folds_are_refused():
    embeddings, pairs = at_distances([0.1, 0.2], [True, False])
    with pytest.raises(UsageError, match=r"2 pairs cannot make 10 folds. Give --folds 2 or fewer."):
        measure(embeddings, pairs, replace(Settings(), folds=10))
