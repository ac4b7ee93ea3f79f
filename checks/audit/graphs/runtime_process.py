"""Graphs run in a process of their own: a file that brings its runtime down does not bring this one down."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

from numpy.typing import NDArray

from checks.audit.graphs.graph import Graph
from converter.errors import SourceError

SECONDS = 600
"""After so long a graph counts as one that never ends; a batch of five takes a few."""

_WORKER_MODULE = "checks.audit.graphs.worker"


class RuntimeProcess:
    """A process that runs one graph. A context manager.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        ours, theirs = socket.socketpair()
        # What this process can import, it can.
        paths = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)  # noqa: PTH100
        kind = "tflite" if graph.channels_last else "onnx"
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - a module of this package
                [sys.executable, "-P", "-m", _WORKER_MODULE, str(theirs.fileno()), kind, str(graph.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # the runtimes write there while they load
                env=os.environ | {"PYTHONPATH": paths},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is this process's, which then ends that one
            )
        self._pipe = Connection(ours.detach())

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
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refusal(self, problem: str) -> SourceError:
        next_step = "Export it again, or ask its author how it is run"
        return SourceError(self._graph.path, problem, next_step=next_step)
