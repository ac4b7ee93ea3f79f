"""From photographs to embeddings: the face of each is found, cropped and embedded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from checks.core.options import check_device
from converter.errors import SourceError, UsageError
from faces.backends.choose import choose_backend
from faces.backends.facts import BackendFacts, BackendName
from faces.crops import (
    CropMethod,
    FaceImage,
    central_part,
    check_box,
    check_crop,
    choose_face,
    crop_face,
    crop_of,
    find_crop,
    is_crop,
)
from faces.detect.detector import FaceDetector
from faces.detect.result import Box
from faces.detect.run import BATCH, read_batches
from faces.images import to_rgb
from faces.model import Model, Standardisation, load_model
from faces.options import DEFAULT_MODEL, FACTOR, SMALLEST_FACE, THRESHOLDS
from faces.threads import MOST_THREADS, run_side_by_side
from faces.threshold import Threshold, find_threshold

Progress = Callable[[int, int | None], None]
Compute = Callable[[Model, NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedFace:
    """A face and its embedding.

    Attributes:
        place: The place of its image among those that were given.
        file: The photograph, or a crop.
        box: The box of the face in pixels; None if the file is a crop.
        faces: The number of faces in the photograph, of which this is the chosen one; 1 for a crop, or if the
            box was given.
        crop: The crop that the network was given. A file of 160x160 pixels is one of "scaled", a file of
            182x182 one of "facenet".
        embedding: (E,), float32; or what else was computed of it.
    """

    place: int
    file: Path
    box: Box | None
    faces: int
    crop: CropMethod
    embedding: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddedFiles:
    """The faces of images, and the images without one.

    Attributes:
        faces: A face for each image that has one, in order.
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
        model: The name of a published model, or a file, as for `faces.model.load_model`; None takes
            `faces.options.DEFAULT_MODEL`.
        standardisation: As for `load_model`.
        crop: The choice among the faces of a photograph, and the margin: as for `faces.align.run.align`.
        device: `cpu`, `cuda` or `mps`.
        backend: What computes embeddings, as `faces.backends.choose.choose_backend` takes it, and runs the
            detector; None for the default of each.
        smallest_face: Side of the smallest face to look for, in pixels.
        thresholds: Probability of a face that P-Net, R-Net and O-Net ask for.
        factor: Ratio of two scales of the pyramid that follow each other.
        offline: Never download.

    Attributes:
        stated_model: The model that was given; None if none was.
        stated_standardisation: Likewise.
        crop: The crop of photographs.
        detector_options: Those of the detector that decide on the faces.
        offline: Whether nothing is downloaded.

    Raises:
        RequirementError: PyTorch has no such device.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        standardisation: Standardisation | None = None,
        crop: CropMethod = "scaled",
        device: str = "cpu",
        backend: BackendName | None = None,
        smallest_face: float = SMALLEST_FACE,
        thresholds: tuple[float, float, float] = THRESHOLDS,
        factor: float = FACTOR,
        offline: bool = False,
    ) -> None:
        check_device(device)
        self.stated_model, self.stated_standardisation = model, standardisation
        self.crop, self.offline = crop, offline
        self._backend, self._device = backend, device
        self._loading = Lock()
        self.expect(0)
        self._load_model = partial(
            load_model,
            model or DEFAULT_MODEL,
            standardisation=standardisation,
            device=device,
            offline=offline,
        )
        self.detector_options: dict[str, Any] = {
            "smallest_face": smallest_face,
            "thresholds": thresholds,
            "factor": factor,
        }
        self._load_detector = partial(FaceDetector, device=device, offline=offline, **self.detector_options)

    @cached_property
    def model(self) -> Model:
        """The network.

        Raises:
            UsageError, SourceError, MappingError, RequirementError: As for `faces.model.load_model`.
            DifferenceError: As for `choose_backend`.
        """
        model = self._load_model()
        if self._logits:  # which PyTorch computes
            return model
        return choose_backend(model, self._backend, device=self._device, images=self._images)

    def expect(self, images: int, *, logits: bool = False, are_shared: bool = False) -> None:
        """State what is going to be computed, before `model` or `detector` is first needed.

        The runtimes depend on it.

        Args:
            images: The number of images.
            logits: Whether `embed` is going to be given `Model.logits`.
            are_shared: Whether several processes, at once or one after the other, share the images. Then no
                file is made, for which the others would wait, and the default of the detector is PyTorch: on
                several machines they might not all choose the same.
        """
        self._images, self._logits, self._are_shared = 0 if are_shared else images, logits, are_shared

    @cached_property
    def detector(self) -> FaceDetector:
        """The detector.

        Raises:
            SourceError, RequirementError: As for `faces.detect.detector.FaceDetector`.
        """
        backend = self._backend or ("torch" if self._are_shared else None)
        return self._load_detector(backend=backend, images=self._images)

    @property
    def detector_facts(self) -> BackendFacts | None:
        """The runtime of the detector; None if it was not needed so far."""
        detector: FaceDetector | None = self.__dict__.get("detector")
        return None if detector is None else detector.backend

    def find_crop(self, images: Sequence[FaceImage]) -> CropMethod:
        """Find the crop that the faces of images will have, as `faces.crops.find_crop` says.

        Raises:
            UsageError: The images are crops of "scaled", and "facenet" is wanted.
        """
        crop = find_crop((image.file for image in images), self.crop)
        if self.crop == "facenet" and crop == "scaled":
            raise UsageError(
                f"{images[0].file} is a crop of 160x160 pixels, of `--crop scaled`, and the crop facenet is "
                "needed. Give the photographs themselves."
            )
        return crop

    def check_images(self, images: Sequence[FaceImage]) -> CropMethod:
        """Find the crop of a few images before a model is loaded, or refuse them.

        Raises:
            SourceError: An image cannot be read.
            UsageError: An image has another crop than the first, or as for `find_crop`.
        """
        crop = self.find_crop(images)
        for image in images:
            check_crop(image.file, to_rgb(image.file), self.crop, crop)
        return crop

    def find_threshold(
        self, file: str | Path | None, crop: CropMethod, stored: Threshold | None = None
    ) -> Threshold | None:
        """Find the threshold for decisions on its embeddings, as `faces.threshold.find_threshold` says.

        Args:
            crop: The crop of the faces.
            file: A result of `facenet-port evaluate --json`.
            stored: The threshold that is taken without a file.

        Raises:
            SourceError, UsageError: As for `faces.threshold.find_threshold`.
        """
        return find_threshold(None if file is None else Path(file), stored, self.model.facts, crop)

    def embed(
        self,
        images: Sequence[FaceImage],
        progress: Progress = lambda done, total: None,
        *,
        compute: Compute = Model.embed,
        crop: CropMethod | None = None,
    ) -> EmbeddedFiles:
        """Embed the face of each image.

        Args:
            images: Photographs or crops. A photograph whose box is known is cropped around it, and of any
                other a face is found.
            progress: Progress callback: files done, and their number.
            compute: What is computed of standardised images: embeddings, or `Model.logits`.
            crop: The crop that the faces have to have; None for that of the first image.

        Returns:
            The faces. A file that cannot be read or has no face is listed, and the others are embedded.

        Raises:
            UsageError: An image has another crop.
            SourceError: A box lies outside its photograph.
            RequirementError: The detector's weights are not in the cache and cannot be downloaded.
        """
        faces: list[EmbeddedFace] = []
        without_face: list[Path] = []
        problems: list[SourceError] = []
        crop = crop or self.find_crop(images)
        batches = read_batches([image.file for image in images], problems)
        embed_batch = partial(self._embed_batch, images, crop, compute)
        # With work for several cores each takes whole batches, and none waits for another in between.
        cores = 1 if self._device != "cpu" else min(torch.get_num_threads(), MOST_THREADS)
        threads = cores if len(images) > BATCH else 1
        for embedded, faceless in run_side_by_side(threads, embed_batch, batches):
            faces += embedded
            without_face += faceless
            progress(len(faces) + len(without_face) + len(problems), len(images))
        return EmbeddedFiles(tuple(faces), tuple(without_face), tuple(problems))

    def embed_all(self, images: Sequence[FaceImage]) -> tuple[EmbeddedFace, ...]:
        """Embed the face of each image, and refuse an image without one.

        Raises:
            SourceError: A file cannot be read, or has no face.
            UsageError, RequirementError: As for `embed`.
        """
        embedded = self.embed(images)
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
        self,
        images: Sequence[FaceImage],
        crop_method: CropMethod,
        compute: Compute,
        batch: Sequence[tuple[int, NDArray[np.uint8]]],
    ) -> tuple[list[EmbeddedFace], list[Path]]:
        for place, pixels in batch:
            check_crop(images[place].file, pixels, self.crop, crop_method)
            check_box(images[place], pixels)
        searched = [pixels for place, pixels in batch if not (is_crop(pixels) or images[place].box)]
        with self._loading:  # cached_property has no lock from Python 3.12 on
            detector, model = self.detector if searched else None, self.model
        found = iter(detector.detect(searched) if detector else ())
        chosen: list[tuple[int, Path, Box | None, int, CropMethod]] = []
        crops: list[NDArray[np.uint8]] = []
        without_face: list[Path] = []
        for place, pixels in batch:
            file, box, count = images[place].file, images[place].box, 1
            if (crop := crop_of(pixels)) is not None:
                chosen.append((place, file, None, 1, crop))
                crops.append(central_part(pixels))
                continue
            if box is None:
                faces = next(found)
                if not faces:
                    without_face.append(file)
                    continue
                height, width = pixels.shape[:2]
                box, count = faces[choose_face(faces, width, height, self.crop)].box, len(faces)
            chosen.append((place, file, box, count, self.crop))
            crops.append(central_part(crop_face(pixels, box, self.crop)))
        if not crops:
            return [], without_face
        rows = compute(model, model.standardise(np.stack(crops)))
        return [EmbeddedFace(*face, row) for face, row in zip(chosen, rows, strict=True)], without_face
