"""The process that runs a graph: python -m checks.audit.graphs.worker SOCKET KIND FILE, from `process`."""

from __future__ import annotations

import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

MEMORY = 16 << 30
"""Bytes of address space; a batch of five takes a twentieth of it."""


class Session(Protocol):
    """A graph that is open in its runtime."""

    def __call__(self, input_name: str, images: NDArray[Any]) -> list[NDArray[Any]]:
        """What the graph gives for images in its own layout and dtype."""


def serve(pipe: Connection, kind: str, path: Path) -> None:
    """Answer until the pipe ends: what the graph gives, or in words what its runtime raises.

    Not every exception of a runtime can be handed through a pipe.
    """
    sessions: dict[tuple[tuple[str, ...], bool], Session] = {}
    while True:
        try:
            outputs, plain, input_name, images = pipe.recv()
        except EOFError:
            return
        answer: list[NDArray[Any]] | str
        try:
            if (outputs, plain) not in sessions:
                sessions[outputs, plain] = _open(kind, path, outputs, plain)
            answer = sessions[outputs, plain](input_name, images)
        except Exception as error:
            answer = " ".join(str(error).split())[:300] or type(error).__name__
        pipe.send(answer)


def _open(kind: str, path: Path, outputs: tuple[str, ...], plain: bool) -> Session:
    if kind == "tflite":
        from checks.audit.graphs.tflite_file import TfliteSession

        return TfliteSession(path, outputs, plain=plain)
    from checks.audit.graphs.onnx_file import OnnxSession

    return OnnxSession(path, outputs, plain=plain)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    serve(Connection(int(sys.argv[1])), sys.argv[2], Path(sys.argv[3]))
