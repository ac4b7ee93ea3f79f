"""A detector that knows faces by their colour: tests of folders need neither weights nor seconds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from faces.align import run
from faces.backends.facts import TORCH
from faces.detect.result import Face

SCORES = {250: 0.999, 240: 0.995, 230: 0.9}
"""Level of red of a face to its score."""


class ColourDetector:
    """Finds a face in each rectangle of pure red; `seen` has the sizes of all photographs."""

    backend = TORCH

    def __init__(self):
        self.seen = []

    def detect(self, images):
        return [self._faces(image) for image in images]

    def _faces(self, image):
        self.seen.append(image.shape[1::-1])
        faces = []
        for level, score in SCORES.items():
            rows, columns = np.nonzero((image == (level, 0, 0)).all(axis=2))
            if len(rows):
                left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                points = ((left + 1.5, top + 2.25),) * 5
                faces.append(Face((float(left), float(top), float(right), float(bottom)), score, points))
        return tuple(faces)


@pytest.fixture
def detector(monkeypatch):
    detector = ColourDetector()
    monkeypatch.setattr(run, "FaceDetector", lambda **options: detector)
    return detector


def picture(*faces, size=(120, 100)):
    """A photograph with faces: left, top, width, height, level of red."""
    pixels = np.full((size[1], size[0], 3), (10, 120, 60), np.uint8)
    for left, top, width, height, level in faces:
        pixels[top : top + height, left : left + width] = (level, 0, 0)
    return Image.fromarray(pixels)


ONE = (40, 30, 42, 46, 250)


def write(folder, *names, faces=(ONE,)):
    """Write photographs of a face each, all of other pixels."""
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image = picture(*faces)
        image.putpixel((0, 0), (number, len(name), 7))
        image.save(file, format=None if file.suffix in Image.registered_extensions() else "PNG")


def content(folder):
    """Path to content of every file of a folder."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
