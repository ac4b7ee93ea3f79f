"""Values of a narrower type: an infinity is no rounding of a finite value; other ways to round are named."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from checks.audit.compare_folded_layers import compare_batch_norm_beside
from checks.audit.compare_one_tensor import compare_exactly, compare_with_prediction
from checks.audit.folding_formulas import BatchNorm, factor_formulas
from checks.audit.port_layers import PortTensor
from checks.audit.predict_folding import Prediction
from checks.audit.source_weights import TensorPlace
from converter.layouts import FULLY_CONNECTED, VECTOR

PLACE = TensorPlace("Bottleneck")


def by_bits(actual, expected):
    return compare_exactly(PortTensor("t", actual, VECTOR), expected, PLACE)


def by_prediction(actual, expected):
    exact = expected.astype(np.float64)
    prediction = Prediction(actual, lambda: exact, lambda: np.full(expected.shape, 1e-3))
    return compare_with_prediction(PortTensor("t", actual, VECTOR), prediction, PLACE, "BatchNorm folded in")


@pytest.mark.parametrize("compare", [by_bits, by_prediction], ids=lambda compare: compare.__name__)
def test_an_infinity_of_half_precision_differs_from_a_finite_value(compare):
    expected = np.array([7e4, 1.5], np.float32)
    with np.errstate(over="ignore"):
        result = compare(expected.astype(np.float16), expected)
    assert (result.status, result.not_finite) == ("differs", 1)
    assert result.detail.endswith("a value that is finite in the source and not finite in float16")
    within = np.array([6.5e4, 1.5], np.float32)  # 65,504 is the greatest number of float16
    assert compare(within.astype(np.float16), within).is_faithful


def round_to(dtype, towards, values):
    """Round to the next number of a narrower type in the direction of `towards`."""
    nearest = values.astype(dtype)
    gap = nearest.astype(np.float64) - values
    beyond = gap > 0 if towards < 0 else np.sign(gap) == np.sign(values)
    return np.where(beyond, np.nextafter(nearest, dtype(towards)), nearest)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("towards", "cause"), [(-np.inf, "rounded down"), (0.0, "rounded towards zero")])
def test_another_rounding_to_half_precision_is_named_and_a_few_other_values_are_not(dtype, towards, cause):
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    result = by_bits(round_to(dtype, towards, values), values)
    assert (result.status, result.detail) == ("differs", f"{cause}, not to the nearest")
    few = np.where(np.arange(1000) < 80, round_to(dtype, towards, values), values.astype(dtype))
    assert (by_bits(few, values).status, by_bits(few, values).detail) == ("differs", "")


def test_a_cause_explains_more_than_the_nearest_values():
    """Most of the values have few bits, so that every way to round them gives 99 %."""
    values = np.arange(1000, dtype=np.float32)
    values[:10] += np.float32(1e-4)
    actual = values.astype(np.float16)
    actual[500] += 1
    assert (by_bits(actual, values).differing, by_bits(actual, values).detail) == (1, "")


def test_a_folded_tensor_that_is_rounded_towards_zero_differs():
    values = np.random.default_rng(0).normal(size=1000)
    exact = Prediction(values.astype(np.float16), lambda: values, lambda: np.full(values.shape, 1e-2))
    actual = PortTensor("t", round_to(np.float16, 0.0, values), VECTOR)
    result = compare_with_prediction(actual, exact, PLACE, "BatchNorm folded in")
    assert result.status == "differs"
    assert result.detail == "BatchNorm folded in, rounded towards zero, not to the nearest"


@pytest.mark.parametrize(("beta", "statuses"), [(0.0, ["equal", "folded"]), (0.5, ["equal", "differs"])])
def test_a_sum_with_zeros_may_be_left_out_and_no_other(beta, statuses):
    """TensorFlow's converter drops the sum of a BatchNorm whose mean and beta are 0."""
    ones = np.ones(3, np.float32)
    norm = BatchNorm(ones, ones * np.float32(beta), ones * 0, ones * 4)
    kernel = np.eye(3, dtype=np.float32)
    source = SimpleNamespace(
        batch_norm=lambda scope: norm,
        tensor=lambda scope, role: kernel,
        place=lambda scope, role: PLACE,
        place_of_batch_norm=lambda scope: PLACE,
    )
    scale = next(factor_formulas(norm)).astype(np.float32)
    tensors = {
        "weights": PortTensor("weights", kernel, FULLY_CONNECTED),
        "scale": PortTensor("scale", scale, VECTOR),
    }
    results = list(compare_batch_norm_beside(SimpleNamespace(scope="Bottleneck"), tensors, source))
    assert [result.status for result in results] == statuses
