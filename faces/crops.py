"""Crops: the choice among the faces of a photograph, the pixels around one, and crops in files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from checks.core.inputs import IMAGE_SIZE
from converter.errors import SourceError, UsageError
from faces.detect.result import Box, Face
from faces.face_table import FaceTable
from faces.images import to_rgb

CropMethod = Literal["scaled", "facenet"]

CROP_SIZES: dict[CropMethod, int] = {"scaled": IMAGE_SIZE, "facenet": 182}
"""Height and width of a crop in pixels. The network is given the central 160."""

_METHODS: dict[int, CropMethod] = {size: method for method, size in CROP_SIZES.items()}
# davidsandberg/facenet, src/align/align_dataset_mtcnn.py: --margin 44, in pixels of the photograph.
_FACENET_MARGIN = 44
# Of the box's height and width. On 118 photographs of five people it gives fewer wrong decisions than 0.4.
_SCALED_MARGIN = 0.2
# Of facenet, too: how much a face loses by its squared distance from the centre of the photograph.
_CENTRE_WEIGHT = 2.0


@dataclass(frozen=True, slots=True)
class FaceImage:
    """An image, and the face in it.

    Attributes:
        file: The image.
        box: The box of the face, in pixels; None if it is not known, or if the image is a crop.
    """

    file: Path
    box: Box | None = None


def choose_face(faces: Sequence[Face], width: int, height: int, method: CropMethod) -> int:
    """Choose the face that a photograph is meant to show.

    Args:
        faces: The faces, at least one.
        width: Of the photograph, in pixels.
        height: Likewise.
        method: "scaled" chooses the largest, "facenet" the one with the greatest area less twice the squared
            distance of its centre from the photograph's.

    Returns:
        Its place among the faces, the first of equals.
    """
    left, top, right, bottom = np.array([face.box for face in faces]).T
    weights = (right - left) * (bottom - top)
    if method == "facenet":
        across, down = (left + right) / 2 - width / 2, (top + bottom) / 2 - height / 2
        weights = weights - _CENTRE_WEIGHT * (across**2 + down**2)
    return int(np.argmax(weights))


def add_margin(box: Box, method: CropMethod) -> Box:
    """Widen a box by a method's margin: a half on each side."""
    left, top, right, bottom = box
    if method == "facenet":
        across = down = _FACENET_MARGIN / 2
    else:
        across, down = (right - left) * _SCALED_MARGIN / 2, (bottom - top) * _SCALED_MARGIN / 2
    return left - across, top - down, right + across, bottom + down


def crop_face(photograph: NDArray[np.uint8], box: Box, method: CropMethod) -> NDArray[np.uint8]:
    """Cut a face out of a photograph, with a margin.

    "facenet" gives the pixels of davidsandberg/facenet's `align_dataset_mtcnn.py`.

    Args:
        photograph: (height, width, 3), RGB.
        box: The box of the face, in pixels.
        method: The margin and the size: see `add_margin` and `CROP_SIZES`.

    Returns:
        (size, size, 3).
    """
    return cut_out(photograph, add_margin(box, method), CROP_SIZES[method])


def cut_out(photograph: NDArray[np.uint8], box: Box, size: int) -> NDArray[np.uint8]:
    """Cut a box out of a photograph and resample it to a square, by Pillow's bilinear filter.

    The box is cut off at the edges of the photograph and its sides are truncated to whole pixels. Of a box
    beyond the edge a row or column of the edge is left.

    Args:
        photograph: (height, width, 3), RGB.
        box: Left, top, right and bottom in pixels.
        size: Height and width of the result.

    Returns:
        (size, size, 3).
    """
    height, width = photograph.shape[:2]
    left, top = min(int(max(box[0], 0)), width - 1), min(int(max(box[1], 0)), height - 1)
    right, bottom = max(int(min(box[2], width)), left + 1), max(int(min(box[3], height)), top + 1)
    image = Image.fromarray(np.ascontiguousarray(photograph[top:bottom, left:right]))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def crop_of(pixels: NDArray[np.uint8]) -> CropMethod | None:
    """Return which crop an image is, by its size; None if it is none."""
    height, width = pixels.shape[:2]
    return _METHODS.get(height) if height == width else None


def is_crop(pixels: NDArray[np.uint8]) -> bool:
    """Return whether an image has the size of a crop."""
    return crop_of(pixels) is not None


def find_crop(files: Iterable[Path], method: CropMethod) -> CropMethod:
    """Find the crop that the faces of images have: that of the first image that can be read.

    Args:
        files: Photographs or crops.
        method: The crop of a photograph.
    """
    for file in files:
        try:
            return crop_of(to_rgb(file)) or method
        except SourceError:  # whoever reads all of them lists it
            continue
    return method


def check_crop(file: Path, pixels: NDArray[np.uint8], method: CropMethod, expected: CropMethod) -> None:
    """Refuse an image of another crop than the first: their embeddings are further apart than of one crop.

    Args:
        file: The image.
        pixels: Its pixels.
        method: The crop of a photograph.
        expected: The crop of the first image, as `find_crop` finds it.

    Raises:
        UsageError: The image has another one.
    """
    crop = crop_of(pixels) or method
    if crop != expected:
        raise UsageError(
            f"{file} has the crop {crop}, and the first image the crop {expected}: their distance says "
            "little. Give photographs, or crops of one kind; --crop sets that of photographs."
        )


def check_box(image: FaceImage, pixels: NDArray[np.uint8]) -> None:
    """Refuse a box that lies outside its photograph.

    Args:
        image: The image.
        pixels: Its pixels.

    Raises:
        SourceError: No pixel of the photograph is in the box. The box of a crop does not matter.
    """
    if image.box is None or is_crop(pixels):
        return
    height, width = pixels.shape[:2]
    left, top, right, bottom = image.box
    if not (left < width and top < height and right > 0 and bottom > 0):
        problem = f"the bbox {list(image.box)} lies outside its {width}x{height} pixels"
        raise SourceError(image.file, problem, next_step="Correct it in the table, in pixels of this image")


def central_part(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take the part of a crop that the network is given: (160, 160, 3)."""
    start = (crop.shape[0] - IMAGE_SIZE) // 2
    return crop[start : start + IMAGE_SIZE, start : start + IMAGE_SIZE]


def read_crop(file: Path) -> NDArray[np.uint8]:
    """Read the part of a crop that the network is given: (160, 160, 3), RGB.

    Raises:
        SourceError: The file cannot be used as a photograph, or is no crop.
    """
    pixels = to_rgb(file)
    if not is_crop(pixels):
        height, width = pixels.shape[:2]
        sizes = " or ".join(f"{size}x{size}" for size in CROP_SIZES.values())
        raise SourceError(
            file,
            f"its {width}x{height} pixels are not those of a crop, {sizes}",
            next_step="Crop the faces first: facenet-port align FOLDER CROPS",
        )
    return central_part(pixels)


def read_face(image: FaceImage, method: CropMethod) -> NDArray[np.uint8]:
    """Read a face as the network takes it: (160, 160, 3), RGB.

    Args:
        image: The image. One of the size of a crop is a crop, whatever its box.
        method: The crop of a photograph.

    Raises:
        SourceError: The file cannot be used as a photograph, or the box lies outside it.
    """
    if image.box is None:
        return read_crop(image.file)
    pixels = to_rgb(image.file)
    check_box(image, pixels)
    return central_part(pixels if is_crop(pixels) else crop_face(pixels, image.box, method))


def read_images(table: FaceTable) -> list[FaceImage]:
    """The images of a table: its crops, or else its photographs with their column bbox, if it has one.

    Raises:
        SourceError: A column or files are missing, or a bbox is none.
    """
    files = table.files()
    if "crop_path" in table.columns or "bbox" not in table.columns:
        return [FaceImage(file) for file in files]
    boxes = (_parse_box(table.path, row, value) for row, value in enumerate(table.columns["bbox"], 1))
    return [FaceImage(file, box) for file, box in zip(files, boxes, strict=True)]


def _parse_box(path: Path, row: int, value: Any) -> Box | None:
    """Parse a cell such as "[1, 2, 3, 4]", or a list of Parquet; an empty one is None."""
    if value is None or value == "":
        return None
    try:
        numbers = json.loads(value) if isinstance(value, str) else list(value)
        x1, y1, x2, y2 = (float(number) for number in numbers)
        if not (-math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf):
            raise ValueError("the right side lies left, the bottom above, or one is not finite")
    except (ValueError, TypeError) as error:
        step = "Write [x1, y1, x2, y2] in pixels"
        raise SourceError(path, f"row {row} has the bbox {value!r:.60}", next_step=step) from error
    return x1, y1, x2, y2
