"""`facenet-port cluster`: the clusters, the contact sheet, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage

from facenet_port import main
from faces.cluster.run import cluster_embeddings
from tests.faces.align.conftest import ONE, picture


@pytest.mark.parametrize("distance", ["squared-euclidean", "arc-cosine"])
def test_clusters_are_those_of_scipy(distance):
    random = np.random.default_rng(0)
    rows = random.normal(size=(5, 16))[random.integers(0, 5, 40)] + 0.5 * random.normal(size=(40, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    first, second = np.triu_indices(40, 1)
    cosines = np.sum(rows[first] * rows[second], axis=1)
    pairs = 2 - 2 * cosines if distance == "squared-euclidean" else np.arccos(cosines) / np.pi
    tree = linkage(pairs, "average")
    for threshold in (np.quantile(pairs, share) for share in (0.02, 0.1, 0.2, 0.5)):
        labels = cluster_embeddings(rows, distance, threshold)
        expected = fcluster(tree, threshold, "distance")
        assert 1 < len(set(expected)) < 40
        assert np.array_equal(labels[:, None] == labels, expected[:, None] == expected)


def test_one_face_is_a_cluster():
    assert cluster_embeddings(np.ones((1, 1)), "squared-euclidean", 1.0).tolist() == [0]


@pytest.fixture
def folder(tmp_path):
    """Three crops of one look and one of another, a photograph of the latter's face, and one without."""
    random = np.random.default_rng(0)
    (tmp_path / "photos/Ana").mkdir(parents=True)
    look = random.integers(60, 196, (160, 160, 3))
    for number in range(3):
        pixels = (look + random.integers(-5, 6, look.shape)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/Ana/{number}.png")
    picture(ONE).save(tmp_path / "photos/red.png")
    picture().save(tmp_path / "photos/blank.png")
    return tmp_path / "photos"


@pytest.fixture
def cluster(colour_detector, network):
    def run(source, *options):
        command = ["cluster", str(source), "--model", str(network), "--standardise", "fixed"]
        return main([*command, *map(str, options)])

    return run


def test_clusters_of_a_folder(cluster, folder, figures, tmp_path, capsys):
    files = ["--json", tmp_path / "r.json", "--report", tmp_path / "r.html"]
    assert cluster(folder, "--threshold", figures(1e-3), *files) == 1
    result = json.loads((tmp_path / "r.json").read_text())
    found = [[face["path"] for face in faces] for faces in result["clusters"]]
    assert found == [[str(folder / f"Ana/{number}.png") for number in range(3)], [str(folder / "red.png")]]
    assert result["threshold"]["value"] == 1e-3
    assert result["without_face"] == [str(folder / "blank.png")]
    screen = capsys.readouterr().out
    assert "4 faces in 2 clusters, 1 of them of one face." in screen
    assert "blank.png: no face" in screen
    assert "Ana 3" in screen
    page = (tmp_path / "r.html").read_text()
    assert page.index("Cluster 1: 3 faces") < page.index("Cluster 2: 1 face")
    assert page.count("data:image/jpeg;base64") == 4
    assert "red." in page  # a line may break behind the dot


def test_refused(cluster, folder, figures, tmp_path, capsys):
    assert cluster(folder, "--json", tmp_path / "r.json") == 4
    assert "no threshold is known for" in capsys.readouterr().err
    assert cluster(folder, "--threshold", figures(1.0, model_sha256="c" * 64)) == 2
    assert "was measured with weights.pt (SHA-256 cccccccccccc), not" in capsys.readouterr().err
    assert cluster(tmp_path / "nowhere", "--threshold", figures(1.0)) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
