"""Embed the faces of a folder."""

from __future__ import annotations

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
from faces.embeddings import Embeddings, Origin, check_output, encode_embeddings, path_in
from faces.face_table import find_table, read_table


def embed(
    source: str | Path,
    output: str | Path | None = None,
    *,
    threshold: str | Path | None = None,
    embedder: Embedder | None = None,
    progress: Progress = lambda done, total: None,
) -> EmbedResult:
    """Embed the faces of a folder, and write them with what they were computed with.

    A file that cannot be read or has no face is listed in the result, and the others are embedded.

    Args:
        source: A folder of photographs or crops, or of a folder of them for each person; or a table such as
            that of `facenet-port align`, which is also read if it lies in the folder. Its crops are embedded,
            or if it has none its photographs, cropped around their boxes.
        output: The .parquet file; older embeddings are replaced. None writes nothing.
        threshold: A result of `facenet-port evaluate --json` with the same model, to be kept with the
            embeddings. None takes the one that was measured for the default model.
        embedder: The model and the options; None takes the defaults.
        progress: Progress callback: images done, and their number.

    Raises:
        UsageError: There is no such folder, the file is something else, the threshold is of another model,
            or there are crops of several kinds.
        SourceError: The folder holds no photographs that can be read, or no face, or the table lacks columns
            or files.
        RequirementError: A package or weights are missing.
    """
    source, output = Path(source), None if output is None else Path(output)
    if output is not None:
        check_output(output)
    images, people = find_images(source)
    unwritable: list[PhotographError] = []
    if output is not None:
        images, people, unwritable = _leave_out_unwritable(images, people, output.parent)
    embedder = embedder or Embedder()
    crop = embedder.find_crop(images)
    measured = embedder.find_threshold(threshold, crop)
    embedded = embedder.embed(images, progress)
    problems = (*unwritable, *embedded.problems)
    if problems and not (embedded.faces or embedded.without_face):
        raise problems[0]
    if not embedded.faces:
        problem = f"no face was found in its {counted(len(images), 'photograph')}"
        step = f"`facenet-port detect {source}` searches them one by one"
        raise SourceError(source, problem, next_step=step)
    model = embedder.model
    embeddings = Embeddings(
        files=tuple(face.file for face in embedded.faces),
        people=tuple(people[face.place] for face in embedded.faces),
        boxes=tuple(face.box for face in embedded.faces),
        values=np.stack([face.embedding for face in embedded.faces]),
        origin=Origin(model.name, model.sha256, model.standardisation, crop, measured),
    )
    if output is not None:
        replace_file(output, encode_embeddings(embeddings, output.parent))
    return EmbedResult(source, output, embeddings, model.facts, embedded.without_face, problems)


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
