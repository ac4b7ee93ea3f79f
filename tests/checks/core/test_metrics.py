"""The measures, against closed forms and against NumPy's own notion of neighbouring floats."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.core.metrics import cosine, difference, l2_norm, relative_l2, ulp_distance, ulp_histogram

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(FLOATS, st.integers(1, 50))
def test_ulp_distance_counts_the_floats_between(start: float, steps: int) -> None:
    first = np.array([start], np.float32)
    last = first.copy()
    for _ in range(steps):
        last = np.nextafter(last, np.float32(np.inf))
    expected = steps if np.isfinite(last).all() else ulp_distance(last, first)[0]
    assert ulp_distance(last, first)[0] == expected
    assert ulp_distance(first, last)[0] == expected


def test_ulp_distance_across_zero_and_between_extremes() -> None:
    tiny = np.nextafter(np.float64(0), np.float64(1))
    assert ulp_distance(np.array([tiny]), np.array([-tiny]))[0] == 2
    assert ulp_distance(np.array([0.0]), np.array([-0.0]))[0] == 0
    largest = np.finfo(np.float64).max
    # Twice the number of positive finite floats: 2046 exponents and the denormals, 2**52 each.
    assert ulp_distance(np.array([largest]), np.array([-largest]))[0] == 2.0 * (2047 * 2**52 - 1)


def test_relative_l2_of_a_known_difference() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert relative_l2(reference + np.array([0.0, 0.5], np.float32), reference) == 0.1
    assert relative_l2(reference, reference) == 0.0
    assert relative_l2(reference, np.zeros(2, np.float32)) == float("inf")
    assert relative_l2(np.array([np.nan, 4.0]), reference) == float("inf")


def test_cosine_is_the_smallest_of_the_batch() -> None:
    reference = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    turned = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert cosine(turned, reference) == pytest.approx(2**-0.5, rel=1e-15)
    assert cosine(reference, reference) == 1.0
    assert cosine(np.zeros((1, 2)), np.ones((1, 2))) == 0.0


def test_difference_refuses_what_it_cannot_compare() -> None:
    single = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="cannot be measured"):
        difference(single, single.astype(np.float64))
    with pytest.raises(ValueError, match="cannot be measured"):
        difference(single, single[:1])
    measured = difference(np.nextafter(single, np.float32(2)), single)
    assert (measured.max_ulp, measured.median_ulp, measured.max_abs) == (1, 1.0, 2.0**-23)
    poisoned = single.copy()
    poisoned[0, 0] = np.nan
    measured = difference(poisoned, single)
    assert measured.max_abs == measured.max_ulp == float("inf")
    assert measured.ulp_histogram == (5,)  # the NaN is no number of steps away


def test_there_are_no_steps_to_a_nan_but_none_between_equal_bits() -> None:
    first = np.array([np.nan, np.nan, np.inf, np.inf, 1.0], np.float32)
    second = np.array([np.nan, 1.0, np.inf, -np.inf, np.inf], np.float32)
    assert ulp_distance(first, second).tolist() == [0.0, np.inf, 0.0, np.inf, np.inf]


def test_a_histogram_counts_steps_by_powers_of_two() -> None:
    steps = np.array([[9, 0, 3, np.inf], [8, 1, 4, 2], [5, 2, 0, 2.0**60]])
    counts = ulp_histogram(steps)
    assert counts[:6] == (2, 1, 2, 2, 2, 1)
    assert counts[61] == 1  # 2**59 + 1 to 2**60
    assert (len(counts), sum(counts)) == (62, 11)
    assert ulp_histogram(np.array([])) == ()


def test_the_figures_of_a_difference_are_those_of_its_steps() -> None:
    random = np.random.default_rng(0)
    for size in (7, 8):
        reference = random.standard_normal((2, size), np.float32)
        array = reference * (1 + 1e-6 * random.standard_normal((2, size), np.float32))
        steps, measured = ulp_distance(array, reference), difference(array, reference)
        assert (measured.max_ulp, measured.median_ulp) == (steps.max(), np.median(steps))
        assert measured.ulp_histogram == ulp_histogram(steps)


def test_a_norm_is_that_of_all_elements_in_any_order_of_memory() -> None:
    values = np.random.default_rng(0).standard_normal((3, 70_001)).astype(np.float32)
    exact = math.sqrt(math.fsum(float(value) ** 2 for value in values.ravel()))
    assert l2_norm(values) == pytest.approx(exact, rel=1e-14)
    assert l2_norm(values.T) == pytest.approx(exact, rel=1e-14)
    assert l2_norm(values[:, :0]) == 0
    values[-1, -1] = np.nan
    assert l2_norm(values) == math.inf
