"""The inputs of a comparison: seeded images, and the user's photographs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.core import thresholds
from converter.errors import SourceError, UsageError
from converter.formats.limits import open_regular
from converter.stray_files import is_stray

IMAGE_SIZE = 160  # pixels; the published networks were trained on this size
ODD_SIZE = (147, 123)  # height and width: odd and unequal, so that sizes of maps are rounded
BATCH = 5  # images
NOISE = "standard normal"
SEEDED = (NOISE, "smooth", "constant", "near-black", f"odd size {ODD_SIZE[0]}x{ODD_SIZE[1]}")
_MOST_NAMED = 5  # files in a message
_PHOTOGRAPHS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True, slots=True)
class InputBatch:
    """A batch of images.

    Attributes:
        name: A description, such as "standard normal".
        images: (N, H, W, 3), float32, standardised pixels.
    """

    name: str
    images: NDArray[Any]

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


def standardise(pixels: NDArray[Any]) -> NDArray[Any]:
    """Standardise pixels of 0 to 255 as for the networks of 2018: (x - 127.5) / 128, float32."""
    return ((pixels - 127.5) / 128.0).astype(np.float32)


def prewhiten(pixels: NDArray[Any]) -> NDArray[Any]:
    """Standardise pixels of 0 to 255 as for the networks of 2017, float32.

    (x - mean) / max(std, 1 / sqrt(x.size)) over each image: `prewhiten` in facenet's `src/facenet.py`.
    """
    images = pixels.astype(np.float64)
    axes = (1, 2, 3)
    floor = 1.0 / np.sqrt(images[0].size)
    deviations = np.maximum(images.std(axis=axes, keepdims=True), floor)
    whitened: NDArray[Any] = (images - images.mean(axis=axes, keepdims=True)) / deviations
    return whitened.astype(np.float32)


def _smooth(random: np.random.Generator, count: int) -> NDArray[Any]:
    """Draw images whose channels are sums of six plane waves, of at most three periods across the image."""
    grid = np.linspace(0, 1, IMAGE_SIZE)
    images = np.zeros((count, IMAGE_SIZE, IMAGE_SIZE, 3))
    for image in images:
        for channel in range(3):
            for _ in range(6):
                across, down = random.uniform(-3, 3, 2)
                phase = random.uniform(0, 2 * np.pi)
                wave = np.cos(2 * np.pi * (across * grid[None, :] + down * grid[:, None]) + phase)
                image[:, :, channel] += 0.3 * wave
    return images.astype(np.float32)


def find_photographs(folder: str | Path) -> list[Path]:
    """Find all photographs of a folder and its subfolders, sorted by name; stray files are left out.

    Raises:
        UsageError: There is no such folder.
        SourceError: It holds no photographs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder. Give a folder of photographs.")
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _PHOTOGRAPHS and not is_stray(file.relative_to(folder))
    )
    if not files:
        kinds = ", ".join(sorted(_PHOTOGRAPHS))
        raise SourceError(folder, "it holds no photographs", next_step=f"Give a folder with {kinds} files")
    return files


def read_photographs(files: Sequence[str | Path]) -> list[NDArray[Any]]:
    """Read photographs, each cropped to its central square and resized: (160, 160, 3), uint8.

    Raises:
        SourceError: Some cannot be decoded, are too large, or have more than 8 bits a channel.
    """
    images, problems = [], []
    for file in map(Path, files):
        try:
            images.append(_read_photograph(file))
        except _PhotographError as error:
            problems.append((file, error))
    if problems:
        file, first = problems[0]
        others = [path.name for path, _ in problems[1:]]
        next_step = f"{first.remedy} it from the folder"
        if others:
            named = ", ".join(others[:_MOST_NAMED]) + (" and others" if len(others) > _MOST_NAMED else "")
            next_step += f". {len(others)} more cannot be used: {named}"
        raise SourceError(file, str(first), next_step=next_step)
    return images


class _PhotographError(Exception):
    """A photograph cannot be used; `remedy` begins the advice."""

    def __init__(self, problem: str, remedy: str = "Remove") -> None:
        super().__init__(problem)
        self.remedy = remedy


def _read_photograph(file: Path) -> NDArray[Any]:
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with open_regular(file) as opened, Image.open(opened) as image:
                if image.mode.startswith(("I", "F")):
                    raise _PhotographError("more than 8 bits a channel", "Save it with 8 bits, or remove")
                return np.asarray(ImageOps.fit(image.convert("RGB"), (IMAGE_SIZE, IMAGE_SIZE)))
        except _PhotographError:
            raise
        except SourceError:
            raise _PhotographError("this is not a regular file") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            limit = f"more than the {Image.MAX_IMAGE_PIXELS:,} pixels that Pillow takes"
            raise _PhotographError(limit, "Make it smaller, or remove") from None
        except OSError as error:
            if error.errno is not None:
                raise _PhotographError(f"cannot be read ({error.strerror})") from error
            raise _PhotographError(_why_undecodable(file)) from error
        except Exception as error:  # Pillow raises anything on a damaged file
            raise _PhotographError(_why_undecodable(file)) from error


def _why_undecodable(file: Path) -> str:
    return "cannot be decoded as a photograph" + ("" if file.stat().st_size else ": it is empty")


def photograph_inputs(photographs: Sequence[NDArray[Any]]) -> Iterator[InputBatch]:
    """Standardise photographs as for the networks of 2018, in batches of five.

    Args:
        photographs: The result of `read_photographs`.
    """
    for start in range(0, len(photographs), BATCH):
        images = photographs[start : start + BATCH]
        yield InputBatch(f"photographs {start + 1}-{start + len(images)}", standardise(np.stack(images)))
