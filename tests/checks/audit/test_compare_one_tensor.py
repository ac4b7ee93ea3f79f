"""Values that a narrower type does not reach: an infinity is no rounding of a finite value."""

from __future__ import annotations

from types import SimpleNamespace

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
