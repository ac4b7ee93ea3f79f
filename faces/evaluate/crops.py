"""The crops of a data set: read, and embedded in batches by any network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.core.inputs import IMAGE_SIZE
from converter.errors import SourceError
from faces.images import to_rgb

CROP_SIZES = (IMAGE_SIZE, 182)
"""Sides of a crop in pixels: as the network takes it, and as facenet's `align_dataset_mtcnn.py` writes it."""

Network = Callable[[NDArray[Any]], NDArray[Any]]
"""A function from standardised images, (N, H, W, 3) float32, to rows of numbers, (N, ...)."""


def read_crop(file: Path) -> NDArray[np.uint8]:
    """Read a crop: (160, 160, 3), RGB; of a larger one the centre, as in the original.

    Raises:
        SourceError: The file cannot be used as a photograph, or is no crop.
    """
    pixels = to_rgb(file)
    height, width = pixels.shape[:2]
    if height != width or height not in CROP_SIZES:
        raise SourceError(
            file,
            f"its {width}x{height} pixels are not those of a crop, 160x160 or 182x182",
            next_step="Crop the faces first: facenet-port align FOLDER CROPS",
        )
    start = (height - IMAGE_SIZE) // 2
    return pixels[start : start + IMAGE_SIZE, start : start + IMAGE_SIZE]


def run_networks(
    files: Sequence[Path],
    standardise: Network,
    networks: Sequence[Network],
    *,
    mirrored: bool = False,
    batch_size: int = 32,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> list[NDArray[Any]]:
    """Run networks on the same crops, in batches.

    Args:
        files: N files of crops.
        standardise: From pixels of 0 to 255, (N, H, W, 3), to the networks' input.
        networks: The networks.
        mirrored: Whether each row is followed by that of the mirrored crop: `--use_flipped_images` of the
            original.
        batch_size: Images that a network takes at a time.
        progress: Progress callback: crops done, and their number.

    Returns:
        For each network its (N, E) rows, or (N, 2 E).

    Raises:
        SourceError: As for `read_crop`.
    """
    rows: list[list[NDArray[Any]]] = [[] for _ in networks]
    for start in range(0, len(files), batch_size):
        progress(start, len(files))
        pixels = np.stack([read_crop(file) for file in files[start : start + batch_size]])
        views = [standardise(pixels)] + ([standardise(pixels[:, :, ::-1])] if mirrored else [])
        for network, collected in zip(networks, rows, strict=True):
            collected.append(np.concatenate([network(view) for view in views], axis=1))
    return [np.concatenate(collected) for collected in rows]
