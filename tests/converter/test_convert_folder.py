"""Conversion of a training folder: the outputs, single failures, and interruptions."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import converter
from converter.convert import to_numpy_state_dict
from converter.convert_folder import convert_folder
from converter.errors import SourceError, UsageError
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from tests.conftest import same_bits

NAME = "20180402-114759"
BIASES = "Logits/biases"


def at_step(tensors, step):
    return tensors | {BIASES: np.full_like(tensors[BIASES], step)}


@pytest.fixture(scope="module")
def training(tensors, tmp_path_factory):
    """Three steps under a published name; the second is cut off."""
    folder = tmp_path_factory.mktemp("training")
    for step in (9, 100, 90):
        write_tensor_bundle(folder / f"model-{NAME}.ckpt-{step}", at_step(tensors, step))
    with (folder / f"model-{NAME}.ckpt-90.data-00000-of-00001").open("r+b") as file:
        file.truncate(1000)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def output(step, ending=".pt"):
    return f"{NAME}-vggface2-{step}{ending}"


@pytest.fixture(scope="module")
def converted(training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    reports = []
    result = convert_folder(training, folder, progress=lambda *step: reports.append(step))
    return folder, result, reports


def test_every_step_becomes_a_file_of_its_own(converted, tensors):
    folder, result, _ = converted
    assert [step.snapshot.step for step in result.steps] == [9, 90, 100]
    written = [output(step) for step in (9, 100)]
    assert names(folder) == sorted([*written, *(f"{name}.json" for name in written)])
    for step in (9, 100):
        expected = to_numpy_state_dict(at_step(tensors, step))
        actual = torch.load(folder / output(step), weights_only=True)
        assert list(actual) == list(expected)
        assert all(same_bits(actual[key].numpy(), expected[key]) for key in expected)


def test_the_sum_says_what_became_of_each(converted):
    folder, result, _ = converted
    first, broken, last = result.steps
    for step in (first, last):
        assert step.error is None
        assert step.output == folder / output(step.snapshot.step)
        digest = hashlib.sha256(step.output.read_bytes()).hexdigest()
        assert step.conversion.outputs[step.output] == digest
        assert step.conversion.namesake == NAME
    assert broken.conversion is None
    assert f"model-{NAME}.ckpt-90.data-00000-of-00001" in str(broken.error)
    assert result.failed == (broken,)
    assert result.exit_code == broken.error.exit_code == 3


def test_progress_rises_to_its_total_but_for_what_failed(converted):
    reports = converted[2]
    assert reports == sorted(reports)
    assert {total for _, total in reports} == {3000}
    assert reports[-1] == (2000, 3000)


@pytest.mark.slow
def test_what_exists_is_kept_and_keeps_back_nothing_else(training, converted, tmp_path):
    (tmp_path / output(9, ".safetensors")).write_text("precious")
    (tmp_path / output(90, ".safetensors")).write_text("precious")
    options = {"jobs": 1, "output_format": "safetensors"}
    result = convert_folder(str(training), tmp_path, **options)
    assert "exists. Give another name" in str(result.steps[0].error)
    assert [step.error is None for step in result.steps] == [False, False, True]
    assert (tmp_path / output(9, ".safetensors")).read_text() == "precious"
    assert result.exit_code == 3
    assert convert_folder(training, tmp_path, overwrite=True, **options).steps[0].error is None
    assert (tmp_path / output(9, ".safetensors")).stat().st_size > 1 << 20
    assert (tmp_path / output(90, ".safetensors")).read_text() == "precious"


def test_checkpoints_of_other_networks_keep_their_names(tmp_path):
    for name in ("mine.ckpt", "mine.ckpt-0", "mine.ckpt-7"):
        write_tensor_bundle(tmp_path / name, {"w": np.ones(3, np.float32)})
    result = convert_folder(tmp_path, tmp_path)
    assert [step.output.name for step in result.steps] == ["mine.ckpt.pt", "mine.ckpt-0.pt", "mine.ckpt-7.pt"]
    assert all("not an Inception-ResNet-v1" in str(step.error) for step in result.steps)
    result = convert_folder(tmp_path, tmp_path, output_format="tensorflow")
    assert [step.output.name for step in result.steps] == [
        f"model-mine.ckpt.ckpt{behind}" for behind in ("", "-0", "-7")
    ]
    assert len({step.output for step in result.steps}) == 3


def test_the_list_of_checkpoints_tells_which_of_two_models_is_meant(tmp_path):
    for name in ("a-1", "a-2", "b-1"):
        write_tensor_bundle(tmp_path / name, {"w": np.ones(3, np.float32)})
    with pytest.raises(UsageError, match=r"3 checkpoints in one folder \(a-1\.index, a-2\.index, b-1\.index"):
        convert_folder(tmp_path, tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/somewhere/else/a-1"')
    assert [step.snapshot.name for step in convert_folder(tmp_path, tmp_path).steps] == ["a-1", "a-2"]
    (tmp_path / "checkpoint").write_text("damaged")
    with pytest.raises(SourceError, match="not a readable list of checkpoints"):
        convert_folder(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("folder", "target", "jobs", "kind", "problem"),
    [
        ("missing", ".", None, UsageError, "missing: there is no such folder"),
        ("file", ".", None, UsageError, "file: this is a file"),
        (".", "missing", None, UsageError, "missing: there is no such folder"),
        (".", ".", 0, UsageError, "jobs is 0; give 1 or more"),
        (".", ".", 1, SourceError, "no checkpoint in this folder"),
    ],
)
def test_what_cannot_be_begun(tmp_path, folder, target, jobs, kind, problem):
    (tmp_path / "file").touch()
    with pytest.raises(kind, match=problem):
        convert_folder(tmp_path / folder, tmp_path / target, jobs=jobs)
    assert names(tmp_path) == ["file"]


# Interrupted


@pytest.fixture
def long_training(training, tmp_path):
    """One checkpoint under twenty steps, which takes some ten seconds."""
    folder = tmp_path / "long"
    folder.mkdir()
    for step in range(20):
        for path in training.glob("*.ckpt-100.*"):
            (folder / path.name.replace("-100.", f"-{step}.")).hardlink_to(path)
    return folder


def assert_whole(folder):
    for path in folder.glob("*.pt"):
        assert len(torch.load(path, weights_only=True, mmap=True)) == 716
        assert path.with_name(f"{path.name}.json").is_file()
    assert all(path.name.startswith(NAME) for path in folder.iterdir()), names(folder)


INTERRUPTIBLE = """
import sys
from pathlib import Path
from converter.convert_folder import convert_folder
print("ready", flush=True)
convert_folder(sys.argv[1], Path(sys.argv[2]), jobs=2)
"""


@pytest.mark.slow
def test_an_interruption_leaves_nothing_half_written(long_training, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, str(long_training), str(out)],
        cwd=Path(converter.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        end = time.monotonic() + 60
        while not list(out.glob("*.pt")) or not list(out.glob(".facenet-port-*/*")):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert errors.decode().rstrip().endswith("KeyboardInterrupt")
    assert 1 <= len(list(out.glob("*.pt"))) < 20
    assert_whole(out)


@pytest.mark.slow
def test_an_error_of_the_caller_s_own_ends_all(long_training, tmp_path):
    out = tmp_path / "out"
    out.mkdir()

    def progress(done, total):
        if done > total / 20:
            raise RuntimeError("the terminal is gone")

    with pytest.raises(RuntimeError, match="the terminal is gone"):
        convert_folder(long_training, out, jobs=2, progress=progress)
    assert len(list(out.glob("*.pt"))) < 5
    assert_whole(out)


def test_warnings_are_heard_again_afterwards(training, tmp_path):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        convert_folder(training, tmp_path, jobs=3)
        assert warnings.filters == before
        warnings.warn("heard", stacklevel=1)
    assert "heard" in [str(warning.message) for warning in heard]
