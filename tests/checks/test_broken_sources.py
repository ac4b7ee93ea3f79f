"""Sources and ports whose values are not finite: the verdict names the side at fault, and nothing else."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from checks.audit.__main__ import main as audit_main
from checks.audit.run import audit
from checks.compare.__main__ import main as compare_main
from checks.compare.run import compare
from checks.controls.run import run_controls
from checks.core.source_tensors import find_broken_source
from checks.gradients.__main__ import main as gradients_main
from converter.convert import to_numpy_state_dict
from converter.errors import SourceError
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.plan import describe, plan_conversion
from reference import InceptionResnetV1
from tests.support.first_images import TAKEN_FROM, first_images
from tests.support.graph_exports import export_onnx, network

pytestmark = pytest.mark.slow

VARIANCE = "InceptionResnetV1/Conv2d_1a_3x3/BatchNorm/moving_variance"
KERNEL = "InceptionResnetV1/Repeat/block35_1/Branch_1/Conv2d_0b_3x3/weights"
ONE = f"1 of 492 tensors holds values that are not finite: {VARIANCE} (1 of 32 values is NaN)"
UNWANTED = re.compile(r"\binf\b|Infinity|\bnan\b|3214639493|bfloat16|RuntimeWarning")


@pytest.fixture(autouse=True)
def no_warnings():
    """Let a warning of NumPy fail the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def one_image(network, seed):
    return first_images(network, seed)[:1]


def replaced(tensors, name, index, value):
    array = tensors[name].copy()
    array[index] = value
    return {**tensors, name: array}


@pytest.fixture(scope="module")
def one_nan(tensors):
    """The tensors with one NaN in a variance, which has a sign and a payload."""
    changed = replaced(tensors, VARIANCE, 3, 0.0)
    changed[VARIANCE].view(np.uint32)[3] = 0xFFC12345
    return changed


@pytest.fixture(scope="module")
def broken(one_nan, tmp_path_factory):
    prefix = tmp_path_factory.mktemp("broken") / "model.ckpt-1"
    write_tensor_bundle(prefix, one_nan)
    return prefix


@pytest.fixture(scope="module")
def sound(tensors, tmp_path_factory):
    prefix = tmp_path_factory.mktemp("sound") / "model.ckpt-1"
    write_tensor_bundle(prefix, tensors)
    return prefix


@pytest.fixture(scope="module")
def broken_port(one_nan, tmp_path_factory):
    path = tmp_path_factory.mktemp("ports") / "broken.safetensors"
    save_file(to_numpy_state_dict(one_nan), path)
    return path


def reports(folder, main, *arguments):
    """Run a command with --json and --report; return the exit code, and the texts that a user may read."""
    options = ["--json", str(folder / "r.json"), "--report", str(folder / "r.html")]
    code = main([*map(str, arguments), *options])
    text = (folder / "r.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    page = re.sub(r"<svg.*?</svg>|<style.*?</style>", "", (folder / "r.html").read_text(), flags=re.DOTALL)
    return code, json.loads(text), page


def assert_plain(*texts):
    """No figure is of a distance that is none."""
    for text in texts:
        assert not UNWANTED.search(text.replace('"nan": ', ""))  # the name of a count in the JSON


# compare


def test_compare_names_a_broken_source_at_once(broken, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("checks.compare.run.TensorFlowSide", None)  # nothing is run
    code, report, page = reports(tmp_path, compare_main, broken)
    out, error = capsys.readouterr()
    assert code == 3
    assert out.startswith(f"The source is broken: converted from {broken}")
    assert "holds  tensors  492 converted bit for bit" in out
    assert ONE in out
    assert "take an earlier checkpoint" in out
    assert "differs" not in out
    assert error == ""
    assert report["passed"] is False
    assert report["diagnosis"] is None
    assert [(each["name"], each["passed"]) for each in report["judgements"]] == [("tensors", True)]
    assert report["broken"]["tensors"][VARIANCE]["nan"] == 1
    assert "Broken source" in page
    assert_plain(out, page, json.dumps(report))


def test_equal_bits_are_equal_and_others_are_a_difference(broken, broken_port, one_nan, tmp_path):
    assert compare(broken, state_dict=broken_port).exit_code == 3
    other = replaced(one_nan, VARIANCE, 3, np.nan)  # a NaN of other bits
    save_file(to_numpy_state_dict(other), tmp_path / "other.safetensors")
    result = compare(broken, state_dict=tmp_path / "other.safetensors")
    assert (result.exit_code, result.differs) == (1, True)
    (judgement,) = result.judgements
    assert judgement.details == (f"conv2d_1a.bn.running_var: 1 of 32 values differs from {VARIANCE}",)


def test_a_prefix_of_a_broken_source_is_stated(one_nan, tmp_path):
    write_tensor_bundle(tmp_path / "m.ckpt-1", {f"import/{name}": array for name, array in one_nan.items()})
    result = compare(tmp_path / "m.ckpt-1")
    assert (result.exit_code, result.differs) == (3, False)
    assert result.names == ("m.ckpt-1: the names of the network begin with 'import/', which is taken off",)


def test_finite_weights_that_overflow_are_the_sources_fault(tensors, tmp_path, capsys, monkeypatch):
    """Even those of the last input keep the activations from being stored."""
    monkeypatch.setattr(TAKEN_FROM, one_image)
    huge = np.full_like(tensors["InceptionResnetV1/Conv2d_1a_3x3/weights"], 3e38)
    write_tensor_bundle(tmp_path / "m.ckpt-1", {**tensors, "InceptionResnetV1/Conv2d_1a_3x3/weights": huge})
    stored = tmp_path / "activations.h5"
    code = compare_main([str(tmp_path / "m.ckpt-1"), "--save-activations", str(stored)])
    out = capsys.readouterr().out
    assert code == 3
    assert "TensorFlow's own values are not finite from Conv2d_1a_3x3 on" in out
    assert "though every weight is finite" in out
    assert not stored.exists()


def test_a_nan_in_the_port_alone_is_the_ports_fault(sound, broken_port, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TAKEN_FROM, one_image)
    code, report, page = reports(tmp_path, compare_main, sound, "--state-dict", broken_port)
    out, error = capsys.readouterr()
    assert code == 1
    assert out.startswith("The port differs: ")
    assert "conv2d_1a.bn.running_var" in out
    assert "the variance has 1 of 32 values that is not finite, the first at [3]" in out
    assert report["broken"] is None
    assert error == ""
    assert_plain(out, page, json.dumps(report))


def test_compare_judges_as_before_where_the_slots_alone_are_broken(tensors):
    slots = {**tensors, f"{KERNEL}/Adam": np.full(tensors[KERNEL].shape, np.nan, np.float32)}
    plan = plan_conversion(describe(slots))
    assert find_broken_source(slots, plan) is None


# audit


def test_audit_names_a_broken_source(broken, broken_port, tmp_path, capsys):
    code, report, page = reports(tmp_path, audit_main, broken_port, "--against", broken)
    out, error = capsys.readouterr()
    assert code == 3
    assert out.startswith(
        f"The source is broken: {ONE}. The port is exact: every tensor is the source's, bit"
    )
    assert "716 equal bit for bit" in out
    assert error == ""
    assert report["passed"] is False
    assert report["broken"]["tensors"][VARIANCE]["nan"] == 1
    assert "Broken source" in page
    assert_plain(out, page, json.dumps(report))


def test_no_cause_is_named_on_a_broken_source(broken, one_nan, tmp_path, capsys):
    """The port is as PyTorch initialises it, which is a cause where the source is sound."""
    torch.manual_seed(0)
    state_dict = to_numpy_state_dict(one_nan)
    key = "repeat_1.2.branch1.1.conv.weight"
    state_dict[key] = InceptionResnetV1().get_parameter(key).detach().numpy()
    save_file(state_dict, tmp_path / "port.safetensors")
    assert audit_main([str(tmp_path / "port.safetensors"), "--against", str(broken)]) == 1
    out = capsys.readouterr().out
    assert "tensor      repeat_1.2.branch1.1.conv.weight" in out
    assert "  cause " not in out
    assert "initial values" not in out


def test_audit_blames_a_port_for_its_own_nan(sound, broken_port, tmp_path, capsys):
    code, report, page = reports(tmp_path, audit_main, broken_port, "--against", sound)
    out = capsys.readouterr().out
    assert code == 1
    assert out.startswith("The port differs: conv2d_1a.bn.running_var is not the source's.")
    assert "largest     not finite at [3]: expected " in out
    assert "1 of 32 values differs, 1 of them not finite" in out
    assert report["broken"] is None
    (fault,) = (tensor for tensor in report["tensors"] if tensor["status"] == "differs")
    assert (fault["not_finite"], fault["max_ulp"]) == (1, 0)
    assert_plain(out, page, json.dumps(report))


def test_a_port_that_is_nan_throughout_is_counted(sound, tensors, tmp_path):
    state_dict = to_numpy_state_dict(tensors)
    state_dict["conv2d_1a.bn.bias"].fill(np.nan)
    save_file(state_dict, tmp_path / "port.safetensors")
    result = audit(tmp_path / "port.safetensors", sound)
    assert result.judgements[0].details == (
        "conv2d_1a.bn.bias: 32 of 32 values differ, 32 of them not finite",
    )


@pytest.mark.parametrize("fold", [True, False])
def test_the_graph_of_a_broken_source_is_not_run(one_nan, broken, sound, tmp_path, fold):
    graph = export_onnx(network(to_numpy_state_dict(one_nan)), tmp_path / "broken.onnx", fold=fold)
    result = audit(graph, broken)
    assert (result.exit_code, result.run) == (3, None)
    assert result.verdict.startswith(f"The source is broken: {ONE}. The port is ")
    assert {tensor.status for tensor in result.tensors} <= {"equal", "folded"}
    blamed = audit(graph, sound)
    assert (blamed.exit_code, blamed.run, blamed.broken) == (1, None, None)
    assert blamed.verdict.startswith("The port differs: ")


def test_a_source_that_overflows_is_not_run_against_a_port(tensors, tmp_path):
    huge = np.full_like(tensors["InceptionResnetV1/Conv2d_1a_3x3/weights"], 3e38)
    for name in ("source", "port"):
        prefix = tmp_path / f"{name}.ckpt-1"
        write_tensor_bundle(prefix, {**tensors, "InceptionResnetV1/Conv2d_1a_3x3/weights": huge})
    result = audit(tmp_path / "port.ckpt-1", tmp_path / "source.ckpt-1")
    assert (result.exit_code, result.run) == (3, None)
    assert "the source's own values are not finite from Conv2d_1a_3x3 on" in result.verdict
    assert "The port is exact" in result.verdict


# gradients and controls


def test_gradients_stop_with_the_source_named(broken, capsys):
    assert gradients_main([str(broken)]) == 3
    assert f"{broken}: the source is broken: {ONE}. The training diverged" in capsys.readouterr().err


def test_controls_stop_with_the_source_named(broken):
    with pytest.raises(SourceError, match="the source is broken: 1 of 492 tensors"):
        run_controls(broken, faults=())
