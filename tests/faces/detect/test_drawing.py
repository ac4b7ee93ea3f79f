"""The files of drawings: what they replace, what they do not, and the time for many."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from converter.errors import UsageError
from faces.detect.drawing import Drawings

PIXELS = np.zeros((30, 40, 3), np.uint8)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp"])
def test_a_drawing_is_replaced_and_a_photograph_of_its_name_is_not(tmp_path, ending) -> None:
    file, name, out = tmp_path / f"photos/1{ending}", Path(f"ben/1{ending}"), tmp_path / "drawn"
    for _ in range(2):
        Drawings(out, {file: name}).write(file, PIXELS, ())
    Image.fromarray(PIXELS).save(out / name)
    before = (out / name).read_bytes()
    with pytest.raises(UsageError, match=rf"1{ending} exists and is not known as a drawing of"):
        Drawings(out, {file: name})
    assert (out / name).read_bytes() == before


def test_what_is_no_image_is_not_replaced(tmp_path) -> None:
    (tmp_path / "1.jpg").write_text("mine")
    with pytest.raises(UsageError, match="is not known as a drawing"):
        Drawings(tmp_path, {Path("1.jpg"): Path("1.jpg")})


def test_the_file_for_one_photograph_is_replaced(tmp_path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "one.png")
    Drawings(tmp_path / "one.png", {Path("1.jpg"): Path("1.jpg")})


def test_many_drawings_are_named_in_linear_time(tmp_path) -> None:
    started = time.process_time()
    Drawings(tmp_path, {Path(f"{number}.jpg"): Path(f"{number}.jpg") for number in range(10_000)})
    assert time.process_time() - started < 10
