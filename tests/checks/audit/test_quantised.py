"""Audits of int8 ONNX graphs by onnxruntime, with and without planted faults."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

pytest.importorskip("onnxruntime")

from checks.audit.__main__ import main
from checks.audit.compare_tensors import compare_tensors
from checks.audit.faces import compare_faces
from checks.audit.graphs.find_layers import find_layers
from checks.audit.graphs.onnx_file import read_onnx
from checks.audit.graphs.run_graph import normalise
from checks.audit.judge_quantised import judge_faces, judge_integers, judge_scales
from checks.audit.result import QuantisedRun
from checks.audit.run import audit
from checks.audit.source_weights import source_weights
from checks.core import thresholds
from checks.core.network import EMBEDDINGS
from checks.diagnosis.explain_tensor import SourceTensors
from converter.convert import to_numpy_state_dict
from converter.counts import counted
from converter.errors import SourceError
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.hub.catalog_entry import FIXED, PER_IMAGE
from converter.plan import describe, infer_variant
from tests.support.graph_exports import export_int8
from tests.support.onnx_edit import Edit

pytestmark = pytest.mark.slow


def judgement(result, name):
    return next(each for each in result.judgements if each.name == name)


def failed(result):
    return {each.name for each in result.judgements if not each.passed}


def excess(result):
    """The largest excess of an integer of the weights, in what its rounding explains."""
    return max(each.quantisation.excess for each in result.tensors if each.quantisation is not None)


class Integers(Edit):
    """An int8 model under change."""

    def array(self, name):
        return numpy_helper.to_array(self.constants[name])

    def put(self, name, array):
        self.constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))

    @property
    def kernels(self):
        """The names of the integers of all convolutions, in the order of the graph."""
        names = [
            node.input[1].removesuffix("_DequantizeLinear_Output")
            for node in self.graph.node
            if node.op_type == "Conv"
        ]
        return [f"{name}_quantized" for name in names]

    def requantise(self, kernel, folded, scales):
        """Quantise a kernel again by other scales; the bias keeps its own."""
        steps = float32_of(folded, kernel) / scales.reshape(-1, 1, 1, 1)
        self.put(kernel, np.clip(np.rint(steps), -127, 127).astype(np.int8))
        self.put(self.scales(kernel), scales)

    def scales(self, kernel):
        return kernel.replace("_quantized", "_scale")


def float32_of(path, kernel):
    """The float32 weights that the integers of a kernel were made from."""
    (found,) = [each for each in onnx.load(path).graph.initializer if f"{each.name}_quantized" == kernel]
    return numpy_helper.to_array(found)


def save_crops(pixels, folder):
    """Save each image as a crop, of two people in turn."""
    for number, image in enumerate(pixels):
        person = folder / "ab"[number % 2]
        person.mkdir(parents=True, exist_ok=True)
        tiled = np.tile(image, (2, 2, 1))[:160, :160].astype(np.uint8)
        Image.fromarray(tiled).save(person / f"{number}.png")


def add_logits(int8, tensors, path):
    """Give a graph logits in place of embeddings, quantised as quantize_static does."""
    edit = Integers(int8)
    bottleneck = edit.node("ReduceL2").input[0]
    weights, bias = tensors["Logits/weights"], tensors["Logits/biases"]
    scale = np.float32(np.abs(weights).max() / 127)
    bias_scale = scale * edit.array(edit.maker(bottleneck).input[1])
    quantised = {
        "weights": (np.rint(weights / scale).astype(np.int8), scale, np.int8(0)),
        "bias": (np.rint(bias / bias_scale).astype(np.int32), bias_scale, np.int32(0)),
        "logits": (None, np.float32(0.1), np.uint8(128)),
    }
    names = {each: [each, f"{each}_scale", f"{each}_zero_point"] for each in quantised}
    for each, arrays in quantised.items():
        for name, array in zip(names[each], arrays, strict=True):
            if array is not None:
                edit.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    layers = (
        ("DequantizeLinear", names["weights"], ["floats"]),
        ("DequantizeLinear", names["bias"], ["summand"]),
        ("Gemm", [bottleneck, "floats", "summand"], ["sums"]),
        ("QuantizeLinear", ["sums", *names["logits"][1:]], ["integers"]),
        ("DequantizeLinear", ["integers", *names["logits"][1:]], ["logits"]),
    )
    edit.graph.node.extend(helper.make_node(*layer) for layer in layers)
    old = edit.graph.output[0].name
    value = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ("N", None))
    edit.graph.output[0].CopyFrom(value)
    edit.remove_ancestors(old)
    return edit.save(path)


# Right files.


@pytest.mark.whole_inputs
def test_a_right_file_is_faithfully_quantised(int8, source, tmp_path, capsys):
    report, data = tmp_path / "audit.html", tmp_path / "audit.json"
    arguments = [str(int8), "--against", str(source), "--standardise", "fixed", "--report", str(report)]
    assert main([*arguments, "--json", str(data)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("The port is faithfully quantised: ")
    assert "give crops with --faces" in printed
    assert "exact" not in printed
    assert "weights of 7 bits" not in printed
    assert "weights of float32" not in printed
    assert "faithfully quantised" in report.read_text()
    result = json.loads(data.read_text())
    assert result["run"]["weights"] == "int8"
    shares = {each["name"]: each["share"] for each in result["judgements"] if each["share"] is not None}
    assert set(shares) == {"scales", "preprocessing", "arithmetic", "range", "embeddings"}
    assert max(shares.values()) < 0.5
    kernels = [each for each in result["tensors"] if len(each["shape"]) == 4]
    assert len(kernels) == 132
    assert {each["status"] for each in kernels} == {"quantised"}
    assert {each["quantisation"]["scales"] for each in kernels} == {each["shape"][0] for each in kernels}


def test_other_ways_to_quantise_are_faithful_and_another_standardisation_of_the_calibration_is_named(
    folded, pixels, source, tmp_path
):
    """Signed, symmetric activations, a layer left out, weights of 7 bits or one scale for all channels.

    The images of the calibration are standardised as in 2017.
    """
    from onnxruntime.quantization import QuantType

    from checks.core.inputs import prewhiten

    nodes = onnx.load(folded).graph.node
    (bottleneck,) = [node.name for node in nodes if node.op_type in ("Gemm", "MatMul")]
    whole = [node.input[1] for node in nodes if node.op_type == "Conv"][::2]
    path = export_int8(
        folded,
        tmp_path / "int8.onnx",
        prewhiten(pixels[:2]),
        reduce_range=True,
        activation_type=QuantType.QInt8,
        nodes_to_exclude=[bottleneck],
        extra_options={
            "ActivationSymmetric": True,
            "TensorQuantOverrides": {kernel: [{"reduce_range": False}] for kernel in whole},
        },
    )
    result = audit(path, source, seed=1, standardisation=PER_IMAGE)
    assert result.passed, result.judgements
    assert excess(result) < 0.5
    assert all(each.share < 0.5 for each in result.judgements if each.share is not None)
    other = audit(path, source, standardisation=FIXED)
    assert failed(other) == {"range"}
    assert_another_standardisation_is_named(other)
    assert "scales for each channel of 66 of 132 tensors" in judgement(result, "scales").statement
    for stated in (judgement(result, "scales").statement, result.verdict):
        assert "weights of 7 bits in 66 of 133 layers" in stated
        assert "weights of float32 in 1 of 133 layers" in stated


def assert_another_standardisation_is_named(result):
    assert judgement(result, "range").share > 2
    assert "another standardisation" in judgement(result, "range").details[0]


def test_tensorflows_conversion_with_every_operation_in_integers_is_faithful(tflite, source):
    """Also sums, the average pool, the BatchNorm behind the Bottleneck and the normalisation."""
    result = audit(tflite.with_name("int8.tflite"), source, standardisation=FIXED)
    assert result.passed, result.judgements
    assert excess(result) < 0.5
    assert all(each.share < 0.5 for each in result.judgements if each.share is not None)
    assert {each.status for each in result.tensors} == {"quantised"}
    quantised = {each.layer for each in result.quantised.quantisers}
    assert {"InceptionResnetV1/Block8", "InceptionResnetV1/Logits/AvgPool_1a_8x8"} <= quantised


def test_dynamic_quantisation_by_onnxruntime_is_a_weaker_proof_of_every_weight(
    dynamic, source, pixels, tmp_path, capsys
):
    path = dynamic
    save_crops(pixels[:2], tmp_path / "crops")
    data = tmp_path / "audit.json"
    arguments = [str(path), "--against", str(source), "--standardise", "fixed", "--json", str(data)]
    assert main([*arguments, "--faces", str(tmp_path / "crops")]) == 5
    assert "but the arithmetic was not judged: its runtime quantises activations" in capsys.readouterr().out
    result = json.loads(data.read_text())
    assert (result["passed"], result["quantised"]["is_dynamic"]) == (False, True)
    assert [each["passed"] for each in result["judgements"]] == [True] * 6
    assert "arithmetic" not in {each["name"] for each in result["judgements"]}
    kernels = [each for each in result["tensors"] if len(each["shape"]) > 1]
    assert [each["status"] for each in kernels] == ["quantised"] * 133
    edit = Integers(path)
    name = edit.node("ConvInteger", 60).input[1]
    edit.put(name, change_by_one(edit.array(name)))
    scale = edit.node("MatMulInteger").input[1].replace("_quantized", "_scale")
    edit.put(scale, edit.array(scale) * np.float32(2))
    result = audit(edit.save(tmp_path / "faults.onnx"), source, standardisation=FIXED)
    assert result.exit_code == 1
    assert failed(result) == {"tensors", "scales"}
    faults = {each.name: each.differing for each in result.tensors if not each.is_faithful}
    assert faults[name] == 1
    assert len(faults) == 2


def test_dynamic_quantisation_by_tensorflow_is_a_weaker_proof_of_every_weight(tflite, source):
    """The converter leaves weights of less than 1,024 numbers, the first layer's, in float32."""
    result = audit(tflite.with_name("dynamic.tflite"), source, standardisation=FIXED)
    assert result.exit_code == 5
    assert result.verdict.startswith("Weaker proof: ")
    assert "It has weights of float32 in 1 of 133 layers." in result.verdict
    assert sum(each.status == "quantised" for each in result.tensors) == 132
    assert not failed(result)


def test_faces_are_embedded_as_by_the_source(int8, pixels, source, tmp_path):
    save_crops(pixels, tmp_path / "crops")
    result = audit(int8, source, faces=tmp_path / "crops", standardisation=FIXED)
    faces = result.quantised.faces
    assert (faces.images, faces.people, faces.pairs) == (8, 2, 28)
    assert judgement(result, "faces").passed
    assert 1 - faces.cosine < 0.5 * thresholds.QUANTISED_COSINE


# Faults.


def change_by_one(integers):
    """Change one integer to the second nearest."""
    changed = integers.copy()
    changed[3, 1, 0, 0] += 1 if changed[3, 1, 0, 0] < 100 else -1
    return changed


def shrink_the_last_range(edit):
    """Clip the maps that the embedding is computed from."""
    last = edit.maker(edit.node("MatMul", -1).input[0])
    edit.put(last.input[1], edit.array(last.input[1]) / np.float32(100))


def test_wrong_integers_of_weights_a_relu_that_lets_negative_numbers_through_and_too_small_a_range_are_named(
    int8, folded, source, tmp_path
):
    """Weights rounded down, an integer that is the second nearest, a zero point behind a ReLU, a range."""
    edit = Integers(int8)
    shrink_the_last_range(edit)
    floored, single = edit.kernels[7], edit.kernels[60]
    scale = edit.array(edit.scales(floored)).reshape(-1, 1, 1, 1)
    edit.put(floored, np.floor(float32_of(folded, floored) / scale).astype(np.int8))
    edit.put(single, change_by_one(edit.array(single)))
    first = edit.node("Conv").output[0]
    node = next(each for each in edit.graph.node if each.op_type == "QuantizeLinear" and first in each.input)
    zero_point = edit.array(node.input[2])
    assert zero_point == 0
    edit.put(node.input[2], zero_point + np.uint8(1))
    result = audit(edit.save(tmp_path / "faults.onnx"), source, standardisation=FIXED)
    assert failed(result) == {"tensors", "structure", "embeddings"}
    assert judgement(result, "embeddings").share > 2
    faults = {each.name: each for each in result.tensors if not each.is_faithful}
    assert set(faults) == {floored, single}
    assert faults[floored].detail.startswith("rounded down, not to the nearest")
    assert faults[floored].quantisation.excess > 1000
    one = faults[single]
    assert (one.differing, one.max_ulp, one.index) == (1, 1, (3, 1, 0, 0))
    assert one.quantisation.excess > 2
    (detail,) = judgement(result, "structure").details
    assert detail.endswith("ends without a ReLU")


@pytest.fixture(scope="module")
def expected(tensors):
    """The weights of the source as an audit reads them."""
    state_dict = SourceTensors(to_numpy_state_dict(tensors), {})
    return source_weights(tensors, infer_variant(describe(tensors)), state_dict)


def compare(edit, path, expected):
    """Compare the tensors of a changed file, without a run."""
    return compare_tensors(find_layers(read_onnx(edit.save(path))).weights, expected)


def test_a_zero_point_that_is_off_by_one_and_bgr_weights_are_named(int8, expected, tmp_path):
    edit = Integers(int8)
    first, kernel = edit.kernels[0], edit.kernels[20]
    edit.put(first, edit.array(first)[:, ::-1])
    edit.put(kernel.replace("_quantized", "_zero_point"), np.ones(len(edit.array(kernel)), np.int8))
    results = compare(edit, tmp_path / "faults.onnx", expected)
    faults = {each.name: each.detail for each in results if not each.is_faithful}
    assert set(faults) == {first, kernel}
    assert faults[first].startswith("its input channels are reversed, for BGR images")
    assert faults[kernel].startswith("quantised with a zero point that is 1 lower")


def test_a_wrong_bit_has_no_cause_although_another_epsilon_gives_most_integers_too(
    int8, tensors, expected, tmp_path
):
    """Of another layer the epsilon is wrong: the source's variances are larger by the difference."""
    edit = Integers(int8)
    kernel = edit.kernels[60]
    integers = edit.array(kernel).copy()
    integers[0, 0, 0, 0] ^= 1
    edit.put(kernel, integers)
    name = "InceptionResnetV1/Conv2d_2a_3x3/BatchNorm/moving_variance"
    larger = {**tensors, name: tensors[name] + np.float32(1e-3 - 1e-5)}
    source = source_weights(larger, expected.variant, expected.state_dict)
    results = compare(edit, tmp_path / "faults.onnx", source)
    faults = {each.name: each for each in results if not each.is_faithful}
    assert (faults[kernel].differing, faults[kernel].detail) == (1, "")
    other = faults[edit.kernels[1]]
    assert 0 < other.differing < 0.1 * other.values  # so that the right epsilon gives most of them, too
    assert other.detail == "folded with an epsilon of 1e-05"


def test_scales_that_do_not_suit_their_tensors_are_named(int8, folded, expected, tmp_path):
    """One for all channels, too large a one, one with which values are beyond it, and that of a bias."""
    edit = Integers(int8)
    same = [edit.kernels[number] for number in (0, 41, 100)]
    for kernel in same:
        weights, scales = float32_of(folded, kernel), edit.array(edit.scales(kernel))
        edit.put(kernel, np.rint(weights / scales.max()).astype(np.int8))
        edit.put(edit.scales(kernel), np.full_like(scales, scales.max()))
    changed = dict(zip((1.5, 1024.0, 0.5), (edit.kernels[number] for number in (40, 50, 60)), strict=True))
    channels = {}
    for factor, kernel in changed.items():
        scales = edit.array(edit.scales(kernel)).copy()
        scales[5] *= np.float32(factor)
        channels[factor] = scales
        edit.requantise(kernel, folded, scales)
    steps = float32_of(folded, changed[0.5])[5] / channels[0.5][5]
    beyond = ((steps > 127.5) | (steps < -128.5)).sum()
    assert beyond > 0
    results = compare(edit, tmp_path / "scales.onnx", expected)
    details = judge_scales(results).details
    for kernel in same:
        assert any(
            detail.startswith(f"{kernel}: ") and "the same scale, that of the whole tensor" in detail
            for detail in details
        )
    assert sum("the same scale, that of the whole tensor" in detail for detail in details) == 3
    assert f"{changed[0.5]}: {counted(beyond, 'value')} beyond its scale" in details
    for factor in (1.5, 1024.0):
        (lost,) = [each.quantisation.lost for each in results if each.name == changed[factor]]
        assert lost == pytest.approx(np.log2(factor), abs=1e-3)
        assert lost > 2 * thresholds.LOST_BITS
        channel = f"of its {len(channels[factor])} channels at least one has too large a scale"
        assert any(f"{changed[factor]}: {channel}" in detail for detail in details)


def change_fetched(monkeypatch, *, saturates):
    """Give another first output than its runtime does, and an integer that is a step off.

    Args:
        monkeypatch: pytest's.
        saturates: Whether one integer of 30 million is off, as a kernel without VNNI may give it.
    """
    from checks.audit.graphs.onnx_tflite_session import OnnxTfliteSession

    fetch = OnnxTfliteSession.fetch

    def change(self, images, names, *, as_written):
        arrays = fetch(self, images, names, as_written=as_written)
        if not as_written and len(arrays) > 50:
            arrays[0] = arrays[0] + 3e-5 * np.linalg.norm(arrays[0][0]) * np.eye(*arrays[0].shape)
            if saturates:
                arrays[50].reshape(-1)[7] ^= 1
        return arrays

    monkeypatch.setattr(OnnxTfliteSession, "fetch", change)


def test_a_saturating_kernel_another_embedding_and_another_standardisation_show_each_by_itself(
    int8, source, monkeypatch
):
    change_fetched(monkeypatch, saturates=True)
    result = audit(int8, source, standardisation=PER_IMAGE)
    assert failed(result) == {"arithmetic", "range"}
    assert_another_standardisation_is_named(result)
    integer, *_, embedding = judgement(result, "arithmetic").details
    assert integer.endswith("steps from the float64 result of its own integers")
    assert embedding.startswith("embeddings: ")
    for alone in (replace(result.quantised, embedding=0.0), replace(result.quantised, quantisers=())):
        judged = judge_integers(alone)
        assert not judged.passed
        assert judged.share > 2


@pytest.mark.parametrize(
    ("kind", "attributes", "problem"),
    [
        ("Gather", {"axis": 1}, "Gather 'changed' between its layers may reorder numbers"),
        ("Transpose", {"perm": [0, 1, 3, 2]}, "Transpose 'changed' between its layers may reorder numbers"),
        ("Cast", {"to": TensorProto.BOOL}, "its graph is not understood: Cast 'changed'"),
    ],
)
def test_a_change_between_layers_that_are_quantised_as_they_run_is_refused(
    dynamic, source, tmp_path, kind, attributes, problem
):
    """Of channels in reverse, of height and width, and of numbers to 0 or 1: no arithmetic is judged."""
    edit = Integers(dynamic)
    relu = edit.node("Relu", 60).output[0]
    edit.graph.initializer.append(numpy_helper.from_array(np.arange(128)[::-1].copy(), "order"))
    inputs = [relu, "order"] if kind == "Gather" else [relu]
    nodes = [helper.make_node(kind, inputs, ["changed"], **attributes)]
    if kind == "Cast":
        nodes.append(helper.make_node("Cast", ["changed"], ["numbers"], to=TensorProto.FLOAT))
    for node in edit.graph.node:
        node.input[:] = [nodes[-1].output[0] if name == relu else name for name in node.input]
    place = list(edit.graph.node).index(edit.maker(relu)) + 1
    for node in reversed(nodes):
        edit.graph.node.insert(place, node)
    with pytest.raises(SourceError, match=problem):
        audit(edit.save(tmp_path / "changed.onnx"), source, standardisation=FIXED)


def test_dark_images_though_the_faces_are_dark_too_and_a_zero_point_that_differs_are_named(
    int8, source, tmp_path
):
    """One zero point differs between quantising and dequantising."""
    edit = Integers(int8)
    node = edit.node("QuantizeLinear")
    edit.put(node.input[1], np.float32(1 / 255))  # from -1 to 0
    edit.put(node.input[2], np.uint8(255))
    node = edit.node("DequantizeLinear", -30)
    edit.graph.initializer.append(
        numpy_helper.from_array(edit.array(node.input[2]) + np.uint8(1), "off_by_one")
    )
    node.input[2] = "off_by_one"
    crops = tmp_path / "crops"
    crops.mkdir()
    for number in range(2):
        Image.fromarray(np.full((160, 160, 3), 30 * number, np.uint8)).save(crops / f"{number}.png")
    result = audit(edit.save(tmp_path / "dark.onnx"), source, faces=crops, standardisation=FIXED)
    assert {"range", "structure"} <= failed(result)
    assert judgement(result, "range").share > 2
    assert "all dark" in judgement(result, "range").details[0]
    (detail,) = judgement(result, "structure").details
    assert "but dequantised with" in detail


def test_a_range_that_holds_the_given_faces_alone_fails(int8, source, tmp_path):
    """All their pixels are at -1 or 1, as those of a calibration on one face may be near each other."""
    edit = Integers(int8)
    node = edit.node("QuantizeLinear")
    edit.put(node.input[1], np.float32(2.4 / 255))  # from -1.2 to 1.2
    edit.put(node.input[2], np.uint8(127))
    crops = tmp_path / "crops"
    crops.mkdir()
    for number in range(2):
        pixels = np.repeat([[[40 + number]], [[200]]], 80, axis=0).repeat(160, axis=1).repeat(3, axis=2)
        Image.fromarray(pixels.astype(np.uint8)).save(crops / f"{number}.png")
    result = audit(edit.save(tmp_path / "narrow.onnx"), source, faces=crops, standardisation=PER_IMAGE)
    assert "range" in failed(result)
    assert result.quantised.input_range.basis == "a normal distribution"
    assert judgement(result, "range").share > 2


def test_too_small_a_range_shows_in_faces_and_a_wrong_scale_of_a_bias_is_named(
    int8, pixels, source, tmp_path
):
    edit = Integers(int8)
    shrink_the_last_range(edit)
    bias = next(each for each in edit.constants if each.endswith("_quantized_scale"))
    edit.put(bias, edit.array(bias) * np.float32(1.001))
    save_crops(pixels, tmp_path / "crops")
    path = edit.save(tmp_path / "range.onnx")
    result = audit(path, source, faces=tmp_path / "crops", standardisation=FIXED)
    for each in ("faces", "scales"):
        assert each in failed(result)
        assert judgement(result, each).share > 2
    (detail,) = judgement(result, "scales").details
    assert detail.endswith("times that of the weights")


@pytest.fixture(scope="module")
def with_logits(int8, tensors, tmp_path_factory):
    """The graph with logits in place of embeddings."""
    return add_logits(int8, tensors, tmp_path_factory.mktemp("logits") / "logits.onnx")


def test_other_logits_than_the_last_integers_give_are_found(with_logits, source, monkeypatch):
    whole = audit(with_logits, source, standardisation=FIXED)
    assert whole.passed, whole.judgements
    assert whole.verdict.endswith("give crops with --faces. It gives logits.")
    assert judgement(whole, "arithmetic").share < 0.5
    change_fetched(monkeypatch, saturates=False)
    result = audit(with_logits, source, standardisation=FIXED)
    assert failed(result) == {"arithmetic"}
    assert judgement(result, "arithmetic").share > 2
    assert judgement(result, "arithmetic").details[0].startswith("embeddings: ")


def people_near_each_other():
    """The embeddings of 40 faces of four people, (40, 8), of length one, and the people."""
    random = np.random.default_rng(2)
    centres = np.repeat(random.normal(size=(4, 8)), 10, axis=0)
    return normalise(centres + 0.8 * random.normal(size=(40, 8))), [f"{number // 10}" for number in range(40)]


@pytest.mark.parametrize(
    ("cosine", "moved", "fails"), [(0.9965, 1, ""), (0.9965, 40, "decisions"), (0.95, 1, "cosine")]
)
def test_faces_fail_by_a_cosine_and_by_their_decisions(monkeypatch, cosine, moved, fails):
    """Some faces are turned by an angle; one changes few of 780 decisions, 40 change many."""
    expected, people = people_near_each_other()
    random = np.random.default_rng(3)
    aside = random.normal(size=expected.shape)
    aside = normalise(aside - (aside * expected).sum(axis=1, keepdims=True) * expected)
    turned = cosine * expected + np.sqrt(1 - cosine**2) * aside
    actual = np.concatenate([turned[:moved], expected[moved:]])
    monkeypatch.setattr("checks.audit.faces.run_pytorch", lambda *_: {EMBEDDINGS: expected})
    monkeypatch.setattr("checks.audit.faces._BATCH", 40)
    found = compare_faces(actual, None, expected, people)
    run = QuantisedRun((), (), 0.0, None, found)
    judged = judge_faces(run)
    assert found.cosine == pytest.approx(cosine, abs=1e-6)
    assert judged.passed == (not fails)
    assert judged.share > 2 if fails else judged.share < 0.5
    assert (found.otherwise > 2 * thresholds.QUANTISED_DECISIONS * found.pairs) == (fails == "decisions")


@pytest.fixture(scope="module")
def narrower(tensors, tmp_path_factory):
    """The prefix of a checkpoint whose embeddings have 128 numbers."""
    cut = {**tensors, "Logits/weights": tensors["Logits/weights"][:128]}
    for name in tensors:
        if "Bottleneck" in name:
            cut[name] = tensors[name][..., :128]
    path = tmp_path_factory.mktemp("narrower") / "model.ckpt-1"
    write_tensor_bundle(path, cut)
    return path


@pytest.mark.parametrize("kind", ["int8", "dynamic", "folded"])
def test_embeddings_of_another_size_are_named_and_not_compared(
    kind, narrower, pixels, tmp_path, request, capsys
):
    arguments = [str(request.getfixturevalue(kind)), "--against", str(narrower), "--standardise", "fixed"]
    if kind == "dynamic":
        save_crops(pixels[:2], tmp_path / "crops")
        arguments += ["--faces", str(tmp_path / "crops")]
    assert main([*arguments, "--verbose"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("The port differs: its embeddings have 512 numbers, the source's 128.\n")
    assert "not computed: its embeddings have 512 numbers, the source's 128" in printed
    assert "not finite" not in printed


# What is refused.


def test_a_graph_that_gives_logits_embeds_faces_as_it_does_without_its_classifier(
    with_logits, int8, pixels, source, tmp_path
):
    save_crops(pixels[:2], tmp_path / "crops")
    of_logits, of_embeddings = (
        audit(path, source, faces=tmp_path / "crops", standardisation=FIXED).quantised
        for path in (with_logits, int8)
    )
    assert of_logits.faces.cosine == pytest.approx(of_embeddings.faces.cosine, abs=1e-6)
    assert of_logits.cosine == pytest.approx(of_embeddings.cosine, abs=1e-6)
    assert of_logits.faces.cosine < 1 - 1e-5  # the source's own is not compared with itself


def test_an_activation_with_a_scale_for_each_channel_is_refused(int8, source, tmp_path, capsys):
    edit = Integers(int8)
    node = edit.node("QuantizeLinear")
    edit.put(node.input[1], np.ones(3, np.float32))
    edit.put(node.input[2], np.zeros(3, np.uint8))
    assert main([str(edit.save(tmp_path / "channels.onnx")), "--against", str(source)]) == 3
    assert "its integers are of a kind that is not audited" in capsys.readouterr().err


def test_integers_that_go_in_are_fed_by_their_scale_also_where_nothing_else_is_of_integers(
    folded, source, tmp_path
):
    """Each tensor behind them is computed once: with sums and branches in float32 there are 10^11 paths."""
    edit = Edit(folded)
    name, edit.graph.input[0].name = edit.graph.input[0].name, "integers"
    edit.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    zero_point = numpy_helper.from_array(np.uint8(127), "zero_point")
    edit.graph.initializer.extend([numpy_helper.from_array(np.float32(1 / 128), "scale"), zero_point])
    taken = ["integers", "scale", "zero_point"]
    edit.graph.node.insert(0, helper.make_node("DequantizeLinear", taken, [name]))
    result = audit(edit.save(tmp_path / "integers.onnx"), source, standardisation=FIXED)
    assert result.passed, result.verdict
    assert result.run.feed.startswith("RGB standardised images, NCHW uint8 (N, 3, 107, 107), quantised by")
    assert (result.quantised.input_range.lowest, result.quantised.input_range.highest) == (-127 / 128, 1.0)
    assert result.quantised.embedding < 1e-5  # from the simulated one


def test_faces_need_a_graph_of_integers(folded, source, tmp_path, capsys):
    assert main([str(folded), "--against", str(source), "--faces", str(tmp_path)]) == 2
    assert "is no graph of integers. Leave out --faces." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code", "problem"),
    [
        ("faces.csv", 2, "this is a file"),
        ("none", 2, "there is no such folder"),
        ("empty", 3, "it holds no photographs"),
    ],
)
def test_faces_that_are_no_folder_of_crops_are_refused_by_what_they_are(
    tmp_path, int8, source, capsys, name, code, problem
):
    (tmp_path / "faces.csv").write_text("image_path\n")
    (tmp_path / "empty").mkdir()
    arguments = [str(int8), "--against", str(source), "--standardise", "fixed"]
    assert main([*arguments, "--faces", str(tmp_path / name)]) == code
    asked = "Give the folder of crops that `facenet-port align` writes."
    assert f"{tmp_path / name}: {problem}. {asked}" in capsys.readouterr().err


def test_faces_need_a_standardisation(int8, source, tmp_path, capsys):
    assert main([str(int8), "--against", str(source), "--faces", str(tmp_path)]) == 2
    assert "Give --standardise fixed" in capsys.readouterr().err
