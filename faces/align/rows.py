"""The table of the faces that `align` has cropped: a row for each, and the split of people."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from converter.errors import UsageError
from faces.align.result import AlignedPhotograph, person_of

TRAIN, VALIDATION = "train", "val"
_SPLITS = {"train": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": "test"}

COLUMNS = (
    "image_path",
    "person_name",
    "bbox",
    "split_type",
    "label",
    "landmarks",
    "score",
    "crop_path",
)
"""The columns in their order."""


def split_people(share: float, people: Iterable[str], seed: int) -> dict[str, str]:
    """Divide people at random: each is whole in one part, and both parts have somebody.

    Args:
        share: Of the people that are "train"; the others are "val".
        people: At least two names.
        seed: Of the draw; the same people and seed give the same split.
    """
    drawn = sorted(set(people))
    random.Random(seed).shuffle(drawn)  # noqa: S311
    train = min(max(round(share * len(drawn)), 1), len(drawn) - 1)
    return {person: TRAIN if place < train else VALIDATION for place, person in enumerate(drawn)}


def check_split(share: float | None, names: Iterable[str]) -> None:
    """Refuse a split that is none.

    Args:
        share: Of the people that are "train"; None for no split.
        names: The photographs.

    Raises:
        UsageError: The share is not between 0 and 1, or there are fewer than two people.
    """
    if share is None:
        return
    if not 0 < share < 1:
        raise UsageError(f"--split {share:g}: give a share of the people between 0 and 1, such as 0.8.")
    if len({person_of(name) for name in names} - {""}) < 2:
        raise UsageError(
            "--split divides people, and the photographs do not show two. Give a folder with a folder of "
            "photographs for each person."
        )


def start_of_paths(out: Path, folder: Path) -> Path:
    """Return the path from the folder of crops to that of the photographs."""
    return Path(os.path.relpath(folder.resolve(), out.resolve()))


def image_path(start: Path, name: str) -> str:
    """Return a photograph's path in the table."""
    return (start / name).as_posix()


def face_columns(
    out: Path, folder: Path, photographs: Sequence[AlignedPhotograph], share: float | None, seed: int
) -> dict[str, list[Any]]:
    """Make the columns of the table: a row for each face that has a crop.

    Args:
        out: The folder of the table and the crops, which its paths start at.
        folder: The folder of photographs.
        photographs: What was made of each.
        share: As in `split_people`; None takes the train, val and test among the names of folders.
        seed: As in `split_people`.
    """
    people = sorted({photograph.person for photograph in photographs if photograph.cropped} - {""})
    labels = {person: label for label, person in enumerate(people)}
    parts = None if share is None else split_people(share, people, seed)
    start = start_of_paths(out, folder)
    rows = [
        {
            "image_path": image_path(start, photograph.name),
            "person_name": photograph.person,
            "bbox": list(cropped.face.box),
            "split_type": _part_of(photograph.name) if parts is None else parts.get(photograph.person, ""),
            "label": labels.get(photograph.person),
            "landmarks": [list(point) for point in cropped.face.landmarks],
            "score": cropped.face.score,
            "crop_path": cropped.crop,
        }
        for photograph in photographs
        for cropped in photograph.cropped
    ]
    return {column: [row[column] for row in rows] for column in COLUMNS}


def _part_of(name: str) -> str:
    """Return the split that a photograph's folders name; empty if they name none."""
    folders = reversed(PurePosixPath(name).parts[:-1])
    return next((_SPLITS[part.lower()] for part in folders if part.lower() in _SPLITS), "")
