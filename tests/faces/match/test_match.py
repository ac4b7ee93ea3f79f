"""`facenet-port match`: distances, the decision and what it rests on, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from facenet_port import main
from reference import load
from tests.faces.align.conftest import ONE, picture

SECOND = (5, 5, 30, 30, 240)  # smaller than ONE


@pytest.fixture
def crops(tmp_path):
    """Two crops of 160x160."""
    random = np.random.default_rng(0)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        Image.fromarray(random.integers(0, 256, (160, 160, 3)).astype(np.uint8)).save(file)
    return files


@pytest.fixture
def distance(crops, network):
    """The squared distance of the two crops' embeddings in float64, computed apart from the command."""
    images = np.stack([(np.asarray(Image.open(file), np.float64) - 127.5) / 128 for file in crops])
    with torch.inference_mode():
        first, second = load(network).double()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return float(((first - second) ** 2).sum())


@pytest.fixture
def match(colour_detector, network):
    def run(first, second, *options):
        command = ["match", str(first), str(second), "--model", str(network), "--standardise", "fixed"]
        return main([*command, *map(str, options)])

    return run


@pytest.mark.parametrize(
    ("factor", "code", "word"), [(1.01, 0, "The same person"), (0.99, 1, "Different people")]
)
def test_decision(match, crops, distance, figures, tmp_path, capsys, factor, code, word):
    value = distance * factor
    assert match(*crops, "--threshold", figures(value), "--json", tmp_path / "result.json") == code
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["same"] is (code == 0)
    assert result["distance"] == result["squared_euclidean"] == pytest.approx(distance, rel=1e-4)
    assert result["euclidean"] == pytest.approx(distance**0.5, rel=1e-4)
    assert result["cosine"] == pytest.approx(1 - distance / 2, abs=1e-5)  # of rows of length 1
    assert result["threshold"]["value"] == value
    screen = capsys.readouterr().out
    assert f"{word}: the squared Euclidean distance {distance:.4f} is" in screen
    assert (
        "at a false accept rate of 0.01, measured on 600 pairs of pairs.txt, 300 of different people"
        in screen
    )


def test_a_threshold_of_the_angle(match, crops, distance, figures, tmp_path):
    angle = np.arccos(1 - distance / 2) / np.pi
    threshold = figures(angle * 1.01, distance="arc-cosine")
    assert match(*crops, "--threshold", threshold, "--json", tmp_path / "result.json") == 0
    assert json.loads((tmp_path / "result.json").read_text())["distance"] == pytest.approx(angle, rel=1e-3)
    assert match(*crops, "--threshold", figures(angle * 0.99, distance="arc-cosine"), "--quiet") == 1


def test_without_a_threshold_there_is_no_decision(match, crops, network, capsys):
    assert match(*crops) == 4
    captured = capsys.readouterr()
    assert "No decision: there is no threshold for this model." in captured.out
    assert "squared Euclidean distance" in captured.out
    assert f"no threshold is known for {network} with the crop scaled. Measure one on" in captured.err
    command = f"`facenet-port evaluate faces.csv --model {network} --standardise fixed --json figures.json`"
    assert command in captured.err


def test_faces_of_photographs(match, tmp_path, figures, capsys):
    picture(ONE).save(tmp_path / "one.png")
    picture(ONE, SECOND).save(tmp_path / "two.png")
    threshold = figures(1e-3)
    assert match(tmp_path / "one.png", tmp_path / "two.png", "--threshold", threshold) == 0
    screen = capsys.readouterr().out
    assert "one.png: one face\n" in screen
    assert "two.png: 2 faces, of which the largest is taken\n" in screen


@pytest.mark.parametrize(
    ("second", "code", "message"),
    [
        ("blank.png", 3, "blank.png: no face was found. Give another photograph, or look for smaller faces"),
        ("gone.png", 3, "gone.png: there is no such file or folder. Check its name."),
        ("original.png", 2, "original.png has the crop facenet, and the first image the crop scaled: their"),
    ],
)
def test_refused(match, crops, tmp_path, capsys, second, code, message):
    picture().save(tmp_path / "blank.png")
    picture(size=(182, 182)).save(tmp_path / "original.png")
    assert match(crops[0], tmp_path / second, "--json", tmp_path / "result.json") == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(("first", "second"), [("a.png", "gone.png"), ("gone.png", "a.png")])
def test_photographs_are_looked_at_before_a_model_is_loaded(monkeypatch, crops, capsys, first, second):
    for loader in ("load_model", "FaceDetector"):
        monkeypatch.setattr(f"faces.embedder.{loader}", lambda *_, **__: pytest.fail("a model is loaded"))
    folder = crops[0].parent
    assert main(["match", str(folder / first), str(folder / second)]) == 3
    assert f"{folder / 'gone.png'}: there is no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_sha256": "b" * 64},
            "the threshold 1 was measured with weights.pt (SHA-256 bbbbbbbbbbbb), not",
        ),
        ({"crop": "facenet"}, "the threshold 1 is of the crop facenet, not scaled. Measure it for this one"),
    ],
)
def test_thresholds_of_others_are_refused(match, crops, figures, capsys, changes, message):
    assert match(*crops, "--threshold", figures(1.0, **changes)) == 2
    assert message in capsys.readouterr().err


def test_a_threshold_of_the_original_crop(match, tmp_path, figures, capsys):
    """The crop is that of the images, whatever --crop says of photographs."""
    for name in "ab":
        picture(ONE, size=(182, 182)).save(tmp_path / f"{name}.png")
    pair = tmp_path / "a.png", tmp_path / "b.png"
    assert match(*pair, "--threshold", figures(1.0, crop="facenet")) == 0
    assert match(*pair, "--threshold", figures(1.0)) == 2
    assert "is of the crop scaled, not facenet" in capsys.readouterr().err
