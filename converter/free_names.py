"""Names of files that a message suggests, so that nothing that exists is overwritten."""

from __future__ import annotations

import os
import shlex
from itertools import count
from pathlib import Path


def free_name(name: str) -> str:
    """Return a name that no file of the current folder has: weights.pt, or else weights-2.pt."""
    path = Path(name)
    number = count(2)
    while os.path.lexists(name):
        name = f"{path.stem}-{next(number)}{path.suffix}"
    return name


def quoted(path: Path | str) -> str:
    """Quote a path for a shell."""
    return shlex.quote(str(path))


def save_line(state_dict: str) -> str:
    """Give the line of Python that saves a state_dict, an expression, under a free name."""
    return f'torch.save({state_dict}, "{free_name("weights.pt")}")'
