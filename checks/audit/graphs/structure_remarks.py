"""Remarks on a graph's structure: strides, padding, epsilons and ReLUs that are not the network's."""

from __future__ import annotations

from collections.abc import Iterator

from checks.audit.graphs.graph import Padding, Window
from checks.audit.graphs.linear_units import LinearUnit
from checks.core.network import EPSILON, NETWORK, short_name

SURROUNDING_OPERATIONS = frozenset((
    # ONNX
    "Add", "Cast", "Clip", "Concat", "ConstantOfShape", "Div", "Expand", "Flatten", "Gather", "Identity",
    "LpNormalization", "Max", "Mul", "Pow", "Reciprocal", "ReduceL2", "ReduceMean", "ReduceSum",
    "ReduceSumSquare", "Reshape", "Shape", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Transpose",
    "Unsqueeze",
    # TFLite
    "ADD", "BROADCAST_TO", "CAST", "CONCATENATION", "DEQUANTIZE", "DIV", "EXPAND_DIMS", "GATHER",
    "L2_NORMALIZATION", "MAXIMUM", "MEAN", "MUL", "PACK", "POW", "RESHAPE", "REVERSE_V2", "RSQRT", "SHAPE",
    "SLICE", "SOFTMAX", "SPLIT", "SQRT", "SQUARE", "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB",
    "SUM", "TRANSPOSE",
))  # fmt: skip
"""Operations that prepare an image or normalise an embedding. They treat every image alike, so that a run
on a few images shows what they do; of any other operation it does not."""

CLASSIFIER_OPERATIONS = frozenset({"Gemm", "MatMul", "FULLY_CONNECTED"})


def remarks_on_unit(unit: LinearUnit, activation: str) -> Iterator[str]:
    """Say where a convolution, or what follows it, is not that of the network.

    Args:
        unit: The convolution in the graph.
        activation: The layer that it is.
    """
    name, layer = short_name(activation), NETWORK[activation]
    if layer.kernel is not None:
        yield from remarks_on_relu(name, unit.relu, expected=layer.relu)
    if unit.epsilon is not None and abs(unit.epsilon - EPSILON) > 1e-9:
        yield f"{name} normalises with an epsilon of {unit.epsilon:g}, not {EPSILON:g}"
    yield from remarks_on_window(name, unit.linear.window, activation)


def remarks_on_relu(name: str, actual: bool, *, expected: bool) -> Iterator[str]:
    """Say whether a layer or block has a ReLU at its end that should not be there, or lacks one."""
    if actual is not expected:
        yield f"{name} ends {'with' if actual else 'without'} a ReLU"


def remarks_on_window(name: str, window: Window | None, activation: str) -> Iterator[str]:
    """Say how a convolution or pool slides, where it is not as the network's.

    Args:
        name: What to call it.
        window: How it slides in the graph; None where the graph has no such thing, as for a dense layer.
        activation: The layer of the network whose kernel, stride and padding are expected.
    """
    layer = NETWORK[activation]
    if window is None or layer.kernel is None:
        return
    strides = (layer.stride, layer.stride)
    if window.strides != strides:
        yield f"{name} has strides {window.strides}, expected {strides}"
    elif window.dilations != (1, 1) or window.groups != 1 or window.ceil_mode:
        yield (
            f"{name} has dilations {window.dilations}, {window.groups} groups and ceil_mode "
            f"{window.ceil_mode}, expected (1, 1), 1 and False"
        )
    elif window.size not in (None, layer.kernel):
        yield f"{name} has a window of {window.size}, expected {layer.kernel}"
    elif _padded_pixels(window.padding, layer.kernel, layer.stride) != _padded_pixels(
        layer.padding, layer.kernel, layer.stride
    ):
        yield f"{name} is padded by {window.padding}, expected {layer.padding}"


def _padded_pixels(padding: Padding, size: tuple[int, int], stride: int) -> Padding:
    """A padding in pixels; SAME at a stride of 2 stays a word, as it depends on the size of the image."""
    if padding == "VALID":
        return (0, 0), (0, 0)
    if padding == "SAME" and stride == 1:
        height, width = size
        return ((height - 1) // 2, height // 2), ((width - 1) // 2, width // 2)
    return padding
