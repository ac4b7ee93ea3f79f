"""The comparison diagnoses and repairs a port, without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from checks.compare import __main__ as compare_command
from checks.compare.activation_file import activation_writer
from checks.compare.expected import Checkpoint
from checks.compare.expected_from_file import provenance
from checks.compare.run import compare
from checks.core.inputs import SEEDED, InputBatch
from checks.core.source_tensors import plan_source
from checks.core.tensorflow_side import TensorFlowSide
from checks.diagnosis.causes import Cause
from converter.errors import UsageError
from converter.formats.detect import open_source
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from tests.checks.diagnosis.faulty_ports import (
    ACTIVATIONS,
    KERNEL,
    ONE_BY_SEVEN,
    UNIT_ACTIVATION,
    WEIGHTS,
    Arrays,
    same_bytes,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stored(tensors: Mapping[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TensorFlow's side at every layer, on small images, as --save-activations stores it."""
    folder = tmp_path_factory.mktemp("stored")
    write_tensor_bundle(folder / "model.ckpt-1", dict(tensors))
    random = np.random.default_rng(3)
    with open_source(folder / "model.ckpt-1") as opened:
        named, plan = plan_source(opened, "variable")
        stated = provenance(Checkpoint(opened.path, opened, named, plan), None, 0, ACTIVATIONS)
        arrays = {name: np.array(named[name]) for name in named}
        with (
            TensorFlowSide(opened, arrays, "variable") as side,
            activation_writer(folder / "activations.h5", stated) as store,
        ):
            for name in SEEDED:
                # The input of the diagnosis is large enough for a last map of 2x2: on a single pixel a 1x3
                # kernel is its middle alone.
                shape = (2, 111, 111, 3) if name == SEEDED[0] else (1, 75, 75, 3)
                images = random.standard_normal(shape)
                store(side.run(InputBatch(name, images.astype(np.float32)), ACTIVATIONS))
    return folder / "activations.h5"


def _save(state_dict: Arrays, path: Path) -> Path:
    torch.save({key: torch.from_numpy(array.copy()) for key, array in state_dict.items()}, path)
    return path


def test_a_port_is_diagnosed_and_repaired_without_tensorflow(
    clean: Arrays, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One kernel with height and width exchanged, two that are swapped, and all the others flipped.

    The port is a wrapped model of before PyTorch 0.4.1 with a head of its own, as a training stores it.
    """
    kernels = [key for key, array in clean.items() if array.ndim == 4 and max(array.shape[2:]) > 1]
    flipped = {key: clean[key][:, :, ::-1, ::-1] for key in kernels if key not in (KERNEL, *ONE_BY_SEVEN)}
    state_dict = {**clean, **flipped}
    WEIGHTS["height and width"][0](state_dict)
    WEIGHTS["two kernels"][0](state_dict)
    wrapped = {
        f"net.module.{key}": torch.from_numpy(array.copy())
        for key, array in state_dict.items()
        if not key.endswith("batches_tracked")
    }
    faulty, out = tmp_path / "faulty.pt", tmp_path / "repaired.safetensors"
    torch.save({"epoch": 3, "model": {**wrapped, "net.arcface.weight": torch.ones(3)}}, faulty)
    source = str(stored.with_name("model.ckpt-1"))
    options = [source, "--state-dict", str(faulty), "--activations", str(stored), "--repair", str(out)]
    options += ["--ignore", "net.arcface.*"]
    assert compare_command.main([*options, "--json", str(tmp_path / "report.json")]) == 1
    output = capsys.readouterr().out
    assert "kernel flipped at Conv2d_1a_3x3 (and at Conv2d_2a_3x3, " in output
    assert f"height and width exchanged at {UNIT_ACTIVATION}: " in output
    assert "another tensor of the same shape at Repeat_1/block17_4/" in output
    assert f"{len(kernels)} tensors corrected; all judgements hold on the result" in output
    report = json.loads((tmp_path / "report.json").read_text())
    assert sum(len(finding["repaired_by"]) for finding in report["diagnosis"]) == len(kernels)
    assert report["repair"]["path"] == str(out)
    assert report["repair"]["statement"].endswith("(its keys are without 'net.module.')")
    again = load_file(out)
    assert set(again) == set(clean)
    assert all(same_bytes(again[key].numpy(), clean[key]) for key in clean)


def test_weights_that_do_not_load_for_their_shape_are_diagnosed_and_repaired(
    clean: Arrays, stored: Path, tmp_path: Path
) -> None:
    turned = ("repeat_2.0.branch1.1.conv.weight", "last_linear.weight")
    state_dict = {**clean, turned[0]: clean[turned[0]].swapaxes(2, 3), turned[1]: clean[turned[1]].T}
    faulty = _save(state_dict, tmp_path / "faulty.pt")
    source = stored.with_name("model.ckpt-1")
    result = compare(source, state_dict=faulty, activations=stored, repair=tmp_path / "repaired.pt")
    assert result.diagnosis is not None
    assert [finding.cause for finding in result.diagnosis.findings] == [Cause.HEIGHT_WIDTH, Cause.IN_OUT]
    again = torch.load(tmp_path / "repaired.pt", weights_only=True)
    assert all(same_bytes(again[key].numpy(), clean[key]) for key in clean)


def test_a_file_to_repair_into_is_refused_before_any_work(tmp_path: Path) -> None:
    precious = tmp_path / "precious.pt"
    precious.write_text("precious")
    with pytest.raises(UsageError, match=r"precious\.pt exists"):
        compare(tmp_path / "nowhere", repair=precious)
    assert precious.read_text() == "precious"
    with pytest.raises(UsageError, match="no folder"):
        compare(tmp_path / "nowhere", repair=tmp_path / "none" / "out.pt")
    with pytest.raises(UsageError, match=r"--repair writes \.pt"):
        compare(tmp_path / "nowhere", repair=tmp_path / "out.onnx")
