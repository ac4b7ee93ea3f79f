"""ONNX files as people have them: by PyTorch's default exporter, quantised, with links to their data."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from checks.audit.__main__ import main
from checks.audit.graphs.onnx_file import read_onnx
from checks.audit.graphs.runtime_process import RuntimeProcess
from checks.audit.run import audit
from converter.convert import to_numpy_state_dict
from converter.errors import SourceError
from tests.fuzz.sandbox import ROOT
from tests.support.graph_exports import SIZE, export_onnx, network
from tests.support.onnx_edit import Edit


class Wrapper(torch.nn.Module):
    """Takes NHWC bytes of BGR, as OpenCV reads them, standardises them, and leaves out the normalisation."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.prelogits((images.flip(3).permute(0, 3, 1, 2).float() - 127.5) / 128)


@pytest.mark.slow
def test_a_wrapper_of_bytes_around_a_model_in_channels_last_with_its_weights_in_a_file_beside_it(
    tensors, source, tmp_path
):
    """All of them, and a batch of one, in one file: PyTorch's default exporter takes most of the time."""
    model = Wrapper(network(to_numpy_state_dict(tensors)).to(memory_format=torch.channels_last)).eval()
    images = torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)
    path = tmp_path / "port.onnx"
    torch.onnx.export(model, (images,), path, dynamo=True, external_data=True, verbose=False)
    assert path.stat().st_size < 1 << 20
    # In channels_last the exporter writes as_strided after the average pool.
    assert "Gather" in {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    result = audit(path, source)
    assert result.exit_code == 0, (result.not_understood, result.judgements)
    assert "its weights are the source's with factors folded in, bit for bit" in result.verdict
    assert sum(tensor.status == "folded" for tensor in result.tensors) == 224
    assert result.run.preprocessing == "(x - 127.5) / 128 is baked in: it takes BGR pixels of 0 to 255"
    assert result.run.feed.endswith("gives embeddings before they are normalised")
    assert [file.rpartition("/")[2] for file in result.files][:2] == ["port.onnx", "port.onnx.data"]
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(path, moved)
    with pytest.raises(SourceError, match=r"its data in port\.onnx\.data cannot be read"):
        audit(moved / "port.onnx", source)


class Resizing(torch.nn.Module):
    """Takes images of pixels at another size, and resizes and standardises them, as an app's wrapper does."""

    def __init__(self, model, size):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images):
        resized = torch.nn.functional.interpolate(images, self.size, mode="bilinear")
        return self.model((resized - 127.5) / 128.0)


@pytest.fixture(scope="module")
def resizing(tensors, tmp_path_factory):
    wrapped = Resizing(network(to_numpy_state_dict(tensors)), (107, 107)).eval()
    return export_onnx(wrapped, tmp_path_factory.mktemp("resizing") / "port.onnx", size=150)


@pytest.mark.slow
@pytest.mark.parametrize(("divisor", "code"), [(128.0, 0), (99.0, 1)])
def test_a_wrapper_that_resizes_is_judged_at_the_size_of_the_network(
    resizing, source, tmp_path, capsys, divisor, code
):
    edit = Edit(resizing)
    assert "Resize" in {node.op_type for node in edit.graph.node}
    value = edit.maker(edit.node("Div").input[1]).attribute[0].t
    assert numpy_helper.to_array(value) == 128
    value.CopyFrom(numpy_helper.from_array(np.float32(divisor)))
    path = edit.save(tmp_path / "port.onnx")
    assert main([str(path), "--against", str(source)]) == code
    out = capsys.readouterr().out
    assert "holds  structure " in out
    assert "holds  arithmetic " in out
    assert "holds  distance " in out
    if code:
        assert "FAILS  preprocessing  unknown: no known way to prepare images gives" in out
        return
    verdict = out.splitlines()[0]
    assert verdict.endswith(
        "computes what the network does with the images that it resizes from 150x150 to 107x107."
    )
    assert (
        "holds  preprocessing  (x - 127.5) / 128 is baked in: it takes RGB pixels of 0 to 255; it resizes "
        "them from 150x150 to 107x107, which is not judged" in out
    )


@pytest.mark.slow
def test_half_precision_within_a_float32_wrapper(tensors, source, tmp_path):
    class Halved(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network(to_numpy_state_dict(tensors)).half()

        def forward(self, images):
            return self.model(images.half()).float()

    result = audit(export_onnx(Halved().eval(), tmp_path / "half.onnx"), source)
    assert result.exit_code == 0, (result.not_understood, result.judgements)
    assert (result.run.weights, result.run.arithmetic) == ("float16", "float16")


@pytest.mark.parametrize(
    ("kind", "name"), [(TensorProto.DOUBLE, "float64"), (TensorProto.BFLOAT16, "bfloat16")]
)
def test_arithmetic_that_onnxruntime_lacks_is_named(source, tmp_path, capsys, kind, name):
    edit = Edit(small_model(tmp_path / "model.onnx"))
    edit.graph.input[0].type.tensor_type.elem_type = kind
    edit.graph.output[0].type.tensor_type.ClearField("shape")
    assert main([str(edit.save(tmp_path / "other.onnx")), "--against", str(source)]) == 3
    message = capsys.readouterr().err
    assert f"it computes in {name}, which its runtime does not support on a CPU" in message
    assert "Export the model in float32 or in half precision: model.float() or model.half()" in message


@pytest.mark.slow
def test_graphs_are_audited_without_a_home_and_a_user_name(folded, tflite, source, tmp_path):
    """As in a container that runs as any user; the runtimes' own processes have neither, too."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef no_name(_):\n    raise KeyError('uid not found')\npwd.getpwuid = no_name\n"
    )
    code = (
        "import sys; from facenet_port import main; from tests.support import first_images as first; "
        "from checks.audit import audit_graph; audit_graph.audited_batches = first.first_audited; "
        "[onnx, tflite, *rest] = sys.argv[1:]; "
        "sys.exit(main(['audit', onnx, *rest]) or main(['audit', tflite, *rest]))"
    )
    folder = tmp_path / "work"
    folder.mkdir()
    theirs = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
    kept = {name: os.environ[name] for name in os.environ if not name.startswith(("XDG_", *theirs))}
    run = subprocess.run(
        [sys.executable, "-c", code, folded, tflite, "--against", source, "--json", "audit.json"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=kept | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))},
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.count("The port is faithful") == 2
    assert [path.name for path in folder.iterdir()] == ["audit.json"]


# Quantised by onnxruntime.


def small_model(path, *, external=None):
    """Write a model of one convolution; its weights may be in a file of this name beside it."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "weights"], ["map"]),
            helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["rows"]),
            helper.make_node("Gemm", ["rows", "matrix"], ["embeddings"]),
        ],
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 80, 80))],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, (1, 8))],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(random.standard_normal((4, 8)).astype(np.float32), "matrix"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if external is None:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    return path


def quantise_dynamic(float32, path):
    """With a layer that is written in another way: without the zero point of its input."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(float32, path)
    model = onnx.load(path)
    layer = next(node for node in model.graph.node if node.op_type == "ConvInteger")
    del layer.input[2:]
    onnx.save(model, path)


class Calibration:
    def __init__(self):
        self.batches = iter([{"images": np.ones((1, 3, 80, 80), np.float32)}])

    def get_next(self):
        return next(self.batches, None)


def quantise_static_in_operators(float32, path):
    from onnxruntime.quantization import QuantFormat, quantize_static

    quantize_static(float32, path, Calibration(), quant_format=QuantFormat.QOperator)


@pytest.mark.parametrize(
    ("quantise", "how", "reason", "tools"),
    [
        (
            quantise_dynamic,
            "as it runs",
            "is not written as onnxruntime's quantize_dynamic writes it",
            "quantize_dynamic, or by quantize_static with QuantFormat.QDQ",
        ),
        (
            quantise_static_in_operators,
            "by onnxruntime's quantize_static, with QuantFormat.QOperator",
            "its layers are no longer those of the network",
            "quantize_static with QuantFormat.QDQ",
        ),
    ],
)
def test_a_quantised_file_is_named_with_the_step_that_works(
    source, tmp_path, capsys, quantise, how, reason, tools
):
    path = tmp_path / "quantised.onnx"
    quantise(small_model(tmp_path / "float32.onnx"), path)
    assert main([str(path), "--against", str(source)]) == 3
    message = capsys.readouterr().err
    assert f"{path}: it is quantised {how} (" in message
    assert reason in message
    assert f"Quantise the float32 file by {tools} and audit that, or " in message
    assert "audit the float32 file that it was made from: facenet-port audit FLOAT32.onnx" in message


@pytest.mark.parametrize(
    ("shape", "allow_zero", "expected"),
    [([0, -1], 0, (4, 8)), ([2, 0, -1], 0, (2, 8, 2)), ([0, -1], 1, None), ([3, -1], 0, None)],
)
def test_a_constant_is_reshaped_as_the_operator_is_defined(tmp_path, shape, allow_zero, expected):
    """An extent of 0 is the constant's own, unless `allowzero` says otherwise; a wrong shape is no damage."""
    edit = Edit(small_model(tmp_path / "model.onnx"))
    edit.graph.initializer.append(numpy_helper.from_array(np.array(shape), "shape"))
    reshape = helper.make_node("Reshape", ["matrix", "shape"], ["reshaped"], allowzero=allow_zero)
    edit.graph.node.insert(0, reshape)
    constants = read_onnx(edit.save(tmp_path / "reshaped.onnx")).constants
    assert getattr(constants.get("reshaped"), "shape", None) == expected


@pytest.mark.parametrize("ending", ["onnx", "tflite", "index"])
def test_a_text_file_with_the_ending_of_a_model_is_called_text(source, tmp_path, capsys, ending):
    path = tmp_path / f"text.{ending}"
    path.write_text("see the release page\n")
    assert main([str(path), "--against", str(source)]) == 3
    message = capsys.readouterr().err
    assert f"{path}: this is a text file, not a model; it begins with 'see the release page'" in message


def test_a_file_of_another_format_than_its_ending_says_is_named_or_read(source, tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(gzip.compress(b"model"))
    assert main([str(tmp_path / "model.onnx"), "--against", str(source)]) == 3
    assert "this file is compressed (gzip)" in capsys.readouterr().err
    (tmp_path / "lite.onnx").write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    assert main([str(tmp_path / "lite.onnx"), "--against", str(source)]) == 3
    assert "not a readable TFLite file" in capsys.readouterr().err


# Data beside the model.


@pytest.fixture
def hub(tmp_path):
    """A model in the layout of huggingface_hub's cache; returns the folder of the repository."""
    repository = tmp_path / "hub" / "models--somebody--facenet"
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    (snapshot / "onnx").mkdir(parents=True)
    blobs.mkdir()
    small_model(tmp_path / "model.onnx", external="model.onnx_data")
    for name, blob in (("model.onnx", "a" * 64), ("model.onnx_data", "b" * 64)):
        (tmp_path / name).rename(blobs / blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
        (snapshot / "onnx" / name).symlink_to(f"../../../blobs/{blob}")
    return repository


@pytest.mark.parametrize("place", ["snapshots/0123abcd", "snapshots/0123abcd/onnx"])
def test_data_behind_the_links_of_the_hub_is_read_and_run(hub, place):
    path = hub / place / "model.onnx"
    graph = read_onnx(path)
    assert graph.constants["weights"].shape == (4, 3, 3, 3)
    assert [file.name for file in graph.files] == ["model.onnx", "model.onnx_data"]
    images = np.ones((1, 3, 80, 80), np.float32)
    with RuntimeProcess(graph) as process:
        for as_written in (True, False):
            (embeddings,) = process.run(images, ["embeddings"], as_written=as_written)
            expected = graph.constants["weights"].sum(axis=(1, 2, 3)) @ graph.constants["matrix"]
            np.testing.assert_allclose(embeddings[0], expected, atol=1e-3)


def test_a_copied_model_finds_its_data_in_the_blobs(hub):
    path = hub / "snapshots/0123abcd/model.onnx"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert read_onnx(path).constants["weights"].shape == (4, 3, 3, 3)


def test_a_link_to_a_model_elsewhere_finds_the_data_beside_it(tmp_path):
    folder = tmp_path / "v3"
    folder.mkdir()
    small_model(folder / "model.onnx", external="model.onnx.data")
    (tmp_path / "current.onnx").symlink_to("v3/model.onnx")
    assert read_onnx(tmp_path / "current.onnx").constants["weights"].shape == (4, 3, 3, 3)


def test_a_chain_of_links_finds_the_data_beside_each(tmp_path):
    """A link in the home folder to one in a snapshot, whose data is a link to a blob of another name."""
    snapshot, blobs, store = tmp_path / "hub/snapshots/0", tmp_path / "hub/blobs", tmp_path / "store"
    for folder in (snapshot, blobs, store):
        folder.mkdir(parents=True)
    small_model(snapshot / "model.onnx", external="model.onnx.data")
    (snapshot / "model.onnx").rename(store / "a1")
    (snapshot / "model.onnx.data").rename(blobs / "b2")
    (snapshot / "model.onnx").symlink_to("../../../store/a1")
    (snapshot / "model.onnx.data").symlink_to("../../blobs/b2")
    (tmp_path / "m.onnx").symlink_to("hub/snapshots/0/model.onnx")
    assert read_onnx(tmp_path / "m.onnx").constants["weights"].shape == (4, 3, 3, 3)


def test_a_link_out_of_the_cache_is_refused(hub, tmp_path, source, capsys):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4096))
    path = hub / "snapshots/0123abcd/model.onnx"
    data = path.with_name("model.onnx_data")
    for target in ("../../../../secret", str(secret), "../../blobs/out"):
        data.unlink()
        data.symlink_to(target)
        (hub / "blobs" / "out").unlink(missing_ok=True)
        (hub / "blobs" / "out").symlink_to(secret)
        assert main([str(path), "--against", str(source)]) == 3
        message = capsys.readouterr().err
        assert f"is a link to {secret}, outside the folder of the model. Put the file itself there" in message


@pytest.mark.parametrize("location", ["../../../../../etc/passwd", "/etc/passwd", "a/../../secret", ""])
def test_a_location_outside_the_folder_is_refused(tmp_path, location):
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4096))
    path = small_model(folder / "model.onnx", external="model.onnx_data")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="its data lies outside the folder of the model"):
        read_onnx(path)


def test_data_in_a_folder_below_is_read_and_a_lost_file_is_named(tmp_path):
    path = small_model(tmp_path / "model.onnx", external="model.onnx_data")
    (tmp_path / "parts").mkdir()
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "parts/data"
    (tmp_path / "model.onnx_data").rename(tmp_path / "parts" / "data")
    path.write_bytes(model.SerializeToString())
    assert read_onnx(path).constants["weights"].shape == (4, 3, 3, 3)
    (tmp_path / "parts" / "data").unlink()
    with pytest.raises(
        SourceError, match=r"its data in parts/data cannot be read \(No such file.*Put parts/data"
    ):
        read_onnx(path)
