"""Measures PyTorch's activations against TensorFlow's, on one input."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from checks.compare.expected import ExpectedInput
from checks.compare.result import ActivationMeasurement, InputMeasurement
from checks.core.activations import activation_names, one_thread, run_pytorch
from checks.core.metrics import Difference, difference, l2_norm, relative_l2
from checks.core.models import Port
from checks.core.mtcnn_network import outputs_among
from checks.core.network import EMBEDDINGS, LOGITS
from checks.core.rounding import LayerRounding, first_image, measure_rounding
from checks.core.source_tensors import BrokenSource
from checks.core.tensorflow_process import stop_tensorflow
from checks.core.tensorflow_side import Activations
from checks.core.types import Array, Arrays
from reference import InceptionResnetV1

_MOST_WAITING = 2  # inputs
_INFINITELY_FAR = Difference(math.inf, math.inf, -1.0, 2**64 - 1, math.inf)
_UNMEASURED = Difference(math.nan, math.nan, math.nan, 0, math.nan)


@dataclass(frozen=True, slots=True)
class PortOutputs:
    """The outputs of both models of a port on an input.

    Attributes:
        float32: Activation to array of the float32 model.
        float64: Activation to array of the float64 model.
        rounding: The rounding of every layer of the float32 model, on the first image.
    """

    float32: Arrays
    float64: Arrays
    rounding: tuple[LayerRounding, ...]


def run_and_measure(
    port: Port, inputs: Iterable[ExpectedInput]
) -> tuple[InputMeasurement, ...] | BrokenSource:
    """Run both models of a port on every input, and measure them against TensorFlow.

    PyTorch goes on with the next inputs while TensorFlow computes and a thread measures. Each side's work is
    kept for a few inputs at most, whatever their number.

    Returns:
        The measurements; if TensorFlow's own activations are not finite, what is broken.
    """
    measured: list[InputMeasurement] = []
    waiting: deque[Future[InputMeasurement | BrokenSource]] = deque()

    def collect(most: int) -> BrokenSource | None:
        while len(waiting) > most:
            measurement = waiting.popleft().result()
            if isinstance(measurement, BrokenSource):
                return measurement
            measured.append(measurement)
        return None

    with one_thread(), ThreadPoolExecutor(1) as pool:
        try:
            for expected in inputs:
                outputs = _run_port(port, expected.batch.images, expected.names)
                waiting.append(pool.submit(_measure_outputs, expected, outputs))
                if broken := collect(_MOST_WAITING):
                    return broken
            return collect(0) or tuple(measured)
        except KeyboardInterrupt:
            stop_tensorflow()  # the thread may wait for it
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _measure_outputs(expected: ExpectedInput, outputs: PortOutputs) -> InputMeasurement | BrokenSource:
    activations = expected.wait()
    return activations.broken or measure(
        activations, outputs.float32, outputs.float64, rounding=outputs.rounding
    )


def _run_port(port: Port, images: Array, names: tuple[str, ...]) -> PortOutputs:
    every_layer = names
    if isinstance(port.float32, InceptionResnetV1):
        every_layer = activation_names(every_layer=True, logits=LOGITS in names)
    float32 = run_pytorch(port.float32, images, every_layer)
    rounding = measure_rounding(port.float64, *first_image(images, float32))
    return PortOutputs(float32, run_pytorch(port.float64, images, names), rounding)


def measure(
    expected: Activations,
    float32: Arrays,
    float64: Arrays,
    *,
    judged_only: bool = False,
    measured: Sequence[ActivationMeasurement] | None = None,
    rounding: tuple[LayerRounding, ...] = (),
) -> InputMeasurement:
    """Measure PyTorch's activations against TensorFlow's.

    An array that is missing, or has another shape than TensorFlow's, is infinitely far from it.

    Args:
        expected: TensorFlow's activations.
        float32: Activation to array of PyTorch in float32.
        float64: Activation to array of PyTorch in float64.
        judged_only: As in `measure_activation`.
        measured: The measurements of the activations; None makes them.
        rounding: As in `InputMeasurement`.
    """
    if measured is None:
        measured = [
            measure_activation(name, expected, float32[name], float64[name], judged_only=judged_only)
            for name in expected.float64
        ]
    outputs = outputs_among(expected.float64)
    gap32 = _gap(float32, expected.float32, outputs)
    gap64 = _gap(float64, expected.float64, outputs)
    whole = l2_norm if EMBEDDINGS in outputs else _largest_row  # P-Net gives any number of windows
    return InputMeasurement(
        name=expected.batch.name,
        images=len(expected.batch.images),
        own_graph=expected.own_graph,
        activations=tuple(measured),
        distance64=whole(gap64),
        distance32=whole(gap32),
        row_distance32=_largest_row(gap32),
        rebuilt=expected.rebuilt,
        own_rounding=expected.own_rounding,
        rounding=rounding,
    )


def measure_activation(
    name: str,
    expected: Activations,
    float32: Array,
    float64: Array,
    *,
    judged_only: bool = False,
) -> ActivationMeasurement:
    """Measure one activation.

    Args:
        name: The activation.
        expected: TensorFlow's activations.
        float32: PyTorch's array in float32.
        float64: PyTorch's array in float64.
        judged_only: Whether to measure only the figures that the judgements read. The others, which cost the
            most, are then NaN.
    """
    single, exact = expected.float32[name], expected.float64[name]
    return ActivationMeasurement(
        activation=name,
        float32=_UNMEASURED if judged_only else _difference(float32, single),
        float64=_relative_only(float64, exact) if judged_only else _difference(float64, exact),
        pytorch_error=_relative(float32, exact),
        tensorflow_error=relative_l2(single, exact),
    )


def _difference(actual: Array, expected: Array) -> Difference:
    return difference(actual, expected) if actual.shape == expected.shape else _INFINITELY_FAR


def _relative_only(actual: Array, expected: Array) -> Difference:
    return replace(_UNMEASURED, relative_l2=_relative(actual, expected))


def _relative(actual: Array, expected: Array) -> float:
    return relative_l2(actual, expected) if actual.shape == expected.shape else math.inf


def _gap(actual: Arrays, expected: Arrays, outputs: Sequence[str]) -> Array:
    """The differences of the outputs in float64; infinite throughout if a shape differs.

    Returns:
        (rows, values): a row for each image, of P-Net for each window.
    """
    gaps = []
    for name in outputs:
        array = expected[name]
        if name not in actual or actual[name].shape != array.shape:
            gap: Array = np.full(array.shape, np.inf)
        else:
            gap = actual[name].astype(np.float64) - array
        gaps.append(gap.reshape(-1, gap.shape[-1]))
    return np.concatenate(gaps, axis=1)


def _largest_row(gap: Array) -> float:
    return max(l2_norm(row) for row in gap)
