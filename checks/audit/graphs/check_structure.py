"""Remarks on a graph's structure: strides, padding, epsilons and ReLUs that differ from the network's."""

from __future__ import annotations

from collections.abc import Iterator

from checks.audit.graphs.graph import Padding, Window
from checks.audit.graphs.linear_units import LinearUnit
from checks.core.network import EPSILON, NETWORK, short_name

SURROUNDING_OPERATIONS = frozenset((
    # ONNX
    "Add", "Cast", "Clip", "Concat", "ConstantOfShape", "DequantizeLinear", "Div", "Equal", "Expand",
    "Flatten", "Gather", "GatherND", "Identity", "LpNormalization", "Max", "Mul", "Pow", "QuantizeLinear",
    "Range", "Reciprocal", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Reshape", "Resize",
    "Shape", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
    # TFLite
    "ADD", "BROADCAST_TO", "CAST", "CONCATENATION", "DEQUANTIZE", "DIV", "EXPAND_DIMS", "GATHER",
    "L2_NORMALIZATION", "MAXIMUM", "MEAN", "MUL", "PACK", "POW", "QUANTIZE", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "RSQRT", "SHAPE", "SLICE", "SOFTMAX", "SPLIT", "SQRT", "SQUARE",
    "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "TRANSPOSE",
    # TensorFlow
    "AddV2", "ConcatV2", "ExpandDims", "Fill", "Maximum", "Mean", "Minimum", "Neg", "Pack", "RealDiv",
    "ResizeArea", "ResizeBicubic", "ResizeBilinear", "ResizeNearestNeighbor", "ReverseV2", "Rsqrt", "Square",
    "StopGradient", "StridedSlice", "Sum",
))  # fmt: skip
"""Operations that prepare an image or normalise an embedding. They treat every image alike, so a run on a few
images is enough to judge them; it is not enough for other operations."""

CLASSIFIER_OPERATIONS = frozenset({"Gemm", "MatMul", "FULLY_CONNECTED"})


def remarks_on_unit(unit: LinearUnit, activation: str) -> Iterator[str]:
    """Describe how a convolution, or the operations after it, differ from the network's.

    Args:
        unit: The convolution in the graph.
        activation: The layer of the network.
    """
    name, layer = short_name(activation), NETWORK[activation]
    if layer.kernel is not None:
        yield from remarks_on_relu(name, unit.relu, expected=layer.relu)
    if unit.epsilon is not None and abs(unit.epsilon - EPSILON) > 1e-9:
        yield f"{name} normalises with an epsilon of {unit.epsilon:g}, not {EPSILON:g}"
    yield from remarks_on_window(name, unit.linear.window, activation)


def remarks_on_relu(name: str, actual: bool, *, expected: bool) -> Iterator[str]:
    """Describe an extra or a missing ReLU at the end of a layer or block."""
    if actual is not expected:
        yield f"{name} ends {'with' if actual else 'without'} a ReLU"


def remarks_on_window(name: str, window: Window | None, activation: str) -> Iterator[str]:
    """Describe how the window of a convolution or pool differs from the network's.

    Args:
        name: The name of the convolution or pool.
        window: The window in the graph; None for a dense layer.
        activation: The layer of the network with the expected kernel, stride and padding.
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
    """Convert a padding to pixels; SAME at stride 2 stays a word, because it depends on the image size."""
    if padding == "VALID":
        return (0, 0), (0, 0)
    if padding == "SAME" and stride == 1:
        height, width = size
        return ((height - 1) // 2, height // 2), ((width - 1) // 2, width // 2)
    return padding
