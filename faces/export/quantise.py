"""Quantise an ONNX graph of float32 to 8 bits, by onnxruntime: static, in the format QDQ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from faces.export.calibration import in_batches

_BATCH = 8

_OPERATIONS = ("Conv", "Gemm", "MaxPool", "Concat", "Add", "Relu", "GlobalAveragePool")
"""The operations between the images and the embeddings' normalisation."""


def quantise_onnx(float32: Path, output: Path, images: NDArray[Any], metadata: dict[str, str]) -> None:
    """Quantise a graph.

    BatchNorm and the scale of a residual are folded into the layer before them, so that no operation of
    their own is left for the runtime. The Bottleneck's output stays in float32.

    Weights have 8 bits, symmetric, with the smallest scale that holds each channel. Activations have 8 bits
    and one scale, from the least and the largest value on the images (MinMax); docs/deploy.md has what other
    calibrations give. What a graph does with pixels before the first convolution stays in float32.

    Args:
        float32: The graph, in a folder for files.
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
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = float32.with_name("folded.onnx")
    quant_pre_process(float32, folded, skip_symbolic_shape=True)
    model = onnx.load(folded)
    taken = model.graph.input[0]
    size = taken.type.tensor_type.shape.dim[0].dim_value or _BATCH

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = ({taken.name: batch} for batch in in_batches(images, size))

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._batches, None)

    quantize_static(
        folded,
        output,
        Images(),
        quant_format=QuantFormat.QDQ,
        calibrate_method=CalibrationMethod.MinMax,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=list(_OPERATIONS),
        nodes_to_exclude=_nodes_before_first_layer(model.graph),
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
    )
    quantised = onnx.load(output)
    used = {node.domain for node in quantised.graph.node}
    for domain in [each for each in quantised.opset_import if each.domain not in used]:
        quantised.opset_import.remove(domain)  # onnxruntime states every domain that it knows
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
