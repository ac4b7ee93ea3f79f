"""Photographs with the boxes and landmarks of their faces drawn on them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from checks.core.photographs import PHOTOGRAPH_ENDINGS
from converter.atomic import replace_file
from converter.errors import UsageError
from converter.formats.limits import open_regular
from faces.detect.result import Face

_COLOUR = (0, 255, 0)
_LINE = 1 / 250  # width of a line, as a share of the longer side of the photograph
_SOFTWARE, _DREW = 0x0131, "facenet-port detect"  # the EXIF tag that tells a drawing, and its value


class Drawings:
    """The files of the drawings. In a folder they replace those of an earlier run, and no other file.

    Args:
        out: A folder, which is made if there is none, or the file for a single photograph.
        files: Each photograph to the path of its drawing in the folder.

    Raises:
        UsageError: A drawing would replace a photograph or, in a folder, any file that is no drawing; or a
            file is given for several photographs.
    """

    def __init__(self, out: Path, files: Mapping[Path, Path]) -> None:
        is_file = out.suffix.lower() in PHOTOGRAPH_ENDINGS and not out.is_dir()
        if is_file and len(files) > 1:
            raise UsageError(f"--draw {out}: this is a file, for {len(files)} photographs. Give a folder.")
        if out.exists() and not is_file and not out.is_dir():
            raise UsageError(f"--draw {out}: this is not a folder. Give another name.")
        originals = {file.resolve() for file in files}
        self._targets: dict[Path, Path] = {}
        taken: set[Path] = set()
        for file, name in files.items():
            target = out if is_file else _free(out / name, taken)
            if target.resolve() in originals:
                raise UsageError(
                    f"--draw {out}: it would replace the photograph {target}. Give another name."
                )
            if not is_file and target.exists() and not _is_drawing(target):
                raise UsageError(
                    f"--draw {out}: {target} exists and is not known as a drawing of an earlier run. Give a "
                    "new folder."
                )
            self._targets[file] = target
            taken.add(target)

    def write(self, file: Path, photograph: NDArray[np.uint8], faces: Sequence[Face]) -> None:
        """Draw the faces of a photograph and write it, in the format of its ending, or else as PNG.

        Args:
            file: The photograph.
            photograph: (height, width, 3), RGB.
            faces: Its faces.

        Raises:
            UsageError: The folder cannot be written to.
        """
        target = self._targets[file]
        target.parent.mkdir(parents=True, exist_ok=True)
        encoded = io.BytesIO()
        file_format = Image.registered_extensions().get(target.suffix.lower(), "PNG")
        exif = Image.Exif()
        exif[_SOFTWARE] = _DREW
        draw_faces(photograph, faces).save(encoded, file_format, quality=95, exif=exif)
        replace_file(target, encoded.getvalue())


def draw_faces(photograph: NDArray[np.uint8], faces: Sequence[Face]) -> Image.Image:
    """Draw boxes and landmarks on a copy of a photograph.

    Args:
        photograph: (height, width, 3), RGB.
        faces: Its faces.
    """
    drawn = Image.fromarray(photograph)
    pen = ImageDraw.Draw(drawn)
    line = max(1, round(max(drawn.size) * _LINE))
    radius = line + 1
    for face in faces:
        pen.rectangle([round(side) for side in face.box], outline=_COLOUR, width=line)
        for x, y in face.landmarks:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_COLOUR)
    return drawn


def _is_drawing(file: Path) -> bool:
    """Return whether a run drew a file; GIF and BMP, which have no EXIF, do not tell."""
    try:
        with open_regular(file) as opened, Image.open(opened) as image:
            return bool(image.getexif().get(_SOFTWARE) == _DREW)
    except Exception:  # Pillow raises anything on what is no image
        return False


def _free(path: Path, taken: Set[Path]) -> Path:
    """Return a path, with a number if it is taken: two folders may have photographs of one name."""
    candidate, number = path, 2
    while candidate in taken:
        candidate, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return candidate
