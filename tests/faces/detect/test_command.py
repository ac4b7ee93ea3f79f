"""`facenet-port detect`: the screen, the files that it writes, and its exit codes."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import facenet_port
from converter.errors import RequirementError
from faces.detect import cascade
from faces.detect import detector as detector_module
from tests.faces.detect.comparison import as_arrays

pytestmark = pytest.mark.real


@pytest.fixture
def folder(tmp_path, some_images, networks, monkeypatch):
    """A folder with two portraits, one of them below, a blank photograph, and the detector's weights."""
    monkeypatch.setattr(detector_module, "load_mtcnn", lambda offline: networks)
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path / "cache"))  # without exported files
    monkeypatch.chdir(tmp_path)
    (tmp_path / "people" / "ben").mkdir(parents=True)
    Image.fromarray(some_images[0]).save(tmp_path / "people" / "ben" / "1.png")
    Image.fromarray(some_images[3]).save(tmp_path / "people" / "portrait.png")
    return tmp_path / "people"


def detect(*arguments: object) -> int:
    return facenet_port.main(["detect", *map(str, arguments)])


def test_the_table_and_the_json_have_the_faces_of_the_detector(
    folder, detector, some_images, capsys, tmp_path
):
    out = tmp_path / "faces.json"
    assert detect("people", "--json", out) == 0
    result = json.loads(out.read_text())
    images = [some_images[0], some_images[3]]
    for photograph, image, faces in zip(result, images, detector.detect(images), strict=True):
        assert list(photograph) == ["path", "width", "height", "faces"]
        assert (photograph["height"], photograph["width"]) == image.shape[:2]
        assert [list(face) for face in photograph["faces"]] == [["box", "score", "landmarks"]] * len(faces)
        boxes, landmarks = as_arrays(faces)
        assert np.array_equal([face["box"] for face in photograph["faces"]], boxes[:, :4])
        assert [face["score"] for face in photograph["faces"]] == boxes[:, 4].tolist()
        assert np.array_equal([face["landmarks"] for face in photograph["faces"]], landmarks)
    assert [photograph["path"] for photograph in result] == ["people/ben/1.png", "people/portrait.png"]
    screen = capsys.readouterr().out
    (face,) = detector.detect(images[:1])[0]
    assert re.search(rf"^people/ben/1.png +115x170 +{face.score:.4f} ", screen, re.MULTILINE)
    assert "  ".join(f"{x:.0f},{y:.0f}" for x, y in face.landmarks) in screen
    assert screen.endswith("2 faces in 2 photographs\n")
    assert detect("people", "--json", out, "--quiet") == 0  # an older result is replaced
    assert capsys.readouterr() == ("", "")


def test_what_is_no_photograph_and_who_has_no_face_is_named_and_the_rest_goes_on(folder, capsys) -> None:
    Image.new("RGB", (80, 60), "white").save(folder / "blank.png")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    (folder.parent / "empty").mkdir()
    assert detect("people", "missing.jpg", "empty") == 3
    printed = capsys.readouterr()
    assert re.search(r"^people/blank.png +80x60 +no face *$", printed.out, re.MULTILINE)
    assert printed.out.endswith("2 faces in 3 photographs; 1 without a face; 3 could not be read\n")
    # The folder is looked into before photographs are read.
    assert printed.err.splitlines() == [
        "facenet-port detect: empty: it holds no photographs. Give a folder with .bmp, .gif, .jfif, .jpeg, "
        ".jpg, .png, .tif, .tiff, .webp files.",
        "facenet-port detect: people/damaged.jpg: cannot be decoded as a photograph. Leave it out, or save "
        "it again as JPEG or PNG.",
        "facenet-port detect: missing.jpg: there is no such file or folder. Check its name.",
    ]
    assert detect("people/blank.png", "people/portrait.png") == 1
    assert detect("people/portrait.png") == 0


def test_control_characters_of_a_name_do_not_reach_the_terminal(folder, capsys) -> None:
    Image.new("RGB", (80, 60), "white").save(folder / "a\x1b[31m\nb.png")
    (folder / "c\x9b\n.jpg").write_bytes(b"text")
    assert detect("people") == 3
    printed = capsys.readouterr()
    assert re.search(r"^people/a\\x1b\[31m\\nb.png +80x60 +no face *$", printed.out, re.MULTILINE)
    assert "detect: people/c\\x9b\\n.jpg: cannot be decoded as a photograph." in printed.err
    assert "\x1b" not in printed.out


@pytest.mark.parametrize(("columns", "landmarks"), [(80, False), (160, True)])
def test_the_table_fits_the_terminal(folder, monkeypatch, capsys, columns, landmarks) -> None:
    Image.new("RGB", (80, 60), "white").save(folder / f"{'long ' * 30}.png")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # as if stdout were a terminal
    assert detect("people") == 1
    screen = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, screen.splitlines())) <= columns
    assert ("nose" in screen) is landmarks
    assert re.search(r"people/ben/1.png +115x170 +[\d.]+(?: +[\d.]+){4}", screen)
    assert screen.count("long") == 30


def test_drawings(folder, detector, some_images, capsys) -> None:
    assert detect("people", "people/ben/1.png", "--draw", "drawn", "--quiet") == 0
    drawn = np.asarray(Image.open("drawn/ben/1.png"))
    green = (drawn == (0, 255, 0)).all(axis=2)
    (face,) = detector.detect([some_images[0]])[0]
    left, top, right, bottom = (round(side) for side in face.box)
    assert green[top:bottom, left].all()
    assert green[top:bottom, right].all()
    for x, y in face.landmarks:
        assert green[round(y), round(x)]
    assert np.array_equal(drawn[~green], some_images[0][~green])
    assert Path("drawn/portrait.png").exists()
    assert detect("people/portrait.png", "--draw", "one.jpg", "--quiet") == 0
    assert Image.open("one.jpg").format == "JPEG"
    assert Image.open("one.jpg").size == Image.open("people/portrait.png").size


def test_two_photographs_of_one_name_have_two_drawings(folder, some_images) -> None:
    Image.fromarray(some_images[3]).save("1.png")
    assert detect("1.png", "people/ben/1.png", "--draw", "drawn", "--quiet") == 0
    assert Image.open("drawn/1.png").size == some_images[3].shape[1::-1]
    assert Image.open("drawn/1-2.png").size == some_images[0].shape[1::-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["people", "--draw", "people"], "--draw people: it would replace the photograph people/ben/1.png."),
        (
            ["people", "--draw", "one.png"],
            "--draw one.png: this is a file, for 2 photographs. Give a folder.",
        ),
        (["people", "--draw", "notes.txt"], "--draw notes.txt: this is not a folder. Give another name."),
    ],
)
def test_drawings_that_cannot_be_written_are_refused_before_the_work(
    arguments, message, folder, capsys, monkeypatch
) -> None:
    Path("notes.txt").touch()
    monkeypatch.setattr(detector_module.FaceDetector, "detect", None)
    before = sorted(Path().rglob("*"))
    assert detect(*arguments) == 2
    assert f"facenet-port detect: error: {message}" in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--smallest-face", "0"], "argument --smallest-face: '0' is not a number of pixels from 1 on"),
        (["--thresholds", "0.6", "0.7", "7"], "argument --thresholds: '7' is not a number from 0 to 1"),
        (["--factor", "1"], "argument --factor: '1' is not a number between 0 and 1"),
        (["--factor", "nan"], "argument --factor: 'nan' is not a number between 0 and 1"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
    ],
)
def test_options_without_meaning_are_refused(option, message, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        detect("photograph.jpg", *option)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named(folder, capsys) -> None:
    assert detect("people", "--device", "mps") == 4
    assert capsys.readouterr().err == (
        "facenet-port detect: error: --device mps: PyTorch finds no such device here. Give cpu.\n"
    )


def test_weights_that_cannot_be_had_are_named(folder, capsys, monkeypatch) -> None:
    def missing(offline):
        raise RequirementError(f"mtcnn is not in the cache; offline is {offline}.")

    monkeypatch.setattr(detector_module, "load_mtcnn", missing)
    assert detect("people", "--offline") == 4
    assert (
        capsys.readouterr().err == "facenet-port detect: error: mtcnn is not in the cache; offline is True.\n"
    )


def test_a_detector_without_opencv_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    with pytest.raises(RequirementError, match=r"needs opencv-python-headless.*'facenet-port\[faces\]'"):
        importlib.reload(cascade)
