"""Open an ONNX file in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import SourceError
from faces.backends.graph_backend import Run

REWRITTEN = "PReLU as Relu, Mul and Add, Softmax as Sigmoid, blocks of 16 channels"
"""What `rewrite_detector` does, in words: a check of a file that it changes holds for this graph alone."""

_BLOCK = 16  # channels that ONNX Runtime keeps side by side; 8 on a processor without AVX-512


def open_onnxruntime(path: Path, threads: int, *, is_detector: bool = False) -> Run:
    """Open a file in ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: The number of threads that run it.
        is_detector: Whether it is a network of the detector, which `rewrite_detector` makes faster.

    Raises:
        SourceError: ONNX Runtime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        model = rewrite_detector(path) if is_detector else str(path)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no class
        reason = str(error).splitlines()[0]
        raise SourceError(path, f"onnxruntime does not open it ({reason})") from error
    taken, given = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]

    def run(batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(given, session.run(given, {taken: batch}), strict=True))

    return run


def rewrite_detector(path: Path) -> bytes:
    """Read a network of the detector, and say the same in operations that ONNX Runtime is faster at.

    ONNX Runtime keeps maps in blocks of channels while it can, and leaves them for PReLU, for Softmax, and
    for a number of channels that fills no blocks. So a PReLU becomes slope * x + (1 - slope) * max(x, 0),
    P-Net's Softmax over two maps the Sigmoid of their difference, and maps of zeros fill the blocks.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    followers = {name: node.op_type for node in graph.node for name in node.input}
    maps: set[str] = set()
    nodes = []
    for node in graph.node:
        taken, (output,) = list(node.input), node.output
        if node.op_type == "Conv":
            maps.add(output)
            kernel, bias = taken[1:]
            if values[kernel].shape[1] > 3:  # the colours stay three
                values[kernel] = _fill_blocks(values[kernel], 1)
            if followers.get(output) == "PRelu":
                values[kernel], values[bias] = _fill_blocks(values[kernel], 0), _fill_blocks(values[bias], 0)
            elif followers.get(output) == "Softmax":
                values[kernel], values[bias] = (values[name] - values[name][::-1] for name in (kernel, bias))
        if node.op_type == "PRelu":
            x, slope = taken
            above, scaled, rest = (f"{output}.{part}" for part in ("above", "scaled", "rest"))
            if x in maps:
                values[slope] = _fill_blocks(values[slope], 0)
            values[rest] = 1 - values[slope]
            nodes += [
                helper.make_node("Relu", [x], [above]),
                helper.make_node("Mul", [above, rest], [f"{above}.{rest}"]),
                helper.make_node("Mul", [x, slope], [scaled]),
                helper.make_node("Add", [scaled, f"{above}.{rest}"], [output]),
            ]
        elif node.op_type == "Softmax" and taken[0] in maps:
            nodes.append(helper.make_node("Sigmoid", taken, [output]))
        else:
            nodes.append(node)
    for old, new in (
        (graph.node, nodes),
        (graph.initializer, [numpy_helper.from_array(array, name) for name, array in values.items()]),
        (graph.value_info, []),
    ):
        del old[:]
        old.extend(new)
    content: bytes = model.SerializeToString()
    return content


def _fill_blocks(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Add zeros at the end of an axis, to a multiple of `_BLOCK`."""
    missing = [(0, -extent % _BLOCK if place == axis else 0) for place, extent in enumerate(array.shape)]
    return np.pad(array, missing)
