"""Faults that exports have: each is planted in a right file, and the audit finds and names it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.support.onnx_edit import Edit, assert_named


def change(edit, name, function):
    array = function(np.array(numpy_helper.to_array(edit.constants[name])))
    edit.constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))


def flip_a_bit(edit):
    """The lowest bit of one weight."""
    edit.flip("mixed_7a.branch1.1.conv.weight", 1234, 0)
    return "tensors", "mixed_7a.branch1.1.conv.weight: 1 of 589824 values differs, by up to 1 step"


def take_bgr(edit):
    """The weights of a network for the images of OpenCV."""
    change(edit, "conv2d_1a.conv.weight", lambda kernel: kernel[:, ::-1])
    return "tensors", "(has its input channels in another order)"


def reverse_channels(edit):
    """An operation that takes BGR pixels."""
    order = numpy_helper.from_array(np.array([2, 1, 0]), "bgr")
    edit.graph.initializer.append(order)
    edit.node("Transpose").input[0] = "swapped"
    edit.graph.node.insert(0, helper.make_node("Gather", ["pixels", "bgr"], ["swapped"], axis=3))
    return "metadata", "but the file has 'uint8 (N, 96, 96, 3): BGR pixels of 0 to 255"


def exchange_height_and_width(edit):
    """The transposition of the detector's networks."""
    edit.node("Transpose").attribute[0].ints[:] = [0, 3, 2, 1]
    return "preprocessing", "it exchanges the height and the width of images"


def reinterpret(edit):
    """NHWC pixels that are taken for NCHW."""
    shape = numpy_helper.from_array(np.array([-1, 3, 96, 96]), "nchw")
    edit.graph.initializer.append(shape)
    node = edit.node("Transpose")
    node.CopyFrom(helper.make_node("Reshape", [node.input[0], "nchw"], list(node.output)))
    return "preprocessing", "it takes NHWC images for NCHW"


def freeze_the_batch(edit):
    """A graph that takes one image, and states that it takes any number."""
    edit.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return "metadata", "which the graph standardises', but the file has 'uint8 (1, 96, 96, 3)"


def leave_the_l2_out(edit):
    """Embeddings of any length."""
    division = edit.maker("embeddings")
    vectors = division.input[0]
    edit.graph.node.remove(division)
    edit.maker(vectors).output[0] = "embeddings"
    edit.remove_ancestors(division.input[1])
    return "metadata", "but the file has 'float32 (N, 512): embeddings before they are normalised'"


def leave_the_classifier_on(edit):
    """Logits in place of embeddings, under their name."""
    division = edit.maker("embeddings")
    edit.graph.node.remove(division)
    random = np.random.default_rng(0)
    for name, shape in (("logits.weight", (7, 512)), ("logits.bias", (7,))):
        edit.graph.initializer.append(numpy_helper.from_array(random.random(shape, np.float32), name))
    names = [division.input[0], "logits.weight", "logits.bias"]
    edit.graph.node.append(helper.make_node("Gemm", names, ["embeddings"], transB=1))
    edit.remove_ancestors(division.input[1])
    edit.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    return "metadata", "but the file has 'float32 (N, 7): logits'"


def count_the_padding(edit):
    """An average pool of another operator: four pixels, of which three are padding."""
    pool = edit.node("GlobalAveragePool")
    pool.op_type = "AveragePool"
    window = {"kernel_shape": [2, 2], "pads": [1] * 4, "strides": [2, 2], "count_include_pad": 1}
    pool.attribute.extend(helper.make_attribute(*each) for each in window.items())
    return "arithmetic", "AvgPool_1a_8x8"


def round_the_pool_up(edit):
    """A window that reaches over the edge."""
    (mode,) = (each for each in edit.node("MaxPool").attribute if each.name == "ceil_mode")
    mode.i = 1
    return "structure", "MaxPool_3a_3x3 has dilations (1, 1), 1 groups and ceil_mode True"


def divide_by_127_5(edit):
    """Another standardisation than the file states."""
    constant = edit.maker(edit.node("Div").input[1]).attribute[0].t
    constant.CopyFrom(numpy_helper.from_array(np.array(127.5, np.float32)))
    return "metadata", "it states the standardisation '(x - 127.5) / 128', but the file has 'x / 127.5 - 1'"


def state_another_source(edit):
    """The metadata of an export of other weights."""
    (entry,) = (each for each in edit.model.metadata_props if each.key == "weights_sha256")
    entry.value = "0" * 64
    return "metadata", "it states the weights_sha256 '000000"


FAULTS = (
    # An audit finds all faults of a file, each by the words of its judgement.
    (reverse_channels, flip_a_bit, round_the_pool_up, state_another_source, leave_the_l2_out,
     divide_by_127_5),
    (reinterpret, take_bgr, count_the_padding),
    (exchange_height_and_width, leave_the_classifier_on, freeze_the_batch),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults", FAULTS, ids=lambda faults: "-and-".join(fault.__name__ for fault in faults)
)
def test_a_fault_of_an_export_is_found_and_named(faults, baked, weights, tmp_path):
    edit = Edit(baked)
    expected = [fault(edit) for fault in faults]
    assert_named(edit.save(tmp_path / "faulty.onnx"), weights, *expected)
