"""Graphs run in a process of their own: a file that brings its runtime down does not bring this one down."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from checks.audit.graphs.graph import Graph
from converter.errors import SourceError

SECONDS = 600
"""After so long a graph counts as one that never ends; a batch of five takes a few."""


class Session(Protocol):
    """A graph that is open in its runtime."""

    def __call__(self, input_name: str, images: NDArray[Any]) -> list[NDArray[Any]]:
        """What the graph gives for images in its own layout and dtype."""


class GraphProcess:
    """A process that runs one graph. A context manager.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        task = (other, graph.path, graph.channels_last)
        self._process = context.Process(target=_serve, args=task, daemon=True)
        self._process.start()
        other.close()  # so that the end of the process is the end of the pipe

    def run(self, images: NDArray[Any], outputs: Sequence[str], *, plain: bool) -> list[NDArray[Any]]:
        """Run the graph.

        Args:
            images: In the graph's own layout and dtype.
            outputs: Tensors to fetch.
            plain: Whether to run the graph as it is written, and then tensors inside it can be fetched too;
                otherwise as its runtime runs it by default.

        Raises:
            SourceError: The runtime refuses the graph, crashes on it or does not come to an end.
        """
        try:
            self._pipe.send((tuple(outputs), plain, self._graph.inputs[0].name, images))
            if not self._pipe.poll(SECONDS):
                raise self._refusal(f"its runtime does not come to an end within {SECONDS} s")
            answer: list[NDArray[Any]] | str = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._refusal("its runtime crashes on it") from error
        if isinstance(answer, str):
            raise self._refusal(f"it does not run ({answer})")
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refusal(self, problem: str) -> SourceError:
        next_step = "Export it again, or ask its author how it is run"
        return SourceError(self._graph.path, problem, next_step=next_step)


def _serve(pipe: Connection, path: Path, is_tflite: bool) -> None:
    """Answer until the pipe ends: what the graph gives, or in words what its runtime raises.

    Not every exception of a runtime can be handed through a pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the runtimes write there while they load
    sessions: dict[tuple[tuple[str, ...], bool], Session] = {}
    while True:
        try:
            outputs, plain, input_name, images = pipe.recv()
        except EOFError:
            return
        answer: list[NDArray[Any]] | str
        try:
            if (outputs, plain) not in sessions:
                sessions[outputs, plain] = _open(path, is_tflite, outputs, plain)
            answer = sessions[outputs, plain](input_name, images)
        except Exception as error:
            answer = " ".join(str(error).split())[:300]
        pipe.send(answer)


def _open(path: Path, is_tflite: bool, outputs: tuple[str, ...], plain: bool) -> Session:
    if is_tflite:
        from checks.audit.graphs.tflite_file import TfliteSession

        return TfliteSession(path, outputs, plain=plain)
    from checks.audit.graphs.onnx_file import OnnxSession

    return OnnxSession(path, outputs, plain=plain)
