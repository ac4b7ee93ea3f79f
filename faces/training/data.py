"""The faces of a training: who is trained on and validated on, and the batches of an epoch."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from converter.counts import counted
from converter.errors import SourceError, UsageError
from converter.manifest import file_digest
from faces.crops import (
    CropMethod,
    find_crop,
)
from faces.dataset import LabelledFace, find_faces
from faces.face_table import find_table
from faces.training.config import FieldError, TrainConfig, with_option
from faces.training.images import Row

_MOST_NAMED = 5  # people or files in a message
_SHUFFLED, _DIVIDED = 0, 2  # what a seed is for


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The faces of a training.

    Attributes:
        people: The names of the people who are trained on, in the order of the outputs of a classifier.
        training: The faces that are trained on.
        labels: The place of each one's person in `people`.
        validation: The faces that are validated on.
        crop: The crop of the faces, which is that of the first.
        digest: SHA-256 of the table, or of the names of the files, in hexadecimal.
        notes: Sentences on what is left out.
    """

    people: tuple[str, ...]
    training: tuple[LabelledFace, ...]
    labels: NDArray[np.int64]
    validation: tuple[LabelledFace, ...]
    crop: CropMethod
    digest: str
    notes: tuple[str, ...] = ()


def find_data(config: TrainConfig) -> TrainingData:
    """Find the faces of a training, and divide them.

    Args:
        config: The configuration.

    Raises:
        UsageError: There are no such splits, nobody is named, fewer than two people can be trained on, or a
            batch has more faces or people than there are.
        SourceError: The data cannot be read, or a face is both trained and validated on.
    """
    source = Path(config.data)
    table = find_table(source)
    faces = [face for face in find_faces(source, with_split=table is not None) if face.person]
    if not faces:
        raise UsageError(f"{source}: no face has a name. Give a folder for each person, or a person_name.")
    _check_names(source, faces)
    training, validation = _divide(config, faces)
    notes = []
    if config.task == "triplet":
        training, single = _leave_out_single(training)
        if single:
            notes.append(
                f"{_people(len(single))} with one face to train on left out, since triplets need two: "
                f"{_name(single)}."
            )
    people = tuple(sorted({face.person for face in training}))
    if len(people) < 2:
        left_out = f"; {notes[0]}" if notes else "."
        raise UsageError(f"{source}: {_people(len(people))} to train on{left_out} Give at least two.")
    places = {person: place for place, person in enumerate(people)}
    _check_batch(config, source, len(training), len(people))
    _check_leaks(source, training, validation)
    if config.task == "classifier":
        strangers = sorted({face.person for face in validation} - set(people))
        if strangers:
            raise UsageError(
                f"{source}: a classifier is validated on the people that it is trained on, and there is no "
                f"face to train on of {_name(strangers)}. Divide each person's faces, with "
                f"{with_option('validation_share')}, or take {with_option('task')} triplet."
            )
    labels = np.array([places[face.person] for face in training], np.int64)
    crop = find_crop((face.image.file for face in training), "scaled")
    digest = _digest(table, faces)
    return TrainingData(people, tuple(training), labels, tuple(validation), crop, digest, tuple(notes))


def _divide(
    config: TrainConfig, faces: Sequence[LabelledFace]
) -> tuple[list[LabelledFace], list[LabelledFace]]:
    """Divide faces as their split_type says, or each person's by the share for validation."""
    held = Counter(face.split for face in faces)
    if held.keys() - {""}:
        if config.validation_share:
            raise UsageError(
                f"{config.data}: its faces have a split_type, so there is no share to draw. Leave out "
                f"{with_option('validation_share')}."
            )
        missing = [name for name in (config.train_split, config.validation_split) if name not in held]
        if missing:
            raise UsageError(
                f"{config.data}: no face has the split_type {missing[0]!r}. There are: "
                f"{', '.join(sorted(filter(None, held)))}. Set {with_option('train_split')} and "
                f"{with_option('validation_split')}."
            )
        return (
            [face for face in faces if face.split == config.train_split],
            [face for face in faces if face.split == config.validation_split],
        )
    if not config.validation_share:
        raise UsageError(
            f"{config.data}: it does not tell which faces to validate on. Give "
            f"{with_option('validation_share')}, such as 0.2 of each person's faces, or align folders that "
            "are called train and val."
        )
    drawn = np.random.default_rng([config.seed, _DIVIDED])
    by_person: dict[str, list[LabelledFace]] = defaultdict(list)
    for face in faces:
        by_person[face.person].append(face)
    training: list[LabelledFace] = []
    validation: list[LabelledFace] = []
    for person in sorted(by_person):
        order = drawn.permutation(len(by_person[person]))
        count = min(round(config.validation_share * len(order)), len(order) - 1)  # one is left to train on
        chosen = set(order[:count].tolist())
        for place, face in enumerate(by_person[person]):
            (validation if place in chosen else training).append(face)
    if not validation:
        raise FieldError(
            "validation_share",
            f"{config.validation_share:g} leaves nobody of {config.data} a face to validate on. Give a "
            "larger share, or more faces of a person.",
        )
    return training, validation


def _leave_out_single(faces: Sequence[LabelledFace]) -> tuple[list[LabelledFace], list[str]]:
    counts = Counter(face.person for face in faces)
    single = sorted(person for person, count in counts.items() if count == 1)
    return [face for face in faces if counts[face.person] > 1], single


def _check_names(source: Path, faces: Sequence[LabelledFace]) -> None:
    """Refuse a face of two people."""
    person_of: dict[tuple[Path, object], str] = {}
    for face in faces:
        other = person_of.setdefault((face.image.file, face.image.box), face.person)
        if other != face.person:
            raise SourceError(
                source,
                f"the face {face.image.file} is that of {other!r} and of {face.person!r}",
                next_step="Remove a row",
            )


def _check_batch(config: TrainConfig, source: Path, faces: int, people: int) -> None:
    if config.task == "classifier" and config.batch_size > faces:
        raise FieldError(
            "batch_size",
            f"{config.batch_size} is more than the {counted(faces, 'face')} of {source} to train on. Give "
            f"{faces} or fewer.",
        )
    if config.task == "triplet" and config.people_per_batch > people:
        raise FieldError(
            "people_per_batch",
            f"{config.people_per_batch} is more than the {_people(people)} of {source} to train on. Give "
            f"{people} or fewer.",
        )


def _check_leaks(source: Path, training: Sequence[LabelledFace], validation: Sequence[LabelledFace]) -> None:
    """Refuse a face that is both trained and validated on, by the content of its file."""
    sizes = {face.image.file.stat().st_size for face in validation}
    seen = {_file_key(face): face for face in training if face.image.file.stat().st_size in sizes}
    both = [(face, seen[_file_key(face)]) for face in validation if _file_key(face) in seen]
    if both:
        files = [(str(face.image.file), str(other.image.file)) for face, other in both]
        named = _name([first if first == other else f"{first} (as {other})" for first, other in files])
        raise SourceError(
            source,
            f"{counted(len(both), 'face')} to validate on that {'is' if len(both) == 1 else 'are'} also "
            f"trained on: {named}",
            next_step="Remove one of each pair: figures on faces that were learnt say nothing",
        )


def _file_key(face: LabelledFace) -> tuple[str, object]:
    return file_digest(face.image.file), face.image.box


def _digest(table: Path | None, faces: Sequence[LabelledFace]) -> str:
    """Digest what was read of the data: the table, or else the paths of the images."""
    content = table.read_bytes() if table else b"\n".join(os.fsencode(face.image.file) for face in faces)
    return hashlib.sha256(content).hexdigest()


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count} people"


def _name(people: Sequence[str]) -> str:
    return ", ".join(people[:_MOST_NAMED]) + (", ..." if len(people) > _MOST_NAMED else "")


def epoch_batches(config: TrainConfig, data: TrainingData, epoch: int) -> list[NDArray[np.int64]]:
    """Draw the batches of an epoch, of all processes together: places among the faces to train on.

    A classifier's batches hold every face once; the last may be smaller. Batches of triplets hold
    `people_per_batch` people and up to `faces_per_person` faces of each, one person after the other; there
    are as many as it takes to see each face about once.

    Args:
        config: The configuration, with the seed.
        data: The faces.
        epoch: Number of the epoch, from 0.
    """
    drawn = np.random.default_rng([config.seed, _SHUFFLED, epoch])
    if config.task == "classifier":
        order = drawn.permutation(len(data.training))
        return [order[start : start + config.batch_size] for start in range(0, len(order), config.batch_size)]
    people = np.split(np.argsort(data.labels, kind="stable"), np.cumsum(np.bincount(data.labels))[:-1])
    count = math.ceil(len(data.training) / (config.people_per_batch * config.faces_per_person))
    batches = []
    for _ in range(count):
        chosen = drawn.choice(len(people), config.people_per_batch, replace=False)
        batches.append(
            np.concatenate(
                [drawn.permutation(people[person])[: config.faces_per_person] for person in chosen]
            )
        )
    return batches


def check_shares(config: TrainConfig, data: TrainingData, processes: int, *, trains_batch_norm: bool) -> None:
    """Refuse batches that leave a process too few faces.

    Args:
        config: The configuration.
        data: The faces.
        processes: The number of processes.
        trains_batch_norm: Whether BatchNorm takes the statistics of batches, for which one face is too few.

    Raises:
        UsageError: A process would have too few.
    """
    if config.task == "classifier":
        smallest = min(map(len, epoch_batches(config, data, 0))) // processes
    else:  # who is in a batch varies
        counts = np.sort(np.minimum(np.bincount(data.labels), config.faces_per_person))
        smallest = int(counts[: config.people_per_batch].sum()) // processes
    if smallest < 1 + trains_batch_norm:
        name = "batch_size" if config.task == "classifier" else "people_per_batch"
        why = ", too few for the statistics of BatchNorm" if smallest else ""
        fewer = ", or fewer processes" if processes > 1 else ""
        raise FieldError(
            name,
            f"with {counted(len(data.training), 'face')} to train on, a batch leaves a process "
            f"{smallest or 'no'} face{why}. Give another {name}{fewer}.",
        )


class Batches(Sampler[list[Row]]):
    """The share of one process in the batches of an epoch, from a step on.

    Attributes:
        epoch: Number of the epoch, from 0.
        start: The batches of the epoch that are left out, because they have been trained on.

    Args:
        config: The configuration.
        data: The faces.
        process: Number of the process.
        processes: Their number.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, process: int = 0, processes: int = 1) -> None:
        self._config, self._data, self._process, self._processes = config, data, process, processes
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[list[Row]]:
        for batch in epoch_batches(self._config, self._data, self.epoch)[self.start :]:
            share = share_of(len(batch), self._process, self._processes)
            yield [(self.epoch, int(place)) for place in batch[share]]

    def __len__(self) -> int:
        return len(epoch_batches(self._config, self._data, self.epoch)) - self.start


def share_of(rows: int, process: int, processes: int) -> slice:
    """The consecutive rows of a batch that one of several processes takes, as evenly as can be."""
    return slice(rows * process // processes, rows * (process + 1) // processes)
