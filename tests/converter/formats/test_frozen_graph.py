"""Frozen graphs as TensorFlow's tools and other people's scripts leave them."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest

from converter.errors import SourceError
from converter.formats.detect import open_source
from tests.conftest import same_bits

UNIT = "InceptionResnetV1/Conv2d_1a_3x3"
NAMES = ("weights", "BatchNorm/beta", "BatchNorm/moving_mean", "BatchNorm/moving_variance")


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


def build(tf, *, fused=True, resource=False):
    """Build a convolution with a BatchNorm, as tf-slim does for inference."""
    v1 = tf.compat.v1
    images = v1.placeholder(tf.float32, (None, 8, 8, 3), "input")
    with v1.variable_scope(UNIT, use_resource=resource):
        kernel = v1.get_variable("weights", (3, 3, 3, 4))
        beta, mean, variance = (v1.get_variable(f"BatchNorm/{n}", 4) for n in ("beta", "moving_mean", "x"))
        variance = v1.get_variable("BatchNorm/moving_variance", initializer=np.ones(4, np.float32))
        output = tf.nn.conv2d(images, kernel, 1, "SAME", name="Conv2D")
        if fused:
            ones = tf.constant(np.ones(4, np.float32))
            output = v1.nn.fused_batch_norm(output, ones, beta, mean, variance, 1e-3, is_training=False)[0]
        else:
            output = tf.nn.batch_normalization(output, mean, variance, beta, None, 1e-3)
    return tf.nn.relu(output, name="embeddings")


@pytest.fixture(scope="module")
def freeze(tf):
    """A function that builds and freezes the unit; it returns the GraphDef and the variables' values."""

    def freeze(**options):
        v1 = tf.compat.v1
        with tf.Graph().as_default() as graph, v1.Session() as session:
            build(tf, **options)
            variables = v1.global_variables()
            session.run(v1.variables_initializer(variables))
            values = {v.op.name: session.run(v) for v in variables if v.op.name.rpartition("/")[2] != "x"}
            definition = graph.as_graph_def()
            frozen = v1.graph_util.convert_variables_to_constants(session, definition, ["embeddings"])
        return frozen, values

    return freeze


def assert_holds(path, graph, values):
    path.write_bytes(graph.SerializeToString())
    with open_source(path) as source:
        assert set(source) == set(values)
        assert all(same_bits(source[name], value) for name, value in values.items())


def refusal(path, graph):
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(SourceError) as caught:
        open_source(path)
    return str(caught.value)


# Graphs whose weights are all there


def with_reads_folded(tf, graph):
    """Fold each variable into the identity that reads it, as fold_constants does."""
    folded = tf.compat.v1.GraphDef()
    reads = {node.input[0]: node for node in graph.node if node.name.endswith("/read")}
    for node in graph.node:
        if node.op == "Const" and node.name in reads:
            constant = folded.node.add()
            constant.CopyFrom(node)
            constant.name = reads[node.name].name
        elif not node.name.endswith("/read"):
            folded.node.add().CopyFrom(node)
    return folded


def with_suffix_of_folding(tf, graph):
    graph = with_reads_folded(tf, graph)
    for node in graph.node:
        if node.name.endswith("/read"):
            node.name += "/_12__cf__12"
    return graph


def without_identities(tf, graph):
    """Remove the identities, as the transform `remove_nodes(op=Identity)` does."""
    inputs = {node.name: node.input[0] for node in graph.node if node.op == "Identity"}
    bare = tf.compat.v1.GraphDef()
    for node in graph.node:
        if node.op != "Identity":
            copy = bare.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [inputs.get(name, name) for name in node.input]
    return bare


def stripped(tf, graph):
    from tensorflow.python.tools import strip_unused_lib

    return strip_unused_lib.strip_unused(graph, ["input"], ["embeddings"], tf.float32.as_datatype_enum)


def in_another_order(tf, graph):
    graph = without_identities(tf, graph)
    backwards = tf.compat.v1.GraphDef()
    backwards.node.extend(reversed(graph.node))
    return backwards


def in_a_function(tf, graph):
    """Put the whole graph into two functions of the library, as a SavedModel or a compiled graph has it."""
    outer = tf.compat.v1.GraphDef()
    outer.node.add(name="input", op="Placeholder")
    outer.node.add(name="signature", op="PartitionedCall", input=["input"])
    for name in ("inference", "signature"):
        function = outer.library.function.add()
        function.signature.name = name
        function.node_def.extend(graph.node)
    return outer


@pytest.mark.parametrize(
    "transform",
    [
        with_reads_folded,
        with_suffix_of_folding,
        without_identities,
        stripped,
        in_another_order,
        in_a_function,
    ],
)
def test_a_constant_is_known_by_its_name_whatever_reads_it(tf, freeze, tmp_path, transform):
    graph, values = freeze()
    assert_holds(tmp_path / "control.pb", graph, values)
    assert_holds(tmp_path / "transformed.pb", transform(tf, graph), values)


def test_optimize_for_inference_keeps_the_weights_behind_a_condition(tf, tmp_path):
    """The published graphs have their BatchNorms in conditionals, which this tool does not fold."""
    from tensorflow.python.tools import optimize_for_inference_lib as tool

    values = {f"{UNIT}/{name}": np.full(4, n, np.float32) for n, name in enumerate(NAMES[1:])}
    with tf.Graph().as_default() as graph:
        training = tf.compat.v1.placeholder(tf.bool, (), "phase_train")
        constants = {
            name: tf.identity(tf.constant(v, name=name), f"{name}/read") for name, v in values.items()
        }
        switched = [tf.raw_ops.Switch(data=tensor, pred=training)[0] for tensor in constants.values()]
        tf.add_n(switched, name="embeddings")
    float32 = tf.float32.as_datatype_enum
    optimised = tool.optimize_for_inference(graph.as_graph_def(), ["phase_train"], ["embeddings"], float32)
    assert not any(node.name.endswith("/read") for node in optimised.node)
    assert_holds(tmp_path / "optimised.pb", optimised, values)


def test_resource_variables_frozen_by_either_tool(tf, freeze, tmp_path):
    graph, values = freeze(resource=True)
    assert not any(node.name.endswith(("/read", "/Read/ReadVariableOp")) for node in graph.node)
    assert_holds(tmp_path / "frozen.pb", graph, values)


def frozen_by_v2(function):
    from tensorflow.python.framework import convert_to_constants

    return convert_to_constants.convert_variables_to_constants_v2(function).graph.as_graph_def()


@pytest.mark.parametrize("resource", [False, True])
def test_convert_variables_to_constants_v2(tf, tmp_path, resource):
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session() as session:
        output = build(tf, resource=resource)
        session.run(v1.global_variables_initializer())
        used = [v for v in v1.global_variables() if v.op.name.rpartition("/")[2] != "x"]
        values = {v.op.name: session.run(v) for v in used}
        images = {"images": graph.get_tensor_by_name("input:0")}
        v1.saved_model.simple_save(session, str(tmp_path / "saved"), images, {"embeddings": output})
    function = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    assert_holds(tmp_path / "v2.pb", frozen_by_v2(function), values)


def test_convert_variables_to_constants_v2_of_a_function_loses_the_names(tf, tmp_path):
    wrapped = tf.compat.v1.wrap_function(lambda: build(tf, resource=True), [])
    message = refusal(tmp_path / "v2.pb", frozen_by_v2(wrapped.prune("input:0", "embeddings:0")))
    assert (
        f"the largest is called '{UNIT}/Conv2D/ReadVariableOp/resource'. Freezing has lost the names"
        in message
    )


def test_a_scalar_of_the_arithmetic_is_no_weight(tf, freeze, tmp_path):
    graph, values = freeze()
    node = graph.node.add(name="loss/weights", op="Const")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0))
    assert_holds(tmp_path / "scalar.pb", graph, values)


@pytest.mark.parametrize("op", ["FakeQuantWithMinMaxVarsPerChannel", "QuantizeAndDequantizeV2"])
def test_a_graph_that_rounds_its_weights_is_warned_of(freeze, tmp_path, caplog, op):
    graph, values = freeze()
    graph.node.add(name="rounded", op=op, input=[f"{UNIT}/weights/read"])
    assert_holds(tmp_path / "rounded.pb", graph, values)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "rounded.pb: this graph rounds weights or activations to few values" in record.getMessage()
    assert f"(operations: 1 of {op})" in record.getMessage()
    with open_source(tmp_path / "rounded.pb") as source:
        assert source.notes == (record.getMessage().partition(": ")[2].removesuffix("."),)


def with_a_second_constant(graph, name, change):
    kernel = next(node for node in graph.node if node.name == f"{UNIT}/weights")
    second = graph.node.add()
    second.CopyFrom(kernel)
    second.name = name
    content = bytearray(second.attr["value"].tensor.tensor_content)
    content[3] ^= change
    second.attr["value"].tensor.tensor_content = bytes(content)


@pytest.mark.parametrize("suffix", ["/read", "/_1__cf__1", "/read/_1__cf__1"])
def test_two_constants_of_one_variable_have_to_agree(tf, freeze, tmp_path, suffix):
    graph, values = freeze()
    graph = without_identities(tf, graph)
    with_a_second_constant(graph, f"{UNIT}/weights{suffix}", 0)
    assert_holds(tmp_path / "same.pb", graph, values)
    graph.node.pop()
    with_a_second_constant(graph, f"{UNIT}/weights{suffix}", 1)
    assert (
        f"its constants '{UNIT}/weights' and '{UNIT}/weights{suffix}' stand for one variable and differ. Give"
        in refusal(tmp_path / "other.pb", graph)
    )


def test_two_constants_of_one_variable_may_be_stored_differently(tf, tmp_path):
    graph = tf.compat.v1.GraphDef()
    for name, values in (("a/beta", np.full(4, 2, np.float32)), ("a/beta/read", 2.0)):
        node = graph.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values, tf.float32, (4,)))
    assert_holds(tmp_path / "same.pb", graph, {"a/beta": np.full(4, 2, np.float32)})


@pytest.mark.parametrize("name", ["frozen.meta", "frozen.pb"])
def test_a_meta_graph_of_a_frozen_graph_holds_the_weights(tf, freeze, tmp_path, name):
    graph, values = freeze()
    meta = tf.compat.v1.MetaGraphDef(graph_def=graph)
    meta.meta_info_def.tensorflow_version = tf.__version__
    assert_holds(tmp_path / name, meta, values)
    with_variables = tf.compat.v1.MetaGraphDef()
    with_variables.CopyFrom(meta)
    with_variables.graph_def.node.add(name="b/weights", op="VariableV2")
    assert "Put frozen.ckpt-STEP.index and its .data file beside it" in refusal(
        tmp_path / name, with_variables
    )
    meta.graph_def.ClearField("node")
    assert "this is a graph without weights, and no checkpoint" in refusal(tmp_path / name, meta)


# Graphs whose weights are gone


def test_batch_norms_folded_by_optimize_for_inference(tf, freeze, tmp_path):
    from tensorflow.python.tools import optimize_for_inference_lib as tool

    graph, _ = freeze()
    folded = tool.optimize_for_inference(graph, ["input"], ["embeddings"], tf.float32.as_datatype_enum)
    path = tmp_path / "folded.pb"
    assert refusal(path, folded) == (
        f"{path}: none of its constants is named after a variable of this network; the largest is called "
        f"'{UNIT}/Conv2D_weights'. BatchNorms are folded into its convolutions. Give the checkpoint. "
        f"`facenet-port audit {path} --against CHECKPOINT` judges this graph as it is."
    )


def test_batch_norms_folded_under_the_names_of_the_weights(tf, freeze, tmp_path):
    """fold_batch_norms of the graph transform tool gives the new kernel the old one's name."""
    graph, _ = freeze()
    for node in list(graph.node):
        if "BatchNorm" in node.name:
            graph.node.remove(node)
    path = tmp_path / "folded.pb"
    assert refusal(path, graph).startswith(
        f"{path}: its BatchNorms are folded into the convolutions (1 of 1), as graph transforms do, and "
        f"cannot be taken apart again. Give the checkpoint, or the graph before the transform. `facenet-port "
        "audit "
    )


def test_batch_norms_computed_in_advance(tf, freeze, tmp_path):
    """Folding constants turns an unfused BatchNorm into a product and a sum; only beta may be left."""
    graph, _ = freeze(fused=False)
    kept = [node for node in graph.node if "moving" not in node.name]
    del graph.node[:]
    graph.node.extend(kept)
    assert "its BatchNorms are folded into the convolutions (1 of 1)" in refusal(
        tmp_path / "folded.pb", graph
    )


@pytest.mark.parametrize("op", ["Dequantize", "QuantizedConv2D"])
def test_quantised_weights_are_named(tf, freeze, tmp_path, op):
    graph, _ = freeze()
    kernel = next(node for node in graph.node if node.name == f"{UNIT}/weights")
    kernel.op = op
    path = tmp_path / "quantised.pb"
    assert refusal(path, graph) == (
        f"{path}: its weights are quantised to integers (operations: 1 of {op}); the float32 weights are "
        "gone. Give the checkpoint, or the graph before its weights were quantised."
    )


def test_quantised_constants_are_named(tf, freeze, tmp_path):
    graph, _ = freeze()
    kernel = next(node for node in graph.node if node.name == f"{UNIT}/weights")
    kernel.attr["value"].tensor.dtype = tf.qint8.as_datatype_enum
    assert f"tensor '{UNIT}/weights': it is quantised to integers (DT_QINT8)" in refusal(
        tmp_path / "q.pb", graph
    )


def test_lost_names_are_said_to_be_lost(tf, freeze, tmp_path):
    graph, _ = freeze()
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
    path = tmp_path / "obfuscated.pb"
    message = refusal(path, graph)
    assert (
        "none of its constants is named after a variable of this network; the largest is called 'n1'"
        in message
    )
    assert f"`facenet-port audit {path} --against CHECKPOINT` judges this graph as it is" in message


def test_a_graph_that_is_cut_off(freeze, tmp_path):
    graph, _ = freeze()
    path = tmp_path / "cut.pb"
    path.write_bytes(graph.SerializeToString()[:-100])
    with pytest.raises(SourceError, match=r"the graph is damaged or cut off, after \d+ nodes\. Download"):
        open_source(path)
