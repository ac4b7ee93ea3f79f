"""Names of files in messages: printable, quoted, and free where a message suggests one."""

from __future__ import annotations

import os
import shlex
from itertools import count
from pathlib import Path

_LINE_ENDS = {ord("\n"), ord("\t")}
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0))}
_OTHER_CONTROLS = {code: text for code, text in _CONTROLS.items() if code not in _LINE_ENDS}


def printable_name(path: Path | str) -> str:
    r"""Write a path on one line: a control character, which acts on a terminal, as Python does, \x1b."""
    return str(path).translate(_CONTROLS)


def without_controls(text: str) -> str:
    """Write the control characters of a text as `printable_name` does, but for line ends and tabs."""
    return text.translate(_OTHER_CONTROLS)


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
