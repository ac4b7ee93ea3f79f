"""Audits of named weights: equal, folded, rounded, missing and different tensors."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from checks.audit.__main__ import main
from checks.audit.published_ports import find_source
from checks.audit.run import audit
from converter.convert import to_numpy_state_dict
from converter.convert_file import convert_file
from converter.errors import PortError, SourceError, UsageError
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.layer_map import Variant, table
from tests.conftest import CLASSES, MODEL, write_keras
from tests.support.graph_exports import network

pytestmark = pytest.mark.slow

KERNEL = "repeat_1.2.branch1.1.conv.weight"
EXACT = "The port is exact: every tensor is the source's, bit for bit."


@pytest.fixture(scope="module")
def state_dict(tensors):
    return to_numpy_state_dict(tensors)


def save(path, arrays):
    save_file(dict(arrays), path)
    return path


def with_status(result, status):
    return {tensor.name: tensor for tensor in result.tensors if tensor.status == status}


def flip(array, index, bit):
    """Copy an array and change one bit of one element."""
    changed = np.array(array)
    bits = changed.reshape(-1).view(f"u{changed.itemsize}")
    bits[index] ^= np.array(1 << bit, bits.dtype)
    return changed


# Faithful ports.


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "weights.h5"])
def test_a_faithful_port_is_exact(source, single_files, name):
    result = audit(single_files / name, source)
    assert result.passed
    assert result.verdict == EXACT
    assert {tensor.status for tensor in result.tensors} == {"equal"}
    assert len(result.tensors) == (492 if name.endswith(".h5") else 716)
    assert result.run is None
    assert len(result.files) == 3
    assert result.network == f"Inception-ResNet-v1, 512-d embedding, {CLASSES} classes"


def test_a_checkpoint_is_audited_against_a_state_dict_and_paths_may_be_strings(source, single_files):
    assert audit(str(source), str(single_files / "weights.pt")).verdict == EXACT


def test_a_port_with_a_prefix_needs_no_classifier(source, state_dict, tmp_path):
    features = {
        f"encoder.backbone.{key}": array for key, array in state_dict.items() if not key.startswith("logits.")
    }
    result = audit(save(tmp_path / "port.safetensors", features), source)
    assert result.verdict == EXACT
    assert (
        "port.safetensors: the names of the network begin with 'encoder.backbone.', which is taken off"
        in result.names
    )
    assert "without the source's classifier" in result.judgements[0].statement


def test_two_networks_in_one_file_are_refused(source, state_dict, tmp_path):
    both = {prefix + key: array for prefix in ("a.", "b.") for key, array in state_dict.items()}
    with pytest.raises(UsageError, match=r"it holds two networks, under 'a\.' and 'b\.'"):
        audit(save(tmp_path / "port.safetensors", both), source)


def test_extras_are_differences_unless_they_are_ignored(source, state_dict, tmp_path, capsys):
    wrapped = {f"module.{key}": array for key, array in state_dict.items()}
    port = save(tmp_path / "port.safetensors", wrapped | {"module.head.weight": np.ones(3, np.float32)})
    command = [str(port), "--against", str(source)]
    assert main(command) == 1
    screen = capsys.readouterr().out
    assert screen.startswith("The port differs: module.head.weight is not a tensor of this network.")
    assert "--ignore 'module.head.*'" in screen
    assert main([*command, "--ignore", "module.head.*"]) == 0
    screen = capsys.readouterr().out
    assert screen.startswith(EXACT)
    assert "  port.safetensors: 1 tensor is left out by --ignore 'module.head.*'\n" in screen
    for pattern, problem in (("head.*", "matches no tensor"), ("module.*", "which the network needs")):
        assert main([*command, "--ignore", pattern]) == 2
        assert problem in capsys.readouterr().err


def test_prefixes_of_checkpoints_and_what_one_of_them_lacks(source, tensors, state_dict, tmp_path):
    scoped = {f"resnet/{name}": array for name, array in tensors.items()}
    write_tensor_bundle(tmp_path / "scoped.ckpt-1", scoped)
    port = save(tmp_path / "port.safetensors", state_dict)
    result = audit(port, tmp_path / "scoped.ckpt-1")
    assert result.verdict == EXACT
    assert result.names == (
        "scoped.ckpt-1: the names of the network begin with 'resnet/', which is taken off",
    )
    del scoped["resnet/InceptionResnetV1/Conv2d_1a_3x3/BatchNorm/beta"]
    write_tensor_bundle(tmp_path / "lacking.ckpt-1", scoped)
    result = audit(tmp_path / "lacking.ckpt-1", source)
    assert [*with_status(result, "missing")] == ["resnet/InceptionResnetV1/Conv2d_1a_3x3/BatchNorm/beta"]


def test_a_port_of_averages_only(tensors, state_dict, tmp_path):
    averages = {f"import/{name}/ExponentialMovingAverage": array for name, array in tensors.items()}
    write_tensor_bundle(tmp_path / "averages.ckpt-1", averages)
    for source, port in (("averages.ckpt-1", "port.safetensors"), ("port.safetensors", "averages.ckpt-1")):
        save(tmp_path / "port.safetensors", state_dict)
        with pytest.raises(PortError, match=r"only .*moving averages.*--weights average"):
            audit(tmp_path / port, tmp_path / source)
    assert audit(tmp_path / "port.safetensors", tmp_path / "averages.ckpt-1", weights="average").passed
    write_tensor_bundle(tmp_path / "same.ckpt-1", averages)
    result = audit(tmp_path / "averages.ckpt-1", tmp_path / "same.ckpt-1", weights="average")
    assert result.verdict == EXACT


def test_a_classifier_that_the_source_lacks_is_not_judged(tensors, state_dict, tmp_path):
    features = {name: array for name, array in tensors.items() if not name.startswith("Logits/")}
    write_tensor_bundle(tmp_path / "model.ckpt-1", features)
    result = audit(save(tmp_path / "port.safetensors", state_dict), tmp_path / "model.ckpt-1")
    assert result.passed
    assert set(with_status(result, "not judged")) == {"logits.weight", "logits.bias"}
    assert "2 not judged" in result.judgements[0].statement


def test_batch_counters_are_optional_and_any_zero(source, state_dict, tmp_path):
    older = {key: array for key, array in state_dict.items() if not key.endswith("num_batches_tracked")}
    older["last_bn.num_batches_tracked"] = np.zeros(1, np.float32)
    assert audit(save(tmp_path / "port.safetensors", older), source).verdict == EXACT


def test_deepfaces_names_are_understood(source, tensors, tmp_path):
    def rename(layer):
        return (
            layer.replace("_Branch_1_", "_Branch_2_")
            if layer.startswith(("Block17_3_", "Block8_"))
            else layer
        )

    port = write_keras(tmp_path / "weights.h5", tensors, full_model=False, rename=rename)
    result = audit(port, source)
    assert result.verdict == EXACT
    assert "Block17_3_Branch_2_Conv2d_0b_1x7/kernel:0" in with_status(result, "equal")


def test_training_state_in_a_checkpoint_is_explained(source, tensors, tmp_path):
    state = {"global_step": np.int64(7), "beta1_power": np.float32(0.9)}
    slots = {f"{name}/Adam": np.zeros_like(array) for name, array in list(tensors.items())[:3]}
    write_tensor_bundle(tmp_path / "trained.ckpt-7", {**tensors, **state, **slots})
    result = audit(tmp_path / "trained.ckpt-7", source)
    assert result.passed
    left_out = with_status(result, "not judged")
    assert len(left_out) == 5
    assert left_out["global_step"].detail == "step counter"


def test_a_bottleneck_may_have_its_scope_of_2017(tensors, state_dict, tmp_path):
    old = {name.replace("InceptionResnetV1/Bottleneck", "Bottleneck"): a for name, a in tensors.items()}
    write_tensor_bundle(tmp_path / "old.ckpt-1", old)
    port = save(tmp_path / "port.safetensors", state_dict)
    assert audit(port, tmp_path / "old.ckpt-1").verdict == EXACT
    write_tensor_bundle(tmp_path / "new.ckpt-1", tensors)
    assert audit(tmp_path / "old.ckpt-1", tmp_path / "new.ckpt-1").verdict == EXACT


# One bit.


def test_one_bit_of_a_tensor_is_found_and_named(source, state_dict, tmp_path):
    flipped = {
        "conv2d_1a.conv.weight": 0,
        KERNEL: 31,
        "repeat_2.9.branch1.2.bn.running_var": 0,
        "mixed_7a.branch2.2.bn.bias": 12,
        "repeat_3.4.conv2d.bias": 30,
        "last_linear.weight": 22,
        "last_bn.weight": 0,
        "logits.bias": 1,
    }
    changed = {key: flip(state_dict[key], 3, bit) for key, bit in flipped.items()}
    result = audit(save(tmp_path / "port.safetensors", {**state_dict, **changed}), source)
    assert not result.passed
    wrong = with_status(result, "differs")
    assert set(wrong) == set(flipped)
    for key, tensor in wrong.items():
        assert (tensor.differing, tensor.values) == (1, state_dict[key].size)
        if flipped[key] < 31:  # a changed sign is many steps away
            assert tensor.max_ulp == 1 << flipped[key]
        assert sum(tensor.ulp_histogram) == tensor.values
        assert tensor.ulp_histogram[0] == tensor.values - 1
    first, *_ = wrong
    assert result.verdict == f"The port differs: {first} and 7 more tensors are not faithful."
    for detail, (key, tensor) in zip(result.judgements[0].details, wrong.items(), strict=True):
        assert detail.startswith(f"{key}: 1 of {tensor.values} values differs")
    # Of one tensor alone.
    port = {**state_dict, "logits.bias": changed["logits.bias"]}
    result = audit(save(tmp_path / "one.safetensors", port), source)
    assert result.verdict == "The port differs: logits.bias is not the source's."


# Other faults, with their causes.


def test_wrong_kernels_are_explained(source, state_dict, tmp_path):
    """Seven kernels of one shape, each wrong in a way of its own."""
    changes = (
        (
            lambda kernel: np.ascontiguousarray(kernel.transpose(0, 1, 3, 2)),
            "is laid out as (outputs, inputs, width, height)",
        ),
        (lambda _: state_dict["repeat_1.2.branch2.1.conv.weight"], "block35_3/Branch_2/Conv2d_0b_3x3"),
        (lambda kernel: kernel.astype(np.float16).astype(np.float32), "was stored as float16"),
        (
            lambda kernel: np.round(kernel.astype(float), 5).astype(np.float32),
            "was stored with 5 decimals",
        ),
        (np.zeros_like, "is 0 throughout"),
        (lambda kernel: np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)), "expected (32, 32, 3, 3)"),
        (lambda kernel: kernel.astype(np.int8), "it is quantised to integers (int8)"),
    )
    kernels = [f"repeat_1.{block}.branch{branch}.1.conv.weight" for branch in (1, 2) for block in range(5)]
    kernels.remove("repeat_1.2.branch2.1.conv.weight")
    messages, port = {}, dict(state_dict)
    for key, (change, message) in zip(kernels, changes, strict=False):
        messages[key], port[key] = message, change(state_dict[key])
    assert len(messages) == len(changes)
    result = audit(save(tmp_path / "port.safetensors", port), source)
    wrong = with_status(result, "differs")
    assert set(wrong) == set(messages)
    details = dict(zip(wrong, result.judgements[0].details, strict=True))
    for key, message in messages.items():
        assert message in wrong[key].detail
        assert message in details[key]


def test_missing_and_extra_tensors_are_named(source, state_dict, tmp_path):
    port = {key: array for key, array in state_dict.items() if key not in (KERNEL, "last_bn.bias")}
    result = audit(save(tmp_path / "port.safetensors", {**port, "ema.decay": np.ones(1, np.float32)}), source)
    assert set(with_status(result, "missing")) == {KERNEL, "last_bn.bias"}
    assert set(with_status(result, "extra")) == {"ema.decay"}
    assert result.judgements[0].statement.startswith("3 of 717 tensors: 2 missing, 1 extra")
    assert not any("--ignore" in statement for statement in result.names)


def test_averages_in_place_of_the_variables_are_named(tensors, state_dict, tmp_path):
    moved = {name: array * np.float32(1.001) for name, array in tensors.items()}
    averages = {f"{name}/ExponentialMovingAverage": array for name, array in moved.items()}
    write_tensor_bundle(tmp_path / "model.ckpt-1", {**tensors, **averages})
    average = to_numpy_state_dict(moved)
    port = save(tmp_path / "port.safetensors", {**state_dict, KERNEL: average[KERNEL]})
    result = audit(port, tmp_path / "model.ckpt-1")
    assert not result.passed
    assert "average" in with_status(result, "differs")[KERNEL].detail
    whole = save(tmp_path / "averages.safetensors", average)
    assert audit(whole, tmp_path / "model.ckpt-1", weights="average").verdict == EXACT


def test_another_embedding_size_and_a_batch_counter_above_zero_are_differences(source, tensors, tmp_path):
    smaller = dict(tensors)
    for name, array in tensors.items():
        if name.startswith("InceptionResnetV1/Bottleneck"):
            smaller[name] = array[..., :128]
    smaller["Logits/weights"] = tensors["Logits/weights"][:128]
    port = to_numpy_state_dict(smaller)
    port["conv2d_1a.bn.num_batches_tracked"] = np.array(7)
    wrong = with_status(audit(save(tmp_path / "port.safetensors", port), source), "differs")
    assert "shape (128, 1792), expected (512, 1792)" in wrong["last_linear.weight"].detail
    assert wrong["conv2d_1a.bn.num_batches_tracked"].detail == "counts 7 batches, expected 0"


# Half precision.


def test_half_precision_is_rounded_to_the_bit_or_named(source, state_dict, tmp_path):
    """Of either kind: the first part of the network in float16, and the other in bfloat16."""
    late = ("repeat_2", "mixed_7", "last")
    halves = dict(state_dict)
    for key, array in state_dict.items():
        if array.dtype == np.float32:
            halves[key] = array.astype(ml_dtypes.bfloat16 if key.startswith(late) else np.float16)
    result = audit(save(tmp_path / "port.safetensors", halves), source)
    assert result.passed
    assert len(with_status(result, "rounded")) == 716 - 112
    assert result.verdict == (
        "The port is faithful: its weights are the source's rounded to half precision, bit for bit."
    )
    flipped = {KERNEL: "float16", "last_linear.weight": "bfloat16"}
    halves |= {key: flip(halves[key], 5, 0) for key in flipped}
    wrong = with_status(audit(save(tmp_path / "flipped.safetensors", halves), source), "differs")
    assert {key: tensor.dtype for key, tensor in wrong.items()} == flipped
    assert {(tensor.differing, tensor.max_ulp) for tensor in wrong.values()} == {(1, 1)}


# Folding.


def fused(state_dict, *, epsilon=0.001):
    """The state_dict of the network with PyTorch's own fusion applied to every unit."""
    model = network(state_dict)
    with torch.no_grad():
        for module in list(model.modules()):
            if hasattr(module, "bn"):
                module.bn.eps = epsilon
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), torch.nn.Identity()
        model.last_bn.eps = epsilon
        model.last_linear = fuse_linear_bn_eval(model.last_linear, model.last_bn)
        model.last_bn = torch.nn.Identity()
    return {key: tensor.numpy() for key, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def folded(state_dict):
    return fused(state_dict)


def test_pytorchs_own_fusion_is_recognised_bit_for_bit(source, folded, tmp_path):
    result = audit(save(tmp_path / "port.safetensors", folded), source)
    assert result.passed
    assert len(with_status(result, "folded")) == 2 * 112
    assert len(with_status(result, "equal")) == 2 * 21 + 2
    assert result.verdict == (
        "The port is faithful: its weights are the source's with factors folded in, bit for bit."
    )


def test_one_bit_of_a_folded_tensor_is_found_and_named(source, folded, tmp_path):
    flipped = {
        "conv2d_2b.conv.weight": 0,
        "conv2d_4a.conv.bias": 0,
        "last_linear.weight": 0,
        "mixed_7a.branch2.2.conv.bias": 3,
    }
    changed = {key: flip(folded[key], 11, bit) for key, bit in flipped.items()}
    result = audit(save(tmp_path / "port.safetensors", {**folded, **changed}), source)
    wrong = with_status(result, "differs")
    assert {key: (tensor.differing, tensor.max_ulp) for key, tensor in wrong.items()} == {
        key: (1, 1 << bit) for key, bit in flipped.items()
    }


def test_folding_with_pytorchs_epsilon_is_named(source, folded, state_dict, tmp_path):
    """Of layers of which the others are folded as they should be."""
    layers = ("conv2d_1a.conv", "repeat_2.3.branch1.1.conv", "last_linear")
    other = fused(state_dict, epsilon=1e-5)
    changed = {f"{layer}.{leaf}": other[f"{layer}.{leaf}"] for layer in layers for leaf in ("weight", "bias")}
    result = audit(save(tmp_path / "port.safetensors", folded | changed), source)
    assert not result.passed
    wrong = with_status(result, "differs")
    assert set(wrong) == set(changed)
    for layer in layers:
        assert "folded with an epsilon of 1e-05" in wrong[f"{layer}.weight"].detail


def test_folding_in_half_precision_is_recognised(source, folded, tmp_path):
    halves = {key: array.astype(np.float16) for key, array in folded.items()}
    result = audit(save(tmp_path / "port.safetensors", halves), source)
    assert result.passed
    assert result.verdict == (
        "The port is faithful: its weights are the source's with factors folded in and rounded to half "
        "precision, within rounding."
    )


def test_folding_by_an_unknown_formula_is_judged_against_float64(
    source, folded, state_dict, tensors, tmp_path
):
    """Products in an order that no tool uses are near the exact result, with other bits."""
    scope = "InceptionResnetV1/Conv2d_2b_3x3"
    variance = tensors[f"{scope}/BatchNorm/moving_variance"]
    root = np.sqrt(np.sqrt(variance + np.float32(0.001)))
    odd = state_dict["conv2d_2b.conv.weight"] / root[:, None, None, None] / root[:, None, None, None]
    port = {**folded, "conv2d_2b.conv.weight": odd}
    result = audit(save(tmp_path / "port.safetensors", port), source)
    # A kernel that no factor gives leaves the factor of the bias open.
    assert set(with_status(result, "approximate")) == {"conv2d_2b.conv.weight", "conv2d_2b.conv.bias"}
    assert result.verdict.endswith("with factors folded in, within rounding.")
    port["conv2d_2b.conv.weight"] = odd * np.float32(1 + 1e-6)  # eight roundings are 4.8e-7
    result = audit(save(tmp_path / "worse.safetensors", port), source)
    assert "conv2d_2b.conv.weight" in with_status(result, "differs")


def test_folding_takes_the_sources_gamma(state_dict, folded, tmp_path):
    generator = np.random.default_rng(5)
    shapes = {row.key: row.info for row in table(Variant(num_classes=CLASSES))}
    scaled = {
        key: generator.uniform(0.5, 2, shapes[key].shape).astype(np.float32)
        if key.endswith("bn.weight")
        else array
        for key, array in state_dict.items()
    }
    save(tmp_path / "source.safetensors", scaled)
    # One unit is folded with a gamma of one, the others with theirs.
    plain = {key: folded[key] for key in ("conv2d_2b.conv.weight", "conv2d_2b.conv.bias")}
    port = save(tmp_path / "port.safetensors", fused(scaled) | plain)
    result = audit(port, tmp_path / "source.safetensors")
    assert {each.name for each in result.tensors if not each.is_faithful} == set(plain)
    assert len(with_status(result, "folded")) >= 111  # every kernel but one


def test_the_largest_difference_is_shown_with_its_place_and_values(source, state_dict, tmp_path, capsys):
    """The first tensor that differs, and the tensor with the largest difference of all."""
    kernel, weight = np.array(state_dict[KERNEL]), np.array(state_dict["last_linear.weight"])
    kernel[0, 0, 0, 0] += np.float32(0.25)
    kernel[3, 1, 2, 0] += np.float32(0.5)
    weight[7, 9] -= np.float32(2)
    changed = {**state_dict, KERNEL: kernel, "last_linear.weight": weight}
    port = {f"module.{key}": array for key, array in changed.items()}
    assert main([str(save(tmp_path / "port.safetensors", port)), "--against", str(source)]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    before, after = state_dict[KERNEL][3, 1, 2, 0], kernel[3, 1, 2, 0]
    assert f"largest     5.0e-01 at [3, 1, 2, 0]: expected {before:.9g}, actual {after:.9g}" in lines
    before, after = state_dict["last_linear.weight"][7, 9], weight[7, 9]
    place = "module.last_linear.weight (last_linear.weight, InceptionResnetV1/Bottleneck/weights)"
    assert f"overall     2.0e+00 at [7, 9]: expected {before:.9g}, actual {after:.9g}; in {place}" in lines


# The command.


def test_the_command_prints_the_verdict_first_and_writes_json(source, state_dict, tmp_path):
    """In a process of its own, as a user's."""
    port = save(tmp_path / "port.safetensors", {**state_dict, KERNEL: flip(state_dict[KERNEL], 0, 4)})
    command = [sys.executable, "-m", "checks.audit", port, "--against", source]
    process = subprocess.run([*command, "--json", tmp_path / "audit.json"], capture_output=True, text=True)
    assert process.returncode == 1, process.stderr
    lines = process.stdout.splitlines()
    assert len(lines) <= 15
    assert lines[0] == f"The port differs: {KERNEL} is not the source's."
    variable = "InceptionResnetV1/Repeat/block35_3/Branch_1/Conv2d_0b_3x3/weights"
    actual, expected = (
        float(array.flat[0]) for array in (flip(state_dict[KERNEL], 0, 4), state_dict[KERNEL])
    )
    assert [line.strip() for line in lines[4:]] == [
        f"tensor      {KERNEL}, float32 [32, 32, 3, 3]",
        f"TensorFlow  {variable}",
        f"largest     {abs(actual - expected):.1e} at [0, 0, 0, 0]: expected {expected:.9g}, "
        f"actual {actual:.9g}",
        "in all      1 of 9216 values differs, by up to 16 steps from one float32 to the next",
    ]
    result = json.loads((tmp_path / "audit.json").read_text())
    assert result["passed"] is False
    (kernel,) = [tensor for tensor in result["tensors"] if tensor["status"] == "differs"]
    assert (kernel["name"], kernel["key"], kernel["variable"]) == (KERNEL, KERNEL, variable)
    assert (kernel["index"], kernel["actual"], kernel["expected"]) == ([0, 0, 0, 0], actual, expected)
    assert kernel["max_abs"] == abs(actual - expected)
    assert len(result["files"]) == 3


def test_many_faults_are_counted_and_listed_by_verbose(source, state_dict, tmp_path, capsys):
    """A whole layer that is missing: each of its tensors is named."""
    features = {key: array for key, array in state_dict.items() if not key.startswith("mixed_6a.branch0.")}
    port = save(tmp_path / "port.safetensors", features)
    assert main([str(port), "--against", str(source)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 15
    assert lines[0] == ("The port differs: mixed_6a.branch0.conv.weight and 4 more tensors are not faithful.")
    assert lines[-1] == "4 more of 715 tensors: --verbose lists them."
    assert main([str(port), "--against", str(source), "--verbose"]) == 1
    out = capsys.readouterr().out
    for leaf in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
        assert f"mixed_6a.branch0.{leaf}: missing" in out
    assert "HWIO->OIHW" in out
    assert "most steps  largest difference from the expected value" in out


def test_quiet_prints_nothing(small_source, tmp_path, capsys):
    convert_file(small_source, tmp_path / "p-net.pt")
    assert main([str(tmp_path / "p-net.pt"), "--against", str(small_source), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_port_does_not_judge_itself(single_files, capsys):
    path = str(single_files / "weights.pt")
    assert main([path, "--against", path]) == 2
    assert "a port cannot judge itself" in capsys.readouterr().err


def test_without_against_an_unknown_port_is_refused(single_files, capsys):
    assert main([str(single_files / "weights.pt")]) == 2
    assert "Give the checkpoint: facenet-port audit" in capsys.readouterr().err


def test_the_source_is_found_by_a_published_name(single_files, tmp_path, monkeypatch, capsys):
    """By the name of a file, and by a name in place of a file; offline the archive is missing."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path / "cache"))
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    port = hub / "20180402-114759-vggface2.pt"
    port.write_bytes((single_files / "weights.pt").read_bytes())
    assert find_source(port) == "20180402-114759"
    for given in (str(port), "vggface2"):
        assert main([given, "--offline"]) == 4
        assert "20180402-114759" in capsys.readouterr().err
    assert main(["casia-webface", "--offline"]) == 4
    assert (
        "20180408-102900-casia-webface.pt). Make one with `facenet-port convert casia-webface`"
        in capsys.readouterr().err
    )


def test_the_source_is_found_by_a_published_sha256(single_files, monkeypatch):
    from checks.audit import published_ports

    known = "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b"
    monkeypatch.setattr(published_ports, "file_digest", lambda path: known)
    assert find_source(single_files / "weights.pt") == "20180402-114759"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pt", b"", "the file is empty"),
        ("page.pt", b"<!doctype html><html>", "a web page, not the file itself"),
        ("cut.safetensors", b"\x40\0\0\0\0\0\0\0{", "this safetensors file is cut off"),
        ("noise.bin", bytes(range(200)) * 3, "this is not a TensorFlow graph"),
    ],
)
@pytest.mark.parametrize("side", ["port", "source"])
def test_bad_files_are_refused_with_one_message(
    source, single_files, tmp_path, capsys, name, content, message, side
):
    bad = tmp_path / name
    bad.write_bytes(content)
    pair = (bad, source) if side == "port" else (single_files / "weights.pt", bad)
    assert main([str(pair[0]), "--against", str(pair[1])]) == 3
    streams = capsys.readouterr()
    assert streams.out == ""
    assert message in streams.err
    assert str(bad) in streams.err
    assert "Traceback" not in streams.err


def test_another_network_is_refused_by_name(source, tmp_path, capsys):
    port = save(tmp_path / "resnet.safetensors", {"layer1.0.conv1.weight": np.zeros((3, 3), np.float32)})
    assert main([str(port), "--against", str(source)]) == 3
    message = capsys.readouterr().err
    assert "resnet.safetensors: not an Inception-ResNet-v1: its only tensor" in message
    assert "layer1.0.conv1.weight" in message


def test_a_network_without_a_bottleneck_is_refused_by_name(source, state_dict, tmp_path, capsys):
    kept = {key: tensor for key, tensor in state_dict.items() if not key.startswith("last_")}
    save(tmp_path / "old.pt", kept)
    assert main([str(tmp_path / "old.pt"), "--against", str(source)]) == 3
    assert "this is the network of before February 2017: it has no Bottleneck" in capsys.readouterr().err


def test_a_missing_file_is_refused(source, tmp_path, capsys):
    assert main([str(tmp_path / "gone.pt"), "--against", str(source)]) == 3
    assert "no such file" in capsys.readouterr().err
    assert main([str(tmp_path / "gone.pt")]) == 3
    assert "no such file" in capsys.readouterr().err


def test_a_source_of_another_network_is_refused(single_files, tmp_path):
    other = save(tmp_path / "other.safetensors", {"fc.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(Exception, match="not an Inception-ResNet-v1") as caught:
        audit(single_files / "weights.pt", other)
    assert caught.value.exit_code == SourceError.exit_code


# A checkpoint's own graph.


@pytest.fixture(scope="module")
def graph_def(checkpoint):
    """The frozen graph of the small network, to be changed."""
    from facenet_tf import import_tensorflow

    definition = import_tensorflow().compat.v1.GraphDef()
    definition.ParseFromString((checkpoint.prefix.parent / f"{MODEL}.pb").read_bytes())
    return definition


def changed_graph(graph_def, path, change):
    changed = copy.deepcopy(graph_def)
    change({node.name: node for node in changed.node}, changed)
    path.write_bytes(changed.SerializeToString())
    return path


def test_a_frozen_graph_with_another_epsilon_has_faithful_weights_and_fails(source, graph_def, tmp_path):
    def change(nodes, definition):
        for node in definition.node:
            if node.name.startswith("InceptionResnetV1/Mixed_6a") and node.op.startswith("FusedBatchNorm"):
                node.attr["epsilon"].f = 1e-5

    result = audit(changed_graph(graph_def, tmp_path / "epsilon.pb", change), source)
    assert result.judgements[0].passed
    assert result.run.first_divergence == "InceptionResnetV1/Mixed_6a/Branch_0/Conv2d_1a_3x3"
    assert result.verdict == (
        "The port differs: its weights are faithful, but its graph computes another result from "
        "Mixed_6a/Branch_0/Conv2d_1a_3x3 on."
    )


def test_a_frozen_graph_that_writes_files_is_not_run(source, graph_def, tmp_path):
    target = tmp_path / "written"

    def change(nodes, definition):
        import tensorflow as tf

        name = definition.node.add(name="name", op="Const")
        content = definition.node.add(name="content", op="Const")
        for node, text in ((name, str(target)), (content, "harm")):
            node.attr["dtype"].type = tf.string.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text))
        definition.node.add(name="write", op="WriteFile", input=["name", "content"])
        nodes["embeddings"].input.append("^write")

    path = changed_graph(graph_def, tmp_path / "writes.pb", change)
    result = audit(path, source)
    assert (result.passed, result.exit_code) == (False, 5)
    assert result.not_run == "it holds WriteFile, not only arithmetic"
    assert result.verdict == (
        "Weaker proof: every tensor is the source's, bit for bit, but its graph was not run."
    )
    assert not target.exists()
    # The control: TensorFlow itself writes it.
    from facenet_tf.own_graph import OwnGraph

    with OwnGraph.from_frozen(path) as graph:
        graph.run(np.zeros((1, 160, 160, 3), np.float32), ["embeddings"])
    assert target.read_text() == "harm"
