"""Audits of ONNX and TFLite graphs: files of the exporters, with and without planted faults."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from checks.audit.__main__ import main
from checks.audit.compare_tensors import compare_tensors
from checks.audit.graphs import onnx_file, tflite_file
from checks.audit.graphs.find_layers import find_layers
from checks.audit.graphs.graph import NotUnderstoodError
from checks.audit.graphs.graph_formats import find_graph_format
from checks.audit.graphs.preprocessing import detect_preprocessing
from checks.audit.graphs.run_graph import audited_batches
from checks.audit.graphs.runtime_process import RuntimeProcess
from checks.audit.judge import judge_run
from checks.audit.run import audit
from checks.audit.source_weights import source_weights
from checks.core.activations import LAYERS, STAGES
from checks.core.inputs import InputBatch, prewhiten
from checks.core.network import short_name
from checks.diagnosis.explain_tensor import SourceTensors
from converter.convert import to_numpy_state_dict
from converter.errors import SourceError
from converter.hub.catalog_entry import FIXED, PER_IMAGE
from converter.plan import describe, infer_variant
from tests.conftest import CLASSES
from tests.fuzz.sandbox import ROOT
from tests.support.graph_exports import SIZE, export_onnx, network
from tests.support.onnx_edit import Edit

pytestmark = pytest.mark.slow

FAITHFUL = (
    "The port is faithful: its weights are the source's with factors folded in, bit for bit, and its graph "
    "computes what the network does."
)
ACTIVATIONS = {*STAGES, *LAYERS}


@pytest.fixture(scope="module")
def state_dict(tensors):
    return to_numpy_state_dict(tensors)


def names(result, *statuses):
    return {tensor.name for tensor in result.tensors if tensor.status in statuses}


def judgement(result, name):
    return next(each for each in result.judgements if each.name == name)


def failed(result):
    return {each.name for each in result.judgements if not each.passed}


# Faithful graphs.


@pytest.mark.whole_inputs
def test_pytorchs_export_is_faithful(folded, source):
    result = audit(folded, source)
    assert result.passed, result.judgements
    assert result.verdict == FAITHFUL
    assert names(result, "differs", "missing", "extra", "approximate") == set()
    assert sum(tensor.status == "folded" for tensor in result.tensors) == 2 * 111
    run = result.run
    assert (run.weights, run.arithmetic) == ("float32", "float32")
    assert run.runtime.startswith("onnxruntime ")
    assert run.preprocessing == "none baked in: it takes standardised RGB images"
    feed = "RGB standardised images, NCHW float32 (N, 3, 107, 107); gives embeddings of length one"
    assert run.feed == feed
    assert [batch.name for batch in run.inputs] == ["standard normal", "smooth", "constant", "near-black"]
    assert {layer.activation for layer in run.inputs[0].layers} == ACTIVATIONS
    assert judgement(result, "arithmetic").share <= 0.5
    assert "without the source's classifier" in judgement(result, "tensors").statement


@pytest.mark.whole_inputs
def test_tensorflows_conversion_is_faithful(tflite, source):
    result = audit(tflite, source)
    assert result.passed, result.judgements
    # TensorFlow takes the root of the Bottleneck's variance by the processor's own estimate.
    assert len(names(result, "approximate")) <= 1
    assert result.verdict == FAITHFUL.replace(
        "bit for bit", "within rounding" if names(result, "approximate") else "bit for bit"
    )
    assert result.run.runtime.startswith("LiteRT ")
    feed = "RGB standardised images, NHWC float32 (N, 107, 107, 3); gives embeddings of length one"
    assert result.run.feed == feed
    assert {layer.activation for layer in result.run.inputs[0].layers} == ACTIVATIONS
    scaled = [tensor for tensor in result.tensors if "residual scale 0.17 folded in" in tensor.detail]
    assert len(scaled) == 2 * 5


def test_half_precision_is_judged_by_its_own_rounding(tflite, source):
    result = audit(tflite.with_name("half.tflite"), source)
    assert result.passed, result.judgements
    assert (result.run.weights, result.run.arithmetic) == ("float16", "float32")
    assert "rounded to half precision, within rounding" in result.verdict
    distance = result.run.inputs[0].distance
    assert 1e-4 < distance < 2e-2  # beyond any float32 tolerance, within that of half precision


@pytest.fixture(scope="module")
def heads(state_dict, tmp_path_factory):
    return export_onnx(Heads(state_dict).eval(), tmp_path_factory.mktemp("heads") / "heads.onnx")


def test_a_classifier_is_audited_as_well(heads, source, tmp_path):
    edit = Edit(heads)
    embeddings = edit.graph.output[0]
    edit.graph.output.remove(embeddings)
    edit.remove_ancestors(embeddings.name)
    result = audit(edit.save(tmp_path / "classifier.onnx"), source)
    assert result.passed, result.judgements
    assert result.run.feed.endswith("gives logits")
    assert result.network.endswith(f"{CLASSES} classes")
    assert sum(tensor.stage == "Logits" for tensor in result.tensors) == 2


class Heads(torch.nn.Module):
    """Outputs the embedding and the logits."""

    def __init__(self, state_dict):
        super().__init__()
        self.network = network(state_dict)

    def forward(self, images):
        prelogits = self.network.prelogits(images)
        embeddings = self.network.head(prelogits)
        return embeddings, self.network.logits(prelogits)


def test_wrong_logits_are_found_beside_the_embeddings(heads, source, tmp_path):
    """Correct logits come from the embedding before normalisation."""
    edit = Edit(heads)
    embeddings, logits = (output.name for output in edit.graph.output)
    edit.maker(logits).input[0] = embeddings
    result = audit(edit.save(tmp_path / "wrong.onnx"), source)
    assert not result.passed
    assert result.run.feed.endswith("gives embeddings of length one and logits")
    assert result.run.first_divergence == "Logits"
    assert "is not judged" not in judgement(result, "tensors").statement


# Preprocessing.


def test_pixels_that_the_graph_standardises_itself_and_otherwise_than_in_training(heads, source, tmp_path):
    """With logits beside the embeddings, which are judged as well and have no fault."""
    edit = Edit(heads)
    edit.prepend(
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "grey"], ["centred"]),
        helper.make_node("Div", ["centred", "range"], ["images"]),
        shape=("N", SIZE, SIZE, 3),
        grey=np.float32(127.5),
        range=np.float32(128),
    )
    result = audit(edit.save(tmp_path / "pixels.onnx"), source, standardisation=PER_IMAGE)
    assert result.run.preprocessing == "(x - 127.5) / 128 is baked in: it takes RGB pixels of 0 to 255"
    gives = "embeddings of length one and logits"
    assert result.run.feed == f"RGB pixels of 0 to 255, NHWC float32 (N, 107, 107, 3); gives {gives}"
    assert result.run.first_divergence is None
    assert "is not judged" not in judgement(result, "tensors").statement
    assert failed(result) == {"preprocessing"}
    assert "in training it was per image (prewhiten)" in judgement(result, "preprocessing").statement
    for trained in (None, FIXED):
        assert all(each.passed for each in judge_run(result.run, trained))


def test_bgr_bytes_and_another_range_are_detected_in_a_graph_that_folds_nothing(plain, source, tmp_path):
    edit = Edit(plain)
    edit.prepend(
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["numbers", "order"], ["turned"], axis=1),
        helper.make_node("Div", ["turned", "range"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["images"]),
        dtype=TensorProto.UINT8,
        order=np.array([2, 1, 0]),
        range=np.float32(127.5),
        one=np.float32(1),
    )
    result = audit(edit.save(tmp_path / "bgr.onnx"), source)
    assert result.passed, result.judgements
    assert result.run.preprocessing == "x / 127.5 - 1 is baked in: it takes BGR pixels of 0 to 255"
    assert result.verdict == (
        "The port is exact: every tensor is the source's, bit for bit, and its graph computes what the "
        "network does. It takes BGR images."
    )
    assert {tensor.status for tensor in result.tensors} == {"equal"}


def test_per_image_whitening_is_detected_and_its_rounding_is_not_a_fault(
    plain, source, tmp_path, monkeypatch
):
    """Nor on images of a few levels, of which each input has the first."""
    batches = [InputBatch(batch.name, batch.images[:1]) for batch in audited_batches(0)]
    monkeypatch.setattr("checks.audit.audit_graph.audited_batches", lambda seed: batches)
    edit = Edit(plain)
    edit.prepend(
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"]),
        helper.make_node("Sub", ["pixels", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "axes"], ["variance"]),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["images"]),
        axes=np.array([1, 2, 3]),
    )
    result = audit(edit.save(tmp_path / "whitened.onnx"), source)
    assert result.passed, result.judgements
    assert len(result.run.inputs) == 4
    assert result.run.preprocessing == "per image (prewhiten) is baked in: it takes RGB images of any scale"


def test_integers_that_the_graph_whitens_are_pixels_of_no_other_scale():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.float64)
    found = detect_preprocessing(pixels, prewhiten, "uint8")
    assert found.statement == "per image (prewhiten) is baked in: it takes RGB pixels of 0 to 255"


def test_standardisation_folded_into_the_first_layer_is_detected(tflite, source):
    result = audit(tflite.with_name("bytes.tflite"), source)
    assert result.passed, result.judgements
    assert result.run.preprocessing == "(x - 127.5) / 128 is baked in: it takes RGB pixels of 0 to 255"
    first = [tensor for tensor in result.tensors if tensor.stage == "Conv2d_1a_3x3"]
    assert all("the standardisation x / 128 - 0.996" in tensor.detail for tensor in first)


# Faults in the weights.


def tensors_at_fault(path, tensors):
    """Find the faults of a graph's weights, without a run."""
    expected = source_weights(
        tensors, infer_variant(describe(tensors)), SourceTensors(to_numpy_state_dict(tensors), {})
    )
    read = tflite_file.read_tflite if path.suffix == ".tflite" else onnx_file.read_onnx
    return [
        tensor
        for tensor in compare_tensors(find_layers(read(path)).weights, expected)
        if not tensor.is_faithful
    ]


def test_one_bit_of_a_folded_kernel_is_found_and_named_by_the_command(folded, source, tmp_path, capsys):
    edit = Edit(folded)
    convolution = edit.node("Conv", 60)
    edit.flip(convolution.input[1], 7, 0)
    path = edit.save(tmp_path / "flipped.onnx")
    assert main([str(path), "--against", str(source)]) == 1
    out = capsys.readouterr().out
    assert re.match(
        rf"The port differs: [a-z]\S+\.weight \({convolution.input[1]}\) is not the source's\.\n", out
    )
    assert re.search(
        r"in all      1 of \d+ values differs, by up to 1 step from one float32 to the next", out
    )
    assert out.count("\n") <= 15


def test_one_bit_of_any_folded_tensor_is_found_and_named(folded, tensors, tmp_path):
    """Bits of the fraction, the exponent and the sign, each of a kernel or a bias of its own."""
    edit = Edit(folded)
    flipped = {}
    for place in (1, 2):
        for bit in (0, 12, 23, 31):
            name = edit.node("Conv", len(flipped) + 90).input[place]
            edit.flip(name, 5, bit)
            flipped[name] = 1
    wrong = tensors_at_fault(edit.save(tmp_path / "flipped.onnx"), tensors)
    assert {each.name: each.differing for each in wrong} == flipped
    assert len(flipped) == 8


def test_a_graph_made_for_bgr_in_its_weights_is_named(folded, plain, tensors, tmp_path):
    for path, message in ((folded, "reversed, for BGR"), (plain, "input channels in another order")):
        edit = Edit(path)
        kernel = edit.constants[edit.node("Conv").input[1]]
        array = numpy_helper.to_array(kernel)
        kernel.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array[:, ::-1]), kernel.name))
        (wrong,) = tensors_at_fault(edit.save(tmp_path / "bgr.onnx"), tensors)
        assert message in wrong.detail


def test_another_residual_scale_is_named(folded, tensors, tmp_path):
    edit = Edit(folded)
    scale = edit.maker(edit.node("Mul").input[1])
    scale.attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32(0.1), scale.output[0]))
    (wrong,) = tensors_at_fault(edit.save(tmp_path / "scale.onnx"), tensors)
    assert wrong.detail == "residual scale 0.1, expected 0.17"
    assert wrong.stage == "Repeat/block35_1"


# Faults in the graph.


def swap_branches(edit):
    mixed = edit.node("Concat", 6)  # five blocks of 35, Mixed_6a, then block17_1
    mixed.input[:] = list(reversed(mixed.input))


def add_relu(edit):
    pool = edit.node("GlobalAveragePool")
    relu = helper.make_node("Relu", [pool.input[0]], ["rectified"])
    edit.graph.node.insert(list(edit.graph.node).index(pool), relu)
    pool.input[0] = "rectified"


def drop_relu(edit):
    for node in edit.graph.node:
        if node.op_type == "Relu" and edit.maker(node.input[0]).op_type == "Add":
            node.op_type = "Identity"
            return


def pad_pool(edit):
    pool = edit.node("MaxPool")
    next(each for each in pool.attribute if each.name == "pads").ints[:] = [1, 1, 1, 1]


def train_batch_norm(edit):
    edit.node("BatchNormalization", 3).attribute.append(helper.make_attribute("training_mode", 1))


def wire_in_a_circle(edit):
    first = edit.node("Relu")
    edit.node("Conv").input[0] = first.output[0]


def mean_another_relu(edit):
    edit.node("Relu", 20).domain = "somebody.else"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (train_batch_norm, "Relu '.*' of BatchNormalization '.*' where Conv2d_3b_1x1 should be"),
        (wire_in_a_circle, "'.*' depends on its own output"),
        (mean_another_relu, "Relu"),
    ],
)
def test_operations_with_another_meaning_are_refused(plain, tmp_path, fault, message):
    edit = Edit(plain)
    fault(edit)
    with pytest.raises(NotUnderstoodError, match=message):
        find_layers(onnx_file.read_onnx(edit.save(tmp_path / "fault.onnx")))


def test_a_residual_that_is_not_scaled_is_named(plain, tensors, tmp_path):
    edit = Edit(plain)
    scaled = edit.node("Mul")
    scaled.op_type = "Identity"
    del scaled.input[1:]
    (wrong,) = tensors_at_fault(edit.save(tmp_path / "unscaled.onnx"), tensors)
    assert (wrong.status, wrong.name) == ("missing", "Repeat/block35_1, the residual scale of 0.17")


def unpad_convolution(edit):
    next(each for each in edit.node("Conv", 2).attribute if each.name == "pads").ints[:] = [0, 0, 0, 0]


def other_epsilon(edit):
    next(each for each in edit.node("BatchNormalization", 3).attribute if each.name == "epsilon").f = 1e-5


FAULTS = {
    unpad_convolution: ("Conv2d_2b_3x3", "is padded by ((0, 0), (0, 0)), expected SAME"),
    pad_pool: ("MaxPool_3a_3x3", "is padded by ((1, 1), (1, 1)), expected VALID"),
    other_epsilon: ("Conv2d_3b_1x1", "normalises with an epsilon of 1e-05, not 0.001"),
    drop_relu: ("Repeat/block35_1", "ends without a ReLU"),
    swap_branches: ("Repeat_1/block17_1", "concatenates its branches in the order 1, 0"),
    add_relu: ("Block8", "ends with a ReLU"),
}
"""Each fault, in the order of evaluation, with its place and its message."""


def test_faults_in_a_graph_are_found_each_at_its_layer_behind_unknown_preprocessing(plain, source, tmp_path):
    edit = Edit(plain)
    for fault in FAULTS:
        fault(edit)
    edit.prepend(helper.make_node("Abs", ["pixels"], ["images"]))
    result = audit(edit.save(tmp_path / "faults.onnx"), source)
    assert judgement(result, "tensors").passed
    assert {"structure", "preprocessing", "arithmetic"} <= failed(result)
    assert result.run.preprocessing.startswith("unknown")
    messages = [f"{place} {message}" for place, message in FAULTS.values()]
    messages.append("Abs before the first layer, which a run cannot judge")
    assert sorted(judgement(result, "structure").details) == sorted(messages)
    # A wrong order of concatenation shows in the block's last convolution. No layer without a fault diverges.
    first, *_ = places = [place for place, _ in FAULTS.values()]
    diverging = [
        layer.activation.removeprefix("InceptionResnetV1/") for layer in result.run.inputs[0].diverging
    ]
    assert [name.removesuffix("/Conv2d_1x1") for name in diverging] == places
    assert result.verdict == (
        f"The port differs: its weights are faithful, but its graph computes another result from {first} on."
    )


def test_faults_that_only_a_run_shows_are_found(plain, source, tmp_path):
    """The search passes over a cast to half precision, which changes values, and a Gather that moves them."""
    edit = Edit(plain)
    relu = edit.node("Relu", 40)
    to_half = helper.make_node("Cast", [relu.output[0]], ["half"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["half"], ["single"], to=TensorProto.FLOAT)
    for node in edit.graph.node:
        node.input[:] = ["single" if name == relu.output[0] else name for name in node.input]
    place = list(edit.graph.node).index(relu) + 1
    edit.graph.node.insert(place, to_half)
    edit.graph.node.insert(place + 1, back)
    pool = edit.node("GlobalAveragePool")
    order = np.arange(1792)
    order[:2] = [1, 0]
    edit.graph.initializer.append(numpy_helper.from_array(order, "order"))
    gather = helper.make_node("Gather", [pool.output[0], "order"], ["reordered"], axis=1)
    for node in edit.graph.node:
        node.input[:] = ["reordered" if name == pool.output[0] else name for name in node.input]
    edit.graph.node.insert(list(edit.graph.node).index(pool) + 1, gather)
    result = audit(edit.save(tmp_path / "cast.onnx"), source)
    assert result.exit_code == 1
    assert failed(result) >= {"arithmetic"}
    assert judgement(result, "structure").passed
    assert [short_name(layer.activation) for layer in result.run.inputs[0].diverging] == [
        "Mixed_6a/Branch_0/Conv2d_1a_3x3",
        "Mixed_6a/Branch_1/Conv2d_0a_1x1",
        "Mixed_6a",
        "Bottleneck",
    ]
    # Each is found with a margin, at the layers that take the rounded or the moved values and nowhere else.
    for batch in result.run.inputs:
        shares = sorted(layer.share for layer in batch.layers)
        assert shares[-1] >= 2
        assert not any(0.5 < share < 2 for share in shares)


# Other networks and bad files.


def small_onnx(path):
    weights = numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "mobilenet",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 224, 224))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weights],
    )
    path.write_bytes(helper.make_model(graph, producer_name="somebody").SerializeToString())
    return path


def small_tflite(path):
    import tensorflow as tf

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 3), tf.float32)])
        def __call__(self, images):
            return tf.nn.conv2d(images, tf.ones((3, 3, 3, 64)), 1, "SAME")

    model = Model()
    concrete = model.__call__.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model)
    path.write_bytes(converter.convert())
    return path


def test_another_network_is_refused_with_what_it_is(source, tmp_path, capsys):
    for path, title in (
        (small_onnx(tmp_path / "other.onnx"), "the graph 'mobilenet' of somebody"),
        (small_tflite(tmp_path / "other.tflite"), "the graph 'main'"),
    ):
        assert main([str(path), "--against", str(source)]) == 3
        message = capsys.readouterr().err
        assert f"{path}: its graph is not understood: " in message
        assert title in message
        assert "with 1 convolution, taking" in message
        assert "Nor can its embeddings be compared: " in message


def test_the_message_names_the_node_and_the_place(folded, tmp_path):
    edit = Edit(folded)
    # One branch of a late block takes the images in place of the block's input.
    relu = edit.maker(edit.node("Concat", 20).input[0])
    edit.maker(relu.input[0]).input[0] = "images"
    path = tmp_path / "elsewhere.onnx"
    with pytest.raises(NotUnderstoodError, match=r"in a branch of|where .* should be"):
        find_layers(onnx_file.read_onnx(edit.save(path)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.onnx", b""),
        ("noise.onnx", bytes(range(256))),
        ("text.onnx", b"<!doctype html>"),
        ("empty.tflite", b""),
        ("noise.tflite", b"\x1c\0\0\0TFL3" + bytes(range(200))),
        ("text.tflite", b"<!doctype html>"),
    ],
)
def test_files_of_other_formats_are_refused_with_one_message(source, tmp_path, capsys, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert main([str(path), "--against", str(source)]) == 3
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(f"python -m checks.audit: error: {path}: ")
    assert "Traceback" not in streams.err
    assert "Please report" not in streams.err


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_graph_that_is_cut_off_is_refused(folded, tflite, source, tmp_path, share):
    for path in (folded, tflite):
        cut = tmp_path / path.name
        content = path.read_bytes()
        cut.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(SourceError) as caught:
            audit(cut, source)
        assert str(cut) in str(caught.value)


def test_weights_outside_the_folder_are_not_read(folded, source, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4 * 32 * 3 * 3 * 3))
    inside = tmp_path / "inside"
    inside.mkdir()
    for location in ("../secret", str(tmp_path / "secret")):
        edit = Edit(folded)
        kernel = edit.constants[edit.node("Conv").input[1]]
        kernel.ClearField("raw_data")
        kernel.data_location = TensorProto.EXTERNAL
        kernel.external_data.add(key="location", value=location)
        with pytest.raises(SourceError, match="its data lies outside the folder of the model"):
            audit(edit.save(inside / "port.onnx"), source)


def test_a_runtime_that_refuses_or_crashes_is_a_refusal(folded, tmp_path):
    edit = Edit(folded)
    edit.node("Relu").op_type = "Nonsense"
    graph = onnx_file.read_onnx(edit.save(tmp_path / "nonsense.onnx"))
    images = np.zeros((1, 3, SIZE, SIZE), np.float32)
    with RuntimeProcess(graph) as process, pytest.raises(SourceError, match=r"it does not run \(.*Nonsense"):
        process.run(images, ["embeddings"], as_written=False)
    with RuntimeProcess(onnx_file.read_onnx(folded)) as process:
        process.run(images, ["embeddings"], as_written=False)
        os.kill(process._child.pid, signal.SIGSEGV)
        with pytest.raises(SourceError, match=r"its runtime crashes \(SIGSEGV\)"):
            process.run(images, ["embeddings"], as_written=False)


def test_a_missing_package_gives_exit_code_4_and_the_line_that_installs_it(tmp_path):
    """One process starts without all of them, and audits without each alone."""
    onnx_line, tflite_line = (f"pip install 'facenet-port[{extra}]'" for extra in ("onnx", "tflite"))
    lines = {"onnx": onnx_line, "onnxruntime": onnx_line, "ai_edge_litert": tflite_line}
    (tmp_path / "port.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    (tmp_path / "port.tflite").write_bytes(b"\x1c\0\0\0TFL3")
    code = (
        "import sys\n"
        "modules = sys.argv[1:]\n"
        "sys.modules.update(dict.fromkeys(modules))\n"
        "from checks.audit.__main__ import main\n"
        "for module in modules:\n"
        "    for each in modules:\n"
        "        sys.modules.pop(each, None)\n"
        "    sys.modules[module] = None\n"
        "    port = 'port.tflite' if module == 'ai_edge_litert' else 'port.onnx'\n"
        "    print(main([port, '--against', 'vggface2', '--offline']))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", code, *lines], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert (process.returncode, process.stdout) == (0, "4\n" * 3), process.stderr
    messages = process.stderr.splitlines()
    assert len(messages) == 3
    for message, (module, line) in zip(messages, lines.items(), strict=True):
        assert f"graph needs {module.replace('_', '-')}: {line}." in message


@pytest.mark.parametrize("name", ["port.onnx", "port.tflite"])
def test_a_pointer_of_git_lfs_is_called_that(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(SourceError, match=r"a pointer of Git LFS.*`git lfs pull`"):
        find_graph_format(path)


def test_the_graph_of_a_saved_model_is_not_taken_for_onnx(tmp_path):
    path = tmp_path / "saved_model.pb"
    path.write_bytes(b"\x08\x01\x12\x02\x0a\x00")
    assert find_graph_format(path) is None


def test_tflite_is_detected_from_its_contents(tflite, tmp_path):
    renamed = tmp_path / "model.bin"
    shutil.copy(tflite, renamed)
    assert find_graph_format(renamed).name == "TFLite"
    assert len(find_layers(tflite_file.read_tflite(renamed)).weights.layers) == 133
