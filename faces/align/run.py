"""Crop the faces of a folder of photographs."""

from __future__ import annotations

import hashlib
import io
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from checks.core.options import check_device
from checks.core.photographs import PhotographError, find_photographs, read_photograph, walk
from converter.atomic import HiddenFolder, sync
from converter.errors import DifferenceError, RequirementError, SourceError, UsageError
from converter.formats.limits import is_utf_8
from faces.align.journal import FileState, Journal, recorded_backend
from faces.align.result import AlignedPhotograph, AlignOptions, AlignResult, CroppedFace
from faces.align.rows import check_split, face_columns, image_path, start_of_paths
from faces.backends.export_cache import TAKE_TORCH
from faces.backends.facts import BackendFacts, BackendName
from faces.crops import CropMethod, choose_face, crop_face
from faces.detect.detector import FaceDetector
from faces.detect.result import Face
from faces.face_table import TABLE_FORMATS, TableFormat, check_format, encode_table
from faces.processes import ALONE, Processes

# Photographs that the detector is given at once: at most so many, and no more once they have so many pixels.
_BATCH, _BATCH_PIXELS = 16, 1 << 24

Progress = Callable[[int, int | None], None]
_Load = Callable[[AlignOptions], FaceDetector]


def align(
    folder: str | Path,
    out: str | Path,
    *,
    options: AlignOptions = AlignOptions(),  # noqa: B008, it is frozen
    table: TableFormat = "csv",
    split: float | None = None,
    seed: int = 0,
    workers: int = 2,
    device: str = "cpu",
    offline: bool = False,
    processes: Processes = ALONE,
    progress: Progress = lambda done, total: None,
) -> AlignResult:
    """Crop the faces of a folder of photographs, and write a table of them.

    Each crop is a PNG at the photograph's place below the folder. A file that cannot be read or has no face
    is listed in the result, and the others are cropped. If a run ends early, the next one goes on where it
    stopped; photographs that are new in the folder are added.

    Args:
        folder: Photographs, or a folder of them for each person, at any depth.
        out: A new folder, or one that `align` has made from this folder with these options.
        options: The crop and the detector's options.
        table: The table's format, faces.csv or faces.parquet. The other one, if an earlier run has written
            it, is written again, too.
        split: The share of people whose faces are "train" in the table's column split_type; all faces of the
            others are "val". None takes the train, val and test among the names of folders.
        seed: Of the split.
        workers: Threads that read photographs and write crops beside the detector.
        device: `cpu`, `cuda` or `mps`.
        offline: Never download the detector's weights.
        processes: The processes that share the photographs, each of which calls this function. The first
            writes the table; the result is that of all.
        progress: Progress callback: photographs that are done, and their number, of this process.

    Raises:
        UsageError: There is no such folder, `out` holds something else or crops of other photographs or
            options, or was begun with a runtime that does not run on the device, or `split` has fewer than
            two people with a face to divide.
        DifferenceError: The results of the detector's runtime differ from PyTorch's.
        SourceError: The folder holds no photographs, or the journal in `out` is damaged.
        RequirementError: The device, a package or the detector's weights are missing, or another process has
            ended.
    """
    folder, out = Path(folder), Path(out)
    check_device(device)
    # A table of the other format that an earlier run has written is kept up to date as well.
    formats = [name for name in TABLE_FORMATS if name == table or (out / f"faces.{name}").exists()]
    _check_output(folder, out, formats)
    names, others = _find_files(folder)
    check_split(split, names)
    load = partial(_load_detector, device=device, offline=offline)
    begun_with = recorded_backend(out)
    options, detector = _choose_backend(options, begun_with, processes, partial(load, images=len(names)))
    with Journal(out, options, processes) as journal:
        for name in formats:
            journal.check_table(out / f"faces.{name}")
        journal.forget_undone(folder, names)
        earlier = len(journal.done)
        waiting = take_share([name for name in names if name not in journal.done], processes)
        processes.wait()  # every process has read the journal before one writes to it
        if waiting:
            # Before the folder is made: its weights may be missing.
            if detector is None:
                detector = load(options) if begun_with is None else _go_on(load, options, out, device)
            journal.begin()
            _Work(folder, out, options, detector, journal, workers).run(
                waiting, lambda done: progress(earlier + done, earlier + len(waiting))
            )
        processes.wait()
        journal.read_all()
        copies = journal.find_copies()
        photographs = tuple(replace(journal.done[name], copy=copies.get(name, "")) for name in names)
        check_split(split, [photograph.name for photograph in photographs if photograph.cropped])
        columns = face_columns(out, folder, photographs, split, seed)
        if processes.is_first:
            journal.begin()
            for name in formats:
                journal.write_table(out / f"faces.{name}", encode_table(name, columns))
    assert options.backend is not None
    facts = detector.backend if detector else BackendFacts(options.backend)
    result_table = out / f"faces.{table}"
    return AlignResult(folder, out, result_table, options, photographs, tuple(others), earlier, facts)


def take_share(names: Sequence[str], processes: Processes) -> list[str]:
    """Take the photographs of this process.

    Those whose crops might get the same path, such as a.jpg, a.png and a-2.jpg, go to one process, so that
    every crop has the path that one process alone gives it.

    Args:
        names: The photographs.
        processes: The processes that share them.
    """
    stems = {_stem(name) for name in names}
    groups: dict[str, int] = {}
    share = []
    for name in names:
        stem = _stem(name)
        while (match := re.fullmatch(r"(.+)-[0-9]+", stem, re.DOTALL)) and match[1] in stems:
            stem = match[1]
        if groups.setdefault(stem, len(groups)) % processes.count == processes.number:
            share.append(name)
    return share


def _stem(name: str) -> str:
    """A photograph's path without its ending, which the path of its crop begins with."""
    return PurePosixPath(name).with_suffix("").as_posix()


def _choose_backend(
    options: AlignOptions, begun_with: BackendName | None, processes: Processes, load: _Load
) -> tuple[AlignOptions, FaceDetector | None]:
    """Put the detector's runtime into the options; returns the detector, too, if it was loaded for it."""
    backend = options.backend or begun_with
    if backend is None and processes.count > 1:
        backend = "torch"  # on several machines they might not all choose the same
    if backend is not None:
        return replace(options, backend=backend), None
    detector = load(options)
    return replace(options, backend=detector.backend.name), detector


def _go_on(load: _Load, options: AlignOptions, out: Path, device: str) -> FaceDetector:
    """Load the detector that a folder of crops was begun with, which has no other runtime."""
    if options.backend == "torch":
        return load(options)
    begun = f"{out}: it was begun with the detector in {options.backend}"
    if device != "cpu":
        raise UsageError(
            f"{begun}, which runs on the CPU. Leave out --device {device}, or give a new folder."
        )
    try:
        return load(options)
    except DifferenceError as error:
        reason = str(error).removesuffix(TAKE_TORCH).rstrip()
        raise DifferenceError(f"{begun}. {reason} Give a new folder.") from error
    except RequirementError as error:
        raise RequirementError(f"{begun}. {error}") from error


def _load_detector(options: AlignOptions, *, device: str, offline: bool, images: int = 0) -> FaceDetector:
    return FaceDetector(
        device=device,
        smallest_face=options.smallest_face,
        thresholds=options.thresholds,
        factor=options.factor,
        offline=offline,
        backend=options.backend,
        images=images,
    )


def _check_output(folder: Path, out: Path, formats: Sequence[TableFormat]) -> None:
    for table in formats:
        check_format(table)
    if out.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"{out}: it lies in {folder}, and its crops would be taken for photographs. "
            "Give a folder elsewhere."
        )
    file = next((parent for parent in out.parents if parent.is_file()), None)
    if file is not None:
        raise UsageError(f"{out}: {file} is a file, not a folder. Give a folder elsewhere.")


def _find_files(folder: Path) -> tuple[list[str], list[str]]:
    """Find the photographs of a folder, and its other files that no system has left there."""
    photographs = [file.relative_to(folder).as_posix() for file in find_photographs(folder)]
    known = set(photographs)
    files = (file.relative_to(folder).as_posix() for file in walk(folder) if file.is_file())
    return photographs, sorted(name for name in files if name not in known)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A photograph in memory, or the reason why it cannot be read."""

    name: str
    state: FileState | None
    pixels: NDArray[np.uint8] | None
    problem: str = ""


class _Work:
    """The work on photographs: threads read and write, and the detector runs in this one."""

    def __init__(
        self,
        folder: Path,
        out: Path,
        options: AlignOptions,
        detector: FaceDetector,
        journal: Journal,
        workers: int,
    ) -> None:
        self._folder, self._out, self._options = folder, out, options
        self._detector, self._journal, self._workers = detector, journal, workers
        self._owners = dict(journal.owners)
        self._start = start_of_paths(out, folder)

    def run(self, names: Sequence[str], progress: Callable[[int], None]) -> None:
        done = 0
        with HiddenFolder(self._out) as hidden, ThreadPoolExecutor(self._workers) as pool:
            try:
                for batch in _in_batches(self._read_ahead(names, pool)):
                    self._align(batch, hidden, pool)
                    done += len(batch)
                    progress(done)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _read_ahead(self, names: Sequence[str], pool: ThreadPoolExecutor) -> Iterator[_Opened]:
        """Read photographs, as many at a time as there are threads, in order."""
        waiting: deque[Future[_Opened]] = deque()
        for name in names:
            waiting.append(pool.submit(self._open, name))
            if len(waiting) > self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _open(self, name: str) -> _Opened:
        file = self._folder / name
        try:
            if not is_utf_8(Path(image_path(self._start, name))):
                raise PhotographError(file, "no table can hold its name, which is not UTF-8", "Rename it")
            pixels = read_photograph(file)
        except SourceError as error:
            return _Opened(name, _state_of(file), None, error.statement)
        return _Opened(name, _state_of(file), pixels)

    def _align(self, batch: Sequence[_Opened], hidden: Path, pool: ThreadPoolExecutor) -> None:
        """Align photographs; they stand in the journal before their crops appear."""
        found = iter(self._detector.detect([opened.pixels for opened in batch if opened.pixels is not None]))
        aligned: list[tuple[AlignedPhotograph, FileState | None]] = []
        crops: list[tuple[NDArray[np.uint8], CroppedFace]] = []
        for opened in batch:
            if opened.pixels is None:
                photograph = AlignedPhotograph(opened.name, problem=opened.problem)
            else:
                photograph = self._name_crops(opened.name, opened.pixels, next(found))
                crops += [(opened.pixels, face) for face in photograph.cropped]
            aligned.append((photograph, opened.state))
        encode = partial(_encode, self._options.crop)
        encoded = [pool.submit(encode, pixels, cropped.face) for pixels, cropped in crops]
        contents = [future.result() for future in encoded]
        self._journal.add(aligned)
        write = partial(_write_crop, hidden, self._out)
        writing = [
            pool.submit(write, cropped.crop, content)
            for (_, cropped), content in zip(crops, contents, strict=True)
        ]
        for crop in writing:
            crop.result()

    def _name_crops(self, name: str, pixels: NDArray[np.uint8], faces: Sequence[Face]) -> AlignedPhotograph:
        """Choose the faces of a photograph that are cropped, and the paths of their crops."""
        height, width = pixels.shape[:2]
        if self._options.all_faces:
            ends = {number: f"_{number}.png" for number in range(len(faces))}  # as facenet names them
        elif faces:
            ends = {choose_face(faces, width, height, self._options.crop): ".png"}
        else:
            ends = {}
        paths = dict(zip(ends, self._free_paths(name, tuple(ends.values())), strict=True))
        cropped = tuple(CroppedFace(face, paths.get(number, "")) for number, face in enumerate(faces))
        return AlignedPhotograph(name, width, height, cropped)

    def _free_paths(self, name: str, ends: Sequence[str]) -> list[str]:
        """Put ends behind a photograph's path; with a number, if another file has one of these paths."""
        stem = _stem(name)
        for number in count(1):
            paths = [f"{stem}-{number}{end}" if number > 1 else f"{stem}{end}" for end in ends]
            if all(self._is_free(path, name) for path in paths):
                break
        self._owners |= dict.fromkeys(paths, name)
        return paths

    def _is_free(self, path: str, name: str) -> bool:
        owner = self._owners.get(path)
        return owner == name or (owner is None and not (self._out / path).exists())


def _state_of(file: Path) -> FileState | None:
    try:
        return FileState.of(file) if file.is_file() else None
    except OSError:  # it cannot be read
        return None


def _in_batches(photographs: Iterator[_Opened]) -> Iterator[list[_Opened]]:
    batch: list[_Opened] = []
    pixels = 0
    for opened in photographs:
        batch.append(opened)
        pixels += 0 if opened.pixels is None else opened.pixels.size // 3
        if len(batch) == _BATCH or pixels >= _BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _encode(method: CropMethod, pixels: NDArray[np.uint8], face: Face) -> bytes:
    written = io.BytesIO()
    Image.fromarray(crop_face(pixels, face.box, method)).save(written, "PNG")
    return written.getvalue()


def _write_crop(hidden: Path, out: Path, crop: str, content: bytes) -> None:
    target = out / crop
    target.parent.mkdir(parents=True, exist_ok=True)
    file = hidden / hashlib.sha256(crop.encode()).hexdigest()
    file.write_bytes(content)
    sync(file)
    file.replace(target)
