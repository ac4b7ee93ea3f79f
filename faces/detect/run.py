"""Find the faces of photographs in files and folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from checks.core.options import check_device
from checks.core.photographs import PhotographError, find_photographs, read_photograph
from converter.errors import SourceError
from faces.backends.facts import BackendName
from faces.detect.detector import FaceDetector
from faces.detect.drawing import Drawings
from faces.detect.result import DetectionResult, Face, Photograph
from faces.options import FACTOR, SMALLEST_FACE, THRESHOLDS
from faces.threads import MOST_THREADS, run_side_by_side

BATCH = 16
"""Photographs of a batch, at most; it takes no more once they have `_BATCH_PIXELS` pixels."""
_BATCH_PIXELS = 1 << 24

Batch = list[tuple[int, NDArray[np.uint8]]]
"""Places among the files, and the pixels of the photographs there, (height, width, 3) in RGB."""


def detect(
    sources: Sequence[str | Path],
    *,
    draw: str | Path | None = None,
    device: str = "cpu",
    smallest_face: float = SMALLEST_FACE,
    thresholds: tuple[float, float, float] = THRESHOLDS,
    factor: float = FACTOR,
    offline: bool = False,
    backend: BackendName | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> DetectionResult:
    """Find the faces of photographs, as facenet's own detector finds them.

    A file that cannot be read is listed in the result, and the others are searched.

    Args:
        sources: Photographs, and folders of photographs.
        draw: The folder to write the photographs to with boxes and landmarks drawn on them, or for one
            photograph the file.
        device: `cpu`, `cuda` or `mps`.
        smallest_face: Side of the smallest face to look for, in pixels.
        thresholds: Probability of a face that P-Net, R-Net and O-Net ask for.
        factor: Ratio of two scales of the pyramid that follow each other.
        offline: Never download the detector's weights.
        backend: What runs the networks, as for `FaceDetector`; None for ONNX Runtime if it is ready.
        progress: Called with the numbers of photographs searched and of all.

    Raises:
        UsageError: The drawings cannot be written there.
        RequirementError: The device is not available, or the detector's weights are not in the cache and
            cannot be downloaded.
    """
    check_device(device)
    files, problems = find_files(sources)
    drawings = None if draw is None else Drawings(Path(draw), files)
    detector = FaceDetector(
        device=device,
        smallest_face=smallest_face,
        thresholds=thresholds,
        factor=factor,
        offline=offline,
        backend=backend,
        images=len(files),
    )
    photographs: list[Photograph] = []
    names = list(files)
    # With work for several cores each takes whole batches, which are read meanwhile.
    cores = 1 if device != "cpu" else min(torch.get_num_threads(), MOST_THREADS)
    threads = cores if len(names) > BATCH else 1
    search = partial(_search, detector)
    for batch, found in run_side_by_side(threads, search, read_batches(names, problems)):
        for (place, pixels), faces in zip(batch, found, strict=True):
            height, width = pixels.shape[:2]
            photographs.append(Photograph(names[place], width, height, faces))
            if drawings is not None:
                drawings.write(names[place], pixels, faces)
        progress(len(photographs) + len(problems), len(files))
    return DetectionResult(tuple(photographs), tuple(problems), detector.backend)


def _search(detector: FaceDetector, batch: Batch) -> tuple[Batch, list[tuple[Face, ...]]]:
    return batch, detector.detect([pixels for _, pixels in batch])


def find_files(sources: Sequence[str | Path]) -> tuple[dict[Path, Path], list[SourceError]]:
    """Find the photographs of files and folders.

    Args:
        sources: Photographs, and folders of photographs.

    Returns:
        Each photograph with its path below the folder that was given, and the errors on folders without any.
    """
    files: dict[Path, Path] = {}
    problems: list[SourceError] = []
    for source in map(Path, sources):
        if not source.is_dir():
            files.setdefault(source, Path(source.name))
            continue
        try:
            for file in find_photographs(source):
                files.setdefault(file, file.relative_to(source))
        except SourceError as error:
            problems.append(error)
    return files, problems


def read_batches(files: Sequence[Path], problems: list[SourceError]) -> Iterator[Batch]:
    """Read photographs in batches that fit in memory.

    Args:
        files: The photographs.
        problems: The errors on those that cannot be read are added to it.

    Returns:
        Batches of places among `files` and the pixels of the photographs there, (height, width, 3) in RGB.
    """
    batch: Batch = []
    for place, file in enumerate(files):
        try:
            batch.append((place, read_photograph(file)))
        except PhotographError as error:
            problems.append(error)
        if len(batch) == BATCH or sum(pixels.size // 3 for _, pixels in batch) >= _BATCH_PIXELS:
            yield batch
            batch = []
    if batch:
        yield batch
