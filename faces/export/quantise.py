"""Quantise an ONNX graph of float32 to 8 bits, by onnxruntime: static, in the format QDQ."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from faces.export.calibration import in_batches

_BATCH = 8

_OPERATIONS = ("Conv", "MatMul", "Gemm", "MaxPool", "Concat", "Add", "Mul", "Relu", "GlobalAveragePool")
"""The operations between the images and the embeddings' normalisation. BatchNorm, which stands behind the
Bottleneck alone, stays in float32: it has four numbers a channel."""


def quantise_onnx(float32: Path, output: Path, images: NDArray[Any], metadata: dict[str, str]) -> None:
    """Quantise a graph whose BatchNorms are folded into the convolutions.

    Weights have 8 bits, symmetric, with the smallest scale that holds each channel. Activations have 8 bits
    and one scale, from the least and the largest value on the images (MinMax); docs/deploy.md has what other
    calibrations give. What a graph does with pixels before the first convolution stays in float32.

    Args:
        float32: The graph.
        output: The file to write. The same graph and images give the same bytes.
        images: Images as the graph takes them, (N, ...).
        metadata: Key to value, as the file states them.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    model = onnx.load(float32)
    taken = model.graph.input[0]
    size = taken.type.tensor_type.shape.dim[0].dim_value or _BATCH

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = ({taken.name: batch} for batch in in_batches(images, size))

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._batches, None)

    with _without_advice():
        quantize_static(
            float32,
            output,
            Images(),
            quant_format=QuantFormat.QDQ,
            calibrate_method=CalibrationMethod.MinMax,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=list(_OPERATIONS),
            nodes_to_exclude=_nodes_before_first_layer(model.graph),
        )
    quantised = onnx.load(output)
    onnx.helper.set_model_props(quantised, metadata)
    onnx.checker.check_model(quantised)
    output.write_bytes(quantised.SerializeToString(deterministic=True))


def _nodes_before_first_layer(graph: Any) -> list[str]:
    """The names of the nodes that the first convolution depends on: they prepare the images."""
    producers = {output: node for node in graph.node for output in node.output}
    first = next(node for node in graph.node if node.op_type == "Conv")
    names, waiting = [], [first.input[0]]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in names:
            names.append(node.name)
            waiting += node.input
    return names


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep onnxruntime's advice off stderr: it asks for a preparation that the exporter has done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
