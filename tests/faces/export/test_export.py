"""`facenet-port export`: what appears is faithful and runs elsewhere; what is not, does not appear."""

from __future__ import annotations

import importlib.util
import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

import faces.export.run
from checks.audit.graphs.onnx_tflite_session import MOST_IMAGES
from checks.audit.graphs.tflite_file import read_tflite
from checks.core import thresholds
from checks.core.network import LOGITS
from converter.convert_file import convert_file
from converter.hub.catalog_entry import PER_IMAGE
from facenet_port import main
from faces.export.interface import plan_interface
from faces.export.run import export as write
from faces.export.weights import read_weights
from faces.export.write_onnx import write_onnx
from reference import load
from tests.faces.export.conftest import SIZE, compared
from tests.support.tflite_edit import TfliteEdit

STATED = ["network", "source", "source_sha256", "weights", "weights_sha256", "standardisation", "input",
          "output", "precision", "licence", "made_by"]  # fmt: skip


def export(*arguments):
    return main(["export", *map(str, arguments)])


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images})
    return session, output


@pytest.mark.slow
def test_onnx_computes_the_embeddings_for_any_number_of_images(weights, tmp_path, capsys):
    out = tmp_path / "facenet.onnx"
    assert export(weights, "-o", out, "--json", tmp_path / "e.json") == 0
    assert capsys.readouterr().out.startswith("The port is exact: every tensor is the source's, bit for bit")
    result = json.loads((tmp_path / "e.json").read_text())
    assert [judgement["passed"] for judgement in result["judgements"]] == [True] * 6
    images = np.random.default_rng(1).standard_normal((3, 3, 96, 96), np.float32)
    session, embeddings = run_onnx(out, images)
    with torch.inference_mode():
        expected = load(weights).double()(torch.from_numpy(images).double()).numpy()
    assert np.linalg.norm(embeddings - expected) < 5e-6
    stated = session.get_modelmeta().custom_metadata_map
    assert sorted(stated) == sorted(STATED)
    assert stated == result["metadata"]
    assert stated["input"].startswith("float32 (N, 3, 96, 96): RGB images")
    assert {path.name for path in tmp_path.iterdir()} == {"facenet.onnx", "e.json"}


@pytest.mark.slow
def test_tflite_in_half_precision_takes_the_pixels_of_any_number_of_images(weights, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    out = tmp_path / "facenet.tflite"
    result = write(weights, out, precision="float16", bake=True, standardisation="per-image", batch="dynamic")
    assert result.audit.passed
    assert {tensor.status for tensor in result.audit.tensors} <= {"folded", "rounded", "approximate"}
    assert result.size < 0.51 * weights.stat().st_size
    assert json.loads(stated_in(out)) == result.metadata
    assert result.metadata["input"].startswith("uint8 (N, 96, 96, 3): RGB pixels")
    assert result.metadata["output"] == "float32 (N, 512): embeddings of length one"
    interpreter = Interpreter(str(out))
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (taken["name"], list(taken["shape"]), taken["dtype"]) == ("pixels", [1, SIZE, SIZE, 3], np.uint8)
    interpreter.resize_tensor_input(taken["index"], [2, SIZE, SIZE, 3])
    interpreter.allocate_tensors()
    pixels, images = two_images()
    interpreter.set_tensor(taken["index"], pixels)
    interpreter.invoke()
    with torch.inference_mode():
        expected = load(weights).double()(torch.from_numpy(images)).numpy()
    assert np.linalg.norm(interpreter.get_tensor(given["index"]) - expected) < 1e-2


@pytest.mark.slow
def test_the_classifier_as_tflite_takes_the_pixels_of_two_images_at_a_time(weights, tmp_path):
    """All products of a logit have one sign, as training makes them, and LiteRT adds them up one by one."""
    from ai_edge_litert.interpreter import Interpreter

    state_dict = torch.load(weights)
    with torch.inference_mode():
        embeddings = load(weights)(torch.randn((7, 3, SIZE, SIZE), generator=torch.manual_seed(0)))
    state_dict["logits.weight"] += 3 * embeddings.mean(dim=0)
    weights, out = tmp_path / "weights.pt", tmp_path / "facenet.tflite"
    torch.save(state_dict, weights)
    result = write(weights, out, bake=True, standardisation="per-image", classify=True, batch=2)
    assert result.audit.passed
    (run,) = result.audit.run.inputs
    (classifier,) = (each for each in run.layers if each.activation == LOGITS)
    assert run.floor >= classifier.bound / thresholds.ROUNDING  # which PyTorch's error is below
    assert {tensor.status for tensor in result.audit.tensors} <= {"equal", "folded", "approximate"}
    classifier = {each.variable: each.status for each in result.audit.tensors if each.stage == "Logits"}
    assert classifier == {"Logits/weights": "equal", "Logits/biases": "equal"}
    assert json.loads(stated_in(out)) == result.metadata
    assert result.metadata["input"].startswith("uint8 (2, 96, 96, 3): RGB pixels")
    assert result.metadata["output"] == "float32 (2, 7): logits"
    interpreter = Interpreter(str(out))
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (taken["name"], list(taken["shape"]), taken["dtype"]) == ("pixels", [2, SIZE, SIZE, 3], np.uint8)
    interpreter.allocate_tensors()
    pixels, images = two_images()
    interpreter.set_tensor(taken["index"], pixels)
    interpreter.invoke()
    expected = logits_of(weights, images)
    assert np.linalg.norm(interpreter.get_tensor(given["index"]) - expected) < 1e-5 * np.linalg.norm(expected)
    edit = TfliteEdit(out)
    kernel = next(tensor for tensor in edit.graph.tensors if list(tensor.shape) == [7, 512])
    edit.flip(kernel, 1234, 0)
    faults = [each for each in compared(read_tflite(edit.save(tmp_path / "changed.tflite")), weights)
              if not each.is_faithful]  # fmt: skip
    assert [(each.variable, each.differing, each.max_ulp) for each in faults] == [("Logits/weights", 1, 1)]


def two_images():
    """A dark and a bright image: pixels, NHWC, and the images whitened independently, NCHW in float64."""
    brightest = np.reshape([60, 250], (2, 1, 1, 1))
    pixels = np.random.default_rng(1).integers(0, brightest, (2, SIZE, SIZE, 3)).astype(np.uint8)
    # facenet's prewhiten
    images = [(image - image.mean()) / max(image.std(), 1 / np.sqrt(image.size)) for image in pixels]
    return pixels, np.stack(images).transpose(0, 3, 1, 2)


def logits_of(weights, images):
    """The logits of images, NCHW, by PyTorch in float64."""
    network = load(weights).double()
    network.classify = True
    with torch.inference_mode():
        return network(torch.from_numpy(images).double()).numpy()


@pytest.mark.slow
def test_the_same_weights_and_options_give_the_same_bytes(weights, baked, tmp_path):
    read = read_weights(weights)
    plan = plan_interface(read, "onnx", bake=True, standardisation="fixed", classify=False, batch=None)
    write_onnx(tmp_path / "again.onnx", plan.module(read), plan, plan.metadata(read, "float32"))
    assert (tmp_path / "again.onnx").read_bytes() == baked.read_bytes()


def stated_in(path):
    """The entry facenet-port of a TFLite file's metadata, by the schema's own code; weights are aligned."""
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    for number in range(model.BuffersLength()):
        if model.Buffers(number).DataLength():
            data = model.Buffers(number).DataAsNumpy()
            address = data.__array_interface__["data"][0]
            start = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
            assert (address - start) % 16 == 0
    (entry,) = (
        model.Metadata(number)
        for number in range(model.MetadataLength())
        if model.Metadata(number).Name() == b"facenet-port"
    )
    return model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()


@pytest.mark.slow
def test_the_classifier_in_half_precision_for_three_images_at_a_time(weights, tmp_path):
    """Three images are not taken for the three channels."""
    options = {"bake": True, "standardisation": "fixed", "classify": True, "batch": 3}
    result = write(weights, tmp_path / "c.onnx", precision="float16", **options)
    counts = Counter(tensor.status for tensor in result.audit.tensors)
    assert counts == {"equal": 491, "rounded": 134}  # 132 kernels, the Bottleneck and the classifier
    assert (result.audit.run.weights, result.audit.run.arithmetic) == ("float16", "float32")
    assert result.metadata["output"] == "float32 (3, 7): logits"
    assert result.audit.verdict.endswith(" It gives logits.")
    pixels = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    session, logits = run_onnx(tmp_path / "c.onnx", pixels)
    assert session.get_outputs()[0].shape == [3, 7]
    expected = logits_of(weights, (pixels.transpose(0, 3, 1, 2) - 127.5) / 128)
    assert np.linalg.norm(logits - expected) < 1e-2 * np.linalg.norm(expected)


def test_what_is_not_faithful_does_not_appear(small_source, tmp_path, monkeypatch, capsys):
    def write_other_weights(path, read, *arguments):
        kernel = read.state_dict["conv2.weight"].copy()
        kernel.view(np.int32)[5, 6, 0, 0] ^= 1
        right(path, replace(read, state_dict={**read.state_dict, "conv2.weight": kernel}), *arguments)

    right = faces.export.run._write
    monkeypatch.setattr("faces.export.run._write", write_other_weights)
    assert export(small_source, "-o", tmp_path / "pnet.onnx") == 1
    error = capsys.readouterr().err
    assert "the audit refuses it, and nothing was kept" in error
    assert "conv2.weight: 1 of 1440 values differs, by up to 1 step" in error
    assert not list(tmp_path.iterdir())


def test_another_standardisation_than_that_of_the_training_is_refused(weights, tmp_path, capsys):
    convert_file(weights, tmp_path / "trained.pt", standardisation=PER_IMAGE)
    out = tmp_path / "facenet.onnx"
    for options in (("--bake",), ("--precision", "int8", "--calibrate", "no")):
        assert export(tmp_path / "trained.pt", "-o", out, *options, "--standardise", "fixed") == 2
        error = capsys.readouterr().err
        assert "--standardise says fixed, but by the catalog or a manifest" in error
        assert "its images are standardised per image (prewhiten)" in error
        assert not out.exists()


def test_logits_of_weights_without_a_classifier_are_refused(weights, tmp_path, capsys):
    state_dict = torch.load(weights, weights_only=True)
    features = {key: tensor for key, tensor in state_dict.items() if not key.startswith("logits.")}
    torch.save(features, tmp_path / "features.pt")
    assert export(tmp_path / "features.pt", "-o", tmp_path / "c.onnx", "--classify") == 2
    assert "these weights have no classifier, so there are no logits to export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ending", "module", "words"),
    [
        ("onnx", "onnxruntime", "an export to ONNX needs onnxruntime: pip install 'facenet-port[onnx]'."),
        ("tflite", "tensorflow", "pip install 'facenet-port[tensorflow]'"),
        ("tflite", "ai_edge_litert", "needs ai-edge-litert: pip install 'facenet-port[tflite]'."),
    ],
)
def test_a_missing_package_gives_exit_code_4(weights, tmp_path, monkeypatch, capsys, ending, module, words):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == module else find_spec(name, *more)
    )
    assert export(weights, "-o", tmp_path / f"net.{ending}") == 4
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "taken.onnx"), "taken.onnx exists, and an export never replaces a file. Give another name."),
        (("-o", "net.pt"), "net.pt: the ending names no format. Give a name that ends in .onnx or .tflite,"),
        (("-o", "net.onnx", "--to", "tflite"), "net.onnx: the ending says onnx, but --to says tflite."),
        (("-o", "no/net.onnx"), "no: there is no such folder."),
        (
            ("-o", "net.onnx", "--batch", "65"),
            "a graph is audited with at most 64 images at once. Give --batch",
        ),
        (("-o", "net.onnx", "--bake"), "neither the catalog nor a manifest beside it tells how its images"),
    ],
)
def test_bad_input_gets_one_message(weights, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.onnx").write_bytes(b"precious")
    assert export(weights, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken.onnx"]
    assert (tmp_path / "taken.onnx").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "no/net.onnx"), "no: there is no such folder."),
        (("-o", "closed/net.onnx"), "closed: cannot be written to (Permission denied). Give another name."),
    ],
)
def test_an_output_that_cannot_be_is_noticed_before_the_weights_are_read(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "closed").mkdir()
    (tmp_path / "damaged.pt").write_bytes(b"no weights")
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != "closed" and access(path, mode))
    assert export("damaged.pt", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_weights_that_compute_no_numbers_are_unreadable_and_no_difference(weights, tmp_path, capsys):
    state_dict = torch.load(weights, weights_only=True)
    state_dict["last_linear.weight"].fill_(3e38)
    torch.save(state_dict, tmp_path / "diverged.pt")
    assert export(tmp_path / "diverged.pt", "-o", tmp_path / "net.onnx") == 3
    error = capsys.readouterr().err
    assert "diverged.pt: the source is broken: the source's own values are not finite" in error
    assert [path.name for path in tmp_path.iterdir()] == ["diverged.pt"]


def test_the_help_states_the_largest_batch(capsys):
    with pytest.raises(SystemExit):
        export("--help")
    assert f"at most {MOST_IMAGES}" in " ".join(capsys.readouterr().out.split())
