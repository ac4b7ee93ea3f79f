"""From photographs to embeddings: the face of each is found, cropped and embedded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.errors import SourceError, UsageError
from faces.crops import CROP_SIZES, CropMethod, central_part, choose_face, crop_face, is_crop
from faces.detect.detector import FaceDetector
from faces.detect.result import Box
from faces.detect.run import read_batches
from faces.evaluate.result import ModelFacts
from faces.model import Model, Standardisation, load_model
from faces.options import DEFAULT_MODEL, FACTOR, SMALLEST_FACE, THRESHOLDS, check_device
from faces.threshold import Threshold, find_threshold

Progress = Callable[[int, int | None], None]

_METHODS: dict[int, CropMethod] = {size: method for method, size in CROP_SIZES.items()}


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedFace:
    """A face and its embedding.

    Attributes:
        file: The photograph, or a crop.
        box: The box of the face in pixels; None if the file is a crop.
        faces: The number of faces in the photograph, of which this is the chosen one; 1 for a crop.
        crop: The crop that the network was given. A file of 160x160 pixels is one of "scaled", a file of
            182x182 one of "facenet".
        embedding: (E,), float32.
    """

    file: Path
    box: Box | None
    faces: int
    crop: CropMethod
    embedding: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddedFiles:
    """The faces of files, and the files without one.

    Attributes:
        faces: A face for each file that has one, in order.
        without_face: The photographs without a face.
        problems: The errors on files that could not be read.
    """

    faces: tuple[EmbeddedFace, ...]
    without_face: tuple[Path, ...]
    problems: tuple[SourceError, ...]


class Embedder:
    """Embeds the faces of photographs: detector, crop, standardisation and network.

    An image of 160x160 or 182x182 pixels is taken as a crop. The network and the detector are loaded when
    they are first needed.

    Args:
        model: The name of a published model, or a file, as for `faces.model.load_model`.
        standardisation: As for `load_model`.
        crop: The choice among the faces of a photograph, and the margin: as for `faces.align.run.align`.
        device: `cpu`, `cuda` or `mps`.
        smallest_face: Side of the smallest face to look for, in pixels.
        thresholds: Probability of a face that P-Net, R-Net and O-Net ask for.
        factor: Ratio of two scales of the pyramid that follow each other.
        offline: Never download.

    Raises:
        RequirementError: PyTorch has no such device.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        standardisation: Standardisation | None = None,
        crop: CropMethod = "scaled",
        device: str = "cpu",
        smallest_face: float = SMALLEST_FACE,
        thresholds: tuple[float, float, float] = THRESHOLDS,
        factor: float = FACTOR,
        offline: bool = False,
    ) -> None:
        check_device(device)
        self.crop = crop
        self._load_model = partial(
            load_model, model, standardisation=standardisation, device=device, offline=offline
        )
        self._load_detector = partial(
            FaceDetector,
            device=device,
            smallest_face=smallest_face,
            thresholds=thresholds,
            factor=factor,
            offline=offline,
        )

    @cached_property
    def model(self) -> Model:
        """The network.

        Raises:
            UsageError, SourceError, MappingError, RequirementError: As for `faces.model.load_model`.
        """
        return self._load_model()

    @cached_property
    def _detector(self) -> FaceDetector:
        return self._load_detector()

    @property
    def facts(self) -> ModelFacts:
        """The network, as plain data."""
        model, published = self.model, self.model.published
        accuracy = published.lfw_accuracy if published else None
        return ModelFacts(model.name, model.sha256, model.standardisation, model.origin, accuracy)

    def find_threshold(self, file: str | Path | None, stored: Threshold | None = None) -> Threshold | None:
        """Find the threshold for decisions on its embeddings, as `faces.threshold.find_threshold` says.

        Args:
            file: A result of `facenet-port evaluate --json`.
            stored: The threshold that is taken without a file.

        Raises:
            SourceError, UsageError: As for `faces.threshold.find_threshold`.
        """
        return find_threshold(
            None if file is None else Path(file),
            stored,
            model=self.model.name,
            model_sha256=self.model.sha256,
            standardisation=self.model.standardisation,
        )

    def embed(self, files: Sequence[Path], progress: Progress = lambda done, total: None) -> EmbeddedFiles:
        """Embed the face of each file.

        Args:
            files: Photographs and crops.
            progress: Progress callback: files done, and their number.

        Returns:
            The faces. A file that cannot be read or has no face is listed, and the others are embedded.

        Raises:
            UsageError: A face has another crop than the first.
            RequirementError: The detector's weights are not in the cache and cannot be downloaded.
        """
        faces: list[EmbeddedFace] = []
        without_face: list[Path] = []
        problems: list[SourceError] = []
        for batch in read_batches(files, problems):
            embedded, faceless = self._embed_batch(batch)
            faces += embedded
            without_face += faceless
            progress(len(faces) + len(without_face) + len(problems), len(files))
            _check_crops(faces)
        return EmbeddedFiles(tuple(faces), tuple(without_face), tuple(problems))

    def embed_all(self, files: Sequence[Path]) -> tuple[EmbeddedFace, ...]:
        """Embed the face of each file, and refuse a file without one.

        Raises:
            SourceError: A file cannot be read, or has no face.
            UsageError, RequirementError: As for `embed`.
        """
        embedded = self.embed(files)
        if embedded.problems:
            raise embedded.problems[0]
        if embedded.without_face:
            raise SourceError(
                embedded.without_face[0],
                "no face was found",
                next_step="Give another photograph, or look for smaller faces with --smallest-face 12",
            )
        return embedded.faces

    def _embed_batch(
        self, batch: Sequence[tuple[Path, NDArray[np.uint8]]]
    ) -> tuple[list[EmbeddedFace], list[Path]]:
        photographs = [pixels for _, pixels in batch if not is_crop(pixels)]
        found = iter(self._detector.detect(photographs) if photographs else ())
        chosen: list[tuple[Path, Box | None, int, CropMethod]] = []
        crops: list[NDArray[np.uint8]] = []
        without_face: list[Path] = []
        for file, pixels in batch:
            height, width = pixels.shape[:2]
            if is_crop(pixels):
                chosen.append((file, None, 1, _METHODS[height]))
                crops.append(central_part(pixels))
                continue
            faces = next(found)
            if not faces:
                without_face.append(file)
                continue
            box = faces[choose_face(faces, width, height, self.crop)].box
            chosen.append((file, box, len(faces), self.crop))
            crops.append(central_part(crop_face(pixels, box, self.crop)))
        if not crops:
            return [], without_face
        rows = self.model.embed(self.model.standardise(np.stack(crops)))
        return [EmbeddedFace(*face, row) for face, row in zip(chosen, rows, strict=True)], without_face


def _check_crops(faces: Sequence[EmbeddedFace]) -> None:
    """Refuse crops of several kinds: their embeddings are further apart than those of one kind."""
    other = next((face for face in faces if face.crop != faces[0].crop), None)
    if other is not None:
        raise UsageError(
            f"{faces[0].file} has the crop {faces[0].crop}, and {other.file} the crop {other.crop}: their "
            "distance says little. Give photographs, or crops of one kind; --crop sets that of photographs."
        )
