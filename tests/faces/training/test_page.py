"""The page of train: what it shows, and that a real browser cuts nothing off and loads nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("accelerate")

from facenet_port import main
from faces.crops import FaceImage
from faces.dataset import LabelledFace
from faces.evaluate.classifier import score
from faces.evaluate.measure import Settings, measure
from faces.evaluate.pairs import all_pairs
from faces.training.config import TrainConfig
from faces.training.page import write_page
from faces.training.result import TrainResult
from faces.training.validation import Validation
from tests.checks.report.test_report import ENVIRONMENT, HOSTILE, SIZES, browser, open_page

__all__ = ["browser"]  # a fixture

PEOPLE = ("Ana", "Bo", HOSTILE)
OWNERS = tuple(person for person in PEOPLE for _ in range(4))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A crop for each face, in a folder for each person."""
    folder = tmp_path_factory.mktemp("crops")
    random = np.random.default_rng(0)
    files = []
    for place in range(len(OWNERS)):
        person = folder / f"person{place // 4}"
        person.mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (10, 10, 3)).astype(np.uint8)
        files.append(person / f"{place}.png")
        Image.fromarray(pixels).resize((160, 160)).save(files[-1])
    return tuple(files)


def validation(spread, *, classifier):
    """Embeddings around a direction for each person; face 5 is Bo's and taken for Ana."""
    random = np.random.default_rng(1)
    rows = np.repeat(np.eye(3, 8), 4, axis=0) + spread * random.standard_normal((12, 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    pairs = all_pairs(OWNERS)
    measured = measure(rows, pairs, Settings(folds=1))
    if not classifier:
        return Validation(rows, pairs, measured)
    probabilities = np.full((12, 3), 0.1, np.float32)
    probabilities[np.arange(12), np.arange(12) // 4] = 0.8
    probabilities[5] = 0.93, 0.02, 0.05
    predicted = tuple(PEOPLE[place] for place in probabilities.argmax(axis=1))
    return Validation(
        rows, pairs, measured, predicted, 0.5, score(list(OWNERS), list(predicted)), probabilities
    )


@pytest.fixture
def result(files, tmp_path):
    """A function that makes a result of two epochs."""

    def make(task="classifier", **changes):
        classifier = task == "classifier"
        before, after = (validation(spread, classifier=classifier) for spread in (0.6, 0.2))
        rows = [
            {
                "epoch": 1,
                "step": 3,
                "stage": "head",
                "loss": 1.5,
                "faces_per_second": 10.0,
                "waited_for_data": 0.1,
            },
            {
                "epoch": 2,
                "step": 6,
                "stage": "all",
                "loss": 0.5,
                "faces_per_second": 2.5,
                "waited_for_data": 0.3,
            },
        ]
        score_name = "accuracy" if classifier else "active_triplets"
        for row in rows:
            row |= {score_name: 0.75} | {f"val_{name}": value for name, value in after.figures.items()}
        made = TrainResult(
            folder=tmp_path / "run",
            config=TrainConfig(data="crops", task=task, epochs=2),
            standardisation="per-image",
            people=PEOPLE,
            trained_faces=30,
            validated_faces=tuple(
                LabelledFace(FaceImage(file), OWNERS[place], place // 4, "val")
                for place, file in enumerate(files)
            ),
            frozen_batch_norm=True,
            before=before,
            after=after,
            rows=tuple(rows),
            best_epoch=2,
            notes=(),
            warnings=(),
            environment=ENVIRONMENT,
        )
        return replace(made, **changes)

    return make


def write(path, result):
    write_page(path, result, command="facenet-port train")
    text = path.read_text(encoding="utf-8")
    assert len(set(re.findall(r'\bid="([^"]+)"', text))) == len(re.findall(r'\bid="', text))
    return text


def test_a_classifier(result, tmp_path):
    made = result()
    text = write(tmp_path / "r.html", made)
    assert "11 of 12 faces are given their person." in text
    assert "Epoch 1: the head alone; 2: the whole network. Epoch 0 is before the training." in text
    # 0.1 s and 0.4 s a face, of which 0.01 s and 0.12 s were waited: 4 faces a second on the whole.
    assert "4 faces a second; 26.0% of the time waited for images. More workers than 0 would" in text
    assert text.index("Bo 0.020") < text.index("Ana 0.800")
    assert "taken for Ana 0.930" in text
    assert text.count("taken for") == 1
    assert f"before the training: equal error rate {made.before.measured.eer:.4f}" in text
    assert f"after: equal error rate {made.after.measured.eer:.4f}" in text
    assert made.before.measured.eer > made.after.measured.eer
    assert text.count("data:image/jpeg;base64") == 12
    assert "Worst mistakes" in text
    assert HOSTILE not in text
    write(tmp_path / "again.html", made)
    assert (tmp_path / "again.html").read_text() == text


def test_triplets_that_collapsed(result, tmp_path):
    made = result("triplet", warnings=("epoch 2: the embeddings have collapsed",))
    text = write(tmp_path / "r.html", made)
    before, after = made.before.measured.eer, made.after.measured.eer
    assert f"The equal error rate is {before:.4f} before the training and {after:.4f} after it." in text
    assert "epoch 2: the embeddings have collapsed" in text
    assert ">active triplets<" in text
    assert "Confusion matrix" not in text
    assert "The same person, farthest apart" in text


def test_a_run_that_went_on_knows_nothing_of_before(result, tmp_path):
    text = write(tmp_path / "r.html", result(before=None))
    assert "before" not in text.partition("</style>")[2]


def test_a_person_too_many_for_the_colours(result, tmp_path, files):
    """Those with the fewest faces are one group."""
    owners = [f"person {place}" for place in range(20)]
    faces = tuple(
        LabelledFace(FaceImage(files[place % 12]), owner, place, "val") for place, owner in enumerate(owners)
    )
    rows = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    pairs = all_pairs(owners)
    alone = Validation(rows, pairs, measure(rows, pairs, Settings(folds=1)))
    text = write(
        tmp_path / "r.html", result("triplet", validated_faces=faces, before=alone, after=alone, rows=())
    )
    assert "20 faces give no equal error rate: every pair shows different people." in text
    assert text.count("<span>person ") == 17
    assert "<span>other people</span>" in text


@pytest.mark.slow
def test_the_command_writes_it(crops, tmp_path):
    page, figures = tmp_path / "r.html", tmp_path / "r.json"
    words = (
        f"train --evaluate-only --data {crops} --weights none --batch-size 6 --report {page} --json {figures}"
    )
    assert main(words.split()) == 0
    accuracy = json.loads(figures.read_text())["after"]["accuracy"]
    text = page.read_text()
    assert f"{round(accuracy * 6)} of 6 faces are given their person." in text
    assert "Epochs" not in text


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classifier", "triplet"])
def test_at_both_widths_light_and_dark(browser, result, tmp_path, task):
    write(tmp_path / "r.html", result(task))
    for size in SIZES:
        opened = open_page(browser, tmp_path / "r.html", size)
        for scheme in ("light", "dark"):
            opened.page.emulate_media(color_scheme=scheme)
            opened.collect_faults()
            assert opened.faults == [], (size, scheme)
        assert opened.in_view("#verdict")
        pictures = opened.page.locator("main img")
        assert pictures.first.evaluate("image => image.naturalWidth") == 160
        opened.page.close()
