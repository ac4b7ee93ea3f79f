"""The Attack class, and the collection of all attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
MARK = "executed"
"""Name of the file that an attack leaves behind if it runs code or writes outside its folder."""

WEIGHTS = "InceptionResnetV1/Conv2d_1a_3x3/weights"
KEY = "conv2d_1a.conv.weight"
_ENDINGS = {"data": ".data-00000-of-00001", "index": ".index"}


@dataclass(frozen=True)
class Attack:
    """A file made to do harm.

    Attributes:
        name: Name of the file for the command.
        tries: The attack in a line.
        files: Name to content of every file: one file, or an .index with its .data.
        exact: Whether the bytes are always the same; those of HDF5 and zlib change with releases.
    """

    name: str
    tries: str
    files: Mapping[str, bytes]
    exact: bool


ATTACKS: dict[str, Attack] = {}
"""Name to attack, filled when the other modules are imported by `attacks.make`."""


def attack(name: str, tries: str, content: bytes, *, exact: bool = True, **companions: bytes) -> None:
    """Add an attack; a companion is its `data` or its `index`."""
    stem = name.partition(".")[0]
    files = {name: content} | {stem + _ENDINGS[kind]: other for kind, other in companions.items()}
    ATTACKS[name] = Attack(name, tries, files, exact)
