"""`facenet-port predict`, and the way of a trained classifier to TensorFlow: the same people by both."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from facenet_port import main
from faces.model import load_model
from faces.training.config import TrainConfig
from faces.training.objectives import make_objective
from faces.training.run_folder import RunFolder
from reference import load
from tests.conftest import CLASSES
from tests.faces.align.conftest import ONE, picture

PEOPLE = tuple(f"[person] {number}" for number in range(CLASSES))  # rich takes brackets for a style


@pytest.fixture(scope="module")
def best(network, tmp_path_factory):
    """The folder `best` as a training writes it."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    objective = make_objective(load(network), TrainConfig(data="crops"))
    folder.write_weights(["best"], objective, PEOPLE, "per-image", "scaled")
    return folder.path / "best"


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Three crops."""
    folder = tmp_path_factory.mktemp("crops")
    random = np.random.default_rng(0)
    for number in range(3):
        pixels = random.integers(0, 80 * (number + 1), (160, 160, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def predict(*arguments):
    return main(["predict", *map(str, arguments)])


def read_standardised(folder):
    """The crops as facenet's `prewhiten` makes them, written down here independently."""
    pixels = np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())]).astype(np.float64)
    deviation = np.maximum(pixels.std(axis=(1, 2, 3), keepdims=True), 1 / np.sqrt(pixels[0].size))
    return ((pixels - pixels.mean(axis=(1, 2, 3), keepdims=True)) / deviation).astype(np.float32)


def test_the_people_of_photographs(colour_detector, best, crops, tmp_path, capsys):
    assert predict(crops, "--weights", best, "--top", 9, "--json", tmp_path / "r.json") == 0
    result = json.loads((tmp_path / "r.json").read_text())
    network = load(best / "weights.pt")
    with torch.inference_mode():
        images = torch.from_numpy(read_standardised(crops).transpose(0, 3, 1, 2).copy())
        expected = network.logits(network.prelogits(images)).double().softmax(dim=1).numpy()
    assert [item["path"] for item in result["photographs"]] == [str(crops / f"{n}.png") for n in range(3)]
    for item, row in zip(result["photographs"], expected, strict=True):
        people = {candidate["person"]: candidate["probability"] for candidate in item["people"]}
        assert list(people) == [PEOPLE[place] for place in np.argsort(-row)]
        assert [people[person] for person in PEOPLE] == pytest.approx(row, abs=1e-5)
    assert (result["standardisation"], result["people"]) == ("per-image", list(PEOPLE))
    screen = capsys.readouterr().out
    first = result["photographs"][0]["people"][0]
    assert f"{first['probability']:.4f}  {first['person']}" in screen
    assert "3 faces, 7 people to choose from" in screen
    assert "standardised per image (from the manifest)" in screen


@pytest.mark.slow
def test_what_has_no_face_is_listed_and_the_others_are_named(colour_detector, best, tmp_path, capsys):
    (tmp_path / "photographs").mkdir()
    picture(ONE).save(tmp_path / "photographs/red.png")
    picture().save(tmp_path / "photographs/blank.png")
    (tmp_path / "text.png").write_text("no photograph")
    photographs = tmp_path / "photographs"
    options = ["--weights", best / "weights.pt", "--top", "2", "--json", tmp_path / "r.json"]
    assert predict(photographs, *options) == 1
    assert predict(photographs, tmp_path / "text.png", tmp_path / "gone.png", *options) == 3
    result = json.loads((tmp_path / "r.json").read_text())
    (named,) = result["photographs"]
    assert named["path"] == str(photographs / "red.png")
    assert len(named["people"]) == 2
    assert named["box"] == [40, 30, 82, 76]
    assert result["without_face"] == [str(photographs / "blank.png")]
    assert len(result["problems"]) == 2
    captured = capsys.readouterr()
    assert "blank.png: no face" in captured.out
    assert "text.png: cannot be decoded as a photograph" in captured.err
    assert "gone.png" in captured.err


@pytest.fixture
def copy(best, tmp_path):
    """A function that copies the folder `best` with other people; None writes no file of them."""

    def write(people):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("weights.pt", "weights.pt.json"):
            (folder / name).hardlink_to(best / name)
        if people is not None:
            (folder / "people.json").write_text(json.dumps({"crop": "scaled", "people": people}))
        return folder

    return write


@pytest.mark.parametrize(
    ("people", "exit_code", "message"),
    [
        (None, 3, "people.json: it does not name the people of a classifier. Give the folder best or last"),
        ([], 2, 'these weights have no classifier; task = "triplet" trains none. Train a classifier, or'),
        ([*PEOPLE, "Ana"], 3, "people.json names 8 people, and the classifier has 7 outputs"),
        ("Ana, Bo", 3, "people.json: it does not name the people of a classifier"),
        ([*PEOPLE[1:], 7], 3, "people.json: it does not name the people of a classifier"),
    ],
)
def test_people_who_are_not_those_of_the_classifier(copy, crops, people, exit_code, message, capsys):
    assert predict(crops, "--weights", copy(people)) == exit_code
    assert message in capsys.readouterr().err


def test_faces_of_another_crop_than_the_trainings_are_refused(best, tmp_path, capsys):
    Image.new("RGB", (182, 182)).save(tmp_path / "large.png")
    assert predict(tmp_path / "large.png", "--weights", best) == 2
    message = "it was trained on faces with the crop scaled, and these have facenet. Give photographs, with"
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_labels_of_a_table_are_those_of_the_training(best, crops, tmp_path, capsys):
    """A table of some of the people numbers them anew, which would give wrong figures."""
    rows = [f"{crops / f'{number}.png'},{PEOPLE[number]},{number}" for number in range(3)]
    (tmp_path / "faces.csv").write_text("\n".join(["image_path,person_name,label", *rows]))
    command = ["evaluate", str(tmp_path / "faces.csv"), "--classify", "--model", str(best)]
    assert main(command) == 0
    rows[1:] = [rows[2].replace(",2", ",1")]
    (tmp_path / "faces.csv").write_text("\n".join(["image_path,person_name,label", *rows]))
    assert main(command) == 3
    assert "row 2 is [person] 2 with the label 1, which is [person] 1 for" in capsys.readouterr().err


@pytest.mark.slow
def test_tensorflow_names_the_same_people(colour_detector, best, crops, tmp_path):
    """TensorFlow reads the checkpoint with its own reader and computes it with its own graph."""
    tensorflow = pytest.importorskip("tensorflow")
    from facenet_tf.rebuilt_network import RebuiltNetwork

    (tmp_path / "ckpt").mkdir()
    assert main(["convert", str(best), "-o", str(tmp_path / "ckpt/model"), "--to", "tensorflow"]) == 0
    reader = tensorflow.train.load_checkpoint(str(tmp_path / "ckpt/model"))
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    images = read_standardised(crops)
    rebuilt = RebuiltNetwork(tensors)
    expected = rebuilt.run(images, ("Logits",))["Logits"]
    np.testing.assert_allclose(load_model(best).logits(images), expected, atol=1e-4)
    predict(crops, "--weights", best, "--quiet", "--json", tmp_path / "r.json")
    named = json.loads((tmp_path / "r.json").read_text())["photographs"]
    assert [item["people"][0]["person"] for item in named] == [PEOPLE[row.argmax()] for row in expected]
    tensors["InceptionResnetV1/Block8/Conv2d_1x1/biases"] += 0.01  # the bound sees a fault within the network
    changed = RebuiltNetwork(tensors).run(images, ("Logits",))["Logits"]
    assert np.abs(changed - expected).max() > 2e-4


@pytest.mark.slow
def test_the_head_comes_off(best, tmp_path):
    assert main(["convert", str(best), "-o", str(tmp_path / "mine.pt"), "--parts", "--quiet"]) == 0
    features = load_model(tmp_path / "mine-features.pt")
    assert features.network.logits is None
    assert features.standardisation == "per-image"
    assert features.sha256 == load_model(best).sha256  # of what embeddings depend on


def test_an_exported_file_is_no_folder_of_a_training(crops, tmp_path, capsys):
    path = tmp_path / "people.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3")
    assert predict(crops, "--weights", path) == 2
    assert "people.tflite: predict takes the folder of a training, not an exported" in capsys.readouterr().err
