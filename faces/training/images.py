"""The images of a training: read, augmented, standardised and put together as batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from checks.core.inputs import IMAGE_SIZE
from converter.errors import PortError, SourceError, UsageError
from faces.crops import CROP_SIZES, CropMethod, FaceImage, central_part, check_crop, is_crop, read_face
from faces.dataset import LabelledFace, to_tensor
from faces.images import to_rgb
from faces.model import Standardisation
from faces.training.config import TrainConfig, with_option
from faces.training.signals import obey_the_training_alone

Row = tuple[int, int]
"""A face in a batch: the epoch, which decides on its augmentation, and its place among the faces."""

_AUGMENTED = 1  # what a seed is for, beside those of `faces.training.data`


class Faces(Dataset["tuple[Tensor, int] | PortError"]):
    """Faces of a training, augmented and standardised: (image, place), with (3, 160, 160), float32.

    The augmentation of a face depends on seed, epoch and place alone, so that it is the same with any number
    of processes and after any interruption.

    Args:
        faces: The faces.
        standardisation: Of the images.
        crop: The crop that each has to have.
        config: The augmentation; None for none.
    """

    def __init__(
        self,
        faces: Sequence[LabelledFace],
        standardisation: Standardisation,
        crop: CropMethod = "scaled",
        config: TrainConfig | None = None,
    ) -> None:
        self._faces, self._standardisation, self._crop, self._config = faces, standardisation, crop, config

    def __len__(self) -> int:
        return len(self._faces)

    def __getitem__(self, row: Row) -> tuple[Tensor, int] | PortError:
        """Read a face for an epoch, or return the error, since PyTorch wraps one that a worker raises."""
        try:
            return self._read(*row)
        except (SourceError, UsageError) as error:
            return error

    def _read(self, epoch: int, place: int) -> tuple[Tensor, int]:
        pixels = self._read_crop(self._faces[place].image)
        if self._config is None:
            pixels = central_part(pixels)
        else:
            drawn = np.random.default_rng([self._config.seed, _AUGMENTED, epoch, place])
            pixels = augment(pixels, self._config, drawn)
        return to_tensor(pixels, self._standardisation), place

    def _read_crop(self, image: FaceImage) -> NDArray[np.uint8]:
        """Read a whole crop, (160, 160, 3) or (182, 182, 3), or cut one out of a photograph."""
        pixels = to_rgb(image.file)
        if not is_crop(pixels):
            return read_face(image, "scaled")  # which refuses a photograph without a box
        check_crop(image.file, pixels, "scaled", self._crop)
        size = CROP_SIZES["facenet"]
        if self._config is not None and self._config.random_crop and len(pixels) != size:
            raise SourceError(
                image.file,
                f"{with_option('random_crop')} needs crops of {size}x{size} pixels, not "
                f"{pixels.shape[1]}x{pixels.shape[0]}",
                next_step="Crop with `facenet-port align --crop facenet`, or leave random_crop out",
            )
        return pixels


def augment(pixels: NDArray[np.uint8], config: TrainConfig, drawn: np.random.Generator) -> NDArray[np.uint8]:
    """Augment a crop as facenet's input pipeline does: rotation, random crop and mirror, in this order.

    Source: davidsandberg/facenet, src/facenet.py: create_input_pipeline and random_rotate_image.

    Args:
        pixels: (H, W, 3), with 160 or 182 for H and W.
        config: Which of them, and the largest angle.
        drawn: Gives the angle, the place of the crop and whether to mirror.

    Returns:
        (160, 160, 3).
    """
    if config.rotation:
        angle = drawn.uniform(-config.rotation, config.rotation)
        pixels = np.asarray(Image.fromarray(pixels).rotate(angle, Image.Resampling.BICUBIC))
    if config.random_crop:
        top, left = drawn.integers(0, pixels.shape[0] - IMAGE_SIZE + 1, 2)
        pixels = pixels[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    else:
        pixels = central_part(pixels)
    if config.mirror and drawn.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels


def _collate(items: Sequence[tuple[Tensor, int] | PortError]) -> tuple[Tensor, Tensor] | PortError:
    """Put faces together as a batch, or return the first error among them."""
    errors = [item for item in items if isinstance(item, PortError)]
    return errors[0] if errors else default_collate(list(items))


def read_batches(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Read the batches of a loader.

    Raises:
        SourceError: A file cannot be read, or is no crop.
        UsageError: A crop is of another kind than the first.
    """
    for batch in loader:
        if isinstance(batch, PortError):
            raise batch
        yield batch


def build_loader(
    faces: Faces, rows: Sampler[list[Row]] | Sequence[list[Row]], workers: int
) -> DataLoader[Any]:
    """Build the loader that `read_batches` reads: (N, 3, 160, 160), float32, and the places (N), int64."""
    return DataLoader(
        faces,
        batch_sampler=rows,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=obey_the_training_alone,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
