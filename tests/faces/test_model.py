"""The network that embeds faces: by name or file, its standardisation stated and never guessed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from converter.convert_file import convert_file
from converter.errors import RequirementError, UsageError
from converter.hub import catalog
from converter.hub.catalog_entry import FIXED, PER_IMAGE, CatalogEntry, PackageSource
from converter.manifest import file_digest
from faces.model import load_model, weights_digest
from reference import load


@pytest.mark.slow
def test_the_same_weights_in_any_format_are_one_model(single_files, checkpoint):
    files = [single_files / name for name in ("weights.pt", "weights.safetensors", "weights.h5")]
    models = [load_model(file, standardisation="fixed") for file in (*files, checkpoint.frozen)]
    assert len({model.sha256 for model in models}) == 1
    images = np.random.default_rng(0).standard_normal((2, 80, 80, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = load(files[0])(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    for model in models:
        np.testing.assert_allclose(model.embed(images), expected, atol=1e-6)
    folded = models[0].backend.network
    assert models[0].unfolded.backend.network is models[0].network is not folded


def test_embeddings_are_those_of_float64_however_many_cores_share_the_images(single_files):
    model = load_model(single_files / "weights.pt", standardisation="fixed")
    images = np.random.default_rng(1).standard_normal((3, 80, 80, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = load(single_files / "weights.pt").double()(
            torch.tensor(images.transpose(0, 3, 1, 2)).double()
        )
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        rows = model.embed(images)
        assert torch.get_num_threads() == threads
        torch.set_num_threads(1)
        assert np.linalg.norm(rows - expected.numpy(), axis=1).max() < 3e-6, threads
        assert np.linalg.norm(rows[0] - rows[1]) > 1e-3, threads


def test_a_changed_weight_is_another_model(single_files):
    network = load(single_files / "weights.pt")
    before = weights_digest(network)
    with torch.no_grad():
        network.logits.bias[0] += 1  # no part of an embedding
    assert weights_digest(network) == before
    with torch.no_grad():
        network.last_bn.running_var[0] = torch.nextafter(network.last_bn.running_var[0], torch.tensor(9.0))
    assert weights_digest(network) != before


@pytest.fixture
def published(checkpoint, monkeypatch):
    """Publish the checkpoint of the tests under a name, with per-image standardisation."""
    entry = CatalogEntry(
        name="20990101-000000",
        dataset="test",
        standardisation=PER_IMAGE,
        lfw_accuracy=0.5,
        sources=(
            PackageSource(
                package="p",
                version="1",
                sha256="0" * 64,
                members={f"p-1/{checkpoint.frozen.name}": file_digest(checkpoint.frozen)},
            ),
        ),
    )
    monkeypatch.setattr(catalog, "BUILT_IN", (entry,))
    monkeypatch.setattr(catalog, "BUILT_IN_BY_NAME", {entry.name: entry})
    return entry


@pytest.mark.slow
def test_a_published_file_and_its_conversion_are_recognised_by_its_manifest(published, checkpoint, tmp_path):
    convert_file(checkpoint.frozen, tmp_path / "weights.pt")
    for file in (checkpoint.frozen, tmp_path / "weights.pt"):
        model = load_model(file)
        assert (model.name, model.standardisation, model.origin) == (
            published.name,
            "per-image",
            "the catalog",
        )
        assert model.published is published
    model = load_model(checkpoint.frozen, standardisation="fixed")
    assert (model.standardisation, model.origin) == ("fixed", "--standardise")
    (tmp_path / "weights.pt.json").unlink()
    with pytest.raises(
        UsageError, match="neither the catalog nor a manifest beside it tells how its images are"
    ):
        load_model(tmp_path / "weights.pt")


@pytest.mark.slow
def test_weights_that_were_trained_state_their_standardisation(single_files, tmp_path):
    """The folder of a training, its conversion to TensorFlow and that one's prefix are one model."""
    best, checkpoint = tmp_path / "best", tmp_path / "checkpoint"
    for folder in (best, checkpoint):
        folder.mkdir()
    convert_file(single_files / "weights.pt", best / "weights.pt", standardisation=PER_IMAGE)
    (best / "people.json").write_text('{"people": []}')
    convert_file(best, checkpoint / "model", output_format="tensorflow")
    models = [load_model(path) for path in (best, checkpoint, checkpoint / "model")]
    assert {(model.standardisation, model.origin) for model in models} == {("per-image", "the manifest")}
    assert len({model.sha256 for model in models}) == 1
    (checkpoint / "model.json").write_bytes((best / "weights.pt.json").read_bytes())  # of other bytes
    with pytest.raises(UsageError, match="tells how its images are standardised"):
        load_model(checkpoint)


@pytest.mark.slow
def test_the_standardisations_by_hand(single_files):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 75, 75, 3), np.uint8)
    model = load_model(single_files / "weights.pt", standardisation="fixed")
    fixed = model.standardise(pixels)
    np.testing.assert_allclose(fixed, (pixels.astype(np.float64) - 127.5) / 128, atol=1e-7)
    each = replace(model, standardisation="per-image").standardise(pixels)
    np.testing.assert_allclose(each.mean(axis=(1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(each.std(axis=(1, 2, 3)), 1, atol=1e-6)
    assert fixed.dtype == each.dtype == np.float32
    assert {entry.standardisation for entry in catalog.BUILT_IN} <= {FIXED, PER_IMAGE}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vggface",), "vggface: there is no such file or published model. Did you mean vggface2?"),
        (("mine.pt",), "mine.pt: there is no such file or published model. `facenet-port list` shows"),
    ],
)
def test_what_is_no_model(arguments, message):
    with pytest.raises(UsageError) as caught:
        load_model(*arguments)
    assert str(caught.value).startswith(message)


def test_a_device_that_is_not_there(single_files):
    with pytest.raises(RequirementError, match=r"--device mps: PyTorch finds no such device here"):
        load_model(single_files / "weights.pt", standardisation="fixed", device="mps")
