"""Values that a narrower type does not reach: an infinity is no rounding of a finite value."""

from __future__ import annotations

import numpy as np
import pytest

from checks.audit.compare_one_tensor import compare_exactly, compare_with_prediction
from checks.audit.port_layers import PortTensor
from checks.audit.predict_folding import Prediction
from checks.audit.source_weights import TensorPlace
from converter.layouts import VECTOR

PLACE = TensorPlace("Bottleneck")


def by_bits(actual, expected):
    return compare_exactly(PortTensor("t", actual, VECTOR), expected, PLACE)


def by_prediction(actual, expected):
    prediction = Prediction(actual, expected.astype(np.float64), np.full(expected.shape, 1e-3))
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
