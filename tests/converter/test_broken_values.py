"""Conversion of sources whose values are not finite: the warning, the manifest, the JSON, and `--strict`."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch

from converter.__main__ import main
from converter.convert_file import convert_file
from converter.errors import SourceError
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from tests.conftest import same_bits

pytestmark = pytest.mark.slow

VARIANCE = "InceptionResnetV1/Conv2d_1a_3x3/BatchNorm/moving_variance"
KERNEL = "InceptionResnetV1/Repeat/block35_1/Branch_1/Conv2d_0b_3x3/weights"
PAYLOAD = np.uint32(0xFFC12345)  # a NaN with a sign and a payload


@pytest.fixture(scope="module")
def saved_by_tensorflow(tensors, tmp_path_factory):
    """One NaN among the weights, and an optimiser slot that is all NaN, as TensorFlow saves them."""
    tf = pytest.importorskip("tensorflow")
    changed = {**tensors, f"{KERNEL}/Adam": np.full(tensors[KERNEL].shape, np.nan, np.float32)}
    changed[VARIANCE] = tensors[VARIANCE].copy()
    changed[VARIANCE].view(np.uint32)[3] = PAYLOAD
    prefix = tmp_path_factory.mktemp("tensorflow") / "model-x.ckpt-1"
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(changed),
        shape_and_slices=[""] * len(changed),
        tensors=[tf.constant(array) for array in changed.values()],
    )
    return prefix


@pytest.fixture(scope="module")
def converted(saved_by_tensorflow, tmp_path_factory):
    """The folder of its state_dict, w.pt, with report.json, and what the command said of it."""
    folder = tmp_path_factory.mktemp("converted")
    report = str(folder / "report.json")
    with contextlib.redirect_stderr(io.StringIO()) as error:
        assert main([str(saved_by_tensorflow), "-o", str(folder / "w.pt"), "--json", report]) == 0
    return folder, error.getvalue()


def write(folder, tensors, **changed):
    """Write the tensors with some of them replaced, without TensorFlow."""
    prefix = folder / "model-x.ckpt-1"
    write_tensor_bundle(prefix, {**tensors, **changed})
    return prefix


def replaced(tensors, name, index, value):
    array = tensors[name].copy()
    array[index] = value
    return {name: array}


def test_one_nan_is_counted_and_named_on_the_screen_in_the_manifest_and_in_the_json(
    saved_by_tensorflow, converted
):
    folder, error = converted
    assert f"warning: {saved_by_tensorflow}: 1 of 492 tensors holds values that are not finite" in error
    assert f"{VARIANCE} (1 of 32 values is NaN)" in error
    assert "Adam" not in error
    assert "take an earlier checkpoint" in error
    counts = {"values": 32, "nan": 1, "infinite": 0, "negative": 0}
    key = "conv2d_1a.bn.running_var"
    manifest = json.loads((folder / "w.pt.json").read_text())
    assert manifest["broken_values"] == [{"name": VARIANCE, "key": key, **counts}]
    assert json.loads((folder / "report.json").read_text())["broken_values"] == {VARIANCE: counts}


def test_the_bits_of_a_nan_are_kept(converted, tmp_path):
    state_dict = converted[0] / "w.pt"
    again = convert_file(state_dict, tmp_path / "again", output_format="tensorflow")
    assert list(again.broken) == ["conv2d_1a.bn.running_var"]  # as the source calls it
    variance = torch.load(state_dict, weights_only=True)["conv2d_1a.bn.running_var"].numpy()
    assert same_bits(variance[3:4].view(np.uint32), np.array([PAYLOAD]))


def test_strict_refuses_and_writes_nothing(saved_by_tensorflow, tmp_path, capsys):
    assert main([str(saved_by_tensorflow), "-o", str(tmp_path / "w.pt"), "--strict"]) == 3
    error = capsys.readouterr().err
    assert f"error: {saved_by_tensorflow}: 1 of 492 tensors holds values that are not finite" in error
    assert list(tmp_path.iterdir()) == []


def test_strict_takes_sound_weights(small_source, tmp_path, capsys):
    assert main([str(small_source), "-o", str(tmp_path / "w.pt"), "--strict", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "w.pt.json").read_text())["broken_values"] == []


def test_quiet_silences_no_warning(tensors, tmp_path, capsys):
    prefix = write(tmp_path, tensors, **replaced(tensors, KERNEL, (0, 0, 0, 0), np.inf))
    assert main([str(prefix), "-o", str(tmp_path / "w.pt"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    (warning,) = captured.err.splitlines()
    assert warning.startswith(f"python -m converter: warning: {prefix}: 1 of 492 tensors holds values that")
    assert json.loads((tmp_path / "w.pt.json").read_text())["broken_values"][0]["infinite"] == 1


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (
            {VARIANCE: (5, -1.0)},
            f"1 of 492 tensors holds negative variances: {VARIANCE} "
            "(1 of 32 values is negative, which a variance cannot be). ",
        ),
        (
            {KERNEL: ((0, 0, 0, slice(0, 2)), np.inf), "Logits/weights": ((0, 0), np.nan)},
            f"2 of 492 tensors hold values that are not finite: {KERNEL} (2 of 9216 values are infinite), "
            "Logits/weights (1 of 3584 values is NaN). ",
        ),
        (
            {"Logits/weights": ((0, 0), np.nan)},
            "Logits/weights (1 of 3584 values is NaN); only the logits depend on them, the embeddings do not",
        ),
    ],
)
def test_every_kind_is_named(tensors, tmp_path, faults, words):
    changed = {}
    for name, (index, value) in faults.items():
        changed |= replaced(tensors, name, index, value)
    with pytest.raises(SourceError) as caught:
        convert_file(write(tmp_path, tensors, **changed), tmp_path / "w.pt", strict=True)
    assert words in str(caught.value)


def test_a_diverged_training_is_counted_whole(tensors, tmp_path):
    prefix = write(tmp_path, {name: np.full_like(array, np.nan) for name, array in tensors.items()})
    conversion = convert_file(prefix, tmp_path / "w.pt")
    assert "492 of 492 tensors hold values that are not finite" in conversion.warning
    assert "(864 of 864 values are NaN)" in conversion.warning
    assert "and 489 more." in conversion.warning


def test_a_small_negative_variance_and_a_zero_one_are_no_fault(tensors, tmp_path):
    """BatchNorm adds 0.001 before it takes the root; a channel that is always 0 has no variance."""
    variance = tensors[VARIANCE].copy()
    variance[:2] = -1e-9, 0.0
    assert not convert_file(write(tmp_path, tensors, **{VARIANCE: variance}), tmp_path / "w.pt").warning


def test_a_part_lists_its_own_tensors(tensors, tmp_path):
    prefix = write(tmp_path, tensors, **replaced(tensors, "Logits/biases", 0, np.nan))
    convert_file(prefix, tmp_path / "w.pt", parts=True)
    for part, expected in (("w-features", []), ("w-logits", ["Logits/biases"])):
        manifest = json.loads((tmp_path / f"{part}.pt.json").read_text())
        assert [entry["name"] for entry in manifest["broken_values"]] == expected


def test_all_steps_warn_of_each_and_strict_refuses_the_broken_one_only(tensors, tmp_path, capsys):
    folder, outputs = tmp_path / "model", tmp_path / "outputs"
    folder.mkdir()
    outputs.mkdir()
    write_tensor_bundle(folder / "model-x.ckpt-1", tensors)
    broken = replaced(tensors, VARIANCE, 0, np.nan)
    write_tensor_bundle(folder / "model-x.ckpt-2", {**tensors, **broken})
    assert main([str(folder), "--all-steps", "-o", str(outputs)]) == 0
    assert capsys.readouterr().err.count("warning: ") == 1
    assert main([str(folder), "--all-steps", "-o", str(outputs), "--strict", "--overwrite"]) == 3
    captured = capsys.readouterr()
    assert "1 of 2 checkpoints converted" in captured.out
    assert "ckpt-2: 1 of 492 tensors holds values that are not finite" in captured.err
