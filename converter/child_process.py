"""Work in another process, for libraries that crash or never finish on a damaged file.

The parent starts a child for each file, `python -m MODULE`. The child answers requests through `serve` and
limits its own memory and processor time. Both talk over a socket, which is the child's standard input.

The child may be broken, so they exchange no pickles but frames (`converter.frames`). The object of a frame is
{"message": any JSON, "arrays": ...}; a child may also send {"error": text, "details": {...}}.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from converter.errors import RequirementError
from converter.frames import MOST_BYTES, Arrays, encode_header, receive_frame, send_frame

Answer = Callable[[Any, list[NDArray[Any]]], tuple[Any, Arrays]]
"""Function of a child: (message, arrays) of a request to (message, arrays) of its answer."""

_READY = "ready"


class ChildError(Exception):
    """The child ended without an answer; the message is a clause, such as "crashes (SIGSEGV)"."""


class NoAnswerError(ChildError):
    """The child gives no answer in time, though it may only wait for a disk or a processor."""


class AnswerError(Exception):
    """The child refuses a request and goes on; raised in the child, and again in the parent.

    Args:
        problem: What is wrong, a clause.
        details: Further facts for the parent, of JSON types.
    """

    def __init__(self, problem: str, **details: Any) -> None:
        super().__init__(problem)
        self.details = details


class Request:
    """A request that a child works on; `ChildProcess.send` makes it."""

    def __init__(self, child: ChildProcess, most_bytes: int) -> None:
        self._child = child
        self.most_bytes = most_bytes
        self.answer: tuple[dict[str, Any], list[NDArray[Any]]] | None = None

    def wait(self) -> tuple[Any, list[NDArray[Any]]]:
        """Wait for the answer.

        Returns:
            As `ChildProcess.ask`.

        Raises:
            AnswerError, ChildError, RequirementError: As `ChildProcess.ask`.
        """
        answer, arrays = self._child.receive(self)
        if "error" in answer:
            details = answer.get("details")
            raise AnswerError(str(answer["error"]), **(details if isinstance(details, dict) else {}))
        return answer.get("message"), arrays


class ChildProcess:
    """A context manager: a module that answers requests in a process of its own.

    The child does not receive Ctrl-C; it ends with the parent or with `close`.

    Args:
        module: Full name of a module that calls `serve` as `__main__`.
        arguments: The child's `sys.argv[1:]`.
        seconds: Longest time to wait for one answer.
        shared: Whether arrays cross in shared memory, for a child that is trusted, whose `serve` has the same
            setting. A shared array is not copied, and several requests can wait in turn.

    Raises:
        RequirementError: The process cannot be started.
    """

    def __init__(self, module: str, *arguments: str | Path, seconds: float, shared: bool = False) -> None:
        self._module, self._seconds, self._shared = module, seconds, shared
        self._ready = False
        self._requests: deque[Request] = deque()
        self._sending, self._receiving = threading.Lock(), threading.Lock()
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

    @property
    def is_open(self) -> bool:
        """True while the child may answer: neither `close` nor an error has ended it."""
        return self._socket.fileno() != -1

    def ask(
        self, message: Any, arrays: Arrays = (), *, most_bytes: int = MOST_BYTES
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
        return self.send(message, arrays, most_bytes=most_bytes).wait()

    def send(self, message: Any, arrays: Arrays = (), *, most_bytes: int = MOST_BYTES) -> Request:
        """Send a request, on which the child works while this process goes on.

        The child answers requests in turn. While one waits, another is only sent with shared memory: both
        processes could otherwise wait for the other one to read.

        Args:
            message: As for `ask`.
            arrays: As for `ask`.
            most_bytes: As for `ask`.

        Raises:
            ChildError, RequirementError: As `ask`.
        """
        header = encode_header({"message": message}, arrays)
        request = Request(self, most_bytes)
        with self._sending, self._explained_errors():
            self._requests.append(request)
            self._socket.settimeout(self._seconds)
            send_frame(self._socket, header, arrays, shared=self._shared)
        return request

    def receive(self, request: Request) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Wait for the answer to a request; answers to older ones are kept until they are asked for.

        Raises:
            ChildError, RequirementError: As `ask`.
        """
        with self._receiving, self._explained_errors():
            while request.answer is None:
                deadline = time.monotonic() + self._seconds
                self._wait_until_ready(deadline)
                oldest = self._requests[0]
                oldest.answer = receive_frame(self._socket, oldest.most_bytes, deadline, shared=self._shared)
                self._requests.popleft()
        return request.answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Turn whatever happens between the two processes into one error, and end the child."""
        try:
            yield
        except TimeoutError as error:
            self.close()
            raise NoAnswerError(f"gives no answer within {self._seconds:g} s") from error
        except (OSError, EOFError) as error:
            if self.is_open:
                self._wait_until_ready(time.monotonic() + self._seconds)
            raise ChildError(self._how_it_ended()) from error
        except ValueError as error:
            self.close()
            raise ChildError(f"answers nonsense ({error})") from error
        except BaseException:  # Ctrl-C in the middle of a frame: the next answer would be misread
            self.close()
            raise

    def _wait_until_ready(self, deadline: float) -> None:
        if self._ready:
            return
        try:
            greeting, _ = receive_frame(self._socket, 0, deadline, shared=self._shared)
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


def serve(answer: Answer, *, shared: bool = False) -> None:
    """Answer the parent's requests, in the child, until the parent closes the socket.

    Args:
        answer: Called for each request. The parent receives every exception as an `AnswerError` with the
            same message.
        shared: As in `ChildProcess`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=os.dup(0)) as connection:
        send_frame(connection, encode_header({"message": _READY}), (), shared=shared)
        while True:
            try:
                request, arrays = receive_frame(connection, MOST_BYTES, shared=shared)
            except EOFError:
                return
            try:
                message, results = answer(request.get("message"), arrays)
                header = encode_header({"message": message}, results)
            except Exception as error:
                header, results = encode_header(_describe_error(error)), ()
            send_frame(connection, header, results, shared=shared)


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
