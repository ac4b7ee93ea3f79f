"""Open an ONNX file in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from converter.errors import SourceError
from faces.backends.graph_backend import Run
from faces.backends.rewrite_detector import rewrite_detector


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
