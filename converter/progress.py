"""A progress bar on stderr that shows only when the work takes over a second."""

from __future__ import annotations

import time
from typing import Any, Self

_PATIENCE = 1.0  # seconds


class ProgressBar:
    """Call it with (done, total) as the work goes on, and `label` to name the work.

    Args:
        label: Name of the work.
        quiet: Whether to show nothing at all.
    """

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label = label
        self._quiet = quiet
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, done: int, total: int | None) -> None:
        """Show `done` of `total`, in any unit; without a total, the bar has no end."""
        if self._shown():
            self._bar.update(self._task, completed=done, total=total)

    def label(self, label: str) -> None:
        """Name the work; the bar has no end until the next call with a total."""
        self._label = label
        if self._shown():
            self._bar.update(self._task, description=label)

    def _shown(self) -> bool:
        if self._bar is not None:
            return True
        if self._quiet or time.monotonic() - self._start < _PATIENCE:
            return False
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        if not console.is_terminal:
            self._quiet = True  # without a terminal a bar would only leave an empty line
            return False
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task(self._label, total=None)
        self._bar.start()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
