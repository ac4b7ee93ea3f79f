"""Embed the faces of a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from checks.core.photographs import PhotographError, find_photographs
from converter.atomic import replace_file
from converter.counts import counted
from converter.errors import SourceError
from converter.formats.limits import is_utf_8
from faces.align.result import person_of
from faces.crops import FaceImage, read_images
from faces.embed.result import EmbedResult
from faces.embedder import Embedder, Progress
from faces.embeddings import (
    Embeddings,
    Origin,
    Part,
    check_output,
    encode_embeddings,
    find_parts,
    is_of_run,
    path_in,
    read_parts,
)
from faces.face_table import find_table, read_table
from faces.processes import ALONE, Processes


def embed(
    source: str | Path,
    output: str | Path | None = None,
    *,
    threshold: str | Path | None = None,
    embedder: Embedder | None = None,
    processes: Processes = ALONE,
    progress: Progress = lambda done, total: None,
) -> EmbedResult:
    """Embed the faces of a folder, and write them with what they were computed with.

    A file that cannot be read or has no face is listed in the result, and the others are embedded.

    Args:
        source: A folder of photographs or crops, or of a folder of them for each person; or a table such as
            that of `facenet-port align`, which is also read if it lies in the folder. Its crops are embedded,
            or if it has none its photographs, cropped around their boxes.
        output: The .parquet file; older embeddings are replaced. None writes nothing. Several processes make
            a folder of parts of it, and so does one process if there is such a folder: parts that are of
            these images, this model and these options stay.
        threshold: A result of `facenet-port evaluate --json` with the same model, to be kept with the
            embeddings. None takes the one that was measured for the default model.
        embedder: The model and the options; None takes the defaults.
        processes: The processes that share the images, each of which calls this function. The result is that
            of all.
        progress: Progress callback: images done, and their number, of this process.

    Raises:
        UsageError: There is no such folder, the file is something else, the threshold is of another model,
            or there are crops of several kinds.
        SourceError: The folder holds no photographs that can be read, or no face, or the table lacks columns
            or files.
        RequirementError: A package or weights are missing, or another process has ended.
    """
    source, output = Path(source), None if output is None else Path(output)
    in_parts = output is not None and (processes.count > 1 or output.is_dir())
    if output is not None:
        check_output(output, in_parts=in_parts)
    images, people = find_images(source)
    unwritable: list[PhotographError] = []
    if output is not None:
        images, people, unwritable = _leave_out_unwritable(images, people, output.parent)
    embedder = embedder or Embedder()
    crop = embedder.find_crop(images)
    embedder.expect(len(images), are_shared=in_parts)
    measured = embedder.find_threshold(threshold, crop)
    model, runtime = embedder.model, embedder.model.checked
    origin = Origin(
        model.name, model.sha256, model.standardisation, crop, measured, runtime.name, runtime.file_sha256
    )
    work = _Work(images, people, embedder, origin)
    if output is not None and in_parts:
        embeddings, rest = work.embed_parts(output, processes, progress)
    else:
        embeddings, rest = work.embed(slice(None), progress)
    problems = (*unwritable, *rest.problems)
    if problems and not (embeddings.files or rest.without_face):
        raise problems[0]
    if not embeddings.files:
        problem = f"no face was found in its {counted(len(images), 'photograph')}"
        step = f"`facenet-port detect {source}` searches them one by one"
        raise SourceError(source, problem, next_step=step)
    if output is not None and not in_parts:
        replace_file(output, encode_embeddings(embeddings, output.parent))
    facts = embedder.detector_facts
    return EmbedResult(source, output, embeddings, model.facts, rest.without_face, problems, facts)


@dataclass(frozen=True, slots=True)
class _Work:
    """The images, and what they are embedded with."""

    images: Sequence[FaceImage]
    people: Sequence[str]
    embedder: Embedder
    origin: Origin

    def embed(self, share: slice, progress: Progress, run: str = "") -> tuple[Embeddings, Part]:
        """Embed consecutive images; returns the faces, and beside them what has none."""
        people = self.people[share]
        embedded = self.embedder.embed(self.images[share], progress, crop=self.origin.crop)
        none = np.empty((0, self.embedder.model.backend.embedding_size), np.float32)
        embeddings = Embeddings(
            files=tuple(face.file for face in embedded.faces),
            people=tuple(people[face.place] for face in embedded.faces),
            boxes=tuple(face.box for face in embedded.faces),
            values=np.stack([face.embedding for face in embedded.faces]) if embedded.faces else none,
            origin=self.origin,
        )
        return embeddings, Part(run, embedded.without_face, embedded.problems)

    def embed_parts(self, output: Path, processes: Processes, progress: Progress) -> tuple[Embeddings, Part]:
        """Make the parts of this process that are not there yet; returns all parts as one."""
        files, run, count = find_parts(output, processes.count), self._digest(output.parent), len(self.images)
        output.mkdir(exist_ok=True)
        for number in range(processes.number, len(files), processes.count):
            if not is_of_run(files[number], run):
                share = slice(count * number // len(files), count * (number + 1) // len(files))
                embeddings, part = self.embed(share, progress, run)
                replace_file(files[number], encode_embeddings(embeddings, output.parent, part))
        processes.wait()
        return read_parts(output)

    def _digest(self, folder: Path) -> str:
        """Compute what tells this run from others: the images, the model and the options."""
        origin = replace(self.origin, backend="torch", backend_sha256=None)  # which round alike
        options = [origin.as_json(), self.embedder.crop, self.embedder.detector_options]
        digest = hashlib.sha256(json.dumps(options).encode())
        for image, person in zip(self.images, self.people, strict=True):
            status = image.file.stat()
            state = [path_in(folder, image.file), person, image.box, status.st_size, status.st_mtime_ns]
            digest.update(json.dumps(state).encode())
        return digest.hexdigest()


def _leave_out_unwritable(
    images: list[FaceImage], people: list[str], folder: Path
) -> tuple[list[FaceImage], list[str], list[PhotographError]]:
    """Leave out images whose path or person Parquet, which is UTF-8, cannot hold, with an error on each."""
    kept, problems = [], []
    for image, person in zip(images, people, strict=True):
        if is_utf_8(Path(path_in(folder, image.file), person)):
            kept.append((image, person))
        else:
            problem = "its path is not UTF-8, which Parquet needs"
            problems.append(PhotographError(image.file, problem, "Rename it"))
    return [image for image, _ in kept], [person for _, person in kept], problems


def find_images(source: Path) -> tuple[list[FaceImage], list[str]]:
    """Find the images of a folder or table, with their boxes if the table has them, and the person of each.

    Raises:
        UsageError: There is no such folder or table.
        SourceError: The folder holds no photographs, or the table lacks columns or files.
    """
    table = None if not source.exists() else find_table(source)
    if table is None:
        files = find_photographs(source)
        return list(map(FaceImage, files)), [person_of(file.relative_to(source).as_posix()) for file in files]
    read = read_table(table)
    return read_images(read), read.texts("person_name")
