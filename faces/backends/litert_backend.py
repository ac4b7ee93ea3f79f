"""Open a TFLite file in LiteRT."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from converter.errors import SourceError
from faces.backends.graph_backend import Run


def open_litert(path: Path, threads: int) -> Run:
    """Open a file in LiteRT, which runs it with XNNPACK.

    Args:
        path: The file.
        threads: The number of threads that run it.

    Raises:
        SourceError: LiteRT refuses the file.
    """
    from ai_edge_litert import interpreter as litert

    try:
        interpreter = litert.Interpreter(model_content=path.read_bytes(), num_threads=threads)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(path, f"LiteRT does not open it ({reason})") from error
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    running = Lock()  # an interpreter holds the tensors of one run

    def run(batch: NDArray[Any]) -> NDArray[Any]:
        with running:
            if interpreter.get_input_details()[0]["shape"][0] != len(batch):
                interpreter.resize_tensor_input(taken, batch.shape)
                interpreter.allocate_tensors()
            interpreter.set_tensor(taken, batch)
            interpreter.invoke()
            result: NDArray[Any] = interpreter.get_tensor(given)
            return result

    return run
