"""The scores of a classifier by hand, where scikit-learn's defaults would warn or mislead."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn")

from faces.evaluate.classifier import score


def test_scores_by_hand():
    #            a  a  a  b  b  c
    labels = ["a", "a", "a", "b", "b", "c"]
    given = ["a", "a", "b", "b", "c", "a"]
    scores = score(labels, given)
    assert scores.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert scores.accuracy == 0.5
    assert [item.precision for item in scores.classes] == [pytest.approx(2 / 3), 0.5, 0.0]
    assert [item.recall for item in scores.classes] == [pytest.approx(2 / 3), 0.5, 0.0]
    assert scores.precision == pytest.approx((2 / 3 + 0.5) / 3)
    assert scores.recall == pytest.approx((2 / 3 + 0.5) / 3)


def test_a_class_that_is_never_given_has_no_precision_and_counts_as_0(recwarn):
    scores = score(["a", "b"], ["a", "a"])
    assert [item.precision for item in scores.classes] == [0.5, None]
    assert scores.precision == 0.25
    assert not recwarn.list


def test_one_class(recwarn):
    scores = score(["a", "a"], ["a", "a"])
    assert (scores.accuracy, scores.confusion.tolist()) == (1.0, [[2]])
    assert not recwarn.list


def test_a_label_that_only_the_classifier_gives_is_no_class_of_the_mean():
    scores = score(["a", "a"], ["a", "z"])
    assert [(item.label, item.faces, item.recall) for item in scores.classes] == [
        ("a", 2, 0.5),
        ("z", 0, None),
    ]
    assert scores.confusion.tolist() == [[1, 1], [0, 0]]
    assert (scores.precision, scores.recall) == (1.0, 0.5)


def test_numbers_are_in_the_order_of_numbers():
    assert [item.label for item in score(["10", "9", "x"], ["10", "2", "x"]).classes] == ["2", "9", "10", "x"]
