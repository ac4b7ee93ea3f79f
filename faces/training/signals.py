"""Signals that wait for the end of a step, so that a checkpoint of it can be written."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_REPEATS = 5.0  # seconds in which a signal comes twice: to a process by itself, and through torchrun


class SignalError(Exception):
    """A signal has come, and a checkpoint of the last step is written.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Note SIGINT, SIGTERM and SIGHUP instead of stopping at once, until the end; a later one does not wait.

    Yields:
        The signal that has come; empty until then.
    """
    received: list[int] = []
    before: dict[int, Any] = {}
    came = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if not received:
            received.append(number)
            came = time.monotonic()
        elif time.monotonic() - came > _REPEATS:
            restore()
            os.kill(os.getpid(), number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    try:
        yield received
    except SignalError as stopped:
        restore()
        os.kill(os.getpid(), stopped.number)
        raise KeyboardInterrupt from stopped  # the signal of another process
    finally:
        restore()


def obey_the_training_alone(worker: int) -> None:
    """Leave the end of a process that reads images to the training, which signals to it come to as well.

    The training ends its processes by SIGTERM. Only that of the training is obeyed.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS: no signal to the training's process group comes here
        os.setpgid(0, 0)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait_for_the_training, daemon=True).start()


def _wait_for_the_training() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)
