"""Changes to an ONNX model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from checks.audit.run import audit
from tests.support.graph_exports import SIZE


def assert_named(faulty, source, *expected):
    """Assert that an audit finds the faults of a file: for each the judgement, and the words that name it."""
    result = audit(faulty, source)
    assert result.exit_code == 1
    failed = {each.name: f"{each.statement} {each.details}" for each in result.judgements if not each.passed}
    for judgement, words in expected:
        assert words in failed[judgement]


class Edit:
    """An ONNX model under change."""

    def __init__(self, path):
        self.model = onnx.load(path)
        self.graph = self.model.graph
        self.constants = {each.name: each for each in self.graph.initializer}

    def save(self, path):
        path.write_bytes(self.model.SerializeToString())
        return path

    def node(self, kind, number=0):
        return [node for node in self.graph.node if node.op_type == kind][number]

    def maker(self, name):
        return next(node for node in self.graph.node if name in node.output)

    def remove_ancestors(self, name):
        """Remove the node that computes a tensor, and the nodes before it that no other needs."""
        taken = {each for node in self.graph.node for each in node.input}
        if name in taken or name not in {each for node in self.graph.node for each in node.output}:
            return
        node = self.maker(name)
        self.graph.node.remove(node)
        for each in node.input:
            self.remove_ancestors(each)

    def change(self, name, function):
        """Apply a function to a constant, whose dtype stays."""
        array = numpy_helper.to_array(self.constants[name])
        changed = np.asarray(function(array)).astype(array.dtype)
        self.constants[name].CopyFrom(numpy_helper.from_array(changed, name))

    def flip(self, name, index, bit):
        array = np.array(numpy_helper.to_array(self.constants[name]))
        bits = array.reshape(-1).view(f"u{array.itemsize}")
        bits[index] ^= np.array(1 << bit, bits.dtype)
        self.constants[name].CopyFrom(numpy_helper.from_array(array, name))

    def prepend(self, *nodes, dtype=TensorProto.FLOAT, shape=("N", 3, SIZE, SIZE), **constants):
        """Put nodes between a new input, `pixels`, and `images`, which the last node must output."""
        for name, value in constants.items():
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        self.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", dtype, shape))
        for node in reversed(nodes):
            self.graph.node.insert(0, node)
