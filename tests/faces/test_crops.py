"""Crops: facenet's pixel by pixel, judged by the original's own script; what each method chooses."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from converter.errors import SourceError
from faces import crops
from faces.controls.faults import FAULTS
from faces.crops import CROP_SIZES, central_part, choose_face, crop_face, read_crop
from faces.detect.result import Face
from tests.conftest import fetch
from tests.support.original_align import align_as_original
from tests.support.package_index import FACENET

COUNT = 24  # photographs


def face(*box):
    return Face(tuple(map(float, box)), 0.99, ((0.0, 0.0),) * 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photographs with one to three boxes each, some over the edge: pixels, faces, the original's crop."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("made")
    (folder / "photographs/somebody").mkdir(parents=True)
    photographs, boxes = [], []
    for number in range(COUNT):
        height, width = random.integers(90, 260, 2)
        pixels = random.integers(0, 256, (height // 6, width // 6, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        Image.fromarray(pixels).save(folder / f"photographs/somebody/{number:02}.png")
        corner = random.uniform(-15, 0.6, (1 + number % 3, 2)) * (1, 1)
        corner = np.where(corner > 0, corner, random.uniform(-12, 0.6 * min(height, width), corner.shape))
        size = random.uniform(25, 0.7 * min(height, width), corner.shape)
        photographs.append(pixels)
        boxes.append(np.hstack([corner, corner + size, np.full((len(corner), 1), 0.99)]))
    waiting = iter(boxes)
    align_as_original(fetch(FACENET), folder / "photographs", folder / "crops", lambda image: next(waiting))
    expected = [np.asarray(Image.open(folder / f"crops/somebody/{number:02}.png")) for number in range(COUNT)]
    faces = [[face(*row[:4]) for row in rows] for rows in boxes]
    return list(zip(photographs, faces, expected, strict=True))


def count_different(made):
    """Count the photographs whose crop has other pixels than the original's."""
    different = 0
    for pixels, faces, expected in made:
        height, width = pixels.shape[:2]
        chosen = faces[crops.choose_face(faces, width, height, "facenet")]
        different += not np.array_equal(crop_face(pixels, chosen.box, "facenet"), expected)
    return different


@pytest.mark.real
def test_the_crop_of_facenet_has_the_pixels_of_the_original(made):
    assert count_different(made) == 0


LEAST = {
    "margin-of-the-crop": COUNT // 2,
    "largest-face": 2,
    "box-rounded": COUNT // 2,
    "opencv-for-pillow": COUNT // 2,
}


@pytest.mark.real
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.stage == "crop"], ids=lambda f: f.name)
def test_each_way_in_which_ports_crop_otherwise_is_noticed(made, fault):
    with fault.planted():
        assert count_different(made) >= LEAST[fault.name]


def test_a_scaled_crop_is_a_tenth_of_the_box_wider_on_each_side():
    columns = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    crop = crop_face(columns, (50, 20, 150, 70), "scaled")  # 40 to 160 of the columns
    assert crop.shape == (160, 160, 3)
    np.testing.assert_allclose(crop[80, :, 0], 40 + (np.arange(160) + 0.5) * 120 / 160 - 0.5, atol=1)


def test_a_scaled_crop_is_cut_off_at_the_edge_and_stretched():
    columns = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    crop = crop_face(columns, (100, -10, 240, 90), "scaled")  # 86 to 200 of the columns
    assert crop[80, 0, 0] in (86, 87)
    assert crop[80, -1, 0] == 199


def test_of_a_box_beyond_the_edge_the_edge_is_left():
    photograph = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert (crop_face(photograph, (9, 1.2, 12, 1.9), "scaled") == photograph[1, 3]).all()
    assert crop_face(photograph[:1, :1], (0, 0, 1, 1), "facenet").shape == (182, 182, 3)


def test_the_methods_choose_the_largest_or_the_central_face():
    faces = [face(0, 0, 60, 60), face(70, 70, 120, 120)]
    assert choose_face(faces, 200, 200, "scaled") == 0
    assert choose_face(faces, 200, 200, "facenet") == 1


def test_the_network_is_given_the_centre_of_facenets_crop(tmp_path):
    crop = np.random.default_rng(0).integers(0, 256, (182, 182, 3), np.uint8)
    Image.fromarray(crop).save(tmp_path / "crop.png")
    assert np.array_equal(read_crop(tmp_path / "crop.png"), crop[11:171, 11:171])
    assert np.array_equal(central_part(crop[:160, :160]), crop[:160, :160])
    assert CROP_SIZES == {"scaled": 160, "facenet": 182}


def test_a_photograph_is_no_crop(tmp_path):
    Image.new("RGB", (200, 160)).save(tmp_path / "a.png")
    with pytest.raises(SourceError, match=r"its 200x160 pixels are not those of a crop, 160x160 or 182x182"):
        read_crop(tmp_path / "a.png")
