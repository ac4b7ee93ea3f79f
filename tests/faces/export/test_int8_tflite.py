"""`facenet-port export --precision int8 --to tflite`: the file, and faults in it that the audit finds."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ai_edge_litert")

from checks.audit.compare_tensors import compare_tensors
from checks.audit.graphs.find_layers import find_layers
from checks.audit.graphs.onnx_tflite_session import OnnxTfliteSession
from checks.audit.graphs.tflite_file import read_tflite
from checks.audit.run import _read_source, audit
from checks.core import thresholds
from converter.formats.detect import open_source
from converter.hub.catalog_entry import FIXED
from converter.manifest import file_digest
from converter.network_names import NetworkTensors
from facenet_tf import stderr_aside
from faces.backends.exported_model import load_exported
from faces.export.run import export
from reference import load
from tests.faces.export.conftest import SIZE, make_cheap
from tests.support.tflite_edit import TfliteEdit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(weights, crops, tmp_path_factory):
    """The result of an export to TFLite in int8 that takes the pixels of one image and standardises them."""
    options = {"precision": "int8", "bake": True, "standardisation": "fixed", "calibrate": crops}
    with pytest.MonkeyPatch.context() as patch:
        make_cheap(patch)
        return export(weights, tmp_path_factory.mktemp("int8") / "int8.tflite", **options)


@pytest.fixture(scope="module")
def int8_tflite(exported):
    return exported.output


def audited(path, weights):
    result = audit(path, weights, standardisation=FIXED)
    return result, {each.name: each for each in result.judgements}


def test_int8_embeds_pixels_as_the_weights_do_and_is_faithfully_quantised(
    exported, int8_tflite, weights, crops
):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(int8_tflite))
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (taken["name"], list(taken["shape"]), taken["dtype"]) == ("pixels", [1, SIZE, SIZE, 3], np.uint8)
    assert given["dtype"] == np.float32
    network = load(weights)
    for file in sorted(crops.rglob("*.png"))[:3]:
        pixels = np.asarray(Image.open(file))[:SIZE, :SIZE]
        interpreter.set_tensor(taken["index"], pixels[None])
        interpreter.invoke()
        images = torch.from_numpy((pixels[None].transpose(0, 3, 1, 2) - np.float32(127.5)) / 128)
        with torch.inference_mode():
            expected = network(images).numpy()
        assert (interpreter.get_tensor(given["index"]) * expected).sum() > 0.98
    assert int8_tflite.stat().st_size < 0.27 * weights.stat().st_size
    result = exported.audit  # which the file has passed on faces that it is not calibrated on
    judged = {each.name: each for each in result.judgements}
    assert result.verdict.startswith("The port is faithfully quantised: ")
    assert set(judged) == {
        "tensors", "structure", "scales", "preprocessing", "arithmetic", "range", "faces", "metadata",
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

    result, judged = audited(edit.save(tmp_path / "faults.tflite"), weights)
    assert {"tensors", "scales"} <= {name for name, each in judged.items() if not each.passed}
    faults = {each.name: each for each in result.tensors if not each.is_faithful}
    names = {role: edit.weights(place).name.decode() for role, place in (("one", 60), ("floor", 7))}
    fault = faults[names["one"]]
    assert (fault.differing, fault.max_ulp, fault.index) == (1, 1, (3, 0, 0, 1))
    assert faults[names["floor"]].detail.startswith("rounded down, not to the nearest")
    assert any(
        f"{single.name.decode()}: each of its {len(scales)} channels has the same scale" in detail
        for detail in judged["scales"].details
    )


def test_a_zero_point_of_weights_that_is_off_by_one_is_named(int8_tflite, weights, tmp_path):
    """No interpreter opens the file, so that the tensors alone are compared."""
    edit = TfliteEdit(int8_tflite)
    kernel = edit.weights(20)
    kernel.quantization.zeroPoint = np.ones_like(kernel.quantization.zeroPoint)
    layers = find_layers(read_tflite(edit.save(tmp_path / "zero.tflite")))
    with open_source(weights) as opened:
        source = _read_source(NetworkTensors(opened), "variable")
        (fault,) = (each for each in compare_tensors(layers.weights, source) if not each.is_faithful)
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
    _, judged = audited(int8_tflite, weights)
    assert {name for name, each in judged.items() if not each.passed} == {"arithmetic"}
    assert judged["arithmetic"].share > 2


def test_lines_of_the_converter_are_printed_only_if_it_fails(capfd):
    with stderr_aside():
        os.write(2, b"fully_quantize: 0\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="x"), stderr_aside():
        os.write(2, b"the cause\n")
        raise ValueError("x")
    assert capfd.readouterr().err == "the cause\n"
