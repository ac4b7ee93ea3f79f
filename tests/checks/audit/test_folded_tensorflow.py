"""Audits of frozen TensorFlow graphs whose BatchNorms a transform folded into the convolutions."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from checks.audit.__main__ import main
from checks.audit.compare_tensors import compare_tensors
from checks.audit.graphs.find_layers import find_layers
from checks.audit.graphs.graph import NotUnderstoodError
from checks.audit.graphs.graph_formats import find_graph_format
from checks.audit.graphs.tensorflow_file import read_folded_graph
from checks.audit.run import audit
from checks.audit.source_weights import source_weights
from checks.diagnosis.explain_tensor import SourceTensors
from converter.convert import to_numpy_state_dict
from converter.errors import SourceError
from converter.plan import describe, infer_variant
from tests.support.graph_exports import SIZE, fold_batch_norms, inference_graph

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.slow

FIRST = "InceptionResnetV1/Conv2d_1a_3x3/Conv2D"


@pytest.fixture(scope="module")
def inference(tensors):
    return inference_graph(tensors)


@pytest.fixture(scope="module")
def folded(inference):
    return fold_batch_norms(inference)


def save(definition, path, change=None):
    if change is not None:
        definition = copy.deepcopy(definition)
        change({node.name: node for node in definition.node})
    path.write_bytes(definition.SerializeToString())
    return path


def edit(node, change):
    import tensorflow as tf

    array = tf.make_ndarray(node.attr["value"].tensor).copy()
    changed = change(array)
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array if changed is None else changed))


def unfaithful(path, tensors):
    expected = source_weights(
        tensors, infer_variant(describe(tensors)), SourceTensors(to_numpy_state_dict(tensors), {})
    )
    results = compare_tensors(find_layers(read_folded_graph(path)).weights, expected)
    return [result for result in results if not result.is_faithful]


def test_the_fold_of_these_tests_is_tensorflows_to_the_last_bit():
    import tensorflow as tf
    from tensorflow.python.tools import optimize_for_inference_lib

    random = np.random.default_rng(0)
    vectors = [random.uniform(0.01, 2, 5).astype(np.float32) for _ in range(4)]
    with tf.Graph().as_default() as graph:
        images = tf.compat.v1.placeholder(tf.float32, (None, 6, 6, 3))
        net = tf.nn.conv2d(images, random.standard_normal((3, 3, 3, 5)).astype(np.float32), 1, "SAME")
        net = tf.compat.v1.nn.fused_batch_norm(net, *vectors, epsilon=0.001, is_training=False)[0]
        tf.nn.relu(net, name="end")
    definition = graph.as_graph_def()
    actual, expected = (
        {
            node.name: (list(node.input), node.attr["value"].tensor.tensor_content)
            for node in fold(definition).node
        }
        for fold in (fold_batch_norms, optimize_for_inference_lib.fold_batch_norms)
    )
    assert actual == {name: expected[name] for name in actual}
    assert any(name.endswith("_weights") for name in actual)


def test_a_folded_graph_is_judged_as_a_graph_and_to_the_last_bit(folded, source, tmp_path, capsys):
    path = save(folded, tmp_path / "folded.pb")
    report = tmp_path / "result.json"
    assert main([str(path), "--against", str(source), "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "The port is faithful: its weights are the source's with factors folded in, bit for bit"
    )
    assert f"{path} (TensorFlow graph with folded BatchNorms)" in out
    assert "68 equal bit for bit, 222 folded, bit for bit" in out
    result = json.loads(report.read_text())
    assert result["run"]["runtime"].startswith("TensorFlow ")
    assert {len(batch["layers"]) for batch in result["run"]["inputs"]} == {158}


def test_folding_in_float32_with_a_sum_is_judged_to_the_last_bit(inference, tensors, tmp_path):
    path = save(fold_batch_norms(inference, in_float32=True), tmp_path / "folded.bin")
    assert find_graph_format(path).name == "TensorFlow"
    assert unfaithful(path, tensors) == []
    layers = find_layers(read_folded_graph(path))
    assert layers.remarks == ()
    expected = source_weights(
        tensors, infer_variant(describe(tensors)), SourceTensors(to_numpy_state_dict(tensors), {})
    )
    assert {result.status for result in compare_tensors(layers.weights, expected)} == {"equal", "folded"}


def test_one_bit_of_a_folded_tensor_is_found(folded, tensors, tmp_path):
    def flip(array):
        array.reshape(-1).view(np.uint32)[3] ^= np.uint32(1)

    convolution = "InceptionResnetV1/Repeat_1/block17_4/Branch_1/Conv2d_0b_1x7/Conv2D"
    names = [f"{convolution}_weights", f"{convolution.replace('17_4', '17_5')}_bn_offset"]
    path = save(folded, tmp_path / "flipped.pb", lambda nodes: [edit(nodes[name], flip) for name in names])
    assert [(wrong.name, wrong.differing) for wrong in unfaithful(path, tensors)] == [
        (name, 1) for name in names
    ]


def test_bgr_weights_and_another_epsilon_are_named(folded, tensors, tmp_path):
    def change(nodes):
        edit(nodes[f"{FIRST}_weights"], lambda array: array[:, :, ::-1])
        variance = tensors["InceptionResnetV1/Mixed_6a/Branch_0/Conv2d_1a_3x3/BatchNorm/moving_variance"]
        ratio = np.sqrt((variance + np.float32(1e-3)) / (variance + np.float32(1e-5)))
        name = "InceptionResnetV1/Mixed_6a/Branch_0/Conv2d_1a_3x3/Conv2D_weights"
        edit(nodes[name], lambda array: (array * ratio).astype(np.float32))

    bgr, epsilon = unfaithful(save(folded, tmp_path / "changed.pb", change), tensors)
    assert "reversed, for BGR" in bgr.detail
    assert "epsilon" in epsilon.detail


def pad(nodes):
    nodes["InceptionResnetV1/Conv2d_2a_3x3/Conv2D"].attr["padding"].s = b"SAME"


def stride(nodes):
    nodes[FIRST].attr["strides"].list.i[:] = [1, 1, 1, 1]


def swap(nodes):
    concat = nodes["InceptionResnetV1/Repeat_1/block17_1/concat"]
    concat.input[:] = [concat.input[1], concat.input[0], concat.input[2]]


def explicit(nodes):
    attributes = nodes["InceptionResnetV1/Conv2d_2b_3x3/Conv2D"].attr
    attributes["padding"].s = b"EXPLICIT"
    attributes["explicit_paddings"].list.i[:] = [0, 0, 1, 1, 1, 1, 0, 0]


def test_faults_in_the_structure_are_named_each_at_its_layer(folded, tmp_path):
    """A padding that is written out as numbers is no fault."""

    def change(nodes):
        for fault in (stride, pad, explicit, swap):
            fault(nodes)

    layers = find_layers(read_folded_graph(save(folded, tmp_path / "faults.pb", change)))
    assert sorted(layers.remarks) == [
        "Conv2d_1a_3x3 has strides (1, 1), expected (2, 2)",
        "Conv2d_2a_3x3 is padded by SAME, expected VALID",
        "Repeat_1/block17_1 concatenates its branches in the order 1, 0",
    ]


def test_dropout_behind_phase_train_is_passed_over(folded, tensors, tmp_path):
    import tensorflow as tf

    from facenet_tf.frozen import open_frozen

    changed = copy.deepcopy(folded)
    matrix = next(node for node in changed.node if node.op == "MatMul")
    nodes = (
        ("phase_train", "Placeholder", []),
        ("cond/Switch", "Switch", [matrix.input[0], "phase_train"]),
        ("cond/off", "Identity", ["cond/Switch"]),
        ("cond/on", "Relu", ["cond/Switch:1"]),
        ("cond/Merge", "Merge", ["cond/off", "cond/on"]),
    )
    for name, op, inputs in nodes:
        node = changed.node.add(name=name, op=op, input=inputs)
        kind = tf.bool if op == "Placeholder" else tf.float32
        node.attr["dtype" if op == "Placeholder" else "T"].type = kind.as_datatype_enum
    changed.node[-1].attr["N"].i = 2
    matrix.input[0] = "cond/Merge"
    path = save(changed, tmp_path / "dropout.pb")
    assert find_graph_format(path).name == "TensorFlow"
    assert unfaithful(path, tensors) == []
    graph = read_folded_graph(path)
    assert [value.name for value in graph.inputs] == ["input"]
    assert find_layers(graph).remarks == ()
    # The function with which an audit runs a graph.
    image = np.random.default_rng(0).standard_normal((1, SIZE, SIZE, 3)).astype(np.float32)
    expected, actual = (
        open_frozen(each, ["embeddings"], as_written=as_written)("input", image)[0]
        for each, as_written in ((save(folded, tmp_path / "plain.pb"), True), (path, False))
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_height_and_width_exchanged_are_not_understood_at_their_place(folded, tmp_path):
    name = "InceptionResnetV1/Repeat_1/block17_10/Branch_1/Conv2d_0b_1x7/Conv2D_weights"
    path = save(
        folded,
        tmp_path / "exchanged.pb",
        lambda nodes: edit(nodes[name], lambda array: array.transpose(1, 0, 2, 3)),
    )
    with pytest.raises(NotUnderstoodError, match="block17_10 joins branches with kernels"):
        find_layers(read_folded_graph(path))


def test_a_graph_that_writes_files_is_refused(folded, source, tmp_path, capsys):
    def change(nodes):
        nodes["embeddings"].op = "WriteFile"

    path = save(folded, tmp_path / "writes.pb", change)
    assert main([str(path), "--against", str(source)]) == 3
    assert "it holds the operations WriteFile, not only arithmetic, and is not run" in capsys.readouterr().err


def test_graphs_with_their_batch_norms_are_audited_by_name(checkpoint):
    assert find_graph_format(checkpoint.frozen) is None
    assert find_graph_format(checkpoint.meta) is None


@pytest.mark.parametrize("share", [0.3, 0.9999])
def test_a_folded_graph_that_is_cut_off_is_refused(folded, source, tmp_path, share):
    content = folded.SerializeToString()
    path = tmp_path / "cut.pb"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SourceError) as caught:
        audit(path, source)
    assert str(path) in str(caught.value)
