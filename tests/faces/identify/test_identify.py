"""`facenet-port identify`: the nearest people, somebody or nobody, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from facenet_port import main
from faces.embeddings import read_embeddings
from tests.faces.align.conftest import picture

PEOPLE = ("Ana/1.png", "Ana/2.png", "Bo/1.png", "stranger.png")


@pytest.fixture
def folder(tmp_path):
    """Crops of two people, and one of nobody known."""
    random = np.random.default_rng(0)
    for name in PEOPLE:
        file = tmp_path / "people" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (160, 160, 3)).astype(np.uint8)).save(file)
    return tmp_path / "people"


@pytest.fixture
def gallery(colour_detector, folder, network, tmp_path, figures):
    """A function that embeds the folder with a threshold, and returns the file."""

    def write(*options):
        file = tmp_path / "gallery.parquet"
        command = ["embed", folder, "-o", file, "--model", network, "--standardise", "fixed", "--quiet"]
        assert main([*map(str, (*command, *options))]) == 0
        return file

    return write


def identify(photograph, gallery, *options):
    return main(["identify", str(photograph), "--gallery", str(gallery), *map(str, options)])


@pytest.fixture
def distances(folder, gallery):
    """Squared distance to Bo/1.png by image, in float64, from the embeddings themselves."""
    embeddings = read_embeddings(gallery())
    values = embeddings.values.astype(np.float64)
    names = [file.resolve().relative_to(folder.resolve()).as_posix() for file in embeddings.files]
    query = values[names.index("Bo/1.png")]
    return {name: float(((row - query) ** 2).sum()) for name, row in zip(names, values, strict=True)}


def test_the_nearest_people(folder, gallery, distances, figures, tmp_path, capsys):
    file = gallery("--threshold", figures(1e-6))
    assert identify(folder / "Bo/1.png", file, "--json", tmp_path / "r.json") == 0
    result = json.loads((tmp_path / "r.json").read_text())
    expected = {
        "Bo": (distances["Bo/1.png"], 1),
        "Ana": (min(distances["Ana/1.png"], distances["Ana/2.png"]), 2),
        str(file.parent / "people/stranger.png"): (distances["stranger.png"], 1),
    }
    assert result["person"] == "Bo"
    nearest = result["nearest"]
    assert [item["person"] for item in nearest] == sorted(expected, key=lambda name: expected[name][0])
    for item in nearest:
        distance, faces = expected[item["person"]]
        assert item["distance"] == pytest.approx(distance, abs=1e-6)
        assert item["faces"] == faces
    assert (result["people"], result["gallery_faces"], result["crop"]) == (3, 4, "scaled")
    screen = capsys.readouterr().out
    assert "Bo: the distance 0.0000 is below 0.0000." in screen
    assert "gallery: 4 faces of 3 people" in screen
    assert "standardised by (x - 127.5) / 128 (from the gallery); crop scaled" in screen
    assert "threshold 0.0000 at a false accept rate of 0.01, measured on 600 pairs of pairs.txt" in screen
    assert identify(folder / "Bo/1.png", file, "--most", "1", "--json", tmp_path / "r.json", "--quiet") == 0
    assert json.loads((tmp_path / "r.json").read_text())["nearest"] == nearest[:1]


def test_nobody(folder, gallery, distances, figures, tmp_path, capsys):
    """The threshold of the command wins over that of the gallery."""
    file = gallery("--threshold", figures(2.0))
    photograph = tmp_path / "new.png"
    Image.fromarray(np.zeros((160, 160, 3), np.uint8)).save(photograph)
    assert identify(photograph, file, "--quiet") == 0
    assert identify(photograph, file, "--threshold", figures(1e-9), "--json", tmp_path / "r.json") == 1
    assert json.loads((tmp_path / "r.json").read_text())["person"] is None
    assert "Nobody of the gallery: the nearest is" in capsys.readouterr().out


def test_without_a_threshold_nobody_is_named(folder, gallery, capsys):
    assert identify(folder / "Bo/1.png", gallery()) == 4
    captured = capsys.readouterr()
    assert "No decision: there is no threshold for this model." in captured.out
    assert "no threshold is known for" in captured.err
    assert "give --threshold figures.json" in captured.err


def test_refused(folder, gallery, single_files, figures, tmp_path, capsys):
    file = gallery("--threshold", figures(1.0))
    picture().save(tmp_path / "blank.png")
    assert identify(tmp_path / "blank.png", file) == 3
    assert "blank.png: no face was found" in capsys.readouterr().err
    picture(size=(182, 182)).save(tmp_path / "original.png")
    assert identify(tmp_path / "original.png", file) == 2
    assert "has the crop facenet, and the gallery scaled" in capsys.readouterr().err
    (tmp_path / "faces.csv").write_text("image_path,person_name\na.png,Ana\n")
    assert identify(tmp_path / "blank.png", tmp_path / "faces.csv") == 3
    assert "faces.csv: cannot be read as a Parquet table" in capsys.readouterr().err
    assert identify(folder / "Bo/1.png", file, "--threshold", figures(1.0, model_sha256="c" * 64)) == 2
    assert "was measured with weights.pt (SHA-256 cccccccccccc), not" in capsys.readouterr().err
    assert identify(folder / "Bo/1.png", file, "--threshold", figures(1.0, crop="facenet")) == 2
    assert "is of the crop facenet, not scaled" in capsys.readouterr().err


def test_embeddings_of_another_size(folder, gallery, figures, capsys):
    file = gallery("--threshold", figures(1.0))
    table = pyarrow.parquet.read_table(file)
    rows = pyarrow.array([[1.0, *[0.0] * 63]] * len(table))
    pyarrow.parquet.write_table(table.set_column(3, "embedding", rows), file)
    assert identify(folder / "Bo/1.png", file) == 2
    assert "the embeddings of the gallery have 64 numbers, and those of " in capsys.readouterr().err


@pytest.fixture
def other_network(network, tmp_path):
    state_dict = torch.load(network)
    state_dict["last_linear.weight"] = state_dict["last_linear.weight"] * 2
    torch.save(state_dict, tmp_path / "other.pt")
    yield tmp_path / "other.pt"
    (tmp_path / "other.pt").unlink()


def test_the_embeddings_of_another_model(folder, gallery, other_network, capsys):
    assert identify(folder / "Bo/1.png", gallery(), "--model", other_network) == 2
    message = capsys.readouterr().err
    assert "the embeddings of the gallery are of" in message
    assert "Give that one with --model, or embed again." in message
