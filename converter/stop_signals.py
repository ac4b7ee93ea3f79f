"""SIGINT, SIGTERM and SIGHUP as one exception, so that whoever is stopped leaves nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEANING_UP = 5.0  # seconds
_UNTIL_IMPORTED = 0.05  # seconds


class Stop(KeyboardInterrupt):
    """A signal has stopped the work.

    A class of its own, since Python kills itself by SIGINT at the end if code that a C extension ran, such as
    one being imported, has ended with a KeyboardInterrupt.
    """


class StopSignals:
    """A context manager: the first of these signals raises `Stop` in the main thread.

    During an import it is put off until the import has ended, because the C++ code of PyTorch imports modules
    and aborts the process if one of them raises. Those that follow within a few seconds are ignored, so that
    the work can clean up. A later one raises again, in case a library has swallowed the first. A signal that
    is ignored, such as SIGHUP under nohup, or that has a handler already is left alone; so is everything in
    another thread than the main one.

    Attributes:
        received: The signal that has stopped the work; None until then.

    Args:
        for_good: Whether the process ends after the work. Once stopped, it then ignores the signals until
            its end.
    """

    def __init__(self, *, for_good: bool) -> None:
        self.received: signal.Signals | None = None
        self._for_good = for_good
        self._time = 0.0
        self._before: dict[signal.Signals, object] = {}

    @property
    def exit_code(self) -> int:
        """128 + the signal, as in shells; SIGINT if another handler has raised the KeyboardInterrupt."""
        return 128 + (self.received or signal.SIGINT)

    @property
    def cause(self) -> str:
        """A clause for the message, such as "ended by SIGTERM"."""
        if self.received in (None, signal.SIGINT):
            return "interrupted"
        return f"ended by {self.received.name}"

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = before
                    signal.signal(number, self._stop)
        return self

    def __exit__(self, *exception: object) -> None:
        ends = self._for_good and self.received is not None
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if ends else before)  # type: ignore[arg-type]

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and time.monotonic() - self._time < _CLEANING_UP:
            return
        if _is_importing(frame):
            again = threading.Timer(_UNTIL_IMPORTED, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        self.received = signal.Signals(number)
        self._time = time.monotonic()
        raise Stop


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a frame belongs to the import of a module, at any depth."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None
