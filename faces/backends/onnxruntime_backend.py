"""Open an ONNX file in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from converter.errors import SourceError
from faces.backends.graph_backend import Run

REPLACED_PRELU = "PReLU as Max, Min, Mul and Add"
"""What `replace_prelu` does, in words: a check of a file that it changes holds for this graph alone."""


def open_onnxruntime(path: Path, threads: int, *, has_prelu: bool = False) -> Run:
    """Open a file in ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: The number of threads that run it.
        has_prelu: Whether there are PReLUs in it, which ONNX Runtime is slow at: see `replace_prelu`.

    Raises:
        SourceError: ONNX Runtime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        model = replace_prelu(path) if has_prelu else str(path)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no class
        reason = str(error).splitlines()[0]
        raise SourceError(path, f"onnxruntime does not open it ({reason})") from error
    taken, given = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]

    def run(batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(given, session.run(given, {taken: batch}), strict=True))

    return run


def replace_prelu(path: Path) -> bytes:
    """Read a file, with max(x, 0) + slope * min(x, 0) for each PReLU: the same bits, and sooner."""
    import onnx
    from onnx import helper

    model = onnx.load(path)
    zero = helper.make_tensor("zero", onnx.TensorProto.FLOAT, (), [0.0])
    model.graph.initializer.append(zero)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "PRelu":
            nodes.append(node)
            continue
        (x, slope), (output,) = node.input, node.output
        above, below, scaled = (f"{output}.{part}" for part in ("above", "below", "scaled"))
        nodes += [
            helper.make_node("Max", [x, zero.name], [above]),
            helper.make_node("Min", [x, zero.name], [below]),
            helper.make_node("Mul", [below, slope], [scaled]),
            helper.make_node("Add", [above, scaled], [output]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    content: bytes = model.SerializeToString()
    return content
