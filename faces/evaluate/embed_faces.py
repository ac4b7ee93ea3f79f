"""The faces of a data set: found in photographs that are no crops, and embedded in batches by any network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faces.crops import CropMethod, FaceImage, check_box, check_crop, choose_face, is_crop, read_face
from faces.detect.detector import FaceDetector
from faces.images import to_rgb

Network = Callable[[NDArray[Any]], NDArray[Any]]
"""A function from pixels of 0 to 255, (N, H, W, 3) uint8, to rows of numbers, (N, ...)."""

Progress = Callable[[int, int | None], None]


def find_faces(
    images: Sequence[FaceImage],
    method: CropMethod,
    load: Callable[[], FaceDetector],
    progress: Progress,
) -> list[FaceImage | None]:
    """Find the face of each image: a crop is one itself, of a photograph it is chosen as `align` does.

    Args:
        images: The images; a known box is kept.
        method: How the face of a photograph is chosen; the crop of every image.
        load: Loads the detector; it is called if an image is no crop.
        progress: Progress callback: images done, and their number.

    Returns:
        The face of each image; None for a photograph without one.

    Raises:
        SourceError: A file cannot be used as a photograph, or a box lies outside it.
        UsageError: An image is a crop of another kind.
    """
    faces: list[FaceImage | None] = []
    detector: FaceDetector | None = None
    for image in images:
        progress(len(faces), len(images))
        pixels = to_rgb(image.file)
        check_crop(image.file, pixels, method, method)
        check_box(image, pixels)
        if is_crop(pixels):
            faces.append(FaceImage(image.file))
            continue
        if image.box is not None:
            faces.append(image)
            continue
        detector = detector or load()
        (found,) = detector.detect([pixels])
        height, width = pixels.shape[:2]
        box = found[choose_face(found, width, height, method)].box if found else None
        faces.append(FaceImage(image.file, box) if box else None)
    return faces


def run_networks(
    images: Sequence[FaceImage],
    method: CropMethod,
    networks: Sequence[Network],
    *,
    mirrored: bool = False,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
) -> list[NDArray[Any]]:
    """Run networks on the same faces, in batches.

    Args:
        images: N faces, at least one.
        method: The crop of a photograph.
        networks: The networks.
        mirrored: Whether each row is followed by that of the mirrored image, as with
            `--use_flipped_images` of the original.
        batch_size: Images that a network takes at a time.
        progress: Progress callback: faces done, and their number.

    Returns:
        For each network its (N, E) rows, or (N, 2 E).

    Raises:
        SourceError: As for `read_face`.
    """
    rows: list[list[NDArray[Any]]] = [[] for _ in networks]
    for start in range(0, len(images), batch_size):
        progress(start, len(images))
        pixels = np.stack([read_face(image, method) for image in images[start : start + batch_size]])
        views = [pixels, pixels[:, :, ::-1]] if mirrored else [pixels]
        for network, collected in zip(networks, rows, strict=True):
            collected.append(np.concatenate([network(view) for view in views], axis=1))
    return [np.concatenate(collected) for collected in rows]
