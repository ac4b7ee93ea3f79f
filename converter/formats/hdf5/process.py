"""Starts and ends the process that reads HDF5 files, and talks to it; see `hdf5_worker` for what it is."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import RequirementError, SourceError
from converter.formats.hdf5 import frames as hdf5_frames
from converter.formats.hdf5.frames import NUMBER

_SILENCE_SECONDS = 60.0  # a slow disk may take its time for a tensor, but not this much
_WORKER_MODULE = "converter.formats.hdf5.worker"
_GET_IT_AGAIN = "Download or copy it again"


class Hdf5Process:
    """One HDF5 file, open in a process of its own.

    All that the process says is checked, and its death is an error like any other. Objects may be used from
    several threads, each object from one at a time.

    Args:
        path: The file.

    Attributes:
        weights: Name, dtype string, shape and offset in the file of each weight, as the process says; the
            offset is None where the file does not hold the weight as it is in memory.

    Raises:
        SourceError: The file is damaged, holds no Keras weights, or is more than libhdf5 can take.
        RequirementError: The process cannot be started.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._worker: int | None = None
        self._connection, theirs = socket.socketpair()
        try:
            with theirs:
                self._server = _server()
                self._worker = self._server.open(theirs)
            self._connection.settimeout(_SILENCE_SECONDS)
            name = os.fsencode(path.absolute()).hex()  # a path is bytes, which JSON does not carry
            self.weights = self._ask(name, None)
        except BaseException:
            self.close()
            raise

    def read(self, number: int, name: str, array: NDArray[Any]) -> None:
        """Read the weight that stands at `number` in `weights` into a C-contiguous array.

        Raises:
            SourceError: HDF5 cannot read it.
        """
        size = self._ask(number, name)
        if size != array.nbytes:
            raise self._damaged("its data does not have the size of its shape", name)
        view = array.reshape(-1).view(np.uint8).data
        try:
            while view:
                count = self._connection.recv_into(view)
                if count == 0:
                    raise self._dead(name)
                view = view[count:]
        except OSError as error:
            raise self._dead(name) from error

    def close(self) -> None:
        """End the process."""
        self._end()
        self._connection.close()

    def _ask(self, question: Any, tensor: str | None) -> Any:
        try:
            hdf5_frames.send(self._connection, question)
            answer = hdf5_frames.receive(self._connection)
        except (OSError, ValueError, RecursionError) as error:
            raise self._dead(tensor) from error
        if answer is None:
            raise self._dead(tensor)
        if isinstance(answer, dict):
            problem, name = answer.get("problem"), answer.get("tensor") or tensor
            next_step = answer.get("next_step") or _GET_IT_AGAIN
            raise SourceError(
                self._path, str(problem), tensor=name and str(name)[:200], next_step=str(next_step)
            )
        return answer

    def _damaged(self, problem: str, tensor: str | None) -> SourceError:
        return SourceError(self._path, problem, tensor=tensor, next_step=_GET_IT_AGAIN)

    def _dead(self, tensor: str | None) -> SourceError:
        status = self._end()
        if status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
            problem = "libhdf5 does not come to an end on it"
        elif status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            problem = "libhdf5 gave no answer"
        else:
            problem = "libhdf5 crashes on it"
        return self._damaged(f"damaged HDF5 ({problem})", tensor)

    def _end(self) -> int | None:
        worker, self._worker = self._worker, None
        return None if worker is None else self._server.wait(worker)


class _Server:
    """The process that forks one worker for each file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        # What this process can import, it can; OpenBLAS would start threads, and threads do not fork.
        paths = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)  # noqa: PTH100
        environment = os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - a module of this package
                    [sys.executable, "-P", "-m", _WORKER_MODULE, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError as error:
            self._control.close()
            raise RequirementError(f"{sys.executable}: cannot be started to read HDF5 ({error}).") from error

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def open(self, connection: socket.socket) -> int:
        """Let a worker serve the other end of a connection; returns its process id."""
        with self._lock:
            worker = self._order(b"o", connection)
        if worker is None:
            raise RequirementError(
                "The process that reads HDF5 files does not start. Try `python -c 'import h5py'`."
            )
        return worker

    def wait(self, worker: int) -> int | None:
        """End a worker; returns its exit status, or None where the server has gone and with it the worker."""
        with self._lock:
            return self._order(b"w" + NUMBER.pack(worker), None)

    def stop(self) -> None:
        """End the process and all its workers."""
        self._control.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """Let go, in a forked copy of this process, of what is another process's child."""
        self._control.close()
        self._process.returncode = 0  # so that the object asks for no farewell

    def _order(self, order: bytes, connection: socket.socket | None) -> int | None:
        try:
            descriptors = [] if connection is None else [connection.fileno()]
            socket.send_fds(self._control, [order], descriptors)
            answer = hdf5_frames.receive_exactly(self._control, NUMBER.size)
        except (OSError, ValueError):
            answer = b""
        except BaseException:  # Ctrl-C between the order and its answer: what comes next would be misread
            self.stop()
            raise
        if not answer:
            self.stop()
            return None
        (number,) = NUMBER.unpack(answer)
        return int(number)


_servers: list[_Server] = []
_starting = threading.Lock()


def _server() -> _Server:
    """The server of this process, started where there is none."""
    with _starting:
        if _servers and not _servers[-1].alive:
            _servers.pop().stop()
        if not _servers:
            _servers.append(_Server())
        return _servers[-1]


def _stop() -> None:
    while _servers:
        _servers.pop().stop()


def _forget() -> None:
    """In a forked copy of this process: leave its server to the process that started it."""
    global _starting
    _starting = threading.Lock()
    for server in _servers:
        server.forget()
    _servers.clear()


atexit.register(_stop)
os.register_at_fork(after_in_child=_forget)
