"""The table of the faces that `align` has cropped: a row for each, and the split of people."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from converter.errors import UsageError
from faces.align.result import SPLITS, AlignedPhotograph, person_of

TRAIN, VALIDATION = "train", "val"

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

    Names and seed alone decide on the order, so a person who is added later moves at most one other.

    Args:
        share: Share of the people that is "train", rounded to whole people; the others are "val".
        people: At least two names.
        seed: Of the draw.
    """
    ordered = sorted(people, key=lambda person: hashlib.sha256(os.fsencode(f"{seed} {person}")).digest())
    trained = min(max(round(share * len(ordered)), 1), len(ordered) - 1)
    return {person: TRAIN if place < trained else VALIDATION for place, person in enumerate(ordered)}


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
            "--split divides people, and fewer than two have a face here. Give a folder with a folder of "
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
    stated = _stated_splits([photograph.name for photograph in photographs])
    start = start_of_paths(out, folder)
    rows = [
        {
            "image_path": image_path(start, photograph.name),
            "person_name": photograph.person,
            "bbox": list(cropped.face.box),
            "split_type": stated[photograph.name] if parts is None else parts.get(photograph.person, ""),
            "label": labels.get(photograph.person),
            "landmarks": [list(point) for point in cropped.face.landmarks],
            "score": cropped.face.score,
            "crop_path": cropped.crop,
        }
        for photograph in photographs
        for cropped in photograph.cropped
    ]
    return {column: [row[column] for row in rows] for column in COLUMNS}


def _stated_splits(names: Sequence[str]) -> dict[str, str]:
    """Return the split that the folders of each photograph name; empty if they name none.

    A photograph's own folder is a person of that name, such as Val, unless all beside it are splits.
    """
    beside: defaultdict[PurePosixPath, set[str]] = defaultdict(set)
    for name in names:
        for folder in PurePosixPath(name).parents:
            beside[folder.parent].add(folder.name.lower())
    splits = {}
    for name in names:
        *folders, own = ("", *PurePosixPath(name).parts[:-1])
        if beside[PurePosixPath(name).parent.parent] <= {"", *SPLITS}:
            folders.append(own)
        splits[name] = next(
            (SPLITS[folder.lower()] for folder in reversed(folders) if folder.lower() in SPLITS), ""
        )
    return splits
