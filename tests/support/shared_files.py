"""Files that take seconds to make, shared by all processes of a test run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared_folder(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of this test run; the first process that needs it fills it.

    The other workers of pytest-xdist wait. Tests only read the folder.

    Args:
        factory: pytest's `tmp_path_factory`.
        name: The name of the folder; equal names share a folder.
        make: Function that fills an empty folder.
    """
    base = factory.getbasetemp()
    # Each worker has a base folder of its own; their parent belongs to the run.
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)
    folder, unfinished = root / name, root / f"{name}.unfinished"
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that failed
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder
