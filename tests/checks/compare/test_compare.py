"""The main job from the command line: proof of a clean port, place of a planted fault."""

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from checks.compare import __main__ as compare_command
from checks.compare.activation_file import ActivationFile, activation_writer
from checks.compare.explanation import explain
from checks.compare.result import CompareResult
from checks.compare.run import compare
from checks.compare.table import ACTIVATION_COLUMNS, INPUT_COLUMNS
from checks.core.activations import activation_names
from checks.core.inputs import (
    InputBatch,
    photograph_inputs,
    read_photographs,
    seeded_inputs,
)
from checks.core.photographs import find_photographs
from checks.core.tensorflow_side import Activations
from converter.convert_file import convert_file
from converter.errors import SourceError, UsageError
from facenet_tf.graph import STAGES
from tests.support.first_images import keep_first_images
from tests.support.main_job import MainJob

pytestmark = pytest.mark.slow

STATE_DICT = Mapping[str, torch.Tensor]
# Makes every import of TensorFlow fail, as if it were not installed.
WITHOUT_TENSORFLOW = (
    "import importlib.util, sys; sys.modules['tensorflow'] = None; find = importlib.util.find_spec; "
    "importlib.util.find_spec = lambda name, *rest: None if name == 'tensorflow' else find(name, *rest); "
    "from checks.compare.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def stored(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored activations with the first image of each input alone, which a comparison reads faster."""
    path = tmp_path_factory.mktemp("stored") / "activations.h5"
    shutil.copyfile(main_job.activations, path)
    keep_first_images(path)
    return path


@pytest.fixture(scope="module")
def clean(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in checkpoint converted to a .pt."""
    path = tmp_path_factory.mktemp("clean") / "clean.pt"
    convert_file(main_job.checkpoint, path)
    return path


def test_the_built_in_checkpoint_is_real_and_proven(main_job: MainJob) -> None:
    stdout = main_job.screen
    assert len(stdout.splitlines()) <= 15
    assert stdout.startswith("The port is exact: ")
    assert stdout.count("holds ") == 4
    assert "FAILS" not in stdout
    assert "492 converted bit for bit, 224 synthesised" in stdout
    assert re.search(r"headline +float32 distance \S+ on 5 standard normal images \(limit 4e-06\)", stdout)
    digest = hashlib.sha256(main_job.activations.read_bytes()).hexdigest()
    size = f"{main_job.activations.stat().st_size / 1e6:.1f} MB"
    assert f"~/activations.h5, {size}, SHA-256 {digest}" in stdout
    files = {file.name for file in main_job.checkpoint.iterdir()}
    prefix = "model-built-in-512d-8631.ckpt-1"
    assert files == {
        "built-in-512d-8631.pb",
        "model-built-in-512d-8631.meta",
        f"{prefix}.index",
        f"{prefix}.data-00000-of-00001",
    }


def test_the_json_has_every_activation_of_every_input(main_job: MainJob) -> None:
    inputs = main_job.report["inputs"]
    assert isinstance(inputs, list)
    assert len(inputs) == 5
    for batch in inputs:
        assert [activation["activation"] for activation in batch["activations"]] == list(STAGES)
        assert batch["distance64"] <= 1e-13
        assert max(activation["float64"]["relative_l2"] for activation in batch["activations"]) <= 1e-13
        assert batch["distance32"] > 0
    assert inputs[0]["distance32"] <= 2e-6
    assert [batch["own_graph"] for batch in inputs] == [True, True, True, True, False]  # not at the odd size
    assert main_job.report["own_graph"] == "model-built-in-512d-8631.meta"


def test_both_sides_name_the_same_activations_in_the_same_order(main_job: MainJob) -> None:
    from facenet_tf.own_graph import OwnGraph

    with OwnGraph.from_frozen(main_job.checkpoint / "built-in-512d-8631.pb") as graph:
        assert activation_names(every_layer=True, logits=False) == graph.activations
    # Six stages of the stem are convolutions, and a frozen graph has no Logits.
    assert len(graph.activations) == 132 + len(STAGES) - 6 - 1
    assert activation_names(every_layer=False, logits=True) == STAGES


@pytest.fixture(scope="module")
def tables(main_job: MainJob, clean: Path) -> str:
    """The tables of a clean port against the stored activations, without TensorFlow."""
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW]
    options = ["--state-dict", str(clean), "--activations", str(main_job.activations), "--verbose"]
    result = subprocess.run([*command, *options], env=main_job.environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_stored_activations_prove_a_port_without_tensorflow(tables: str) -> None:
    assert sum(line.startswith("holds ") for line in tables.splitlines()) == 4
    assert "716 tensors have the dtype, shape and SHA-256" in tables


def test_without_tensorflow_the_message_says_what_to_install(
    main_job: MainJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorflow" else find(name, *rest)
    )
    assert compare_command.main([str(main_job.checkpoint)]) == 4
    error = capsys.readouterr().err
    assert "pip install 'facenet-port[tensorflow]'" in error
    assert "--activations" in error
    assert "Traceback" not in error


def _one_step(state_dict: dict[str, torch.Tensor]) -> None:
    weight = state_dict["repeat_2.4.branch1.1.conv.weight"].numpy()
    weight.reshape(-1)[1000] = np.nextafter(weight.reshape(-1)[1000], np.float32(np.inf))


def _swap_blocks(state_dict: dict[str, torch.Tensor]) -> None:
    for key in [key for key in state_dict if key.startswith("repeat_1.1.")]:
        other = key.replace("repeat_1.1.", "repeat_1.3.")
        state_dict[key], state_dict[other] = state_dict[other], state_dict[key]


def _flip_kernel(state_dict: dict[str, torch.Tensor]) -> None:
    key = "mixed_7a.branch2.1.conv.weight"
    state_dict[key] = state_dict[key].flip(2)


def _exchange_statistics(state_dict: dict[str, torch.Tensor]) -> None:
    mean, variance = "last_bn.running_mean", "last_bn.running_var"
    state_dict[mean], state_dict[variance] = state_dict[variance], state_dict[mean].abs()


@pytest.fixture(scope="module")
def one_step(
    main_job: MainJob, stored: Path, clean: Path, tmp_path_factory: pytest.TempPathFactory
) -> CompareResult:
    """The result on a port with one value a float32 step off; its paths are given as text."""
    faulty = tmp_path_factory.mktemp("one-step") / "faulty.pt"
    state_dict = torch.load(clean, weights_only=True)
    _one_step(state_dict)
    torch.save(state_dict, faulty)
    return compare(str(main_job.checkpoint), state_dict=str(faulty), activations=str(stored))


def assert_found(result: CompareResult, tensor: str, place: str) -> None:
    """Check that a wrong tensor fails the judgements, and where it does."""
    assert not result.passed
    tensors, mapping, _, _ = result.judgements
    assert not tensors.passed
    assert any(tensor in detail for detail in tensors.details)
    assert not mapping.passed
    assert result.inputs[0].first_divergence == place


def test_one_step_of_one_value_is_found_and_placed(one_step: CompareResult) -> None:
    key, block = "repeat_2.4.branch1.1.conv.weight", "InceptionResnetV1/Repeat_1/block17_5"
    assert_found(one_step, f"{key}: 1 of 114688", block)
    names = [judgement.name for judgement in one_step.judgements]
    assert names == ["tensors", "mapping", "rounding", "headline"]


def test_every_fault_in_the_weights_is_found_and_the_first_is_placed(
    main_job: MainJob, stored: Path, clean: Path, tmp_path: Path
) -> None:
    state_dict = torch.load(clean, weights_only=True)
    _swap_blocks(state_dict)
    _exchange_statistics(state_dict)
    torch.save(state_dict, tmp_path / "faulty.pt")
    result = compare(main_job.checkpoint, state_dict=tmp_path / "faulty.pt", activations=stored)
    assert_found(result, "repeat_1.1.conv2d.bias", "InceptionResnetV1/Repeat/block35_2")
    assert any("last_bn.running_var" in detail for detail in result.judgements[0].details)
    assert result.diagnosis is not None
    places = [finding.activation.split("/Branch")[0] for finding in result.diagnosis.findings]
    assert places[0] == "InceptionResnetV1/Repeat/block35_2"
    assert places[-1] == "InceptionResnetV1/Bottleneck"


def test_a_state_dict_that_does_not_load_fails_every_judgement(
    main_job: MainJob, stored: Path, clean: Path, tmp_path: Path
) -> None:
    state_dict = torch.load(clean, weights_only=True)
    state_dict["repeat_2.0.branch1.1.conv.weight"] = state_dict[
        "repeat_2.0.branch1.1.conv.weight"
    ].mT.contiguous()
    del state_dict["conv2d_1a.bn.bias"]
    torch.save(state_dict, tmp_path / "faulty.pt")
    result = compare(main_job.checkpoint, state_dict=tmp_path / "faulty.pt", activations=stored)
    assert [judgement.passed for judgement in result.judgements] == [False] * 4
    assert "conv2d_1a.bn.bias: not in the state_dict" in result.judgements[0].details
    assert any("(128, 128, 7, 1), expected" in detail for detail in result.judgements[0].details)
    assert "does not load" in result.judgements[1].statement
    assert result.judgements[1].details[0].startswith("1 key missing, 'conv2d_1a.bn.bias' first")


@pytest.fixture(scope="module")
def training_file(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clean port as a wrapped model of before PyTorch 0.4.1 with a head of its own."""
    path = tmp_path_factory.mktemp("training") / "epoch.pt"
    state_dict = torch.load(clean, weights_only=True)
    inside = {
        f"net.module.{key}": each for key, each in state_dict.items() if not key.endswith("batches_tracked")
    }
    inside["net.arcface.weight"] = torch.ones(3)
    torch.save({"epoch": 3, "model": inside, "best": np.float64(0.5)}, path)
    return path


def test_a_training_file_with_a_prefix_and_extras(
    stored: Path, training_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repaired = tmp_path / "repaired.pt"
    options = ["--state-dict", str(training_file), "--activations", str(stored), "--repair", str(repaired)]
    assert compare_command.main(options) == 1
    screen = capsys.readouterr().out
    assert "the state_dict holds 1 tensor that the network does not have." in screen
    assert "--ignore 'net.arcface.*'" in screen
    assert compare_command.main([*options, "--ignore", "net.arcface.*"]) == 0
    screen = capsys.readouterr().out
    for statement in (
        "the state_dict under 'model' is used; the other entries are not read: epoch, best",
        "the names of the network begin with 'net.module.', which is taken off",
        "1 tensor is left out by --ignore 'net.arcface.*'",
        "there is no num_batches_tracked, which carries no information",
    ):
        assert f"Names    epoch.pt: {statement}\n" in screen
    assert "nothing to repair: the port is exact. Nothing was written." in " ".join(screen.split())
    assert not repaired.exists()
    assert compare_command.main([*options, "--ignore", "arcface"]) == 2
    assert "--ignore 'arcface' matches no tensor of" in capsys.readouterr().err


def test_a_difference_ends_with_exit_code_1_and_names_the_place(
    stored: Path, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dict = torch.load(clean, weights_only=True)
    _flip_kernel(state_dict)
    for key in [key for key in state_dict if key.endswith("num_batches_tracked")]:
        state_dict[key] = torch.zeros(1)  # any one number is a counter, and no difference
    torch.save(state_dict, tmp_path / "faulty.pt")
    options = ["--state-dict", str(tmp_path / "faulty.pt"), "--activations", str(stored)]
    repaired = tmp_path / "repaired.pt"
    options += ["--json", str(tmp_path / "report.json"), "--repair", str(repaired)]
    assert compare_command.main(options) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["diagnosis"] is None
    assert f"facenet-port compare SOURCE --activations {stored}" in report["undiagnosed"]
    assert report["repair"]["path"] is None
    assert not repaired.exists()
    tensors, mapping, *_ = report["judgements"]
    (detail,) = tensors["details"]
    assert "mixed_7a.branch2.1.conv.weight" in detail
    assert not mapping["passed"]
    output = capsys.readouterr()
    assert "FAILS  tensors" in output.out
    lines = output.out.splitlines()
    assert lines[0].startswith("The port differs: ")
    assert "Mixed_7a is the first activation that differs, on standard normal images" in output.out
    assert "give the checkpoint as well: facenet-port compare SOURCE --activations" in output.out
    assert len(lines) <= 15
    assert "The port is exact" not in output.out


def test_the_tables_explain_each_of_their_columns(main_job: MainJob, tables: str) -> None:
    lines = tables.splitlines()
    assert lines[0].startswith("The port is exact: ")
    for heading, explanation in (*ACTIVATION_COLUMNS, *INPUT_COLUMNS):
        assert any(" ".join(heading.split()) in line and explanation in line for line in lines)
    assert not any("…" in line for line in lines)  # no figure is cut off
    assert any(line.startswith("activation (standard normal, 5 images)") for line in lines)
    for batch in main_job.report["inputs"]:
        count = "1 image" if batch["images"] == 1 else f"{batch['images']} images"
        assert any(line.startswith(f"{batch['name']}, {count} ") for line in lines)
    assert not any("✕" in line for line in lines)


def test_the_cause_is_named_without_tensorflow_from_stored_stages(
    one_step: CompareResult, clean: Path
) -> None:
    lines = dict(explain(one_step))
    key, scope = (
        "repeat_2.4.branch1.1.conv.weight",
        "InceptionResnetV1/Repeat_1/block17_5/Branch_1/Conv2d_0b_1x7",
    )
    assert lines["Tensor"] == f"{key} (TensorFlow variable: {scope}/weights)"
    weight = torch.load(clean, weights_only=True)[key]
    clean_value = weight.reshape(-1)[1000]
    index = np.unravel_index(1000, weight.shape)
    assert lines["Value"].startswith(f"[{', '.join(map(str, index))}] expected {clean_value:.9g}, actual ")
    assert lines["Value"].endswith("; 1 value differs")
    assert lines["In all"].endswith("; 1 tensor differs from the source")


def test_two_files_are_answered_with_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_command.main(["20180402-114759", "weights.pt"]) == 2
    error = capsys.readouterr().err
    assert "facenet-port compare 20180402-114759 --state-dict weights.pt" in error


def test_float32_activations_are_stored_bit_for_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shape = (5, 3, 3, 4)
    exact = random.standard_normal(shape)
    bits = random.integers(0, 1 << 32, shape, np.uint32).view(np.float32)
    bits[~np.isfinite(bits)] = -0.0  # what is not finite is not stored
    bits.flat[0] = 1e-45  # subnormal
    images = random.standard_normal((5, 4, 4, 3)).astype(np.float32)
    activations = Activations(InputBatch("any", images), {"one": exact}, {"one": bits}, False, {}, ())
    with activation_writer(tmp_path / "a.h5", {"activations": ["one"]}) as store:
        store(activations)
    with ActivationFile(tmp_path / "a.h5") as file:
        (again,) = file
    assert again.float64["one"].tobytes() == exact.tobytes()
    assert again.float32["one"].tobytes() == bits.tobytes()


def test_activations_of_another_checkpoint_are_refused(stored: Path, clean: Path, tmp_path: Path) -> None:
    state_dict = torch.load(clean, weights_only=True)
    _one_step(state_dict)
    torch.save(state_dict, tmp_path / "other.pt")
    convert_file(tmp_path / "other.pt", tmp_path / "other", output_format="tensorflow")
    with pytest.raises(UsageError, match=r"activations\.h5.*other tensors"):
        compare(tmp_path / "other", activations=stored)


def test_a_pytorch_file_is_no_source(main_job: MainJob, clean: Path) -> None:
    message = (
        r"clean\.pt: this is a PyTorch file; SOURCE has to be TensorFlow's.*`facenet-port compare SOURCE "
        r"--state-dict .*clean\.pt`.*`facenet-port audit PORT --against .*clean\.pt`"
    )
    for options in ({}, {"state_dict": clean}, {"activations": main_job.activations}):
        with pytest.raises(UsageError, match=message):
            compare(clean, **options)


def test_a_state_dict_of_another_size_or_dtype_is_a_difference(
    stored: Path, clean: Path, tmp_path: Path
) -> None:
    whole = torch.load(clean, weights_only=True)
    features = {key: tensor for key, tensor in whole.items() if not key.startswith("logits.")}
    half = {key: tensor.bfloat16() if tensor.is_floating_point() else tensor for key, tensor in whole.items()}
    counters = {key: torch.zeros(2) if key.endswith("tracked") else tensor for key, tensor in whole.items()}
    for name, state_dict in (("features", features), ("half", half), ("counters", counters), ("empty", {})):
        torch.save(state_dict, tmp_path / f"{name}.pt")
        result = compare(state_dict=tmp_path / f"{name}.pt", activations=stored)
        assert [judgement.passed for judgement in result.judgements] == [False] * 4, name
        assert all(len(detail) < 300 for judgement in result.judgements for detail in judgement.details)


def test_a_state_dict_without_a_bottleneck_is_refused_by_name(
    stored: Path, clean: Path, tmp_path: Path
) -> None:
    whole = torch.load(clean, weights_only=True)
    old = {key: tensor for key, tensor in whole.items() if not key.startswith("last_")}
    torch.save(old, tmp_path / "old.pt")
    with pytest.raises(
        SourceError, match=r"old\.pt: this is the network of before February 2017.*1792 numbers"
    ):
        compare(state_dict=tmp_path / "old.pt", activations=stored)
    torch.save(
        {key: tensor for key, tensor in old.items() if key != "block8.conv2d.bias"}, tmp_path / "broken.pt"
    )
    assert not compare(state_dict=tmp_path / "broken.pt", activations=stored).passed


@pytest.mark.parametrize("gone", ["input", "activation", "graph comparison"])
def test_incomplete_activations_prove_nothing(gone: str, stored: Path, clean: Path, tmp_path: Path) -> None:
    shortened = tmp_path / "short.h5"
    shortened.write_bytes(stored.read_bytes())
    with h5py.File(shortened, "a") as file:
        if gone == "input":
            del file["003"]
        elif gone == "activation":
            del file["001/float64/005"], file["001/float32/005"]
        else:
            file["000"].attrs["rebuilt"] = "{}"
    with pytest.raises(SourceError, match=r"short\.h5.*missing"):
        compare(state_dict=clean, activations=shortened)


def test_a_comparison_without_some_of_the_inputs_is_refused(
    stored: Path, clean: Path, tmp_path: Path
) -> None:
    shortened = tmp_path / "short.h5"
    shortened.write_bytes(stored.read_bytes())
    with h5py.File(shortened, "a") as file:
        names = json.loads(file.attrs["inputs"])
        del file["004"]
        file.attrs["inputs"] = json.dumps(names[:4])
    with pytest.raises(SourceError, match="the stored comparison is incomplete"):
        compare(state_dict=clean, activations=shortened)


def test_damaged_activations_are_refused(main_job: MainJob, clean: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.h5"
    shutil.copyfile(main_job.activations, damaged)  # as it was written, with the checksums of its writer
    with h5py.File(damaged) as file:
        offset = file["000/float64/000"].id.get_chunk_info(0).byte_offset
    with damaged.open("r+b") as raw:
        raw.seek(offset + 1000)
        byte = raw.read(1)[0]
        raw.seek(offset + 1000)
        raw.write(bytes([byte ^ 1]))
    with pytest.raises(SourceError, match=r"damaged\.h5: input 000"):
        compare(state_dict=clean, activations=damaged)
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(SourceError, match=r"text\.h5: cannot be read"):
        compare(state_dict=clean, activations=tmp_path / "text.h5")


def test_an_existing_activation_file_is_not_replaced(main_job: MainJob, tmp_path: Path) -> None:
    precious = tmp_path / "precious.h5"
    precious.write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        compare(main_job.checkpoint, save_activations=precious)
    assert precious.read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir()] == ["precious.h5"]


def test_the_same_seed_gives_the_same_inputs_and_another_seed_others(main_job: MainJob, clean: Path) -> None:
    for batch, again, other in zip(seeded_inputs(0), seeded_inputs(0), seeded_inputs(1), strict=True):
        assert np.array_equal(batch.images, again.images)
        assert batch.name == "constant" or not np.array_equal(batch.images, other.images)
    with h5py.File(main_job.activations) as file:
        assert np.array_equal(file["000/images"][()], seeded_inputs(0)[0].images)


def test_options_that_contradict_each_other_are_wrong_usage(
    main_job: MainJob, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_command.main(["--activations", str(main_job.activations), "--every-layer"]) == 2
    assert "--every-layer" in capsys.readouterr().err
    assert compare_command.main(["--activations", str(main_job.activations), "--seed", "3"]) == 2
    assert "--seed" in capsys.readouterr().err
    for option in ("--seed", "--step"):
        with pytest.raises(SystemExit, match="2"):
            compare_command.main([str(main_job.checkpoint), option, "-1"])
        assert f"argument {option}: '-1' is not a whole number, 0 or above" in capsys.readouterr().err
    assert compare_command.main([str(main_job.checkpoint), "--images", "nowhere"]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err


def test_photographs_of_one_colour_have_few_values_and_of_many_bits_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (200, 180), (255, 255, 255)).save(tmp_path / "white.png")
    (white,) = photograph_inputs(read_photographs(find_photographs(tmp_path)))
    assert white.few_values
    assert np.array_equal(white.images, np.full((1, 160, 160, 3), 127.5 / 128, np.float32))
    assert [batch.few_values for batch in seeded_inputs(0)] == [False, False, True, True, False]
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((90, 90), 4000, np.uint16)).save(deep)
    assert np.unique(read_photographs([deep])[0]).tolist() == [4000 >> 8]


def test_nothing_is_stored_of_a_port_that_does_not_load(main_job: MainJob, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "empty.pt")
    result = compare(
        main_job.checkpoint, state_dict=tmp_path / "empty.pt", save_activations=tmp_path / "activations.h5"
    )
    assert not result.passed
    assert [file.name for file in tmp_path.iterdir()] == ["empty.pt"]
