"""Open a TFLite file in LiteRT."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from converter.errors import SourceError
from facenet_tf import stderr_aside
from faces.backends.graph_backend import Run


def open_litert(path: Path, threads: int) -> Run:
    """Open a file in LiteRT, which runs it with XNNPACK.

    Args:
        path: The file.
        threads: The number of threads that run it.

    Raises:
        SourceError: LiteRT refuses the file; some only as it runs.
    """
    from ai_edge_litert import interpreter as litert

    def explain(error: Exception) -> SourceError:
        return SourceError(path, f"LiteRT does not open it ({str(error).splitlines()[0]})")

    try:
        interpreter = litert.Interpreter(model_content=path.read_bytes(), num_threads=threads)
    except (RuntimeError, ValueError) as error:
        raise explain(error) from error
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()
    prepared: list[tuple[int, ...]] = []  # the shape that the interpreter has tensors for, once there is one
    running = Lock()  # an interpreter holds the tensors of one run

    def run(batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with running:
            if prepared != [batch.shape]:
                # The first time LiteRT says on stderr that it takes XNNPACK.
                with nullcontext() if prepared else stderr_aside():
                    try:
                        interpreter.resize_tensor_input(taken, batch.shape)
                        interpreter.allocate_tensors()
                    except (RuntimeError, ValueError) as error:
                        raise explain(error) from error
                prepared[:] = [batch.shape]
            interpreter.set_tensor(taken, batch)
            interpreter.invoke()
            return {output["name"]: interpreter.get_tensor(output["index"]) for output in given}

    return run
