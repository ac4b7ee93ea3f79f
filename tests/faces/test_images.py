"""Photographs of every kind come out upright and in colour; what is no image is refused, never searched."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checks.core.photographs import PhotographError, read_photograph
from faces.images import to_rgb

# Red on the left, blue on the right, green below: any turn, flip or exchange of channels shows.
WIDTH, HEIGHT = 48, 32
PIXELS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PIXELS[:16, :24] = (200, 0, 0)
PIXELS[:16, 24:] = (0, 0, 200)
PIXELS[16:] = (0, 200, 0)
GREY = np.asarray(Image.fromarray(PIXELS).convert("L"))


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def close(actual: np.ndarray, expected: np.ndarray, most: int) -> bool:
    same_shape = actual.shape == expected.shape and actual.dtype == np.uint8
    return same_shape and int(np.abs(actual.astype(int) - expected).max()) <= most


# How a camera that is held this way stores the pixels: the EXIF standard's table, by NumPy.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_the_exif_orientation_is_applied(orientation: int, ending: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](PIXELS)))
    lossless = {"lossless": True} if ending == "webp" else {"quality": 95, "subsampling": 0}
    options = lossless if ending in ("webp", "jpg") else {}
    path = save(tmp_path / f"photograph.{ending}", stored, exif=exif, **options)
    assert close(read_photograph(path), PIXELS, most=8 if ending == "jpg" else 0)


def test_a_photograph_with_damaged_exif_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "photograph.jpg", Image.fromarray(PIXELS), exif=exif, quality=95, subsampling=0)
    content = bytearray(path.read_bytes())
    start = content.index(b"Exif\0\0") + 6
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert close(read_photograph(path), PIXELS, most=8)


def sixteen_bits(path: Path) -> Path:
    # 16 bits whose upper 8 are the grey levels, and whose lower 8 are noise.
    noise = np.random.default_rng(0).integers(0, 256, GREY.shape, np.uint16)
    return save(path, Image.fromarray((GREY.astype(np.uint16) << 8) | noise))


def in_grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[:, :, None], 3, axis=2)


def gif(path: Path) -> Path:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def of_mode(mode: str, **options: object):
    return lambda path: save(path, Image.fromarray(PIXELS).convert(mode), **options)


def with_alpha(path: Path) -> Path:
    image = Image.fromarray(PIXELS).convert("RGBA")
    image.putalpha(128)
    return save(path, image)


KINDS = {
    "grey.png": (of_mode("L"), in_grey(GREY), 0),
    "grey.jpg": (of_mode("L", quality=95), in_grey(GREY), 3),
    "alpha.png": (with_alpha, PIXELS, 0),
    "grey-alpha.png": (of_mode("LA"), in_grey(GREY), 0),
    "palette.png": (lambda path: save(path, Image.fromarray(PIXELS).quantize(8)), PIXELS, 8),
    "cmyk.jpg": (of_mode("CMYK", quality=95), PIXELS, 12),
    "cmyk.tif": (of_mode("CMYK"), PIXELS, 1),
    "bilevel.png": (lambda path: save(path, Image.fromarray(GREY > 50)), in_grey((GREY > 50) * 255), 0),
    "sixteen.png": (sixteen_bits, in_grey(GREY), 0),
    "sixteen.tif": (sixteen_bits, in_grey(GREY), 0),
    "moving.gif": (gif, PIXELS, 30),
    "lossless.webp": (of_mode("RGB", lossless=True), PIXELS, 0),
    "photograph.bmp": (of_mode("RGB"), PIXELS, 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_photograph_is_read(name: str, tmp_path: Path) -> None:
    write, expected, most = KINDS[name]
    assert close(read_photograph(write(tmp_path / name)), expected, most)


def test_pixels_that_are_no_levels_are_refused(tmp_path: Path) -> None:
    fractions = save(tmp_path / "fractions.tif", Image.fromarray(GREY.astype(np.float32) / 255))
    large = save(tmp_path / "large.tif", Image.fromarray(GREY.astype(np.int32) << 12))
    for path in (fractions, large):
        with pytest.raises(PhotographError) as caught:
            read_photograph(path)
        assert str(caught.value) == (
            f"{path}: its pixels are not whole numbers of 8 or 16 bits. Save it with 8 bits a channel."
        )


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_a_pillow_image_of_16_bits_is_that_of_its_file(mode: str, tmp_path: Path) -> None:
    image = Image.open(sixteen_bits(tmp_path / "sixteen.png"))
    assert close(to_rgb(image if image.mode == mode else image.convert(mode)), in_grey(GREY), most=0)
    with pytest.raises(PhotographError, match="the Pillow image of mode F: its pixels are not whole numbers"):
        to_rgb(Image.fromarray(GREY.astype(np.float32)))


def test_a_file_that_is_no_photograph_is_named_with_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no photograph")
    with pytest.raises(PhotographError) as caught:
        read_photograph(path)
    assert str(caught.value) == (
        f"{path}: cannot be decoded as a photograph. Leave it out, or save it again as JPEG or PNG."
    )


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PIXELS, PIXELS),
        (PIXELS[:, ::-1], PIXELS[:, ::-1]),
        (GREY, in_grey(GREY)),
        (GREY[:, :, None], in_grey(GREY)),
        (np.dstack([PIXELS, GREY]), PIXELS),
        (PIXELS.astype(np.int64), PIXELS),
        (PIXELS.astype(np.float32), PIXELS),
        (torch.from_numpy(PIXELS), PIXELS),
        (torch.from_numpy(PIXELS).float().requires_grad_(), PIXELS),
        (Image.fromarray(PIXELS), PIXELS),
        (Image.fromarray(PIXELS).convert("RGBA"), PIXELS),
        (Image.fromarray(GREY), in_grey(GREY)),
        (np.zeros((5, 4), np.int64), np.zeros((5, 4, 3))),
        (np.zeros((5, 4, 3), np.float32), np.zeros((5, 4, 3))),  # a black frame
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_images_of_any_form_become_rgb(image, expected) -> None:
    actual = to_rgb(image)
    assert actual.dtype == np.uint8
    assert np.array_equal(actual, expected)


def test_a_path_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "photograph.png", Image.fromarray(PIXELS))
    assert np.array_equal(to_rgb(path), PIXELS)
    assert np.array_equal(to_rgb(str(path)), PIXELS)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS.transpose(2, 0, 1), "The channels stand first: .transpose(1, 2, 0)"),
        (torch.from_numpy(PIXELS).permute(2, 0, 1), "The channels stand first: .transpose(1, 2, 0)"),
        (GREY[None], "The channels stand first"),
        (PIXELS / 255, "an image of float64 with values from 0 to 0.7843: give whole numbers of 0 to 255"),
        (torch.from_numpy(PIXELS) / 255, "an image of float32 with values from 0 to 0.7843"),
        ((PIXELS - 127.5) / 128, "an image of float64 with values from -0.9961 to 0.5664"),
        (np.full((4, 4, 3), np.nan), "an image of float64 with values from nan to nan"),
        (PIXELS.astype(np.int16) - 300, "an image of int16 with values from -300 to -100"),
        (GREY > 50, "an image of bool"),
        (PIXELS[None], "an image of shape (1, 32, 48, 3): give (height, width, 3)"),
        (PIXELS[:, :0], "an image of shape (32, 0, 3) has no pixels"),
        (np.zeros((9, 9, 2), np.uint8), "an image of shape (9, 9, 2): give (height, width, 3)"),
    ],
)
def test_what_is_no_image_is_refused(image, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        to_rgb(image)
    assert message in str(caught.value)


def test_an_object_that_is_no_image_is_refused() -> None:
    with pytest.raises(TypeError, match="BytesIO is no image: give a path, a Pillow image, an array"):
        to_rgb(io.BytesIO())
