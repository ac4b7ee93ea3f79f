"""`facenet-port export --precision int8 --to tflite`: the file, and faults in it that the audit finds."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ai_edge_litert")

from checks.audit.graphs.onnx_tflite_session import OnnxTfliteSession
from checks.audit.graphs.tflite_file import read_tflite
from checks.audit.judge_quantised import judge_scales
from checks.audit.run import audit
from checks.core import thresholds
from converter.errors import SourceError
from converter.hub.catalog_entry import FIXED
from converter.manifest import file_digest
from facenet_tf import stderr_aside
from facenet_tf.graph import build
from facenet_tf.session import legacy_graph, open_session
from facenet_tf.variables import infer_options, load_variables
from faces.backends.exported_model import load_exported
from faces.export.run import export
from faces.export.weights import read_weights
from reference import load
from tests.faces.export.conftest import SIZE, compared, make_cheap
from tests.support.tflite_edit import TfliteEdit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(weights, crops, tmp_path_factory):
    """The result of an export to TFLite in int8 that takes the pixels of images and standardises them."""
    options = {"precision": "int8", "bake": True, "standardisation": "fixed", "calibrate": crops}
    options["batch"] = "dynamic"
    with pytest.MonkeyPatch.context() as patch:
        make_cheap(patch)
        return export(weights, tmp_path_factory.mktemp("int8") / "int8.tflite", **options)


@pytest.fixture(scope="module")
def int8_tflite(exported):
    return exported.output


def test_int8_embeds_pixels_as_the_weights_do_and_is_faithfully_quantised(
    exported, int8_tflite, weights, crops
):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(int8_tflite))
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (taken["name"], list(taken["shape"]), taken["dtype"]) == ("pixels", [1, SIZE, SIZE, 3], np.uint8)
    assert given["dtype"] == np.float32
    files = sorted(crops.rglob("*.png"))[:3]
    pixels = np.stack([np.asarray(Image.open(file))[:SIZE, :SIZE] for file in files])
    interpreter.resize_tensor_input(taken["index"], pixels.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(taken["index"], pixels)
    interpreter.invoke()
    with torch.inference_mode():
        images = torch.from_numpy((pixels.transpose(0, 3, 1, 2) - np.float32(127.5)) / 128)
        expected = load(weights)(images).numpy()
    assert (interpreter.get_tensor(given["index"]) * expected).sum(axis=1).min() > 0.98
    assert exported.metadata["input"].startswith("uint8 (N, 96, 96, 3): RGB pixels")
    assert int8_tflite.stat().st_size < 0.27 * weights.stat().st_size
    result = exported.audit  # which the file has passed on faces that it is not calibrated on
    judged = {each.name: each for each in result.judgements}
    assert result.verdict.startswith("The port is faithfully quantised: ")
    assert set(judged) == {
        "tensors", "structure", "scales", "preprocessing", "arithmetic", "range", "faces",
        "embeddings", "metadata",
    }  # fmt: skip
    assert max(each.share for name, each in judged.items() if each.share and name != "faces") < 0.5
    assert 1 - result.quantised.faces.cosine < 0.5 * thresholds.QUANTISED_COSINE
    kernels = [each for each in result.tensors if len(each.shape) == 4]
    assert len(kernels) == 132
    assert {each.quantisation.scales - each.shape[0] for each in kernels} == {0}
    assert judged["scales"].statement.startswith("a scale for each channel")


def test_the_file_is_a_model_of_its_own(int8_tflite, monkeypatch):
    """Thresholds of the weights do not hold for it."""
    monkeypatch.setattr("faces.backends.graph_backend.IMAGE_SIZE", SIZE)
    assert load_exported(int8_tflite, "fixed", "cpu").sha256 == file_digest(int8_tflite)


def test_faults_of_weights_are_named_each_at_its_layer(int8_tflite, weights, tmp_path):
    """Weights rounded down, one integer that is the second nearest, and one scale for all channels."""
    edit = TfliteEdit(int8_tflite)
    changed = edit.integers(edit.weights(60))
    changed[3, 0, 0, 1] += 1 if changed[3, 0, 0, 1] < 100 else -1

    floored = edit.weights(7)
    conv = load(weights).repeat_1[0].branch1[0]
    factor = (conv.bn.weight / (conv.bn.running_var + conv.bn.eps).sqrt()).detach().double()
    folded = (conv.conv.weight.double().detach() * factor[:, None, None, None]).permute(0, 2, 3, 1).numpy()
    scales = np.asarray(floored.quantization.scale, np.float64).reshape(-1, 1, 1, 1)
    edit.integers(floored)[:] = np.floor(folded / scales)

    single = edit.weights(100)
    scales = np.asarray(single.quantization.scale)
    integers = edit.integers(single)
    numbers = integers * scales.reshape(-1, 1, 1, 1)
    single.quantization.scale = np.full_like(scales, scales.max())
    integers[:] = np.rint(numbers / scales.max())

    results = compared(read_tflite(edit.save(tmp_path / "faults.tflite")), weights)
    faults = {each.name: each for each in results if not each.is_faithful}
    names = {role: edit.weights(place).name.decode() for role, place in (("one", 60), ("floor", 7))}
    fault = faults[names["one"]]
    assert (fault.differing, fault.max_ulp, fault.index) == (1, 1, (3, 0, 0, 1))
    assert faults[names["floor"]].detail.startswith("rounded down, not to the nearest")
    judged = judge_scales(results)
    assert not judged.passed
    assert any(
        f"{single.name.decode()}: each of its {len(scales)} channels has the same scale" in detail
        for detail in judged.details
    )


def test_a_zero_point_of_weights_that_is_off_by_one_is_named(int8_tflite, weights, tmp_path):
    """No interpreter opens the file, so that the tensors alone are compared."""
    edit = TfliteEdit(int8_tflite)
    kernel = edit.weights(20)
    kernel.quantization.zeroPoint = np.ones_like(kernel.quantization.zeroPoint)
    results = compared(read_tflite(edit.save(tmp_path / "zero.tflite")), weights)
    (fault,) = (each for each in results if not each.is_faithful)
    assert fault.name == kernel.name.decode()
    assert fault.detail.startswith("quantised with a zero point that is 1 lower")


def test_an_integer_of_the_runtime_that_is_a_step_off_fails_the_arithmetic(int8_tflite, weights, monkeypatch):
    fetch = OnnxTfliteSession.fetch

    def step(self, images, names, *, as_written):
        arrays = fetch(self, images, names, as_written=as_written)
        if len(arrays) > 50:
            arrays[50].reshape(-1)[7] ^= 1
        return arrays

    monkeypatch.setattr(OnnxTfliteSession, "fetch", step)
    result = audit(int8_tflite, weights, standardisation=FIXED)
    judged = {each.name: each for each in result.judgements}
    assert {name for name, each in judged.items() if not each.passed} == {"arithmetic"}
    assert judged["arithmetic"].share > 2


@pytest.fixture(scope="module")
def integer_ends(weights, crops, tmp_path_factory):
    """TensorFlow's converter with its documented options for integers from the input to the output."""
    import tensorflow as tf

    variables = {
        name: array for name, array in read_weights(weights).variables.items() if "Logits" not in name
    }
    pixels = np.stack([np.asarray(Image.open(file))[:SIZE, :SIZE] for file in sorted(crops.rglob("*.png"))])
    images = ((pixels - 127.5) / 128).astype(np.float32)
    with legacy_graph() as graph:
        taken = tf.compat.v1.placeholder(tf.float32, (1, SIZE, SIZE, 3), name="images")
        given = build(taken, **infer_options(variables)._asdict())["embeddings"]
    with open_session(graph) as session, stderr_aside():
        load_variables(session, variables)
        converter = tf.compat.v1.lite.TFLiteConverter.from_session(session, [taken], [given])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        path = tmp_path_factory.mktemp("ends") / "integers.tflite"
        path.write_bytes(converter.convert())
    return path


def test_integers_that_go_in_and_come_out_are_those_that_an_app_feeds_and_reads(
    integer_ends, weights, crops, tmp_path
):
    from ai_edge_litert.interpreter import Interpreter

    result = audit(integer_ends, weights, standardisation=FIXED, faces=crops)
    assert result.verdict.startswith("The port is faithfully quantised: ")
    assert result.run.feed.startswith(
        "RGB standardised images, NHWC int8 (1, 96, 96, 3), quantised by its scale; gives "
    )
    interpreter = Interpreter(str(integer_ends))
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    network, cosines = load(weights), []
    for file in sorted(crops.rglob("*.png")):
        image = ((np.asarray(Image.open(file))[None, :SIZE, :SIZE] - 127.5) / 128).astype(np.float32)
        scale, zero_point = taken["quantization"]
        integers = np.clip(np.rint(image / scale) + zero_point, -128, 127)
        interpreter.set_tensor(taken["index"], integers.astype(np.int8))
        interpreter.invoke()
        scale, zero_point = given["quantization"]
        row = (interpreter.get_tensor(given["index"])[0].astype(np.float64) - zero_point) * scale
        with torch.inference_mode():
            expected = network(torch.from_numpy(image.transpose(0, 3, 1, 2)))[0].numpy()
        cosines.append(row @ expected / np.linalg.norm(row))
    assert result.quantised.faces.cosine == pytest.approx(min(cosines), abs=1e-6)
    assert result.quantised.faces.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    with pytest.raises(SourceError, match="which an audit feeds and reads, and no other command"):
        load_exported(integer_ends, "fixed", "cpu")


def test_another_scale_of_the_integers_that_go_in_does_not_fit_those_of_the_biases(
    integer_ends, weights, tmp_path
):
    edit = TfliteEdit(integer_ends)
    stated = edit.graph.tensors[edit.graph.inputs[0]].quantization
    stated.scale = stated.scale * 2
    judged = judge_scales(compared(read_tflite(edit.save(tmp_path / "scale.tflite")), weights))
    assert not judged.passed
    (detail,) = judged.details
    assert "Conv2d_1a_3x3" in detail
    assert detail.endswith("its scale is not that of the input times that of the weights")


def test_lines_of_the_converter_are_printed_only_if_it_fails(capfd):
    with stderr_aside():
        os.write(2, b"fully_quantize: 0\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="x"), stderr_aside():
        os.write(2, b"the cause\n")
        raise ValueError("x")
    assert capfd.readouterr().err == "the cause\n"
