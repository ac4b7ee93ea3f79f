"""Photographs: the files of a folder, and their pixels as a person sees them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from checks.core.types import Array
from converter.errors import SourceError, UsageError
from converter.formats.limits import open_regular
from converter.formats.neighbours import HEAD_BYTES, recognise_placeholder
from converter.stray_files import is_stray

if TYPE_CHECKING:
    from PIL.Image import Image

PHOTOGRAPH_ENDINGS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
"""The endings, in lower case, of the files that a search of a folder takes for photographs."""

_MOST_LEVELS = 1 << 16  # of a channel with 16 bits
_LEAVE_OUT = "Leave it out, or save it again as JPEG or PNG"


class PhotographError(SourceError):
    """A file cannot be used as a photograph.

    Attributes:
        problem: What is wrong, a clause without the file and without a full stop.
        remedy: The step that makes the file usable, a clause; empty if there is none.
    """

    def __init__(self, file: Path, problem: str, remedy: str = "") -> None:
        super().__init__(file, problem, next_step=remedy or _LEAVE_OUT)
        self.problem = problem
        self.remedy = remedy


def walk(folder: Path, within: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Give the files of a folder and its subfolders without the stray ones; links to folders are followed.

    Args:
        folder: The folder.
        within: The resolved folders that it lies in: a link back to one of them is not followed.
    """
    resolved = folder.resolve()
    if resolved in within:
        return
    try:
        paths = [path for path in folder.iterdir() if not is_stray(path.name)]
    except PermissionError:  # such as a folder of the system
        return
    for path in paths:
        if path.is_dir():
            yield from walk(path, (*within, resolved))
        else:
            yield path


def find_photographs(folder: str | Path, *, wanted: str = "") -> list[Path]:
    """Find all photographs of a folder and its subfolders, sorted by name, as `walk` does.

    Args:
        folder: The folder.
        wanted: The folder that a message asks for, if it is not any folder of photographs.

    Raises:
        UsageError: There is no such folder.
        SourceError: It holds no photographs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "this is a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"{folder}: {problem}. Give {wanted or 'a folder of photographs'}.")
    files = sorted(file for file in walk(folder) if file.suffix.lower() in PHOTOGRAPH_ENDINGS)
    if not files:
        kinds = ", ".join(sorted(PHOTOGRAPH_ENDINGS))
        raise SourceError(
            folder, "it holds no photographs", next_step=f"Give {wanted or f'a folder with {kinds} files'}"
        )
    return files


def read_photograph(file: str | Path) -> NDArray[np.uint8]:
    """Read a photograph upright and in colour.

    The EXIF orientation is applied. Grey, palette and CMYK images become RGB, 16 bits become the upper 8, an
    alpha channel is dropped, as facenet drops it, and the first frame of an animation is taken.

    Args:
        file: A file of any format that Pillow reads, whatever its ending.

    Returns:
        (height, width, 3), RGB.

    Raises:
        PhotographError: It cannot be read or decoded, has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or
            pixels that are not whole numbers of 8 or 16 bits.
    """
    from PIL import Image, ImageOps

    file = Path(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with open_regular(file) as opened, Image.open(opened) as image:
                image.load()  # the EXIF of some formats stands behind the pixels
                return convert_to_rgb(file, ImageOps.exif_transpose(image))
        except PhotographError:
            raise
        except SourceError:
            raise PhotographError(file, "this is not a regular file") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            limit = f"more than the {Image.MAX_IMAGE_PIXELS:,} pixels that Pillow takes"
            raise PhotographError(file, limit, "Make it smaller") from None
        except FileNotFoundError as error:
            raise PhotographError(file, "there is no such file or folder", "Check its name") from error
        except OSError as error:
            if error.errno is not None:
                problem = f"cannot be read ({error.strerror})"
                raise PhotographError(file, problem, "Check its name and its permissions") from error
            raise _undecodable(file) from error
        except Exception as error:  # Pillow raises anything on a damaged file
            raise _undecodable(file) from error


def convert_to_rgb(file: Path, image: Image) -> NDArray[np.uint8]:
    """Turn a Pillow image into RGB pixels, as `read_photograph` says.

    Args:
        file: Its file, or a name for it in messages.
        image: The image, upright.

    Returns:
        (height, width, 3).

    Raises:
        PhotographError: Its pixels are not whole numbers of 8 or 16 bits.
    """
    if not image.mode.startswith(("I", "F")):
        return np.array(image.convert("RGB"))
    levels: Array = np.asarray(image)  # Pillow would clip 16 bits to 8, not scale them
    if image.mode == "F" or levels.min() < 0 or levels.max() >= _MOST_LEVELS:
        problem = "its pixels are not whole numbers of 8 or 16 bits"
        raise PhotographError(file, problem, "Save it with 8 bits a channel")
    grey = (levels >> 8).astype(np.uint8)  # as Pillow does in colour
    return np.repeat(grey[:, :, None], 3, axis=2)


def _undecodable(file: Path) -> PhotographError:
    with open_regular(file) as opened:
        placeholder = recognise_placeholder(opened.read(HEAD_BYTES))
    if placeholder is not None:
        return PhotographError(file, *placeholder)
    empty = "" if file.stat().st_size else ": it is empty"
    return PhotographError(file, f"cannot be decoded as a photograph{empty}")
