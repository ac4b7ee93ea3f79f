"""The contact sheet of `facenet-port align`: every photograph with its boxes, the doubtful ones first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from checks.core.environment import environment
from checks.core.photographs import PhotographError, read_photograph
from checks.report.content import Head
from checks.report.page import write_html
from checks.report.pictures import data_url
from checks.report.provenance import digests, provenance, shown_path
from converter.counts import counted
from faces.align.result import DOUBTS, SEVERAL, AlignedPhotograph, AlignResult
from faces.crops import CROP_SIZES

_THREADS = 4  # that read photographs
_LONGER_SIDE = 208  # pixels of a picture
_CROPPED, _OTHER = (0, 200, 0), (255, 140, 0)
_UNREADABLE, _NO_FACE, _FINE = "Cannot be read", "No face", "One face, no doubt"
_TITLES = (_UNREADABLE, _NO_FACE, *(kind.capitalize() for kind in DOUBTS), _FINE)
_NOTES = {
    SEVERAL.capitalize(): "The faces in green have a crop, those in orange have none.",
}


@dataclass(frozen=True, slots=True)
class _Card:
    """A photograph as the page shows it: a data URL, its size, its name and its doubts."""

    picture: str
    width: int
    height: int
    name: str
    doubt: str


def write_page(path: str | Path, result: AlignResult, *, command: str) -> None:
    """Write the contact sheet.

    Args:
        path: The file; an older page is replaced.
        result: The result. Its photographs are read again for the pictures.
        command: The command as it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        cards = list(pool.map(lambda photograph: _card(result.folder, photograph), result.photographs))
    groups: dict[str, list[_Card]] = {title: [] for title in _TITLES}
    for photograph, card in zip(result.photographs, cards, strict=True):
        groups[_title(photograph)].append(card)
    foot = provenance(command, digests([str(result.table)]), environment(), None)
    write_html(
        Path(path),
        "faces/align/page.html",
        _head(result),
        foot,
        groups=[(title, _NOTES.get(title, ""), found) for title, found in groups.items() if found],
    )


def _title(photograph: AlignedPhotograph) -> str:
    if photograph.problem:
        return _UNREADABLE
    if not photograph.faces:
        return _NO_FACE
    return photograph.doubts[0].kind.capitalize() if photograph.doubts else _FINE


def _card(folder: Path, photograph: AlignedPhotograph) -> _Card:
    doubt = photograph.problem or ", ".join(doubt.text for doubt in photograph.doubts)
    try:
        picture = None if photograph.problem else _draw(folder, photograph)
    except PhotographError as error:  # it has gone since
        picture, doubt = None, error.problem
    if picture is None:
        return _Card("", 0, 0, photograph.name, doubt)
    return _Card(data_url(picture), *picture.size, photograph.name, doubt)


def _draw(folder: Path, photograph: AlignedPhotograph) -> Image.Image:
    picture = Image.fromarray(read_photograph(folder / photograph.name))
    picture.thumbnail((_LONGER_SIDE, _LONGER_SIDE))
    across, down = picture.width / photograph.width, picture.height / photograph.height
    pen = ImageDraw.Draw(picture)
    for cropped in sorted(photograph.faces, key=lambda item: bool(item.crop)):
        left, top, right, bottom = cropped.face.box
        box = (left * across, top * down, right * across, bottom * down)
        pen.rectangle(box, outline=_CROPPED if cropped.crop else _OTHER, width=2)
    return picture


def _head(result: AlignResult) -> Head:
    size = CROP_SIZES[result.options.crop]
    faces = "every face" if result.options.all_faces else "one face of each photograph"
    without = len(result.without_face) + len(result.unreadable)
    sentence = f"{counted(result.crops, 'face')} of {counted(len(result.photographs), 'photograph')}"
    if without:
        sentence += f"; {without} without a crop"
    return Head(
        command="align",
        passed=not without,
        word="Aligned" if not without else "Look",
        sentence=f"{sentence}.",
        facts=(
            ("photographs", shown_path(str(result.folder))),
            ("crops", shown_path(str(result.out))),
            ("crop", f"{result.options.crop}, {size}x{size}, {faces}"),
        ),
        judgements=(),
    )
