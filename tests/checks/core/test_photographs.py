"""Photographs that cannot be used are refused by name, all of them at once, before TensorFlow starts."""

from __future__ import annotations

import os
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from checks.compare.__main__ import main as compare
from checks.core import tensorflow_side
from checks.core.inputs import read_photographs
from checks.core.photographs import find_photographs
from converter.errors import SourceError


def picture(size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def truncated(path):
    picture((200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def broken_png(path):
    picture().save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 40] ^= 0xFF
    path.write_bytes(content)


def chunk(kind, content):
    body = kind + content
    return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def of_pixels(width, height):
    """A PNG of any size, without its pixels: the size stands first."""

    def write(path):
        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))

    return write


BAD = {
    "cut.jpg": (truncated, "cannot be decoded as a photograph"),
    "cut.webp": (truncated, "cannot be decoded as a photograph"),
    "flipped.png": (broken_png, "cannot be decoded as a photograph"),
    "empty.jpg": (lambda path: path.touch(), "cannot be decoded as a photograph: it is empty"),
    "text.jpeg": (lambda path: path.write_text("a photograph"), "cannot be decoded as a photograph"),
    "page.jpeg": (lambda path: path.write_text("<!doctype html>"), "this is a web page, not the file itself"),
    "pointer.jpg": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\nsize 12\n"),
        "this is a pointer of Git LFS, not the file itself of 12 bytes. Run `git lfs pull`",
    ),
    "large.png": (of_pixels(10_000, 9_000), "more than the 89,478,485 pixels that Pillow takes"),
    "bomb.png": (of_pixels(50_000, 50_000), "more than the 89,478,485 pixels that Pillow takes"),
    "pipe.jpg": (os.mkfifo, "this is not a regular file"),
    "dangling.jpg": (lambda path: path.symlink_to("nowhere"), "there is no such file or folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_photograph_that_cannot_be_used_is_named(name, checkpoint, tmp_path, monkeypatch, capfd):
    def started(*_, **__):
        raise AssertionError("TensorFlow has been started")

    monkeypatch.setattr(tensorflow_side.TensorFlowSide, "__init__", started)
    picture().save(tmp_path / "a-good-one.png")
    write, problem = BAD[name]
    write(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare([str(checkpoint.frozen), "--images", str(tmp_path)]) == 3
    run = capfd.readouterr()
    assert run.err.startswith(f"python -m checks.compare: error: {tmp_path / name}: {problem}")
    assert run.err.count("\n") == 1
    assert run.out == ""


def test_all_of_them_are_named_at_once(tmp_path):
    picture().save(tmp_path / "good.png")
    for number in range(8):
        (tmp_path / f"{number}.jpg").touch()
    with pytest.raises(SourceError) as caught:
        read_photographs(find_photographs(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}/0.jpg: cannot be decoded as a photograph: it is empty. Remove it from the folder. 7 "
        "more cannot be used: 1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg and others."
    )


def test_odd_but_sound_photographs_are_read(tmp_path):
    picture().convert("P").save(tmp_path / "palette.png", transparency=bytes(range(256)))
    picture().convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture().convert("L").save(tmp_path / "grey.bmp")
    picture((1, 1)).save(tmp_path / "pixel.png")
    picture((1, 999)).save(tmp_path / "line.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = read_photographs(find_photographs(tmp_path))
    assert [(image.shape, image.dtype) for image in images] == [((160, 160, 3), np.uint8)] * 5
