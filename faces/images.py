"""Images in whatever form a caller has them: files, Pillow images, arrays or tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from checks.core.photographs import convert_to_rgb, read_photograph

if TYPE_CHECKING:
    import PIL.Image
    import torch

ImageLike: TypeAlias = "str | Path | PIL.Image.Image | NDArray[Any] | torch.Tensor"
"""A path, or an image as an object."""

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def to_rgb(image: ImageLike) -> NDArray[np.uint8]:
    """Turn an image into an array of RGB pixels.

    Args:
        image: The path of a photograph, a Pillow image, or an array or tensor of shape (height, width),
            (height, width, 1), (height, width, 3) in RGB or (height, width, 4) in RGBA, with whole numbers of
            0 to 255. Grey becomes RGB, an alpha channel is dropped, and of 16 bits in a Pillow image the
            upper 8 are taken. The EXIF orientation of a file is applied, that of a Pillow image is not:
            `PIL.ImageOps.exif_transpose` does it.

    Returns:
        (height, width, 3). It may share the memory of an array.

    Raises:
        PhotographError: The file, or a Pillow image of 32 bits a channel, cannot be used as a photograph.
        TypeError: The image has none of these forms.
        ValueError: The array has another shape, as with channels first, is empty, or holds other values, such
            as floats of 0 to 1. A detector would find no face in such an image.
    """
    if isinstance(image, str | Path):
        return read_photograph(image)
    if hasattr(image, "convert"):  # Pillow's; importing it only to know the class takes time
        pillow = cast("PIL.Image.Image", image)
        return convert_to_rgb(Path(f"the Pillow image of mode {pillow.mode}"), pillow)
    if not isinstance(image, np.ndarray) and not hasattr(image, "cpu"):  # not a tensor either
        raise TypeError(
            f"{type(image).__name__} is no image: give a path, a Pillow image, an array or a tensor"
        )
    array = image if isinstance(image, np.ndarray) else image.detach().cpu().numpy()
    pixels = _whole_numbers(_channels_last(array))
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[:, :, :3])


def _channels_last(image: NDArray[Any]) -> NDArray[Any]:
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in _CHANNELS:
        problem = (
            f"an image of shape {image.shape}: give (height, width, 3) in RGB, or (height, width) in grey"
        )
        if image.ndim == 3 and image.shape[0] in _CHANNELS:
            problem += ". The channels stand first: .transpose(1, 2, 0), or .permute of a tensor, moves them"
        raise ValueError(problem)
    if image.size == 0:
        raise ValueError(f"an image of shape {image.shape} has no pixels")
    return image


def _whole_numbers(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    scaled = image.dtype.kind not in "iu" and 0 < high <= 1
    if scaled or not 0 <= low <= high <= 255 or (image % 1).any():
        raise ValueError(
            f"an image of {image.dtype} with values from {low:.4g} to {high:.4g}: give whole numbers of 0 to "
            "255. (image * 255).round() makes them of floats from 0 to 1"
        )
    return image.astype(np.uint8)
