"""`facenet-port convert` and `list`: a source by name, the steps of a folder, expected digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from checks.compare.run import compare
from converter.__main__ import main
from converter.convert import to_numpy_state_dict
from converter.formats.detect import open_source
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.hub import catalog
from converter.hub.catalog import find_entry
from converter.hub.download import model_folder
from converter.hub.locate import locate
from reference import InceptionResnetV1
from tests.conftest import MODEL, STEP, same_bits
from tests.support import google_drive_server
from tests.support.first_images import TAKEN_FROM, first_images
from tests.support.google_drive_server import file, scan_page

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ID = "1FacesFacesFacesFacesFacesFaces01"


@pytest.fixture
def home(archive_digest, tmp_path, monkeypatch):
    """Empty caches, a catalog with the archive on Drive, and a current folder of its own."""
    (tmp_path / "catalog.toml").write_text(
        f'["{MODEL}"]\ndataset = "faces"\naliases = ["faces"]\ndrive_id = "{ID}"\n'
        f'sha256 = "{archive_digest}"\n'
    )
    monkeypatch.setenv("FACENET_PORT_CATALOG", str(tmp_path / "catalog.toml"))
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def assert_converted(path, tensors):
    actual = torch.load(path, weights_only=True)
    expected = to_numpy_state_dict(tensors)
    assert list(actual) == list(expected)
    assert all(same_bits(actual[key].numpy(), expected[key]) for key in expected)


def test_from_a_name_to_a_state_dict(home, archive, archive_digest, tensors, tmp_path_factory, monkeypatch):
    """The whole way of a user: Drive's warning page, gdown, hashes, zip, checkpoint, .pt."""
    with google_drive_server.running_server(tmp_path_factory.mktemp("authority")) as server:
        server.answers[ID] = [scan_page, file(archive.read_bytes())]
        command = [sys.executable, "-m", "converter"]
        environment = {**os.environ, **server.environment, "PYTHONPATH": str(ROOT)}
        first = subprocess.run([*command, "faces"], env=environment, capture_output=True, text=True)
        assert first.returncode == 0, first.stderr
        asked = len(server.requests)
        for variable, value in server.environment.items():
            monkeypatch.setenv(variable, value)
        assert main(["faces", "-o", "again.pt", "--offline", "--quiet"]) == 0
        assert len(server.requests) == asked
    assert_converted(home / "work" / f"{MODEL}-faces.pt", tensors)
    assert (home / "work" / "again.pt").read_bytes() == (home / "work" / f"{MODEL}-faces.pt").read_bytes()
    # What the command made proves itself where pretrained= looks for it, with no archive at hand.
    hub = home / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    for name in (f"{MODEL}-faces.pt", f"{MODEL}-faces.pt.json"):
        shutil.copy(home / "work" / name, hub)
    shutil.rmtree(home / "cache")
    model = InceptionResnetV1(pretrained="faces", offline=True)
    assert same_bits(model.logits.bias.detach().numpy(), tensors["Logits/biases"])
    assert str(home / "cache" / "models" / f"{MODEL}-{archive_digest[:16]}") in first.stdout


def test_an_archive_from_a_browser(home, archive, tensors):
    assert main(["faces", "--archive", str(archive), "--offline", "-o", "w.pt", "--quiet"]) == 0
    assert_converted(home / "work" / "w.pt", tensors)
    with open_source(locate("faces")) as source:
        assert len(source) > len(tensors) - 1


def test_a_path_goes_before_a_name(home, checkpoint):
    (home / "work" / "faces").symlink_to(checkpoint.prefix.parent)
    assert locate("faces") == Path("faces")
    with open_source(locate("faces")) as source:
        assert source.path == Path("faces") / checkpoint.prefix.name


def test_list(home, archive, capsys):
    assert main(["list", "--json", "list.json"]) == 0
    shown = capsys.readouterr().out
    listed = json.loads(Path("list.json").read_text())
    assert list(listed) == [*(checkpoint.name for checkpoint in catalog.BUILT_IN), MODEL]
    for entry in catalog.BUILT_IN:
        files = () if entry.networks else (entry.state_dict_name,)
        for fact in (entry.name, *entry.aliases, *(source.place for source in entry.sources), *files):
            assert fact in shown
    assert "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b" in shown
    mine = next(line for line in shown.splitlines() if line.startswith(MODEL))
    assert mine.split() == [MODEL, "faces", "faces", "-", "-", "-", "-", "no"]
    assert listed[MODEL]["sources"][0]["cached"] is None
    model_folder(find_entry("faces"), archive=archive)
    assert main(["list"]) == 0
    mine = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(MODEL))
    assert mine.split()[-1] == "zip"


@pytest.mark.parametrize("options", [["--all-steps"], ["--step", "3"], ["--to", "tensorflow"], ["--parts"]])
def test_list_takes_no_other_option(home, capsys, options):
    with pytest.raises(SystemExit) as ending:
        main(["list", *options])
    assert ending.value.code == 2
    assert f"unexpected {options[0]}" in capsys.readouterr().err


def test_a_comparison_takes_a_name(home, archive, monkeypatch):
    monkeypatch.setattr(TAKEN_FROM, lambda *network_and_seed: first_images(*network_and_seed)[:1])
    model_folder(find_entry("faces"), archive=archive)
    report = compare(locate("faces", offline=True))
    assert report.passed
    assert report.own_graph == f"model-{MODEL}.meta"


@pytest.fixture(scope="module")
def training(tensors, tmp_path_factory):
    """A training folder: steps 90, 100 and 9 of one model, the second broken; each has another bias."""
    folder = tmp_path_factory.mktemp("training")
    for step in (90, 100, 9):
        marked = tensors | {"Logits/biases": np.full_like(tensors["Logits/biases"], step)}
        write_tensor_bundle(folder / f"model-{MODEL}.ckpt-{step}", marked)
    return folder


def bias(path):
    return torch.load(path, weights_only=True)["logits.bias"][0].item()


def test_the_latest_step_or_the_one_that_is_asked_for(training, tmp_path, capsys):
    assert main([str(training), "-o", str(tmp_path / "latest.pt")]) == 0
    assert f"model-{MODEL}.ckpt-100 " in capsys.readouterr().out
    assert bias(tmp_path / "latest.pt") == 100
    assert main([str(training), "--step", "9", "-o", str(tmp_path / "9.pt"), "--quiet"]) == 0
    assert bias(tmp_path / "9.pt") == 9
    assert main([str(training), "--step", "10", "-o", str(tmp_path / "10.pt")]) == 2
    assert "no checkpoint of step 10" in capsys.readouterr().err


def test_all_steps_and_one_of_them_broken(training, tmp_path, capsys):
    folder = tmp_path / "training"
    shutil.copytree(training, folder)
    data = folder / f"model-{MODEL}.ckpt-90.data-00000-of-00001"
    with data.open("r+b") as opened:
        opened.seek(1_000_000)
        opened.write(b"\xff\xfe\xfd\xfc\xfb\xfa")
    (tmp_path / "out").mkdir()
    report = tmp_path / "r.json"
    code = main([str(folder), "--all-steps", "-o", str(tmp_path / "out"), "--json", str(report)])
    output = capsys.readouterr()
    assert code == 3
    assert "2 of 3 checkpoints converted and read back" in output.out
    assert output.err.startswith(f"python -m converter: error: {data}: tensor ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{MODEL}-{step}.pt{end}" for step in (9, 100) for end in ("", ".json")
    }
    assert [bias(tmp_path / "out" / f"{MODEL}-{step}.pt") for step in (9, 100)] == [9, 100]
    steps = json.loads(report.read_text())["steps"]
    assert [(step["step"], step["error"] is None) for step in steps] == [(9, True), (90, False), (100, True)]


@pytest.mark.parametrize(
    "options", [["--all-steps", "--step", "9"], ["--step", "-1"], ["--step", "x"], ["--step", "1e3"]]
)
def test_steps_that_make_no_sense(training, options):
    with pytest.raises(SystemExit) as ending:
        main([str(training), *options])
    assert ending.value.code == 2


def test_an_expected_digest(small_source, tmp_path, capsys):
    digest = hashlib.sha256(small_source.read_bytes()).hexdigest()
    assert main([str(small_source), "-o", str(tmp_path / "w.pt"), "--sha256", digest, "--quiet"]) == 0
    changed = tmp_path / "changed.npy"
    content = bytearray(small_source.read_bytes())
    content[len(content) // 2] ^= 1  # a bit of a weight, which .npy has no checksum of
    changed.write_bytes(content)
    assert main([str(changed), "-o", str(tmp_path / "changed.pt"), "--quiet"]) == 0
    assert main([str(changed), "-o", str(tmp_path / "refused.pt"), "--sha256", digest]) == 3
    error = capsys.readouterr().err
    assert digest in error
    assert hashlib.sha256(content).hexdigest() in error
    assert str(changed) in error
    assert not (tmp_path / "refused.pt").exists()


def test_every_file_of_a_checkpoint_needs_its_digest(checkpoint, tmp_path):
    digests = {
        path.suffix: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in checkpoint.prefix.parent.glob(f"*.ckpt-{STEP}.*")
    }
    one, two = (value for end, value in digests.items() if end != ".meta")
    command = [str(checkpoint.prefix), "-o", str(tmp_path / "w.pt"), "--quiet"]
    assert main([*command, "--sha256", one]) == 3
    assert main([*command, "--sha256", one, "--sha256", two]) == 0


def screen(capsys, source, *options):
    """Convert in process; returns the line on the network, the table's heading and first row, all lines."""
    assert main([str(source), *options]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    start = next(number for number, line in enumerate(lines) if "-d embedding" in line)
    return lines[start], lines[start + 2], lines[start + 3], lines


def test_the_screen_says_what_was_done(checkpoint, single_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network, heading, stem, lines = screen(capsys, checkpoint.prefix, "-o", "w.pt")
    assert network == "512-d embedding, 7 classes, no gamma, from the variables"
    assert heading == "TensorFlow scope PyTorch module variables keys added layout"
    assert stem == "Conv2d_1a_3x3 conv2d_1a 4 6 2 HWIO->OIHW"
    assert "492 of 492 variables consumed, 716 of 716 keys produced (492 converted, 224 synthesised)" in lines

    back = ("--to", "tensorflow", "-o", "back")
    network, heading, stem, lines = screen(capsys, single_files / "weights.pt", *back)
    assert network == "512-d embedding, 7 classes, no gamma"
    assert heading == "PyTorch module TensorFlow scope keys variables dropped layout"
    assert stem == "conv2d_1a Conv2d_1a_3x3 6 4 2 OIHW->HWIO"
    produced = "716 of 716 keys consumed, 492 of 492 variables produced"
    assert f"{produced} (224 keys dropped, which TensorFlow does without)" in lines

    _, heading, stem, lines = screen(capsys, single_files / "weights.safetensors", "-o", "again.pt")
    assert (heading, stem) == ("PyTorch module keys", "conv2d_1a 6")
    assert "716 of 716 keys written" in lines

    network, heading, stem, lines = screen(capsys, single_files / "weights.h5", *back, "--overwrite")
    assert network == "512-d embedding, 7 classes, no gamma, from the variables"
    assert (heading, stem) == ("TensorFlow scope variables", "Conv2d_1a_3x3 4")
    assert "492 of 492 variables written" in lines


def test_keys_that_the_source_lacks_are_not_counted_as_read(single_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state_dict = torch.load(single_files / "weights.pt", weights_only=True)
    old = {key: tensor for key, tensor in state_dict.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, "old.pt")
    assert main(["old.pt", "--to", "tensorflow", "-o", "back"]) == 0
    assert "604 of 604 keys consumed, 492 of 492 variables produced (112 keys" in capsys.readouterr().out
    assert main(["old.pt", "-o", "new.pt"]) == 0
    assert "716 of 716 keys written, 112 of them added" in capsys.readouterr().out


def test_a_broken_tensor_is_named_as_the_source_names_it(single_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state_dict = torch.load(single_files / "weights.pt", weights_only=True)
    state_dict["logits.bias"][0] = torch.nan
    torch.save({f"module.{key}": tensor for key, tensor in state_dict.items()}, "broken.pt")
    assert main(["broken.pt", "--to", "tensorflow", "-o", "back", "--json", "r.json"]) == 0
    error = capsys.readouterr().err
    assert "module.logits.bias (1 of 7 values is NaN); only the logits depend on them" in error
    assert "Logits/biases" not in error
    assert list(json.loads(Path("r.json").read_text())["broken_values"]) == ["module.logits.bias"]
