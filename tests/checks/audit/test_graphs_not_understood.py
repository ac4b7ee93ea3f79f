"""Graphs whose layers are not found: they are run, and their embeddings are compared."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from checks.audit.__main__ import main
from checks.audit.graphs.find_layers import find_layers
from checks.audit.graphs.graph import NotUnderstoodError
from checks.audit.graphs.onnx_file import read_onnx
from checks.audit.run import audit
from checks.core.network import MAX_POOL, short_name
from tests.support.graph_exports import SIZE
from tests.support.onnx_edit import Edit

pytestmark = pytest.mark.slow

VERDICT = (
    "Weaker proof: the port gives the source's embeddings on a few images. Its weights were not compared, "
    "because its graph is not understood. It takes BGR images."
)


def sum_instead_of_mean(edit):
    """Write the average over 2x2 pixels as a sum and a product, as a converter may."""
    pool = edit.node("GlobalAveragePool")
    output = pool.output[0]
    pool.op_type, pool.output[0] = "ReduceSum", "sum"
    pool.input.append("axes")
    edit.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    edit.graph.initializer.append(numpy_helper.from_array(np.float32(1 / 4), "quarter"))
    place = list(edit.graph.node).index(pool) + 1
    edit.graph.node.insert(place, helper.make_node("Mul", ["sum", "quarter"], [output]))
    return edit


def maximum_instead_of_relu(edit):
    relu = edit.node("Relu", 90)
    relu.op_type = "Max"
    relu.input.append("zero")
    edit.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    return edit


def change_a_weight(edit):
    weight = edit.constants[edit.node("Conv", 131).input[1]]
    array = np.array(numpy_helper.to_array(weight))
    array[:8] *= 1.01
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    return edit


def test_the_weaker_proof_has_its_own_verdict_exit_code_json_and_page(plain, source, tmp_path, capsys):
    """Of a graph whose preprocessing is found from its embeddings."""
    edit = sum_instead_of_mean(Edit(plain))
    edit.prepend(
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["numbers", "order"], ["turned"], axis=1),
        helper.make_node("Sub", ["turned", "grey"], ["centred"]),
        helper.make_node("Div", ["centred", "range"], ["images"]),
        dtype=TensorProto.UINT8,
        shape=("N", SIZE, SIZE, 3),
        order=np.array([2, 1, 0]),
        grey=np.float32(127.5),
        range=np.float32(128),
    )
    path = edit.save(tmp_path / "port.onnx")
    report, page = tmp_path / "result.json", tmp_path / "page.html"
    options = ["--against", str(source), "--json", str(report), "--report", str(page), "--verbose"]
    assert main([str(path), *options]) == 5
    out = capsys.readouterr().out
    assert out.startswith(f"{VERDICT}\n")
    assert "  not understood: Mul '" in out
    assert "where the average pool should be (the graph " in out
    assert "holds  embeddings " in out
    assert "tensors" not in out
    result = json.loads(report.read_text())
    assert (result["passed"], result["exit_code"], result["verdict"]) == (False, 5, VERDICT)
    assert "where the average pool should be" in result["not_understood"]
    assert result["tensors"] == []
    assert result["run"]["preprocessing"] == (
        "(x - 127.5) / 128 is baked in: it takes BGR pixels of 0 to 255"
    )
    html = page.read_text()
    assert "<title>Weaker proof: " in html
    assert '<div class="verdict weaker">' in html
    assert "No weight was compared" in html
    assert "Every tensor" not in html


def test_other_embeddings_are_a_difference(plain, source, tmp_path, capsys):
    path = change_a_weight(sum_instead_of_mean(Edit(plain))).save(tmp_path / "port.onnx")
    assert main([str(path), "--against", str(source)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(
        "The port differs in its embeddings. Its weights were not compared, because its graph"
    )
    assert "FAILS  embeddings " in out


def test_a_maximum_in_the_place_of_a_relu_is_not_understood(plain, tmp_path):
    path = maximum_instead_of_relu(Edit(plain)).save(tmp_path / "maximum.onnx")
    with pytest.raises(NotUnderstoodError, match="Max '"):
        find_layers(read_onnx(path))


def test_another_standardisation_than_a_known_one_is_a_difference(plain, source, tmp_path):
    edit = sum_instead_of_mean(Edit(plain))
    edit.prepend(helper.make_node("Div", ["pixels", "seven"], ["images"]), seven=np.float32(7))
    result = audit(edit.save(tmp_path / "sevenths.onnx"), source)
    assert result.exit_code == 1
    assert result.run.preprocessing.startswith("unknown")


def test_onnxruntimes_own_files_are_audited(folded, source, tmp_path):
    """Its optimised graph has convolutions with a ReLU of its own, or a layout of its own."""
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    for level, expected in ((levels.ORT_ENABLE_EXTENDED, 0), (levels.ORT_ENABLE_ALL, 5)):
        path = tmp_path / f"{level}.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(folded), options, providers=["CPUExecutionProvider"])
        result = audit(path, source)
        assert result.exit_code == expected, (result.not_understood, result.judgements)


def test_a_fault_that_the_search_meets_is_a_difference_and_never_another_network(plain, source, tmp_path):
    edit = Edit(plain)
    edit.node("MaxPool").op_type = "AveragePool"
    result = audit(edit.save(tmp_path / "average.onnx"), source)
    assert result.exit_code == 1
    assert f"where {short_name(MAX_POOL)} should be" in result.not_understood
    assert "not an Inception" not in result.verdict
