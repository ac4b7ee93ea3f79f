"""The Parquet file of embeddings: a row for each face, and what they were computed with.

Of several processes each writes a part, and the parts lie in a folder that has the name of the file.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import SourceError, UsageError
from faces.backends.facts import BackendName
from faces.crops import CROP_SIZES, CropMethod
from faces.detect.result import Box
from faces.face_table import check_format
from faces.model import STANDARDISATIONS, ModelFacts, Standardisation
from faces.threshold import Threshold, parse_threshold

COLUMNS = ("image_path", "person_name", "bbox", "embedding")
"""The columns in their order. A path starts at the file's folder; bbox is null for a crop."""

_KEY = b"facenet-port"  # of the metadata
_PART_KEY = b"facenet-port-part"
_PART_NAME = r"part-([0-9]{5})-of-([0-9]{5})\.parquet"
_WRITE = "`facenet-port embed FOLDER -o embeddings.parquet` writes such a file"


@dataclass(frozen=True, slots=True)
class Origin:
    """The model, standardisation and crop of embeddings, and their threshold.

    Attributes:
        model: The name of the published model, or the file as it was given.
        model_sha256: `faces.model.weights_digest` of it.
        standardisation: The standardisation of the images.
        crop: The crop of the faces.
        threshold: A threshold that was measured with this model; None if none is known.
        backend: The runtime that computed them.
        backend_sha256: The SHA-256 of the exported file that it ran; None for PyTorch.
    """

    model: str
    model_sha256: str
    standardisation: Standardisation
    crop: CropMethod
    threshold: Threshold | None
    backend: BackendName = "torch"
    backend_sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The origin as the metadata has it."""
        return asdict(self)

    def check(self, network: ModelFacts, name: str) -> None:
        """Refuse another network than that of the embeddings.

        Args:
            network: The network.
            name: What holds the embeddings, such as "the gallery".

        Raises:
            UsageError: The network or its standardisation is another one.
        """
        if self.model_sha256 != network.sha256:
            raise UsageError(
                f"the embeddings of {name} are of {self.model} (SHA-256 {self.model_sha256[:12]}), not of "
                f"{network.name} ({network.sha256[:12]}). Give that one with --model, or embed again."
            )
        self.check_standardisation(network.standardisation, name)

    def check_standardisation(self, standardisation: str, name: str) -> None:
        """Refuse another standardisation than that of the embeddings, as `check` does."""
        if self.standardisation != standardisation:
            raise UsageError(
                f"the images of {name} were standardised {self.standardisation}, not {standardisation}. "
                "Embed them again."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Embeddings of faces.

    Attributes:
        files: The image of each face: a photograph or a crop.
        people: The person of each; empty if it is not known.
        boxes: The box of each in pixels; None if the image is a crop.
        values: (N, E), float32.
        origin: What they were computed with.
    """

    files: tuple[Path, ...]
    people: tuple[str, ...]
    boxes: tuple[Box | None, ...]
    values: NDArray[np.float32]
    origin: Origin

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each face: its person, or the path of its image if the person is not known."""
        return tuple(person or str(file) for person, file in zip(self.people, self.files, strict=True))


@dataclass(frozen=True, slots=True)
class Part:
    """The contents of the file of a part beside its embeddings.

    Attributes:
        run: The digest of the images, model and options of all parts.
        without_face: The photographs of the part without a face.
        problems: The errors on files of the part that could not be read.
    """

    run: str
    without_face: tuple[Path, ...]
    problems: tuple[SourceError, ...]


def is_embeddings(path: Path) -> bool:
    """Return whether a file is a Parquet table with a column of embeddings, or a folder of its parts."""
    if path.is_dir():
        return bool(_list_parts(path))
    if path.suffix.lower() != ".parquet" or importlib.util.find_spec("pyarrow") is None:
        return False
    import pyarrow
    import pyarrow.parquet

    try:
        return "embedding" in pyarrow.parquet.read_schema(path).names
    except (pyarrow.ArrowException, OSError):  # whoever reads it says why
        return False


def check_output(path: Path, *, in_parts: bool) -> None:
    """Refuse a file that embeddings cannot be written to, before the work begins. Older ones are replaced.

    Args:
        path: The file, or the folder of parts.
        in_parts: Whether parts are written.

    Raises:
        UsageError: It has another ending, its folder does not exist, it exists and is something else, or it
            is a file and parts are written.
        RequirementError: pyarrow is not installed.
    """
    if path.suffix.lower() != ".parquet":
        raise UsageError(f"{path}: embeddings are written as Parquet. Give a name that ends in .parquet.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    check_format("parquet", path)
    if not path.exists():
        return
    if path.is_dir():
        others = [file.name for file in path.iterdir() if not re.fullmatch(rf"\..*|{_PART_NAME}", file.name)]
        if others:
            raise UsageError(
                f"{path}: it has {others[0]}, which is no part of embeddings. Give another name."
            )
        return
    if in_parts:
        raise UsageError(f"{path}: it is one file, and several processes write parts. Give another name.")
    try:
        read_embeddings(path)
    except SourceError:
        raise UsageError(f"{path}: it exists and holds no embeddings. Give another name.") from None


def path_in(folder: Path, file: Path) -> str:
    """Return the path of an image in the embeddings of a folder."""
    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()


def encode_embeddings(embeddings: Embeddings, folder: Path, part: Part | None = None) -> bytes:
    """Encode embeddings as the content of a Parquet file.

    Args:
        embeddings: The embeddings.
        folder: The folder of the file, which its paths start at; for a part that of the folder of parts.
        part: What a part has beside them; None for a whole file.

    Raises:
        RequirementError: pyarrow is not installed.
    """
    check_format("parquet")
    import pyarrow
    import pyarrow.parquet

    values = pyarrow.array(embeddings.values.ravel())
    columns = (
        pyarrow.array([path_in(folder, file) for file in embeddings.files], pyarrow.string()),
        pyarrow.array(embeddings.people, pyarrow.string()),
        pyarrow.array(embeddings.boxes, pyarrow.list_(pyarrow.float64())),
        pyarrow.FixedSizeListArray.from_arrays(values, embeddings.values.shape[1]),
    )
    table = pyarrow.table(dict(zip(COLUMNS, columns, strict=True)))
    metadata = {_KEY: json.dumps(embeddings.origin.as_json()).encode()}
    if part is not None:
        beside = {
            "run": part.run,
            "without_face": [path_in(folder, file) for file in part.without_face],
            "problems": [(path_in(folder, problem.path), problem.statement) for problem in part.problems],
        }
        metadata[_PART_KEY] = json.dumps(beside).encode()
    content = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), content)
    return content.getvalue()


def read_embeddings(path: Path) -> Embeddings:
    """Read what `encode_embeddings` wrote: a file, or a folder of parts.

    Raises:
        SourceError: The file cannot be read, holds no embeddings, or lacks columns or rows; or a part is
            missing, or is of other images, another model or other options than the others.
        RequirementError: pyarrow is not installed.
    """
    embeddings = read_parts(path)[0] if path.is_dir() else _read_file(path, path.parent)[0]
    if not embeddings.files:
        raise SourceError(path, "it holds no faces", next_step=_WRITE)
    return embeddings


def read_parts(folder: Path) -> tuple[Embeddings, Part]:
    """Read a folder of parts as one.

    Raises:
        SourceError: As for `read_embeddings`, except that there may be no faces.
        RequirementError: pyarrow is not installed.
    """
    files = find_parts(folder)
    if not files:
        raise SourceError(folder, "it holds no embeddings", next_step=_WRITE)
    missing = next((file.name for file in files if not file.exists()), None)
    if missing:
        step = f"`facenet-port embed FOLDER -o {folder}` makes the missing parts"
        raise SourceError(folder, f"it has no {missing}", next_step=step)
    read = [_read_file(file, folder.parent) for file in files]
    parts = [part for _, part in read if part is not None]
    if len(parts) < len(read) or len({part.run for part in parts}) > 1:
        problem = "its parts are of different images, models or options"
        raise SourceError(
            folder, problem, next_step=f"`facenet-port embed FOLDER -o {folder}` makes them anew"
        )
    embeddings = Embeddings(
        files=tuple(file for part, _ in read for file in part.files),
        people=tuple(person for part, _ in read for person in part.people),
        boxes=tuple(box for part, _ in read for box in part.boxes),
        values=np.concatenate([part.values for part, _ in read]),
        origin=read[0][0].origin,
    )
    without_face = tuple(file for part in parts for file in part.without_face)
    problems = tuple(problem for part in parts for problem in part.problems)
    return embeddings, Part(parts[0].run, without_face, problems)


def find_parts(folder: Path, count: int | None = None) -> list[Path]:
    """Find the parts of a folder, also those that are missing.

    Args:
        folder: The folder.
        count: The number of parts if it holds none; None for no parts then.

    Raises:
        SourceError: It holds parts of different numbers.
    """
    counts = {int(file.stem[-5:]) for file in _list_parts(folder)}
    if len(counts) > 1:
        named = " and of ".join(map(str, sorted(counts)))
        raise SourceError(folder, f"it has parts of {named}", next_step="Remove it, or give another name")
    count = counts.pop() if counts else count or 0
    return [folder / f"part-{number:05}-of-{count:05}.parquet" for number in range(count)]


def _list_parts(folder: Path) -> list[Path]:
    return [file for file in folder.glob("part-*") if re.fullmatch(_PART_NAME, file.name)]


def is_of_run(file: Path, run: str) -> bool:
    """Return whether a part exists and is of this run, by its digest."""
    try:
        part = _read_file(file, file.parent)[1]
    except SourceError:
        return False
    return part is not None and part.run == run


def _read_file(path: Path, folder: Path) -> tuple[Embeddings, Part | None]:
    check_format("parquet", path)
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError as error:
        raise SourceError(path, "there is no such file", next_step=_WRITE) from error
    except (pyarrow.ArrowException, OSError) as error:
        problem = f"cannot be read as a Parquet table ({str(error).splitlines()[0]})"
        raise SourceError(path, problem, next_step=_WRITE) from error
    metadata = table.schema.metadata or {}
    origin = _parse_origin(path, metadata.get(_KEY))
    part = _parse_part(path, metadata[_PART_KEY], folder) if _PART_KEY in metadata else None
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise SourceError(path, f"it has no column {' and no column '.join(missing)}", next_step=_WRITE)
    files = [folder / file for file in _texts(path, table, "image_path")]
    people = _texts(path, table, "person_name")
    boxes = [None if box is None else tuple(box) for box in table["bbox"].to_pylist()]
    return Embeddings(tuple(files), tuple(people), tuple(boxes), _parse_values(path, table), origin), part


def _parse_part(path: Path, metadata: bytes, folder: Path) -> Part:
    try:
        content = json.loads(metadata)
        without_face = tuple(folder / file for file in content["without_face"])
        problems = tuple(
            SourceError(folder / file, text.removesuffix(".")) for file, text in content["problems"]
        )
        return Part(content["run"], without_face, problems)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise SourceError(path, "what it says of its part cannot be read", next_step=_WRITE) from error


def _parse_origin(path: Path, metadata: bytes | None) -> Origin:
    if metadata is None:
        raise SourceError(path, "it does not say which model its embeddings are of", next_step=_WRITE)
    try:
        content = json.loads(metadata)
        threshold = content.pop("threshold")
        origin = Origin(**content, threshold=None if threshold is None else parse_threshold(threshold))
        if origin.standardisation not in STANDARDISATIONS or origin.crop not in CROP_SIZES:
            raise ValueError("an unknown standardisation or crop")
        if not isinstance(origin.model, str) or not isinstance(origin.model_sha256, str):
            raise TypeError("the model is no text")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        problem = "what it says of the model of its embeddings cannot be read"
        raise SourceError(path, problem, next_step=_WRITE) from error
    return origin


def _texts(path: Path, table: Any, column: str) -> Sequence[str]:
    values = table[column].to_pylist()
    if not all(isinstance(value, str) for value in values):
        raise SourceError(path, f"its column {column} has values that are no text", next_step=_WRITE)
    return values  # type: ignore[no-any-return]


def _parse_values(path: Path, table: Any) -> NDArray[np.float32]:
    try:
        values = np.asarray(table["embedding"].combine_chunks().flatten(), np.float32)
        size = -1 if table.num_rows else getattr(table.schema.field("embedding").type, "list_size", 0)
        values = values.reshape(table.num_rows, size)
        norms = np.linalg.norm(values, axis=1)
    except (ValueError, TypeError, AttributeError):
        norms = np.zeros(1)
    if not np.allclose(norms, 1, atol=1e-3):  # NaN is not close
        raise SourceError(path, "its column embedding holds no embeddings of length 1", next_step=_WRITE)
    return values
