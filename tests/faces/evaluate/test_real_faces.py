"""From 118 photographs to decisions with all defaults, and TensorFlow's decision on each pair."""

from __future__ import annotations

import json
import tarfile

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("cv2")

from faces.evaluate.__main__ import main
from faces.threshold import DEFAULT_THRESHOLD
from tests.faces.evaluate.conftest import write_csv
from tests.support.shared_files import shared_folder

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="session")
def photographs_table(keras_archive, tmp_path_factory):
    """A table of 118 photographs of five people."""

    def write(folder):
        rows = []
        with tarfile.open(keras_archive) as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                within = member.name.partition("/5-celebrity-faces-dataset/")[2]
                if member.isfile() and within.startswith(("train/", "val/")) and within.endswith(".jpg"):
                    person = within.split("/")[1]
                    path = folder / f"{len(rows):03d}.jpg"
                    path.write_bytes(archive.extractfile(member).read())
                    rows.append({"image_path": path.name, "person_name": person})
        write_csv(folder / "photographs.csv", rows)

    return shared_folder(tmp_path_factory, "118-photographs", write) / "photographs.csv"


def test_the_figures_and_the_decisions_of_6903_pairs(photographs_table, keras, tmp_path, capsys):
    pytest.importorskip("tensorflow")
    assert main([str(photographs_table), "--against", str(keras), "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    measured = {**result["measured_threshold"], "source": DEFAULT_THRESHOLD.source}
    assert measured.pop("value") == pytest.approx(DEFAULT_THRESHOLD.value, abs=1e-4)
    assert measured.items() <= DEFAULT_THRESHOLD.as_json().items()  # what match takes without --threshold
    assert (result["images"], result["pairs"], result["same"]) == (118, 6903, 1354)
    assert result["accuracy"] >= 0.985  # facenet-pytorch's best on these photographs: 0.982
    assert result["eer"] <= 0.0205  # facenet-pytorch's best: 0.0391
    judgements = {judgement["name"]: judgement for judgement in result["judgements"]}
    assert judgements["decisions"]["statement"] == "alike on 6,903 of 6,903 pairs"
    assert judgements["distances"]["share"] < 0.5
    assert judgements["figures"]["share"] < 0.5
    printed = capsys.readouterr().out
    assert "The network decides as TensorFlow's graph." in printed
    assert "20170512-110547, standardised per image (from the catalog)" in printed
    assert "118 photographs cropped by `align`'s --crop scaled" in printed
