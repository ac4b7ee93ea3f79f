"""Work in another process, for libraries that crash or never finish on a damaged file.

The parent starts a child for each file, `python -m MODULE`. The child answers requests through `serve` and
limits its own memory and processor time. Both talk over a socket, which is the child's standard input.

The child may be broken, so they exchange no pickles. A message is a frame: the length of a JSON object (4
bytes, little-endian), the object, and the bytes of its arrays. The object is {"message": any JSON, "arrays":
[[dtype, shape], ...]}; a child may also send {"error": text, "details": {...}}.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from converter.errors import RequirementError

Arrays = Sequence[NDArray[Any]]
Answer = Callable[[Any, list[NDArray[Any]]], tuple[Any, Arrays]]
"""Function of a child: (message, arrays) of a request to (message, arrays) of its answer."""

_LENGTH = struct.Struct("<I")
_MOST_JSON = 16 << 20  # bytes of a JSON object
_MOST_BYTES = 16 << 30  # bytes of the arrays of a frame
_READY = "ready"


class ChildError(Exception):
    """The child ended without an answer; the message is a clause, such as "crashes (SIGSEGV)"."""


class AnswerError(Exception):
    """The child refuses a request and goes on; raised in the child, and again in the parent.

    Args:
        problem: What is wrong, a clause.
        details: Further facts for the parent, of JSON types.
    """

    def __init__(self, problem: str, **details: Any) -> None:
        super().__init__(problem)
        self.details = details


class ChildProcess:
    """A context manager: a module that answers requests in a process of its own.

    Only one thread at a time may use it. The child does not receive Ctrl-C; it ends with the parent or with
    `close`.

    Args:
        module: Full name of a module that calls `serve` as `__main__`.
        arguments: The child's `sys.argv[1:]`.
        seconds: Longest time to wait for one answer.

    Raises:
        RequirementError: The process cannot be started.
    """

    def __init__(self, module: str, *arguments: str | Path, seconds: float) -> None:
        self._module, self._seconds = module, seconds
        self._ready = False
        self._socket, theirs = socket.socketpair()
        # The child then imports the same modules as this process.
        paths = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)  # noqa: PTH100
        try:
            with theirs:
                self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - a module of this project
                    [sys.executable, "-P", "-m", module, *arguments],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": paths},
                    start_new_session=True,
                )
        except OSError as error:
            self._socket.close()
            raise RequirementError(f"{sys.executable}: cannot be started ({error}).") from error

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def ask(
        self, message: Any, arrays: Arrays = (), *, most_bytes: int = _MOST_BYTES
    ) -> tuple[Any, list[NDArray[Any]]]:
        """Send a request and wait for its answer.

        Args:
            message: Anything that JSON can hold.
            arrays: Booleans, integers or floats of NumPy's own dtypes.
            most_bytes: Limit on the bytes of the answer's arrays.

        Returns:
            The message and the arrays of the answer, C-contiguous, bit for bit as the child sent them. The
            caller checks what they mean.

        Raises:
            AnswerError: The child refuses the request.
            ChildError: The child crashed, exceeded a limit, took too long or answered nonsense; it is ended.
            RequirementError: The module does not run here.
        """
        header = _header({"message": message}, arrays)
        deadline = time.monotonic() + self._seconds
        try:
            if not self._ready:
                self._wait_until_ready(deadline)
            self._socket.settimeout(self._seconds)
            _send(self._socket, header, arrays)
            answer, received = _receive(self._socket, most_bytes, deadline)
        except TimeoutError as error:
            self.close()
            raise ChildError(f"gives no answer within {self._seconds:g} s") from error
        except (OSError, EOFError) as error:
            raise ChildError(self._how_it_ended()) from error
        except ValueError as error:
            self.close()
            raise ChildError(f"answers nonsense ({error})") from error
        except BaseException:  # Ctrl-C in the middle of a frame: the next answer would be misread
            self.close()
            raise
        if "error" in answer:
            details = answer.get("details")
            raise AnswerError(str(answer["error"]), **(details if isinstance(details, dict) else {}))
        return answer.get("message"), received

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _wait_until_ready(self, deadline: float) -> None:
        try:
            greeting, _ = _receive(self._socket, 0, deadline)
        except (ConnectionError, EOFError) as error:
            self.close()
            raise RequirementError(
                f"{self._module} does not run here. Try `{sys.executable} -c 'import {self._module}'`."
            ) from error
        if greeting.get("message") != _READY:
            raise ValueError("no greeting")
        self._ready = True

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(1)  # the child has closed its socket and is about to end
        except subprocess.TimeoutExpired:
            status = 0
        self.close()
        if status == -signal.SIGPROF:
            return "does not come to an end in the processor time that it may take"
        if status < 0:
            return f"crashes ({signal.Signals(-status).name})"
        return f"ends without an answer (exit code {status})"


def serve(answer: Answer) -> None:
    """Answer the parent's requests, in the child, until the parent closes the socket.

    Args:
        answer: Called for each request. The parent receives every exception as an `AnswerError` with the
            same message.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=os.dup(0)) as connection:
        _send(connection, _header({"message": _READY}), ())
        while True:
            try:
                request, arrays = _receive(connection, _MOST_BYTES)
            except EOFError:
                return
            try:
                message, results = answer(request.get("message"), arrays)
                header = _header({"message": message}, results)
            except Exception as error:
                header, results = _header(_describe_error(error)), ()
            _send(connection, header, results)


def _describe_error(error: Exception) -> dict[str, Any]:
    if isinstance(error, AnswerError):
        return {"error": str(error), "details": error.details}
    if isinstance(error, MemoryError):
        return {"error": "it needs more memory than it may take"}
    return {"error": " ".join(str(error).split())[:300] or type(error).__name__}


def limit_memory(more: int) -> None:
    """Limit the memory of this process; a request beyond the limit is a `MemoryError`.

    Only Linux states the present size of a process; on other systems this does nothing.

    Args:
        more: Bytes of address space that the process may take in addition to its present size.
    """
    try:
        present = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (present + more, present + more))


def allow_processor_time(seconds: float) -> None:
    """Give this process more processor time; the process ends when the time is used up.

    The first call sets the limit, each later one adds to the remaining time.
    """
    # The default action of SIGPROF ends the process even if it never returns from a library's code.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    remaining, _ = signal.getitimer(signal.ITIMER_PROF)
    signal.setitimer(signal.ITIMER_PROF, remaining + seconds)


def _header(content: dict[str, Any], arrays: Arrays = ()) -> bytes:
    """Encode the part of a frame before the bytes of its arrays."""
    described = [[array.dtype.str, array.shape] for array in arrays]
    encoded = json.dumps(content | {"arrays": described}).encode()
    if len(encoded) > _MOST_JSON:
        raise ValueError(f"a message of {len(encoded)} bytes, {_MOST_JSON} at most")
    return _LENGTH.pack(len(encoded)) + encoded


def _send(connection: socket.socket, header: bytes, arrays: Arrays) -> None:
    connection.sendall(header)
    for array in arrays:
        connection.sendall(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _receive(
    connection: socket.socket, most_bytes: int, deadline: float | None = None
) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Receive a frame.

    Raises:
        EOFError: The other side has closed the connection.
        OSError: The connection is broken; `TimeoutError` at the deadline.
        ValueError: This is not a frame, or its arrays take too many bytes.
    """
    head = bytearray(_LENGTH.size)
    _receive_into(connection, memoryview(head), deadline)
    (length,) = _LENGTH.unpack(head)
    if length > _MOST_JSON:
        raise ValueError(f"a message of {length} bytes")
    encoded = bytearray(length)
    _receive_into(connection, memoryview(encoded), deadline)
    try:
        header = json.loads(encoded)
    except RecursionError:
        raise ValueError("a message that is nested too deeply") from None
    arrays = []
    for dtype, shape in _described_arrays(header, most_bytes):
        array = np.empty(shape, dtype)
        _receive_into(connection, array.reshape(-1).view(np.uint8).data, deadline)
        arrays.append(array)
    return header, arrays


def _described_arrays(header: Any, most_bytes: int) -> list[tuple[np.dtype, tuple[int, ...]]]:
    """Check the description of a frame's arrays."""
    try:
        described = [(np.dtype(str(dtype)), tuple(shape)) for dtype, shape in header.get("arrays", [])]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError("a message that does not describe its arrays") from error
    for dtype, shape in described:
        if dtype.kind not in "biuf" or not all(type(extent) is int and extent >= 0 for extent in shape):
            raise ValueError(f"an array of {dtype} {shape}")
    size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in described)
    if size > most_bytes:
        raise ValueError(f"arrays of {size} bytes, {most_bytes} at most")
    return described


def _receive_into(connection: socket.socket, buffer: memoryview, deadline: float | None) -> None:
    while buffer:
        if deadline is not None:
            connection.settimeout(max(1e-3, deadline - time.monotonic()))
        count = connection.recv_into(buffer)
        if count == 0:
            raise EOFError
        buffer = buffer[count:]
