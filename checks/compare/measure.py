"""Measures PyTorch's activations against TensorFlow's, on one input."""

from __future__ import annotations

import math
from collections.abc import Callable
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

Differ = Callable[[NDArray[Any], NDArray[Any]], Difference]
"""Measures an array against a reference of the same shape."""

_INFINITELY_FAR = Difference(math.inf, math.inf, -1.0, 2**64 - 1, math.inf)


def run_and_measure(port: Port, expected: Activations) -> InputMeasurement:
    """Run both models of a port on an input and measure them against TensorFlow."""
    names = tuple(expected.float64)
    images = expected.batch.images
    return measure(
        expected, run_pytorch(port.float32, images, names), run_pytorch(port.float64, images, names)
    )


def measure(
    expected: Activations, float32: Arrays, float64: Arrays, differ: Differ = difference
) -> InputMeasurement:
    """Measure PyTorch's activations against TensorFlow's.

    An array of another shape than TensorFlow's is infinitely far from it.

    Args:
        expected: TensorFlow's activations.
        float32: Activation to array of PyTorch in float32.
        float64: Activation to array of PyTorch in float64.
        differ: Measures two arrays of one shape.
    """
    measured = []
    for name, exact in expected.float64.items():
        pytorch_error = _relative(float32[name], exact)
        tensorflow_error = relative_l2(expected.float32[name], exact)
        measured.append(
            ActivationMeasurement(
                activation=name,
                float32=_difference(float32[name], expected.float32[name], differ),
                float64=_difference(float64[name], exact, differ),
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


def _difference(actual: NDArray[Any], expected: NDArray[Any], differ: Differ) -> Difference:
    return differ(actual, expected) if actual.shape == expected.shape else _INFINITELY_FAR


def _relative(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    return relative_l2(actual, expected) if actual.shape == expected.shape else math.inf


def _gap(actual: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    """The difference in float64; infinite throughout where the shapes differ."""
    if actual.shape != expected.shape:
        return np.full(expected.shape, np.inf)
    gap: NDArray[Any] = actual.astype(np.float64) - expected
    return gap
