"""The command evaluate as its users meet it: figures, screen, JSON, page, and everything that it refuses."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("sklearn")

from facenet_port import main as facenet_port
from faces.backends.facts import TORCH
from faces.detect.result import Face
from faces.evaluate.__main__ import main
from faces.evaluate.protocol import threshold_at_far
from reference import load
from tests.faces.conftest import load_once
from tests.faces.evaluate.conftest import EACH, PAIRS, PEOPLE, write_csv

FIGURES = ["pairs", "same", "skipped", "accuracy", "accuracy_std"]
FIGURES += ["threshold", "val", "val_std", "far", "auc", "eer"]
FIXED = ("--standardise", "fixed")


@pytest.fixture(autouse=True)
def each_network_once(monkeypatch):
    monkeypatch.setattr("faces.embedder.load_model", load_once)


loaded = functools.cache(load)


@functools.cache
def prelogits(path, network, *, mirrored=False):
    """The embedding of a crop before it is normalised, computed apart from the command."""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
    edge = (len(pixels) - 160) // 2
    pixels = pixels[edge : edge + 160, edge : edge + 160]
    image = pixels[:, ::-1] if mirrored else pixels
    with torch.inference_mode():
        return loaded(network).prelogits(
            torch.from_numpy(((image - 127.5) / 128).transpose(2, 0, 1).copy())[None]
        )


def embedded(path, network, *, mirrored=False):
    """The embedding of a crop, with that of its mirror image behind it if that is asked for."""
    rows = [prelogits(path, network, mirrored=flip)[0] for flip in ((False, True) if mirrored else (False,))]
    return torch.cat([row / row.norm() for row in rows]).double().numpy()


def distances_of_pairs(folder, network, *, mirrored=False):
    """The distances of the pairs whose files exist, and whether they are the same person's."""
    distances, same = [], []
    for line in PAIRS.splitlines()[1:-1]:
        name, number, *other = line.split("\t")
        second = other if len(other) == 2 else [name, other[0]]
        first, last = (
            embedded(folder / who / f"{who}_{int(which):04d}.png", network, mirrored=mirrored)
            for who, which in ((name, number), second)
        )
        distances.append(np.sum((first - last) ** 2))
        same.append(len(other) == 1)
    return np.array(distances), np.array(same)


def evaluated(tmp_path, *arguments, code=0):
    assert main([*map(str, arguments), "--json", str(tmp_path / "r.json")]) == code
    return json.loads((tmp_path / "r.json").read_text())


def refused(capsys, code, *arguments):
    assert main([*map(str, arguments)]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("python -m faces.evaluate: error: ").rstrip()


@pytest.mark.parametrize("mirrored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_folder_with_a_list_of_pairs(mirrored, crops, network, pairs, tmp_path, capsys):
    options = ["--mirrored"] if mirrored else []
    folder = crops / "lfw"
    result = evaluated(tmp_path, folder, "--pairs", pairs, "--model", network, *FIXED, *options)
    distances, same = distances_of_pairs(folder, network, mirrored=mirrored)
    # Two folds: of 11 pairs the first has 6. Each takes the first threshold that is best on the other.
    grid = np.arange(0, 4, 0.01)
    accuracies = []
    for tested in (slice(0, 6), slice(6, 11)):
        chosen = np.setdiff1d(np.arange(11), np.arange(11)[tested])
        right = [np.sum((distances[chosen] < t) == same[chosen]) for t in grid]
        threshold = grid[np.argmax(right)]
        accuracies.append(np.mean((distances[tested] < threshold) == same[tested]))
    assert list(result)[: len(FIGURES)] == FIGURES
    assert (result["pairs"], result["same"], result["skipped"]) == (11, 6, 1)
    assert result["accuracy_by_fold"] == pytest.approx(accuracies)
    assert result["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["accuracy_std"] == pytest.approx(np.std(accuracies))
    printed = capsys.readouterr().out
    assert (
        f"{result['accuracy']:.4f} ± {result['accuracy_std']:.4f} of the pairs are decided rightly."
        in printed
    )
    assert "11 pairs of 9 images, 6 of the same person and 5 of different people, 1 skipped" in printed
    assert (
        "standardised by (x - 127.5) / 128 (from --standardise); crop scaled; squared Euclidean distance"
        in printed
    )
    assert ("mirrored images appended" in printed) == mirrored
    assert "2 consecutive folds, not shuffled" in " ".join(printed.split())
    assert "a false accept rate of 0.001 is less than one of the 5 different pairs" in printed


def test_all_pairs_of_a_table(crops, network, tmp_path):
    result = evaluated(tmp_path, crops, "--model", network, "--standardise", "per-image")  # holds faces.csv
    faces = EACH * len(PEOPLE)
    assert result["pairs"] == faces * (faces - 1) // 2
    assert result["same"] == len(PEOPLE) * EACH * (EACH - 1) // 2
    assert result["settings"]["folds"] == 10
    assert result["model"]["standardisation"] == "per-image"
    threshold = result["measured_threshold"]
    assert threshold["value"] == result["threshold"]
    assert (threshold["far"], threshold["different"], threshold["pairs"]) == (0.001, 27, 36)
    assert threshold["model_sha256"] == result["model"]["sha256"]


def test_one_fold_says_what_it_cannot_compute(crops, network, pairs, tmp_path, capsys):
    lines = PAIRS.splitlines()
    pairs.write_text("\n".join(["5", *lines[1:4], *lines[7:9], *lines[4:7], *lines[10:12]]))
    result = evaluated(tmp_path, crops / "lfw", "--pairs", pairs, "--model", network, *FIXED)
    assert result["accuracy"] is None
    assert result["val"] is None
    assert result["auc"] is not None
    assert result["threshold"] is not None
    reason = "one fold has no other folds to choose a threshold on"
    assert result["missing"] == {"accuracy": reason, "val": reason}
    printed = capsys.readouterr().out
    assert f"accuracy {reason}" in " ".join(printed.replace(" - ", " ").split())
    assert "of the pairs are decided rightly at the threshold that suits them best." in printed


def test_pairs_of_one_kind_say_what_they_cannot_compute(crops, network, pairs, tmp_path, capsys):
    pairs.write_text("\n".join(["1 2", *PAIRS.splitlines()[1:4]]))
    arguments = (crops / "lfw", "--pairs", pairs, "--model", network, *FIXED)
    result = evaluated(tmp_path, *arguments, "--folds", "2")
    assert {result[name] for name in FIGURES[3:]} == {None}
    assert result["measured_threshold"] is None
    assert "No decision can be judged: every pair shows the same person." in capsys.readouterr().out


@pytest.mark.slow
def test_a_threshold_of_one_list_is_applied_to_another(crops, network, pairs, tmp_path, capsys):
    arguments = (
        crops / "lfw",
        "--pairs",
        pairs,
        "--model",
        network,
        "--standardise",
        "fixed",
        "--far",
        "0.2",
    )
    evaluated(tmp_path, *arguments)
    measured = (tmp_path / "r.json").rename(tmp_path / "dev.json")
    result = evaluated(tmp_path, *arguments, "--threshold", measured)
    applied = result["applied_threshold"]
    assert applied["threshold"] == result["measured_threshold"]
    value = result["threshold"]
    distances, same = distances_of_pairs(crops / "lfw", network)
    assert applied["far"] == pytest.approx(np.mean(distances[~same] < value))
    assert applied["val"] == pytest.approx(np.mean(distances[same] < value))
    assert applied["accuracy"] == pytest.approx(np.mean((distances < value) == same))
    assert applied["val"] + applied["far"] > 0
    assert f"at the threshold {value:.4f} of pairs.txt; VAL" in " ".join(capsys.readouterr().out.split())

    other = (*FIXED, "--threshold", measured)
    error = refused(capsys, 2, *arguments[:3], "--model", network, "--distance", "arc-cosine", *other)
    assert error == (
        f"the threshold {value:.4g} is of the distance squared-euclidean, not arc-cosine. Measure it for "
        "this one with `facenet-port evaluate --json`."
    )
    changed = load(network)
    with torch.no_grad():
        changed.last_bn.bias[0] += 1e-3
    torch.save(changed.state_dict(), tmp_path / "other.pt")
    error = refused(capsys, 2, *arguments[:3], "--model", tmp_path / "other.pt", *other)
    assert error.startswith(
        f"the threshold {value:.4g} was measured with {network} (SHA-256 "
        f"{applied['threshold']['model_sha256'][:12]}), not {tmp_path / 'other.pt'} ("
    )
    (tmp_path / "list.json").write_text("[1]")
    error = refused(capsys, 3, *arguments, "--threshold", tmp_path / "list.json")
    assert error.startswith(f"{tmp_path / 'list.json'}: it holds no measured threshold. Give a file that")


@pytest.mark.slow
def test_a_threshold_fits_every_file_of_the_same_weights(crops, network, single_files, pairs, tmp_path):
    arguments = (crops / "lfw", "--pairs", pairs, *FIXED, "--model")
    evaluated(tmp_path, *arguments, network)
    measured = (tmp_path / "r.json").rename(tmp_path / "dev.json")
    evaluated(tmp_path, *arguments, single_files / "weights.safetensors", "--threshold", measured)


def test_a_threshold_of_other_images_is_refused(crops, network, figures, tmp_path, capsys):
    arguments = (crops, "--model", network, *FIXED, "--threshold")
    other = figures(1.0, standardisation="per-image")
    assert refused(capsys, 2, *arguments, other) == (
        "the threshold 1 is of images standardised per-image, not fixed. Measure it for this one with "
        "`facenet-port evaluate --json`."
    )
    error = refused(capsys, 2, *arguments, figures(1.0, crop="facenet"))
    assert "the threshold 1 is of the crop facenet, not scaled." in error
    error = refused(capsys, 2, *arguments, figures(1.0), "--subtract-mean")
    assert "not squared-euclidean of embeddings with their mean subtracted." in error


def needless(*arguments, **options):
    raise AssertionError("this is not needed")


@pytest.fixture
def original_crops(crops, tmp_path):
    """The same images as crops of the original's size, 182x182, with a table."""
    rows = []
    for file in sorted((crops / "lfw").rglob("*.png")):
        Image.open(file).resize((182, 182)).save(tmp_path / file.name)
        rows.append({"image_path": file.name, "person_name": file.parent.name})
    return write_csv(tmp_path / "faces.csv", rows)


def test_an_image_of_two_people_is_noted(crops, network, tmp_path):
    files = sorted((crops / "lfw").rglob("*.png"))
    rows = [{"image_path": str(file), "person_name": file.parent.name} for file in files]
    arguments = ("--model", network, *FIXED)
    result = evaluated(tmp_path, write_csv(tmp_path / "t.csv", rows), *arguments)
    assert "same image" not in str(result["notes"])
    copy = tmp_path / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    rows.append({"image_path": str(copy), "person_name": "Cy_Holm"})
    result = evaluated(tmp_path, write_csv(tmp_path / "t.csv", rows), *arguments)
    note = f"1 pair of different people has the same image twice, {files[0]} and {copy} first"
    assert note in result["notes"]


def test_of_the_originals_crops_the_central_part_is_embedded(original_crops, network, tmp_path):
    result = evaluated(tmp_path, original_crops, "--model", network, *FIXED)
    assert result["crop"] == result["measured_threshold"]["crop"] == "facenet"
    rows = np.array([embedded(file, network) for file in sorted(tmp_path.glob("*.png"))])
    first, second = np.triu_indices(len(rows), 1)
    distances = ((rows[first] - rows[second]) ** 2).sum(axis=1)
    person = np.arange(len(rows)) // EACH
    different = distances[person[first] != person[second]]
    assert result["threshold"] == pytest.approx(threshold_at_far(different, 1e-3), rel=1e-4)


def test_crops_of_two_kinds_are_refused(original_crops, network, tmp_path, capsys):
    first = sorted(tmp_path.glob("*.png"))[0]
    Image.open(first).resize((160, 160)).save(first)
    error = refused(capsys, 2, original_crops, "--model", network, *FIXED)
    assert "has the crop facenet, and the first image the crop scaled: their distance says little." in error


@pytest.fixture
def embeddings(crops, network, tmp_path):
    """The faces of `crops`, embedded."""
    file = tmp_path / "embeddings.parquet"
    command = ["embed", crops, "-o", file, "--model", network, *FIXED, "--quiet"]
    assert facenet_port(list(map(str, command))) == 0
    return file


def test_embeddings_are_as_good_as_their_images(crops, network, embeddings, tmp_path, monkeypatch, capsys):
    options = ("--subtract-mean", "--distance", "arc-cosine")
    expected = evaluated(tmp_path, crops, "--model", network, *FIXED, *options)
    measured = (tmp_path / "r.json").rename(tmp_path / "dev.json")
    monkeypatch.setattr("faces.embedder.load_model", needless)
    monkeypatch.setattr("faces.embedder.FaceDetector", needless)
    capsys.readouterr()
    result = evaluated(tmp_path, embeddings, *options, "--threshold", measured)
    assert [result[name] for name in FIGURES] == pytest.approx([expected[name] for name in FIGURES], abs=1e-6)
    threshold = result["measured_threshold"]
    assert {**threshold, "value": 0, "source": ""} == {
        **expected["measured_threshold"],
        "value": 0,
        "source": "",
    }
    printed = capsys.readouterr().out
    assert f"{embeddings}: 36 pairs of 9 images" in printed
    assert "standardised by (x - 127.5) / 128 (from the embeddings); crop scaled; arc cosine" in printed


def test_embeddings_of_others_are_refused(crops, network, embeddings, figures, tmp_path, capsys):
    changed = load(network)
    with torch.no_grad():
        changed.last_bn.bias[0] += 1e-3
    torch.save(changed.state_dict(), tmp_path / "other.pt")
    error = refused(capsys, 2, embeddings, "--model", tmp_path / "other.pt", *FIXED)
    assert error.startswith(f"the embeddings of {embeddings} are of {network} (SHA-256 ")
    assert f"not of {tmp_path / 'other.pt'} (" in error
    (tmp_path / "other.pt").unlink()
    standardised = f"the images of {embeddings} were standardised fixed, not per-image. Embed them again."
    for options in ((), ("--model", network)):
        assert refused(capsys, 2, embeddings, *options, "--standardise", "per-image") == standardised
    error = refused(capsys, 2, embeddings, "--crop", "facenet")
    assert error == f"the faces of {embeddings} have the crop scaled, not facenet. Embed them again."
    error = refused(capsys, 2, embeddings, "--threshold", figures(1.0, model_sha256="b" * 64))
    assert f"was measured with weights.pt (SHA-256 bbbbbbbbbbbb), not {network} (" in error
    error = refused(capsys, 2, embeddings, "--mirrored")
    assert error.endswith("--mirrored needs images, and these are embeddings. Give the photographs.")
    (tmp_path / "nobody").mkdir()
    for number, file in enumerate(sorted((crops / "lfw").rglob("*.png"))[:2]):
        Image.open(file).save(tmp_path / f"nobody/{number}.png")
    command = ["embed", tmp_path / "nobody", "-o", embeddings, "--model", network, *FIXED, "--quiet"]
    assert facenet_port(list(map(str, command))) == 0
    error = refused(capsys, 3, embeddings)
    assert error.startswith(f"{embeddings}: 0.png has no person_name. Put the photographs into a folder for")


class SquareDetector:
    """Finds the face of a photograph by construction: from a quarter to three quarters of each side."""

    backend = TORCH

    def detect(self, images):
        return [self._faces(*image.shape[:2]) if image.any() else () for image in images]

    def _faces(self, height, width):
        small = Face((1.0, 1.0, 9.0, 9.0), 0.9, ())
        return (small, Face((width * 0.25, height * 0.25, width * 0.75, height * 0.75), 0.99, ()))


@pytest.fixture
def photographs(crops, tmp_path, monkeypatch):
    """lfw/NAME/NAME_0001.png of 250x250 pixels, and the detector that finds their faces."""
    random = np.random.default_rng(1)
    for file in sorted((crops / "lfw").rglob("*.png")):
        photograph = Image.fromarray(random.integers(0, 256, (250, 250, 3), np.uint8))
        photograph.paste(Image.open(file).resize((140, 140)), (50, 60))
        path = tmp_path / file.relative_to(crops)
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.save(path)
    monkeypatch.setattr("faces.embedder.FaceDetector", lambda **options: SquareDetector())
    return tmp_path / "lfw"


def test_photographs_are_cropped_as_align_does(photographs, network, pairs, tmp_path, capsys):
    result = evaluated(tmp_path, photographs, "--pairs", pairs, "--model", network, *FIXED)
    assert result["crop"] == "scaled"
    assert "9 photographs cropped by `align`'s --crop scaled" in capsys.readouterr().out
    rows = []
    for file in sorted(photographs.rglob("*.png")):
        # The largest face is at 62.5 to 187.5; a tenth of it more on each side is 50 to 200.
        crop = Image.open(file).crop((50, 50, 200, 200)).resize((160, 160), Image.Resampling.BILINEAR)
        crop.save(file)
        rows.append({"image_path": str(file), "person_name": file.parent.name})
    expected = evaluated(tmp_path, photographs, "--pairs", pairs, "--model", network, *FIXED)
    assert expected["crop"] == "scaled"
    assert [result[name] for name in FIGURES] == [expected[name] for name in FIGURES]


def test_a_tables_boxes_are_taken_instead_of_the_detector(photographs, network, tmp_path, monkeypatch):
    files = sorted(photographs.rglob("*.png"))
    rows = [{"image_path": str(file), "person_name": file.parent.name} for file in files]
    arguments = ("--model", network, *FIXED)
    found = evaluated(tmp_path, write_csv(tmp_path / "t.csv", rows), *arguments)
    monkeypatch.setattr("faces.embedder.FaceDetector", needless)
    rows = [{**row, "bbox": "[62.5, 62.5, 187.5, 187.5]"} for row in rows]
    stated = evaluated(tmp_path, write_csv(tmp_path / "t.csv", rows), *arguments)
    assert [stated[name] for name in FIGURES] == [found[name] for name in FIGURES]


def test_a_photograph_without_a_face_takes_its_pairs_with_it(photographs, network, pairs, tmp_path, capsys):
    Image.new("RGB", (250, 250)).save(photographs / "Ana_Lind" / "Ana_Lind_0001.png")
    page = tmp_path / "r.html"
    result = evaluated(tmp_path, photographs, "--pairs", pairs, "--model", network, *FIXED, "--report", page)
    assert (result["pairs"], result["skipped"], result["images"]) == (8, 4, 8)
    printed = capsys.readouterr().out
    assert "4 skipped: a file is missing or shows no face" in printed
    assert "note: 1 photograph shows no face, Ana_Lind_0001.png first" in printed
    assert page.read_text(encoding="utf-8").count('src="data:image/jpeg;base64,') == 2 * 8
    for file in photographs.rglob("*.png"):
        Image.new("RGB", (250, 250)).save(file)
    error = refused(capsys, 3, photographs, "--pairs", pairs, "--model", network, *FIXED)
    assert error.startswith(f"{photographs}: too few photographs show a face. `facenet-port detect` shows")


def test_a_box_that_is_none_is_named_by_row(photographs, network, tmp_path, capsys):
    file = next(photographs.rglob("*.png"))
    rows = [
        {"image_path": str(file), "person_name": "Ana", "bbox": box} for box in ("[1, 2, 3, 4]", "[1, 2]")
    ]
    table = write_csv(tmp_path / "t.csv", rows)
    assert refused(capsys, 3, table) == (
        f"{table}: row 2 has the bbox '[1, 2]'. Write [x1, y1, x2, y2] in pixels."
    )


def test_a_box_outside_its_photograph_is_named(photographs, network, tmp_path, capsys):
    files = sorted(photographs.rglob("*.png"))
    for box, problem in (
        (
            "[300, 10, 400, 90]",
            f"{files[1]}: the bbox [300.0, 10.0, 400.0, 90.0] lies outside its 250x250 pixels.",
        ),
        (
            "[-90, -90, 0, 0]",
            f"{files[1]}: the bbox [-90.0, -90.0, 0.0, 0.0] lies outside its 250x250 pixels.",
        ),
        ("[10, 10, Infinity, 90]", "row 2 has the bbox '[10, 10, Infinity, 90]'. Write [x1, y1, x2, y2]"),
    ):
        boxes = ("[240, 240, 270, 270]", box)  # a part of the first is inside
        rows = [
            {"image_path": str(file), "person_name": "Ana", "bbox": given}
            for file, given in zip(files, boxes, strict=False)
        ]
        assert problem in refused(capsys, 3, write_csv(tmp_path / "t.csv", rows), "--model", network, *FIXED)


def test_a_face_that_is_listed_twice_is_refused_and_names_of_two_cases_are_noted(
    crops, network, tmp_path, capsys
):
    files = sorted((crops / "lfw").rglob("*.png"))[:3]
    people = ("Ana", "ana ", " Ana")
    rows = [{"image_path": str(file), "person_name": name} for file, name in zip(files, people, strict=True)]
    arguments = ("--model", network, *FIXED, "--folds", "2")
    result = evaluated(tmp_path, write_csv(tmp_path / "t.csv", rows), *arguments)
    assert (result["pairs"], result["same"]) == (3, 1)  # spaces at its ends are no part of a name
    assert "note: Ana and ana count as two people" in capsys.readouterr().out
    error = refused(capsys, 3, write_csv(tmp_path / "t.csv", [*rows, rows[0]]), *arguments)
    assert (
        error
        == f"{tmp_path / 't.csv'}: it lists the face of {files[0]} 2 times. Remove all rows of it but one."
    )


def test_a_crop_of_another_kind_than_asked_for_is_refused(crops, network, tmp_path, capsys):
    error = refused(capsys, 2, crops, "--model", network, *FIXED, "--crop", "facenet")
    assert error == (
        f"{crops / 'lfw/Ana_Lind/Ana_Lind_0001.png'} is a crop of 160x160 pixels, of `--crop scaled`, and "
        "the crop facenet is needed. Give the photographs themselves."
    )


def test_a_page_with_curves_histograms_and_pictures(crops, network, pairs, tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "r.html"
    evaluated(
        tmp_path,
        crops / "lfw",
        "--pairs",
        pairs,
        "--model",
        network,
        "--standardise",
        "fixed",
        "--report",
        page,
    )
    text = page.read_text(encoding="utf-8")
    for heading in (
        "Receiver operating characteristic",
        "Distances",
        "The same person, farthest apart",
        "Different people, closest",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert text.count('src="data:image/jpeg;base64,') == 2 * 11
    assert text.count("<svg") > 2
    assert str(pairs) in text


# --------------------------------------------------------------------------------------------- classifiers


def test_predictions_of_a_table(crops, tmp_path, capsys):
    rows = [{"label": "ann", "predicted_label": "ann"}, {"label": "bob", "predicted_label": "ann"}]
    result = evaluated(tmp_path, write_csv(tmp_path / "t.csv", rows), "--classify")
    assert (result["faces"], result["accuracy"], result["model"]) == (2, 0.5, None)
    assert result["confusion"] == [[1, 0], [1, 0]]
    printed = capsys.readouterr().out
    assert "0.5000 of the faces are given their label." in printed
    assert "2 faces of 2 classes; the predictions in the table" in printed


def test_a_label_is_the_same_number_in_every_form(tmp_path, capsys):
    # pandas writes whole numbers as 0.0 where one is missing
    rows = [("0", "0.0"), ("01", "1"), (" a", "a"), ("-2.0", "-2"), ("1.5", "1")]
    rows = [{"label": label, "predicted_label": predicted} for label, predicted in rows]
    result = evaluated(tmp_path, write_csv(tmp_path / "t.csv", rows), "--classify")
    assert result["accuracy"] == 0.8


def test_a_table_without_answers_needs_a_classifier(crops, capsys):
    assert refused(capsys, 3, crops, "--classify") == (
        f"{crops / 'faces.csv'}: it has no column predicted_label; its columns are image_path, person_name, "
        "label. Add it, or give the classifier itself with --model."
    )


def test_the_logits_of_a_network(crops, network, tmp_path):
    arguments = ("--classify", "--model", network, *FIXED)
    result = evaluated(tmp_path, crops / "faces.csv", *arguments)
    classifier = loaded(network).logits
    expected = np.zeros((len(PEOPLE), 7), int)
    for label, person in enumerate(PEOPLE):
        for number in range(1, EACH + 1):
            row = prelogits(crops / "lfw" / person / f"{person}_{number:04d}.png", network)
            expected[label, classifier(row).argmax()] += 1
    labels = [int(item["label"]) for item in result["classes"]]
    confusion = np.array(result["confusion"])
    assert (confusion[[labels.index(label) for label in range(3)]] == expected[:, labels]).all()
    assert result["accuracy"] == pytest.approx(np.trace(expected[:, :3]) / 9)


def test_a_page_of_a_classifier(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"label": "<b>", "predicted_label": "<b>"}, {"label": "c", "predicted_label": "<b>"}]
    page = tmp_path / "r.html"
    evaluated(tmp_path, write_csv(tmp_path / "t.csv", rows), "--classify", "--report", page)
    text = page.read_text(encoding="utf-8")
    assert "<h2>Confusion matrix</h2>" in text
    assert "&lt;b&gt;" in text
    assert "<b>" not in text.partition("<h2>Confusion matrix</h2>")[2].partition("</section>")[0]


# ------------------------------------------------------------------------------------------------ refusals


def test_a_standardisation_is_never_guessed(crops, network, capsys):
    error = refused(capsys, 2, crops / "faces.csv", "--model", network)
    assert error.startswith(f"{network}: neither the catalog nor a manifest beside it tells how its images")
    assert "Give --standardise fixed" in error


def test_a_model_that_is_neither_a_file_nor_published(crops, capsys):
    error = refused(capsys, 2, crops / "faces.csv", "--model", "vggface")
    assert error == "vggface: there is no such file or published model. Did you mean vggface2?"


def test_a_table_without_a_column(crops, capsys, tmp_path):
    table = write_csv(tmp_path / "t.csv", [{"image_path": "a.png", "name": "Ana"}])
    error = refused(capsys, 3, table)
    assert error.startswith(
        f"{table}: it has no column person_name; its columns are image_path, name. `facenet-port"
    )
    assert refused(capsys, 3, table, "--classify").startswith(f"{table}: it has no column label;")
    table = write_csv(tmp_path / "t.csv", [{"label": "1"}])
    assert refused(capsys, 3, table, "--classify").startswith(f"{table}: it has no column predicted_label;")


def test_a_table_whose_files_are_missing(capsys, tmp_path):
    rows = [{"image_path": f"{number}.png", "person_name": "Ana"} for number in range(5)]
    table = write_csv(tmp_path / "t.csv", rows)
    assert refused(capsys, 3, table) == (
        f"{table}: 5 files of its column image_path cannot be found: {tmp_path}/0.png, {tmp_path}/1.png, "
        f"{tmp_path}/2.png, .... Relative paths start at the table's folder, or at the current one."
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"image_path,person_name\n", "the table has no rows."),
        (b"", "this is not a CSV table."),
        (b"\xff\xfe\x00", "this is not a CSV table."),
        (b"image_path,person_name\na.png\n", "row 1 has 1 field, the first line names 2."),
        (b"image_path,person_name\na.png,\nb.png,Ana\n", "row 1 has no person_name."),
        (b"image_path,person_name\na.png,Ana\n", "one face makes no pair."),
    ],
)
def test_a_table_that_is_none(content, problem, tmp_path, capsys):
    (tmp_path / "t.csv").write_bytes(content)
    (tmp_path / "a.png").touch()
    assert refused(capsys, 3, tmp_path / "t.csv").startswith(f"{tmp_path / 't.csv'}: {problem}")


def test_a_parquet_table_that_is_none(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_text("no")
    error = refused(capsys, 3, tmp_path / "t.parquet")
    assert error.startswith(f"{tmp_path / 't.parquet'}: cannot be read as a Parquet table (")


def test_a_parquet_table_is_as_good_as_a_csv(crops, network, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    from faces.face_table import read_table

    table = read_table(crops / "faces.csv")
    columns = {name: list(values) for name, values in table.columns.items()}
    columns["image_path"] = [str(path) for path in table.files()]
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    arguments = ("--model", network, *FIXED)
    ours = evaluated(tmp_path, tmp_path / "t.parquet", *arguments)
    theirs = evaluated(tmp_path, crops / "faces.csv", *arguments)
    assert [ours[name] for name in FIGURES] == [theirs[name] for name in FIGURES]


def test_options_that_do_not_fit(crops, network, pairs, capsys):
    table = crops / "faces.csv"
    assert "--pairs, --mirrored: --classify takes no pairs" in refused(
        capsys, 2, table, "--classify", "--pairs", pairs, "--mirrored"
    )
    assert "--pairs needs the folder of the set" in refused(capsys, 2, table, "--pairs", pairs)
    assert "a folder needs a list of pairs, such as --pairs pairs.txt" in refused(capsys, 2, crops / "lfw")
    assert "this is neither a folder nor a table (.csv or .parquet)" in refused(capsys, 2, network)
    error = refused(
        capsys,
        2,
        crops / "lfw",
        "--pairs",
        pairs,
        "--model",
        network,
        "--standardise",
        "fixed",
        "--folds",
        "99",
    )
    assert error == "11 pairs cannot make 99 folds. Give --folds 11 or fewer."
    for option, value in (("--far", "0"), ("--far", "1.5"), ("--folds", "0"), ("--batch-size", "-1")):
        with pytest.raises(SystemExit) as caught:
            main([str(table), option, value])
        assert caught.value.code == 2


def test_labels_that_are_no_classes_of_the_network(crops, network, tmp_path, capsys):
    rows = [{"image_path": str(crops / "lfw/Bo_Ek/Bo_Ek_0001.png"), "label": label} for label in ("6", "7")]
    table = write_csv(tmp_path / "t.csv", rows)
    error = refused(capsys, 3, table, "--classify", "--model", network, *FIXED)
    assert error.startswith(f"{table}: row 2 has the label '7', and the 7 classes of {network} are 0 to 6.")


def test_without_scikit_learn_the_extra_is_named(crops, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused(capsys, 4, crops / "faces.csv") == (
        "evaluate needs scikit-learn and scipy, not installed here: pip install 'facenet-port[faces]'."
    )
