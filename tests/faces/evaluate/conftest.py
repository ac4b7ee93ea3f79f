"""A small data set in the form of lfw, and a network for it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

PEOPLE = ("Ana_Lind", "Bo_Ek", "Cy_Holm")
EACH = 3


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def crops(tmp_path_factory):
    """lfw/NAME/NAME_0001.png of 160x160, similar for a person, and faces.csv beside it."""
    folder = tmp_path_factory.mktemp("crops")
    random = np.random.default_rng(0)
    rows = []
    for label, person in enumerate(PEOPLE):
        (folder / "lfw" / person).mkdir(parents=True)
        base = random.integers(40, 216, (12, 12, 3))
        for number in range(1, EACH + 1):
            pixels = np.clip(base + random.integers(-40, 41, base.shape), 0, 255).astype(np.uint8)
            path = f"lfw/{person}/{person}_{number:04d}.png"
            Image.fromarray(pixels).resize((160, 160), Image.Resampling.BICUBIC).save(folder / path)
            rows.append({"image_path": path, "person_name": person, "label": label})
    write_csv(folder / "faces.csv", rows)
    return folder


PAIRS = """2\t3
Ana_Lind\t1\t2
Bo_Ek\t1\t3
Cy_Holm\t2\t3
Ana_Lind\t1\tBo_Ek\t1
Ana_Lind\t2\tCy_Holm\t1
Bo_Ek\t3\tCy_Holm\t3
Ana_Lind\t2\t3
Bo_Ek\t1\t2
Cy_Holm\t1\t2
Ana_Lind\t3\tBo_Ek\t2
Ana_Lind\t1\tCy_Holm\t2
Bo_Ek\t2\tCy_Holm\t9
"""


@pytest.fixture
def pairs(tmp_path):
    """A list of two folds of three same and three different pairs; an image of the last is missing."""
    path = tmp_path / "pairs.txt"
    path.write_text(PAIRS)
    return path
