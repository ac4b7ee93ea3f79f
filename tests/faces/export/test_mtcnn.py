"""Exports of MTCNN's networks: exact in both formats, on images of any size; faults are found and named."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from checks.audit.graphs.graph import NotUnderstoodError
from checks.audit.published_ports import find_source
from checks.audit.run import audit
from converter.convert import to_numpy_state_dict
from converter.errors import DifferenceError, UsageError
from converter.formats.detect import open_source
from converter.hub.locate import LocalModel, require_entry
from facenet_port import main
from faces.export.run import export, export_networks
from reference.mtcnn import PNet
from tests.support.onnx_edit import Edit, assert_named
from tests.support.shared_files import shared_folder

EXACT = (
    "The port is exact: every tensor is the source's, bit for bit, and its graph computes what the network "
    "does."
)
SIZES = ((37, 29), (48, 48))


@pytest.fixture(scope="module")
def p_net(small_source, tmp_path_factory):
    """P-Net of seeded weights as ONNX."""

    def write(folder):
        export(small_source, folder / "pnet.onnx")

    return shared_folder(tmp_path_factory, "exported-p-net", write) / "pnet.onnx"


def expected_of(source, images):
    """The outputs of PyTorch in float64; the images are NHWC."""
    with open_source(source) as opened:
        state_dict = to_numpy_state_dict(opened)
    network = PNet().double()
    network.load_state_dict({key: torch.from_numpy(array) for key, array in state_dict.items()})
    with torch.inference_mode():
        return [each.numpy() for each in network(torch.from_numpy(images.transpose(0, 3, 1, 2)).double())]


def test_p_net_as_onnx_takes_any_size_and_computes_what_pytorch_does(p_net, small_source):
    session = onnxruntime.InferenceSession(p_net, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["offsets", "probabilities"]
    for size in SIZES:
        images = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
        actual = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
        for one, other in zip(actual, expected_of(small_source, images), strict=True):
            assert np.allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())


def test_p_net_as_tflite_takes_any_size_and_the_usual_order_of_axes(small_source, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    for name in ("once", "again"):
        result = export(small_source, tmp_path / f"{name}.tflite")
    assert result.audit.verdict == EXACT
    assert (tmp_path / "once.tflite").read_bytes() == (tmp_path / "again.tflite").read_bytes()
    interpreter = Interpreter(str(tmp_path / "once.tflite"))
    names = [each["name"] for each in interpreter.get_output_details()]
    assert names == ["offsets", "probabilities"]
    for size in SIZES:
        images = np.random.default_rng(0).standard_normal((1, *size, 3)).astype(np.float32)
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
        interpreter.invoke()
        for detail, expected in zip(
            interpreter.get_output_details(), expected_of(small_source, images), strict=True
        ):
            other = expected.transpose(0, 2, 3, 1)
            actual = interpreter.get_tensor(detail["index"])
            assert np.allclose(actual, other, rtol=0, atol=2e-5 * np.abs(other).max())


def test_p_net_as_tflite_in_half_precision_is_the_nearest(small_source, tmp_path):
    sizes = {}
    for precision, status in (("float32", "equal"), ("float16", "rounded")):
        result = export(small_source, tmp_path / f"{precision}.tflite", precision=precision)
        assert result.audit.passed
        assert {tensor.status for tensor in result.audit.tensors} == {status}
        sizes[precision] = result.size
    assert sizes["float16"] < 0.8 * sizes["float32"]  # which has 26 kB of weights


def flip_a_bit(edit):
    """The lowest bit of one factor of a PReLU."""
    edit.flip(edit.node("PRelu").input[1], 3, 0)
    return "tensors", "1 of 10 values differs, by up to 1 step"


def exchange_height_and_width(edit):
    """The kernels of facenet's own files, which take transposed images."""
    kernel = edit.constants["conv2.weight"]
    array = np.ascontiguousarray(onnx.numpy_helper.to_array(kernel).transpose(0, 1, 3, 2))
    kernel.CopyFrom(onnx.numpy_helper.from_array(array, kernel.name))
    return "tensors", "is laid out as (outputs, inputs, height, width)"


def leave_the_rest_out(edit):
    """A pool that rounds down, as PyTorch's does by default."""
    (mode,) = (each for each in edit.node("MaxPool").attribute if each.name == "ceil_mode")
    mode.i = 0
    return "structure", "pool1 leaves out the pixels that do not fill a window"


@pytest.mark.parametrize(
    "fault", [flip_a_bit, exchange_height_and_width, leave_the_rest_out], ids=lambda fault: fault.__name__
)
def test_a_fault_of_a_graph_of_mtcnn_is_found_and_named(fault, p_net, small_source, tmp_path):
    edit = Edit(p_net)
    expected = fault(edit)
    assert_named(edit.save(tmp_path / "faulty.onnx"), small_source, expected)


def test_a_graph_without_softmax_is_refused_by_name(p_net, small_source, tmp_path):
    edit = Edit(p_net)
    softmax = edit.node("Softmax")
    edit.graph.node.remove(softmax)
    edit.maker(softmax.input[0]).output[0] = "probabilities"
    with pytest.raises(NotUnderstoodError, match="no prob1 of the P-Net of MTCNN"):
        audit(edit.save(tmp_path / "logits.onnx"), small_source)


def test_what_is_for_the_embeddings_is_refused(small_source, tmp_path, capsys):
    assert main(["export", str(small_source), "-o", str(tmp_path / "p.onnx"), "--bake"]) == 2
    assert "--bake and --classify are for the network of embeddings" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("network", "advice"),
    [("P-Net of MTCNN", "--against mtcnn/det1.npy."), ("another", "--against SOURCE.")],
)
def test_an_audit_without_a_source_names_that_of_the_network(p_net, tmp_path, network, advice):
    edit = Edit(p_net)
    stated = {"source": "mtcnn", "network": network}
    onnx.helper.set_model_props(edit.model, stated)
    path = edit.save(tmp_path / "of_mtcnn.onnx")
    with pytest.raises(UsageError) as caught:
        find_source(path)
    assert str(caught.value).endswith(f"facenet-port audit {path} {advice}")


@pytest.mark.real
@pytest.mark.parametrize(("to", "precision"), [("onnx", "float32"), ("tflite", "float16")])
def test_the_published_networks_become_three_files_or_none(to, precision, mtcnn_files, tmp_path):
    entry = require_entry("mtcnn")
    model = LocalModel(entry, entry.sources[0], {npy.name: npy for npy, _ in mtcnn_files.values()})
    results = export_networks(model, tmp_path, to=to, precision=precision)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"{net}net.{to}" for net in "opr"]
    status = {"float32": "equal", "float16": "rounded"}[precision]
    for result, tensors in zip(results, (13, 16, 21), strict=True):
        assert [tensor.status for tensor in result.audit.tensors] == [status] * tensors
        assert result.metadata["licence"] == "MIT, the licence of davidsandberg/facenet"
    (tmp_path / f"pnet.{to}").unlink()
    with pytest.raises(UsageError, match=f"rnet.{to} exists"):
        export_networks(model, tmp_path, to=to)
    assert not (tmp_path / f"pnet.{to}").exists()


def exchange_the_names_of_the_outputs(edit):
    """Offsets under the name of probabilities; the file states them in the order of its outputs."""
    offsets, probabilities = (edit.maker(name) for name in ("offsets", "probabilities"))
    offsets.output[0], probabilities.output[0] = "probabilities", "offsets"
    for value in edit.graph.output:
        value.type.tensor_type.shape.dim[1].dim_value = {"offsets": 2, "probabilities": 4}[value.name]
    return "the file has 'float32 (N, 2, any, any): probabilities, named 'offsets'; float32 (N, 4"


def state_another_standardisation(edit):
    """The sentence of a tool that divides by 255."""
    (entry,) = (each for each in edit.model.metadata_props if each.key == "standardisation")
    entry.value = "x / 255"
    return "it states the standardisation 'x / 255', but the file has '(x - 127.5) / 128'"


def leave_the_digest_out(edit):
    """Metadata without the one entry that tells the weights."""
    (entry,) = (each for each in edit.model.metadata_props if each.key == "weights_sha256")
    edit.model.metadata_props.remove(entry)
    return "it states the weights_sha256 'not stated', but the file has"


@pytest.mark.parametrize(
    "fault",
    [exchange_the_names_of_the_outputs, state_another_standardisation, leave_the_digest_out],
    ids=lambda fault: fault.__name__,
)
def test_what_a_file_states_falsely_is_found_and_named(fault, p_net, small_source, tmp_path):
    edit = Edit(p_net)
    words = fault(edit)
    result = audit(edit.save(tmp_path / "faulty.onnx"), small_source)
    assert result.exit_code == 1
    (failed,) = (each for each in result.judgements if not each.passed)
    assert failed.name == "metadata"
    assert words in " ".join(failed.details).replace('"', "'").replace("\\'", "'")


@pytest.mark.parametrize("batch", [3, 70])
def test_a_batch_that_no_input_fills_is_audited(batch, small_source, tmp_path):
    result = export(small_source, tmp_path / "pnet.onnx", batch=batch)
    assert result.audit.verdict == EXACT
    assert result.metadata["input"].startswith(f"float32 ({batch}, 3, any, any)")
    assert result.audit.port == str(tmp_path / "pnet.onnx")
    assert result.audit.files[result.audit.port] == result.sha256


def test_a_weight_that_half_precision_does_not_reach_is_refused(small_source, tmp_path, recwarn):
    """7e4 is over 65,504, the greatest number of float16, whose nearest value is then an infinity."""
    with open_source(small_source) as opened:
        state_dict = {key: torch.from_numpy(array) for key, array in to_numpy_state_dict(opened).items()}
    state_dict["conv2.weight"][0, 0, 0, 0] = 7e4
    torch.save(state_dict, tmp_path / "large.pt")
    with pytest.raises(
        DifferenceError, match=r"conv2\.weight: a value that is finite .* not finite in float16"
    ):
        export(tmp_path / "large.pt", tmp_path / "large.onnx", precision="float16")
    assert not (tmp_path / "large.onnx").exists()
    assert not recwarn.list


def test_int8_of_the_detector_is_refused_before_faces_are_looked_for(
    small_source, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("faces.export.run.plan_calibration", lambda *_, **__: pytest.fail("looks for faces"))
    assert main(["export", str(small_source), "-o", str(tmp_path / "p.onnx"), "--precision", "int8"]) == 2
    assert (
        "--precision int8 is for the network of embeddings, and this is the P-Net" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--step", "0"), "--step is for one network, and mtcnn is three. Leave it out."),
        (("--weights", "average"), "--weights is for one network, and mtcnn is three. Leave it out."),
        (("--precision", "int8"), "--precision int8 is for the network of embeddings, and this is the P-Net"),
    ],
)
def test_what_three_networks_do_not_take_is_refused(
    options, message, small_source, tmp_path, monkeypatch, capsys
):
    entry = require_entry("mtcnn")
    model = LocalModel(entry, entry.sources[0], dict.fromkeys(entry.networks, small_source))
    monkeypatch.setattr("converter.hub.locate.find_model", lambda *_, **__: model)
    assert main(["export", "mtcnn", "-o", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_graph_of_a_broken_source_is_not_called_exact(p_net, small_source, tmp_path):
    """A NaN in the weights, and the same bits in the graph."""
    with open_source(small_source) as opened:
        state_dict = {key: torch.from_numpy(array) for key, array in to_numpy_state_dict(opened).items()}
    state_dict["conv2.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state_dict, tmp_path / "broken.pt")
    edit = Edit(p_net)
    del edit.model.metadata_props[:]
    kernel = edit.constants["conv2.weight"]
    kernel.CopyFrom(onnx.numpy_helper.from_array(state_dict["conv2.weight"].numpy(), kernel.name))
    result = audit(edit.save(tmp_path / "broken.onnx"), tmp_path / "broken.pt")
    assert result.exit_code == 3
    assert result.verdict.startswith("The source is broken: ")
