"""The crops of a data set: read, and embedded in batches by any network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faces.crops import read_crop

Network = Callable[[NDArray[Any]], NDArray[Any]]
"""A function from standardised images, (N, H, W, 3) float32, to rows of numbers, (N, ...)."""


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
