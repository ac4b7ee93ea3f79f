"""The inputs of a comparison: seeded images, and the user's photographs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from checks.core import thresholds
from checks.core.photographs import PhotographError, read_photograph
from checks.core.types import Array
from converter.errors import SourceError
from converter.mtcnn_layer_map import MtcnnNetwork, Network
from reference.mtcnn import O_NET_SIZE, R_NET_SIZE

IMAGE_SIZE = 160  # pixels; the published networks were trained on this size
ODD_SIZE = (147, 123)  # height and width: odd and unequal, so that sizes of maps are rounded
BATCH = 5  # images
NOISE = "standard normal"
SEEDED = (NOISE, "smooth", "constant", "near-black", f"odd size {ODD_SIZE[0]}x{ODD_SIZE[1]}")
_CROP_SIZES = {"R-Net": R_NET_SIZE, "O-Net": O_NET_SIZE}  # the height and width that they take
_P_NET_SIZE = 48  # P-Net takes any from 12 on
_P_NET_ODD_SIZE = (37, 29)
_MTCNN_BATCH = 32
_MOST_NAMED = 5  # files in a message


@dataclass(frozen=True, slots=True)
class InputBatch:
    """A batch of images.

    Attributes:
        name: A description, such as "standard normal".
        images: (N, H, W, 3), float32, standardised pixels.
    """

    name: str
    images: Array

    @property
    def few_values(self) -> bool:
        """True if an image has so few distinct values that rounding errors do not average out."""
        return min(np.unique(image).size for image in self.images) < thresholds.FEW_VALUES


def seeded_inputs(seed: int) -> list[InputBatch]:
    """The five built-in inputs; the same seed gives the same images."""
    random = np.random.default_rng(seed)
    square = (IMAGE_SIZE, IMAGE_SIZE, 3)
    noise = random.standard_normal((BATCH, *square))
    odd = random.standard_normal((2, *ODD_SIZE, 3))
    # Two levels of grey, and pixels of 0, 1 and 2 out of 255.
    constant = np.stack([np.full(square, level) for level in (-0.4, 0.7)])
    near_black = standardise(random.integers(0, 3, (2, *square)))
    return [
        InputBatch(NOISE, noise.astype(np.float32)),
        InputBatch(SEEDED[1], _smooth(random, 2)),
        InputBatch(SEEDED[2], constant.astype(np.float32)),
        InputBatch(SEEDED[3], near_black),
        InputBatch(SEEDED[4], odd.astype(np.float32)),
    ]


def input_names(network: Network) -> tuple[str, ...]:
    """The names of the built-in inputs of a network."""
    if not isinstance(network, MtcnnNetwork):
        return SEEDED
    odd = f"odd size {_P_NET_ODD_SIZE[0]}x{_P_NET_ODD_SIZE[1]}"
    return (*SEEDED[:4], odd) if network.name == "P-Net" else SEEDED[:4]


def inputs_of(network: Network, seed: int) -> list[InputBatch]:
    """The built-in inputs of a network; the same seed gives the same images.

    Those of a network of MTCNN have the names of `seeded_inputs` and sizes of their own. R-Net and O-Net take
    one size, so there is no odd size for them.
    """
    if not isinstance(network, MtcnnNetwork):
        return seeded_inputs(seed)
    random = np.random.default_rng(seed)
    side = _CROP_SIZES.get(network.name, _P_NET_SIZE)
    square = (_MTCNN_BATCH, side, side, 3)
    noise = random.standard_normal(square)
    constant = np.stack([np.full(square[1:], level) for level in (-0.4, 0.7)])
    images = (
        noise.astype(np.float32),
        _smooth(random, _MTCNN_BATCH, side),
        constant.astype(np.float32),
        standardise(random.integers(0, 3, square)),
        random.standard_normal((2, *_P_NET_ODD_SIZE, 3)).astype(np.float32),
    )
    return [InputBatch(name, batch) for name, batch in zip(input_names(network), images, strict=False)]


def standardise(pixels: Array) -> Array:
    """Standardise pixels of 0 to 255 as for the networks of 2018: (x - 127.5) / 128, float32."""
    return ((pixels - 127.5) / 128.0).astype(np.float32)


def prewhiten(pixels: Array) -> Array:
    """Standardise pixels of 0 to 255 as for the networks of 2017, float32.

    (x - mean) / max(std, 1 / sqrt(x.size)) over each image: `prewhiten` in facenet's `src/facenet.py`.
    """
    whitened = np.empty(pixels.shape, np.float32)
    floor = 1.0 / np.sqrt(whitened[0].size)
    for image, result in zip(pixels, whitened, strict=True):  # one at a time stays in the processor's cache
        deviations = image - image.mean(dtype=np.float64)
        result[:] = deviations / max(np.sqrt(np.square(deviations).mean()), floor)
    return whitened


def _smooth(random: np.random.Generator, count: int, side: int = IMAGE_SIZE) -> Array:
    """Draw images whose channels are sums of six plane waves, of at most three periods across the image."""
    grid = np.linspace(0, 1, side)
    images = np.zeros((count, side, side, 3))
    for image in images:
        for channel in range(3):
            for _ in range(6):
                across, down = random.uniform(-3, 3, 2)
                phase = random.uniform(0, 2 * np.pi)
                wave = np.cos(2 * np.pi * (across * grid[None, :] + down * grid[:, None]) + phase)
                image[:, :, channel] += 0.3 * wave
    return images.astype(np.float32)


def read_photographs(files: Sequence[str | Path]) -> list[Array]:
    """Read photographs, each cropped to its central square and resized: (160, 160, 3), uint8.

    Raises:
        SourceError: Some cannot be used, as `checks.core.photographs.read_photograph` says.
    """
    images, problems = [], []
    for file in files:
        try:
            images.append(_fit(read_photograph(file)))
        except PhotographError as error:
            problems.append(error)
    if problems:
        first, others = problems[0], [error.path.name for error in problems[1:]]
        next_step = (
            f"{first.remedy}, or remove it from the folder" if first.remedy else "Remove it from the folder"
        )
        if others:
            named = ", ".join(others[:_MOST_NAMED]) + (" and others" if len(others) > _MOST_NAMED else "")
            next_step += f". {len(others)} more cannot be used: {named}"
        raise SourceError(first.path, first.problem, next_step=next_step)
    return images


def _fit(photograph: NDArray[np.uint8]) -> Array:
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(Image.fromarray(photograph), (IMAGE_SIZE, IMAGE_SIZE)))


def photograph_inputs(photographs: Sequence[Array], network: Network | None = None) -> Iterator[InputBatch]:
    """Standardise photographs as for the networks of 2018 and MTCNN's, in batches of five.

    Args:
        photographs: The result of `read_photographs`.
        network: The network that takes them; None is Inception-ResNet-v1. R-Net and O-Net take crops of each
            photograph, in place of the photograph itself.
    """
    side = _CROP_SIZES.get(network.name) if isinstance(network, MtcnnNetwork) else None
    for start in range(0, len(photographs), BATCH):
        images = photographs[start : start + BATCH]
        name = f"photographs {start + 1}-{start + len(images)}"
        if side is not None:
            images = [crop for image in images for crop in _crops(image, side)]
            name = f"crops of {name}"
        yield InputBatch(name, standardise(np.stack(images)))


def _crops(photograph: Array, side: int) -> Iterator[Array]:
    """Resize a photograph, and nine windows of half its height and width.

    Args:
        photograph: (160, 160, 3), uint8.
        side: Height and width of the results.
    """
    from PIL import Image

    image = Image.fromarray(photograph)
    for window in (IMAGE_SIZE, IMAGE_SIZE // 2):
        steps = range(0, IMAGE_SIZE - window + 1, IMAGE_SIZE // 4)
        for top, left in itertools.product(steps, steps):
            box = (left, top, left + window, top + window)
            yield np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box))
