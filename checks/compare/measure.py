"""Measures PyTorch's activations against TensorFlow's, on one input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.compare.result import ActivationMeasurement, InputMeasurement
from checks.core import thresholds
from checks.core.activations import EMBEDDINGS, run_pytorch
from checks.core.metrics import Difference, difference, l2_norm, relative_l2
from checks.core.models import Port
from checks.core.tensorflow_side import Activations
from checks.core.types import Arrays

_INFINITELY_FAR = Difference(math.inf, math.inf, -1.0, 2**64 - 1, math.inf)
_UNMEASURED = Difference(math.nan, math.nan, math.nan, 0, math.nan)


def run_and_measure(port: Port, expected: Activations) -> InputMeasurement:
    """Run both models of a port on an input and measure them against TensorFlow."""
    names = tuple(expected.float64)
    images = expected.batch.images
    return measure(
        expected, run_pytorch(port.float32, images, names), run_pytorch(port.float64, images, names)
    )


def measure(
    expected: Activations,
    float32: Arrays,
    float64: Arrays,
    *,
    judged_only: bool = False,
    known: Mapping[str, ActivationMeasurement] | None = None,
    to_divergence: bool = False,
) -> InputMeasurement:
    """Measure PyTorch's activations against TensorFlow's.

    An array of another shape than TensorFlow's is infinitely far from it.

    Args:
        expected: TensorFlow's activations.
        float32: Activation to array of PyTorch in float32.
        float64: Activation to array of PyTorch in float64.
        judged_only: Whether to measure only the figures that the judgements read. The others cost the most, and are
            NaN then.
        known: Activation to its measurement, for activations that are not measured again.
        to_divergence: Whether to leave out the activations behind the first that diverges.
    """
    measured: list[ActivationMeasurement] = []
    for name, exact in expected.float64.items():
        if to_divergence and measured and measured[-1].diverges:
            break
        if known is not None and name in known:
            measured.append(known[name])
            continue
        pytorch_error = _relative(float32[name], exact)
        tensorflow_error = relative_l2(expected.float32[name], exact)
        measured.append(
            ActivationMeasurement(
                activation=name,
                float32=_UNMEASURED if judged_only else _difference(float32[name], expected.float32[name]),
                float64=_relative_only(float64[name], exact)
                if judged_only
                else _difference(float64[name], exact),
                pytorch_error=pytorch_error,
                tensorflow_error=tensorflow_error,
                excess=pytorch_error / max(tensorflow_error, thresholds.UNIT_ROUNDOFF),
            )
        )
    gap32 = _gap(float32[EMBEDDINGS], expected.float32[EMBEDDINGS])
    gap64 = _gap(float64[EMBEDDINGS], expected.float64[EMBEDDINGS])
    return InputMeasurement(
        name=expected.batch.name,
        few_values=expected.batch.few_values,
        own_graph=expected.own_graph,
        activations=tuple(measured),
        distance64=l2_norm(gap64),
        distance32=l2_norm(gap32),
        row_distance32=max(l2_norm(row) for row in gap32),
        rebuilt=expected.rebuilt,
        rebuilt_error=expected.rebuilt_error,
    )


def _difference(actual: NDArray[Any], expected: NDArray[Any]) -> Difference:
    return difference(actual, expected) if actual.shape == expected.shape else _INFINITELY_FAR


def _relative_only(actual: NDArray[Any], expected: NDArray[Any]) -> Difference:
    return replace(_UNMEASURED, relative_l2=_relative(actual, expected))


def _relative(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    return relative_l2(actual, expected) if actual.shape == expected.shape else math.inf


def _gap(actual: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    """The difference in float64; infinite throughout where the shapes differ."""
    if actual.shape != expected.shape:
        return np.full(expected.shape, np.inf)
    gap: NDArray[Any] = actual.astype(np.float64) - expected
    return gap
