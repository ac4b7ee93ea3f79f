"""Weights by name, from the cache or converted from the archive, for new models and existing ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from converter.__main__ import main
from converter.atomic import replace_file
from converter.convert import to_numpy_state_dict
from converter.errors import RequirementError, SourceError, UsageError
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.hub.catalog import BUILT_IN_BY_NAME, find_entry
from converter.hub.catalog_entry import PublishedStateDict
from converter.hub.download import model_folder
from reference import InceptionResnetV1, load_weights
from tests.conftest import CLASSES, MODEL, STEP, same_bits, write_keras
from tests.support.google_drive_server import proxy_environment

pytestmark = pytest.mark.slow

FILE = f"{MODEL}-faces.pt"
ROOT = Path(__file__).parents[3]


def environment(folder, digest):
    """Empty caches, and a catalog with the archive, whose address does not answer."""
    catalog = folder / "catalog.toml"
    catalog.write_text(
        f'["{MODEL}"]\ndataset = "faces"\naliases = ["faces"]\nembedding_size = 512\n'
        f'num_classes = {CLASSES}\nstandardisation = "fixed"\nurl = "http://127.0.0.1:9/{MODEL}.zip"\n'
        f'sha256 = "{digest}"\n'
    )
    return {
        "FACENET_PORT_CATALOG": str(catalog),
        "FACENET_PORT_CACHE": str(folder / "cache"),
        "TORCH_HOME": str(folder / "torch"),
    }


@pytest.fixture(scope="module")
def archive(tensors, tmp_path_factory):
    """A zip with the checkpoint alone, of the files that are published with it."""
    return zip_checkpoint(tmp_path_factory.mktemp("archive"), tensors)


@pytest.fixture(scope="module")
def digest(archive):
    """The SHA-256 of the archive."""
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def zip_checkpoint(folder, tensors):
    """Write a checkpoint as a zip that does not compress."""
    files = write_tensor_bundle(folder / f"model-{MODEL}.ckpt-{STEP}", tensors)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        for file in files:
            archive.write(file, f"{MODEL}/{file.name}")
            file.unlink()
    return folder / "archive.zip"


@pytest.fixture(scope="module")
def made(archive, digest, tmp_path_factory):
    """The torch folder after the first model by name was converted from a local archive."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment(folder, digest).items():
            patch.setenv(variable, value)
        model_folder(find_entry("faces"), archive=archive)
        InceptionResnetV1(pretrained="faces", offline=True)
    return folder


@pytest.fixture
def cache(made, digest, tmp_path, monkeypatch):
    """Caches for one test, with the state_dict but not the archive; whoever changes a file replaces it."""
    for variable, value in environment(tmp_path, digest).items():
        monkeypatch.setenv(variable, value)
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    shutil.copytree(made / "torch" / "hub" / "checkpoints", hub, copy_function=os.link)
    return hub


@pytest.fixture
def with_archive(made, cache, tmp_path):
    """The same with the unpacked archive."""
    shutil.copytree(made / "cache", tmp_path / "cache", dirs_exist_ok=True, copy_function=os.link)
    return cache


@pytest.fixture(scope="module")
def expected(tensors):
    return to_numpy_state_dict(tensors)


def assert_same(model, expected, but=()):
    actual = model.state_dict()
    assert list(actual) == list(expected)
    different = [key for key in expected if not same_bits(actual[key].numpy(), expected[key])]
    assert different == list(but)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    replace_file(path, content)


def test_the_first_model_makes_the_file_with_its_manifest(made, expected):
    hub = made / "torch" / "hub" / "checkpoints"
    assert sorted(path.name for path in hub.iterdir()) == [FILE, f"{FILE}.json"]
    manifest = json.loads((hub / f"{FILE}.json").read_text())
    assert manifest["output"] == {FILE: hashlib.sha256((hub / FILE).read_bytes()).hexdigest()}
    loaded = torch.load(hub / FILE, weights_only=True)
    assert list(loaded) == list(expected)
    assert all(same_bits(loaded[key].numpy(), expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["faces", MODEL])
def test_a_model_by_name_or_alias_from_the_cache_alone(cache, expected, name):
    model = InceptionResnetV1(pretrained=name, offline=True)
    assert_same(model, expected)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_the_model_is_that_of_a_strict_load(cache, expected):
    plain = InceptionResnetV1(num_classes=CLASSES)
    plain.load_state_dict({key: torch.from_numpy(array) for key, array in expected.items()})
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one = InceptionResnetV1(pretrained="faces", offline=True).eval()(images)
        assert torch.equal(one, plain.eval()(images))


def test_training_does_not_reach_the_file(cache, expected):
    before = (cache / FILE).read_bytes()
    model = InceptionResnetV1(pretrained="faces", offline=True)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    assert (cache / FILE).read_bytes() == before
    assert_same(InceptionResnetV1(pretrained="faces", offline=True), expected)


def test_the_file_may_be_removed_while_the_model_is_in_use(cache, expected):
    model = InceptionResnetV1(pretrained="faces", offline=True)
    (cache / FILE).unlink()
    assert_same(model, expected)


def test_every_tensor_is_a_storage_of_its_own(cache, expected, tmp_path):
    """Each tensor has a storage of its own, so that saving the model gives a file of the same size."""
    model = InceptionResnetV1(pretrained="faces", offline=True)
    assert len({tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}) == len(
        expected
    )
    torch.save(model.state_dict(), tmp_path / "again.pt")
    assert (tmp_path / "again.pt").stat().st_size < 1.01 * (cache / FILE).stat().st_size


def test_default_dtype_is_kept(cache, expected):
    torch.set_default_dtype(torch.float64)
    try:
        model = InceptionResnetV1(pretrained="faces", offline=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.last_linear.weight.dtype == torch.float64
    assert torch.equal(model.last_linear.weight.float(), torch.from_numpy(expected["last_linear.weight"]))


def test_another_number_of_classes_is_randomly_initialised_with_a_warning(cache, expected):
    with pytest.warns(
        UserWarning, match=r"'faces' was trained on 7 classes, not 3: the logits layer is random"
    ):
        model = InceptionResnetV1(pretrained="faces", classify=True, num_classes=3, offline=True)
    assert model.logits.weight.shape == (3, 512)
    assert model.logits.weight.abs().sum() > 0
    features = {key: array for key, array in expected.items() if not key.startswith("logits.")}
    actual = model.state_dict()
    assert all(same_bits(actual[key].numpy(), array) for key, array in features.items())
    assert model(torch.zeros(2, 3, 160, 160)).shape == (2, 3)


def test_the_right_number_of_classes_says_nothing(cache, expected, recwarn):
    assert_same(InceptionResnetV1(pretrained="faces", num_classes=CLASSES, offline=True), expected)
    assert not recwarn.list


def test_another_embedding_size_is_refused(cache):
    with pytest.raises(
        ValueError, match="embeddings of 'faces' have 512 numbers, those of this model have 128"
    ):
        InceptionResnetV1(pretrained="faces", embedding_size=128, offline=True)
    with pytest.raises(ValueError, match="512 numbers, those of this model have 128"):
        load_weights(InceptionResnetV1(embedding_size=128), "faces", offline=True)


def test_the_arguments_have_the_order_of_facenet_pytorch(cache):
    """Its signature: pretrained, classify, num_classes, dropout_prob, device."""
    with pytest.warns(UserWarning, match="randomly initialised"):
        model = InceptionResnetV1("faces", True, 3, 0.25, "cpu", offline=True)
    assert (model.classify, model.logits.out_features, model.dropout.p) == (True, 3, 0.25)
    assert InceptionResnetV1(None, False, None, 0.25, "meta").last_linear.weight.device.type == "meta"


def test_without_a_network_there_is_one_short_traceback(tmp_path):
    """Nothing listens at the proxy's address, and the caches are empty."""
    variables = {"TORCH_HOME": str(tmp_path), "FACENET_PORT_CACHE": str(tmp_path / "cache")}
    code = "from reference import InceptionResnetV1; InceptionResnetV1(pretrained='vggface2')"
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **variables, **proxy_environment("http://127.0.0.1:9")},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr.count("Traceback") == 1
    lines = process.stderr.splitlines()
    assert len(lines) <= 12, process.stderr
    assert lines[-1].startswith(
        "converter.errors.RequirementError: 20180402-114759: drive.google.com cannot be"
    )
    assert "facenet-port convert 20180402-114759 --archive FILE" in lines[-1]


def test_load_weights_into_a_model(cache, expected):
    model = InceptionResnetV1(num_classes=CLASSES)
    load_weights(model, "faces", offline=True)
    assert_same(model, expected)


def test_load_weights_into_a_model_without_classifier(cache, expected):
    model = InceptionResnetV1()
    load_weights(model, "faces", offline=True)
    assert_same(model, {key: array for key, array in expected.items() if not key.startswith("logits.")})


def test_load_weights_into_another_classifier(cache):
    model = InceptionResnetV1(num_classes=3)
    before = model.logits.weight.clone()
    with pytest.warns(UserWarning, match="randomly initialised"):
        load_weights(model, "faces", offline=True)
    assert model.logits.weight.shape == (3, 512)
    assert not torch.equal(model.logits.weight, before)


def test_an_unknown_name(cache):
    with pytest.raises(UsageError, match=r"'resnet' is not in the catalog. Give one of: .*vggface2"):
        InceptionResnetV1(pretrained="resnet", offline=True)
    with pytest.raises(UsageError, match=r"'vggface3' is not in the catalog. Did you mean vggface2\?"):
        InceptionResnetV1(pretrained="vggface3", offline=True)


def damage(folder, place):
    path = folder / (f"{FILE}.json" if place == "manifest" else FILE)
    flip(path, {"weights": path.stat().st_size // 2, "header": 10, "manifest": 0}[place])


@pytest.mark.parametrize("place", ["weights", "manifest"])
def test_a_damaged_file_is_made_anew_and_kept_aside(with_archive, expected, place):
    damage(with_archive, place)
    damaged = (with_archive / FILE).read_bytes()
    assert_same(InceptionResnetV1(pretrained="faces", offline=True), expected)
    names = {other.name for other in with_archive.iterdir()}
    kept = {f"{FILE}.unverified", f"{FILE}.unverified.json"}
    assert names == {FILE, f"{FILE}.json", *kept}
    assert (with_archive / f"{FILE}.unverified").read_bytes() == damaged
    assert_same(InceptionResnetV1(pretrained="faces", offline=True), expected)


def refused(folder):
    """Check that a file is not taken for the model's, and stays as it is."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RequirementError, match="offline mode is on"):
        InceptionResnetV1(pretrained="faces", offline=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("place", ["weights", "header", "manifest"])
def test_a_damaged_file_without_its_archive_is_refused_and_stays(cache, place):
    damage(cache, place)
    refused(cache)


def test_a_file_that_was_cut_short(with_archive, expected):
    replace_file(with_archive / FILE, (with_archive / FILE).read_bytes()[:1000])
    assert_same(InceptionResnetV1(pretrained="faces", offline=True), expected)


def test_a_damaged_archive_makes_nothing(with_archive, tmp_path):
    shutil.rmtree(with_archive)
    (data,) = (tmp_path / "cache").glob("models/*/*.data-*")
    flip(data, 1_000_000)
    with pytest.raises((SourceError, RequirementError)):
        InceptionResnetV1(pretrained="faces", offline=True)
    assert not list(with_archive.glob("*"))


def test_a_manifest_of_another_source_proves_nothing(with_archive, expected, monkeypatch):
    """A file that agrees with its own manifest is still not the catalog's if its source was another."""
    with (catalog := Path(os.environ["FACENET_PORT_CATALOG"])).open("a") as file:
        file.write(f'["{MODEL}".files]\n".index" = "{"0" * 64}"\n')
    with pytest.raises((SourceError, RequirementError)):
        InceptionResnetV1(pretrained="faces", offline=True)
    catalog.write_text(catalog.read_text().partition(f'["{MODEL}".files]')[0])
    assert_same(InceptionResnetV1(pretrained="faces", offline=True), expected)


def test_a_file_saved_on_a_gpu_loads_on_the_cpu(cache, expected, monkeypatch):
    loaded = torch.load(cache / FILE, weights_only=True)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    (cache / FILE).unlink()
    torch.save(loaded, cache / FILE)
    monkeypatch.undo()
    content = (cache / FILE).read_bytes()
    assert b"cuda:0" in content
    manifest = json.loads((cache / f"{FILE}.json").read_text())
    manifest["output"][FILE] = hashlib.sha256(content).hexdigest()
    replace_file(cache / f"{FILE}.json", json.dumps(manifest).encode())
    for variable, value in (
        ("TORCH_HOME", cache.parents[1]),
        ("FACENET_PORT_CATALOG", cache.parents[2] / "catalog.toml"),
    ):
        monkeypatch.setenv(variable, str(value))
    model = InceptionResnetV1(pretrained="faces", offline=True)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert_same(model, expected)


def test_a_published_file_of_the_old_format(cache, expected, monkeypatch):
    """A published file has no manifest but a SHA-256 in the catalog, and may be older than the zip format."""
    name = "20180402-114759"
    path = cache / f"{name}-vggface2.pt"
    tensors = {key: torch.from_numpy(array) for key, array in expected.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    stated = replace(
        BUILT_IN_BY_NAME[name], num_classes=CLASSES, state_dict=PublishedStateDict(path.name, sha256=digest)
    )
    monkeypatch.setitem(BUILT_IN_BY_NAME, name, stated)
    assert_same(InceptionResnetV1(pretrained=name, offline=True), expected)
    (cache.parents[1] / "checkpoints").mkdir()
    shutil.move(path, cache.parents[1] / "checkpoints" / path.name)
    assert_same(InceptionResnetV1(pretrained=name, offline=True), expected)  # where facenet-pytorch has it
    flip(cache.parents[1] / "checkpoints" / path.name, 5_000_000)
    with pytest.raises(RequirementError, match="offline mode is on"):
        InceptionResnetV1(pretrained=name, offline=True)


def alternative_state_dict(cache, source, options=()):
    """Put a conversion of another file, with its manifest, in the place of the weights of the name."""
    (cache / FILE).unlink()
    (cache / f"{FILE}.json").unlink()
    assert main([str(source), "-o", str(cache / FILE), "--quiet", *options]) == 0


def test_weights_of_another_source_are_not_those_of_the_name(with_archive, expected, tensors, tmp_path):
    """The weights agree with their manifest, but the catalog has neither their archive nor their files."""
    other = {name: array + np.float32(1) for name, array in tensors.items()}
    write_keras(tmp_path / "other.h5", other)
    alternative_state_dict(with_archive, tmp_path / "other.h5")
    assert_same(InceptionResnetV1(pretrained="faces", offline=True), expected)


@pytest.mark.parametrize("change", ["swapped", "renamed", "reshaped", "classes"])
def test_a_manifest_that_names_other_tensors_is_not_believed(cache, change):
    rename_tensors(cache, change)
    refused(cache)


def test_such_a_file_is_made_anew(with_archive, expected):
    rename_tensors(with_archive, "swapped")
    assert_same(InceptionResnetV1(pretrained="faces", offline=True), expected)


def rename_tensors(folder, change):
    path = folder / f"{FILE}.json"
    manifest = json.loads(path.read_text())
    entries = {entry["key"]: entry for entry in manifest["tensors"]}
    mean, variance = entries["conv2d_1a.bn.running_mean"], entries["conv2d_1a.bn.running_var"]
    if change == "swapped":
        mean["key"], variance["key"] = variance["key"], mean["key"]
    elif change == "renamed":
        mean["key"] = "conv2d_1a.bn.average"
    elif change == "reshaped":
        entries["last_linear.weight"]["shape"].reverse()
    else:
        manifest["network"]["num_classes"] = CLASSES + 1
    replace_file(path, json.dumps(manifest).encode())


def test_a_sound_file_in_the_second_folder_counts(cache, expected):
    peer = cache.parents[1] / "checkpoints"
    shutil.copytree(cache, peer)
    flip(cache / FILE, 5_000_000)
    assert_same(InceptionResnetV1(pretrained="faces", offline=True), expected)


def test_a_changed_entry_of_the_catalog_is_another_model(with_archive, tensors, tmp_path, monkeypatch):
    """The folder and the state_dict of the former archive are not taken for the new archive."""
    monkeypatch.chdir(tmp_path)  # a folder of the model's name would go before it
    other = {name: array + np.float32(1) for name, array in tensors.items()}
    archive = zip_checkpoint(tmp_path, other)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    catalog = Path(os.environ["FACENET_PORT_CATALOG"])
    lines = [
        f'sha256 = "{digest}"' if line.startswith("sha256") else line
        for line in catalog.read_text().splitlines()
    ]
    catalog.write_text("\n".join(lines))
    with pytest.raises(RequirementError, match="not in the cache"):
        InceptionResnetV1(pretrained="faces", offline=True)
    assert main(["faces", "--archive", str(archive), "-o", str(tmp_path / "w.pt"), "--quiet"]) == 0
    actual = torch.load(tmp_path / "w.pt", weights_only=True)
    assert same_bits(actual["logits.bias"].numpy(), other["Logits/biases"])
    assert_same(InceptionResnetV1(pretrained="faces", offline=True), to_numpy_state_dict(other))


@pytest.mark.parametrize("variable", ["TORCH_HOME", "FACENET_PORT_CACHE"])
def test_a_cache_that_cannot_be_used(with_archive, monkeypatch, variable):
    (with_archive / FILE).unlink()
    monkeypatch.setenv(variable, "/proc/nothing")
    with pytest.raises(RequirementError, match=r"cache cannot be used .*TORCH_HOME|FACENET_PORT_CACHE"):
        InceptionResnetV1(pretrained="faces")


TWICE = """
import os, sys

import converter.convert_file as module
from reference import InceptionResnetV1

convert_file = module.convert_file
said = []

def recorded(*arguments, **options):
    said.append("converted")
    return convert_file(*arguments, **options)

module.convert_file = recorded
children = [os.fork()]
if children[-1]:
    children.append(os.fork())
if children[-1] == 0:
    model = InceptionResnetV1(pretrained="faces", offline=True)
    said.append(str(float(model.last_linear.weight.detach().double().sum())))
    print("; ".join(said))
    sys.exit()
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def test_two_processes_at_once_make_the_file_once(sandbox, made, digest, tmp_path, monkeypatch):
    for variable, value in environment(tmp_path, digest).items():
        monkeypatch.setenv(variable, value)
    shutil.copytree(made / "cache", tmp_path / "cache")
    done = sandbox.run_program(TWICE, folder=tmp_path)
    assert done.code == 0, done.err
    first, second = sorted((line.split("; ") for line in done.out.splitlines()), key=len)
    assert second == ["converted", *first]
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    assert {path.name for path in hub.iterdir()} == {FILE, f"{FILE}.json"}


def test_through_torch_hub(cache, expected):
    model = torch.hub.load(str(ROOT), "inception_resnet_v1", source="local", pretrained="faces", offline=True)
    assert_same(model, expected)
