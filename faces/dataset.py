"""Faces as a data set of PyTorch, standardised for a network, and the embedding of one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from checks.core.photographs import find_photographs
from converter.errors import SourceError, UsageError
from faces.align.result import person_of
from faces.crops import FaceImage, central_part, choose_face, crop_face, is_crop, read_face, read_images
from faces.detect.detector import FaceDetector
from faces.face_table import FaceTable, find_table, read_table, whole_number
from faces.images import ImageLike, to_rgb
from faces.model import STANDARDISATIONS, Model, Standardisation, published_standardisation
from reference import InceptionResnetV1

NOBODY = -1
"""The label of a face whose person is not known."""


class FaceDataset(Dataset[tuple[Tensor, int]]):
    """The faces of a folder or table: (image, label) with the image (3, 160, 160), float32, standardised.

    A network computes right embeddings only of images that are standardised as in its training, so this has
    to be known: from the model, or stated.

    Attributes:
        files: The images.
        labels: The label of each crop: that of the table, or else the place of its person's name among all in
            order; `NOBODY` if the person is not known.
        people: Label to the person's name.
        standardisation: The standardisation of the images.

    Args:
        source: A table of faces (.csv or .parquet), or a folder of crops: of `facenet-port align`, whose
            table is read, or with a folder for each person. A table without the column crop_path may have
            whole photographs in image_path: they are cropped around bbox, as `align --crop scaled` does.
        model: The network that the images are for: as `faces.model.load_model` gives it, or a pretrained
            `InceptionResnetV1`.
        standardisation: "fixed", (x - 127.5) / 128, or "per-image". None takes the model's.
        split: Only the faces whose split_type this is, such as "train". The labels are the same for every
            split.
        augment: A function from the pixels of a crop, (160, 160, 3), uint8, to the pixels of another.

    Raises:
        UsageError: The standardisation is not known, there is no such folder, or no face is of the split.
        SourceError: The table cannot be read or lacks columns or files; the folder holds no photographs.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        model: Model | InceptionResnetV1 | None = None,
        standardisation: Standardisation | None = None,
        split: str | None = None,
        augment: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    ) -> None:
        self.standardisation = _find_standardisation(model, standardisation)
        entries = find_faces(Path(source), with_split=split is not None)
        self.people = dict(sorted({entry.label: entry.person for entry in entries}.items()))
        self._entries = [entry for entry in entries if split is None or entry.split == split]
        if not self._entries:
            held = ", ".join(sorted({entry.split for entry in entries} - {""}))
            step = f"There are: {held}" if held else "`facenet-port align --split 0.8` divides people"
            raise UsageError(f"{source}: no face has the split_type {split!r}. {step}.")
        self.files = tuple(entry.image.file for entry in self._entries)
        self.labels = tuple(entry.label for entry in self._entries)
        self._augment = augment

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        """Read a face.

        Raises:
            SourceError: The file cannot be read, or is no crop.
        """
        pixels = read_face(self._entries[place].image, "scaled")
        if self._augment is not None:
            pixels = self._augment(pixels)
        return to_tensor(pixels, self.standardisation), self.labels[place]


def build_loader(
    dataset: FaceDataset, *, batch_size: int = 32, shuffle: bool = False, seed: int = 0, workers: int = 0
) -> DataLoader[tuple[Tensor, int]]:
    """Build a loader of (images, labels): (N, 3, 160, 160), float32, and (N), int64.

    Args:
        dataset: The faces.
        batch_size: Images at a time; the last batch may have fewer.
        shuffle: Whether to draw a new order each time.
        seed: Of the order.
        workers: Processes that read images; 0 reads them in this one.
    """
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle, num_workers=workers, generator=generator)


@torch.no_grad()
def infer(
    model: Model | InceptionResnetV1,
    image: ImageLike,
    *,
    standardisation: Standardisation | None = None,
    detector: FaceDetector | None = None,
) -> Tensor:
    """Compute what a network gives for one image: the embedding of its face, or logits if `classify` is set.

    An image of 160x160 or 182x182 pixels is taken as a crop. Of any other the largest face is cropped, as
    `facenet-port align` does.

    Args:
        model: As `faces.model.load_model` gives it, or an `InceptionResnetV1` in evaluation mode.
        image: A path, a Pillow image, an array or a tensor, as `faces.images.to_rgb` takes it.
        standardisation: As in `FaceDataset`.
        detector: The detector for images that are no crops; None takes facenet's.

    Returns:
        (E,), float32, on the CPU.

    Raises:
        UsageError: The standardisation is not known.
        SourceError: The file cannot be used as a photograph.
        TypeError, ValueError: As `to_rgb` says, or the image shows no face, or the network is in training
            mode.
        RequirementError: The detector's weights are not in the cache and cannot be downloaded.
    """
    network = model.network if isinstance(model, Model) else model
    if network.training:
        raise ValueError(
            "the network is in training mode, in which BatchNorm needs a batch: call .eval() first"
        )
    needed = _find_standardisation(model, standardisation)
    batch = to_tensor(_find_crop(image, detector), needed)[None]
    parameter = next(network.parameters())
    output: Tensor = network(batch.to(parameter.device, parameter.dtype))
    return output[0].float().cpu()


def _find_crop(image: ImageLike, detector: FaceDetector | None) -> NDArray[np.uint8]:
    pixels = to_rgb(image)
    if is_crop(pixels):
        return central_part(pixels)
    (faces,) = (detector or _default_detector()).detect([pixels])
    height, width = pixels.shape[:2]
    if not faces:
        name = f"{image}" if isinstance(image, str | Path) else f"the image of {width}x{height} pixels"
        raise ValueError(
            f"{name} shows no face. If it is a crop, resize it to 160x160; smaller faces are found with "
            "detector=FaceDetector(smallest_face=...)."
        )
    return crop_face(pixels, faces[choose_face(faces, width, height, "scaled")].box, "scaled")


@cache
def _default_detector() -> FaceDetector:
    return FaceDetector()


def to_tensor(pixels: NDArray[np.uint8], standardisation: Standardisation) -> Tensor:
    """Standardise an image for a network: (H, W, 3), uint8, to (3, H, W), float32."""
    standardised = STANDARDISATIONS[standardisation](pixels[None])[0]
    return torch.from_numpy(np.ascontiguousarray(standardised.transpose(2, 0, 1)))


def _find_standardisation(
    model: Model | InceptionResnetV1 | None, standardisation: Standardisation | None
) -> Standardisation:
    """Return the standardisation that was stated, or that of the model.

    Raises:
        UsageError: Neither is known.
    """
    if standardisation is not None:
        if standardisation not in STANDARDISATIONS:
            raise UsageError(
                f"standardisation {standardisation!r}: give one of {', '.join(STANDARDISATIONS)}."
            )
        return standardisation
    if isinstance(model, Model):
        return model.standardisation
    known = None if model is None or model.pretrained is None else published_standardisation(model.pretrained)
    if known is None:
        raise UsageError(
            "nothing tells how the images of this network are standardised. Give standardisation='fixed', "
            "(x - 127.5) / 128 as for the published models of 2018, or 'per-image'; or load the network with "
            "faces.model.load_model, which knows the published ones."
        )
    return known


@dataclass(frozen=True, slots=True)
class LabelledFace:
    """A face, its person, the person's label and its split; the last is empty if it is not known."""

    image: FaceImage
    person: str
    label: int
    split: str = ""


def find_faces(source: Path, *, with_split: bool) -> list[LabelledFace]:
    """Find the faces of a folder or table, with the person and the label of each.

    Args:
        source: As for `FaceDataset`.
        with_split: Whether the column split_type is read, which only a table has.

    Raises:
        UsageError, SourceError: As for `FaceDataset`.
    """
    path = find_table(source)
    if path is None and not with_split:
        found = find_photographs(source)
        owners = [person_of(file.relative_to(source).as_posix()) for file in found]
        return list(map(LabelledFace, map(FaceImage, found), owners, _number(owners)))
    table = read_table(path or source / "faces.csv")
    images = read_images(table)
    splits = table.texts("split_type") if with_split else [""] * len(images)
    people = table.texts("person_name")
    labels = _number(people)
    if "label" in table.columns:
        labels = [_parse_label(table, row, label) for row, label in enumerate(table.texts("label"), 1)]
        _check_labels(table, people, labels)
    return list(map(LabelledFace, images, people, labels, splits))


def _number(people: Sequence[str]) -> list[int]:
    """Number people in the order of their names."""
    places = {person: place for place, person in enumerate(sorted(set(people) - {""}))}
    return [places.get(person, NOBODY) for person in people]


_LABELS = "Give whole numbers from 0, one for each person, or no column label: people are numbered then"


def _parse_label(table: FaceTable, row: int, text: str) -> int:
    label = whole_number(text or str(NOBODY))
    if label != str(NOBODY) and not (label.isascii() and label.isdigit()):
        raise SourceError(table.path, f"row {row} has the label {text!r}", next_step=_LABELS)
    return int(label)


def _check_labels(table: FaceTable, people: Sequence[str], labels: Sequence[int]) -> None:
    """Refuse a label of two people, and a person with two labels."""
    named = [(person, label) for person, label in zip(people, labels, strict=True) if label != NOBODY]
    person_of_label, label_of_person = {label: person for person, label in named}, dict(named)
    for person, label in named:
        if person_of_label[label] != person:
            problem = f"the label {label} is that of {person!r} and of {person_of_label[label]!r}"
            raise SourceError(table.path, problem, next_step=_LABELS)
        if person and label_of_person[person] != label:
            problem = f"{person!r} has the labels {label} and {label_of_person[person]}"
            raise SourceError(table.path, problem, next_step=_LABELS)
