"""Prefixes, extra tensors and missing counters, as the names of a source have them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import reference
from converter.__main__ import main
from converter.convert import plan_tensors, to_numpy_state_dict, to_tensorflow
from converter.errors import SourceError, UsageError
from converter.formats.source import TensorInfo, TensorSource
from converter.keras_layer_map import keras_names
from converter.layer_map import ConvertedRow, Variant, table
from converter.mtcnn_layer_map import NETWORKS
from converter.network_names import NetworkTensors, check_ignore, find_prefix
from converter.plan import AVERAGE, MappingError, plan_conversion
from tests.conftest import CLASSES, same_bits

ROWS = table(Variant(num_classes=CLASSES))
VARIABLES = {
    row.variable: TensorInfo(np.dtype("f4"), row.shape) for row in ROWS if isinstance(row, ConvertedRow)
}
KEYS = [row.key for row in ROWS]
SCALAR = TensorInfo(np.dtype("f4"), ())


class Described(TensorSource):
    """A source of which only the names, dtypes and shapes are looked at."""

    format = "description"
    key = ""

    def __init__(self, info, naming="tensorflow"):
        self.path, self.naming, self.info, self.files = "source", naming, info, ()

    def __getitem__(self, name):
        raise AssertionError("nothing is read")

    def close(self):
        pass


def prefixed(prefix, info):
    return {prefix + name: each for name, each in info.items()}


def plan(info, *ignore, weights="variable"):
    """Plan a TensorFlow source; returns the view of its names, and the plan."""
    named = NetworkTensors(Described(info), ignore)
    check_ignore(ignore, named)
    return named, plan_tensors(named, weights)[1]


# The rule for prefixes


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.module.", "a.b.c.d.e.f.g.h.i.j."])
def test_the_prefix_of_a_state_dict(prefix):
    assert find_prefix([prefix + key for key in KEYS], "pytorch") == prefix
    assert find_prefix([prefix + key for key in KEYS] + ["epoch", "loss.weight"], "pytorch") == prefix


@pytest.mark.parametrize("prefix", ["", "resnet/", "import/", "tower_0/net/"])
def test_the_prefix_of_a_checkpoint(prefix):
    trained = {"global_step": SCALAR, f"{prefix}InceptionResnetV1/Conv2d_1a_3x3/weights/Adam": SCALAR}
    named, planned = plan(prefixed(prefix, VARIABLES) | trained)
    assert named.prefix == prefix
    assert len(planned.converted) == 492
    assert [named.original(item.name) for item in planned.left_out] == list(trained)


def test_the_prefix_of_a_nested_keras_model():
    assert find_prefix([f"model_1/{name}" for name in keras_names()], "keras") == "model_1/"


@pytest.mark.parametrize("naming", ["pytorch", "tensorflow"])
def test_the_prefix_of_a_network_of_mtcnn(naming):
    rows = NETWORKS["P-Net"]
    names = [row.key if naming == "pytorch" else row.variable for row in rows]
    prefix = "module.pnet." if naming == "pytorch" else "pnet/"
    assert find_prefix([prefix + name for name in names], naming) == prefix
    assert find_prefix([prefix + name for name in names[1:]], naming) == prefix
    assert find_prefix([prefix + name for name in names[: len(names) // 2]], naming) == ""


@pytest.mark.parametrize("prefix", ["", "module."])
def test_three_networks_of_mtcnn_in_one_file(prefix):
    names = {network: [row.key for row in rows] for network, rows in NETWORKS.items()}
    stems = {"P-Net": "pnet.", "R-Net": "rnet.", "O-Net": "onet."}
    together = [prefix + stems[network] + key for network, keys in names.items() for key in keys]
    message = r"it holds 3 networks of MTCNN, under '.*pnet.'.*--ignore '.*onet.\*'"
    with pytest.raises(UsageError, match=message):
        find_prefix(together, "pytorch")
    assert find_prefix([name for name in together if "rnet." in name], "pytorch") == f"{prefix}rnet."


def test_a_prefix_ends_at_a_separator():
    assert find_prefix([f"my{key}" for key in KEYS], "pytorch") == ""
    info = {f"my{name}": each for name, each in VARIABLES.items() if "Bottleneck" not in name}
    with pytest.raises(MappingError, match="none of its 488 tensors has an expected name"):
        plan(info)


def test_a_name_outside_the_prefix_is_not_the_networks():
    info = prefixed("resnet/", VARIABLES)
    moved = "Logits/weights"
    info[moved] = info.pop(f"resnet/{moved}")
    with pytest.raises(MappingError) as caught:
        plan(info)
    assert {(problem.kind, problem.name) for problem in caught.value.problems} == {
        ("missing", "resnet/Logits/weights"),
        ("unexpected", "Logits/weights"),
    }


def test_the_same_name_outside_the_prefix_replaces_nothing():
    info = prefixed("resnet/", VARIABLES) | {"Logits/weights": SCALAR}
    with pytest.raises(
        MappingError, match=r"unexpected \(1\):\n    Logits/weights: .*\n.*--ignore 'Logits/\*'"
    ):
        plan(info)
    named, planned = plan(info, "Logits/*")
    assert planned.variant.num_classes == CLASSES
    assert named.ignored == {"Logits/weights": "Logits/*"}


def test_two_networks_are_told_apart_by_the_pattern():
    info = prefixed("student/", VARIABLES) | prefixed("teacher/", VARIABLES)
    with pytest.raises(
        UsageError, match=r"two networks, under 'student/' and 'teacher/'.*--ignore 'student/\*'"
    ):
        plan(info)
    assert plan(info, "student/*")[0].prefix == "teacher/"


@pytest.mark.parametrize("prefixed_first", [True, False])
def test_a_network_whose_names_begin_differently(prefixed_first):
    """DataParallel around a part of a model, and two state_dicts of one network put together."""
    for count in (1, 300, 600):
        info = {
            f"module.{key}" if (number < count) == prefixed_first else key: SCALAR
            for number, key in enumerate(KEYS)
        }
        with pytest.raises(SourceError, match="the network's names have different prefixes") as caught:
            NetworkTensors(Described(info, "pytorch"))
        bare = sum(not name.startswith("module.") for name in info)
        assert f"{len(KEYS) - bare} under 'module.'" in str(caught.value)
        assert f"{bare} under none" in str(caught.value)
        assert "{k.removeprefix('module.'): v for k, v in state_dict.items()}" in str(caught.value)


def test_a_checkpoint_whose_names_begin_differently():
    info = {(f"a/{n}" if "Repeat" in n else f"b/{n}"): each for n, each in VARIABLES.items()}
    message = r"prefixes: \d+ under 'a/' and \d+ under 'b/', such as 'b/Inc.*Save the network again, with one"
    with pytest.raises(SourceError, match=message):
        plan(info)


def test_a_head_beside_a_prefixed_network_is_an_extra():
    info = {key if key.startswith("logits.") else f"module.{key}": SCALAR for key in KEYS}
    assert NetworkTensors(Described(info, "pytorch")).prefix == "module."


# Averages


@pytest.mark.parametrize("prefix", ["", "import/"])
@pytest.mark.parametrize("statistics", [False, True])
def test_a_source_of_averages_only(prefix, statistics):
    info = {
        name if statistics and "/moving_" in name else f"{name}/{AVERAGE}": each
        for name, each in prefixed(prefix, VARIABLES).items()
    }
    count = 268 if statistics else 492
    with pytest.raises(MappingError, match=f"averages of {count} variables.*--weights average"):
        plan(info)
    named, planned = plan(info, weights="average")
    assert (named.prefix, planned.variant.num_classes) == (prefix, CLASSES)
    assert len(planned.converted) == 492


def test_an_incomplete_source_is_not_one_of_averages():
    info = dict(VARIABLES)
    del info["InceptionResnetV1/Block8/Conv2d_1x1/biases"]
    with pytest.raises(MappingError, match=r"missing \(1\)"):
        plan(info)


# Extras


EXTRAS = {"Logits_finetune/weights": SCALAR, "Logits_finetune/biases": SCALAR, "learning_rate": SCALAR}


def test_extras_are_listed_with_the_patterns_that_leave_them_out():
    inner = {"InceptionResnetV1/Conv2d_1a_3x3/metric[0]": SCALAR}
    with pytest.raises(MappingError) as caught:
        plan(VARIABLES | EXTRAS | inner)
    assert [problem.name for problem in caught.value.problems] == [*EXTRAS, *inner]
    assert str(caught.value).endswith(
        "give --ignore PATTERN (may be repeated): --ignore 'Logits_finetune/*' --ignore 'learning_rate' "
        "--ignore 'InceptionResnetV1/Conv2d_1a_3x3/metric[[]0]'"
    )
    patterns = ["Logits_finetune/*", "learning_rate", "InceptionResnetV1/Conv2d_1a_3x3/metric[[]0]"]
    named, _ = plan(VARIABLES | EXTRAS | inner, *patterns)
    assert set(named.ignored) == {*EXTRAS, *inner}
    assert named.statements[0] == "2 tensors are left out by --ignore 'Logits_finetune/*'"


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("Logit_finetune/*", "matches no tensor of source"),
        ("logits_finetune/*", "matches no tensor of source"),
        ("Logits*", "would leave out 'Logits/weights' and 1 more, which the network needs"),
        ("*weights", "which the network needs"),
        ("*", "which the network needs"),
        ("InceptionResnetV1/Bottleneck/weights", "would leave out 'InceptionResnetV1/Bottleneck/weights', "),
    ],
)
@pytest.mark.parametrize("prefix", ["", "resnet/"])
def test_a_pattern_that_takes_nothing_or_too_much(pattern, problem, prefix):
    with pytest.raises(UsageError, match="--ignore") as caught:
        plan(prefixed(prefix, VARIABLES) | EXTRAS, prefix + pattern)
    assert problem.replace("'Log", f"'{prefix}Log").replace("'Inc", f"'{prefix}Inc") in str(caught.value)


# The network of before February 2017


def test_the_network_without_a_bottleneck_is_recognised():
    old = {name: info for name, info in VARIABLES.items() if "Bottleneck" not in name}
    for head in ({}, {"Logits/weights": TensorInfo(np.dtype("f4"), (1792, CLASSES))}):
        with pytest.raises(MappingError, match=r"before February 2017.*1792 numbers"):
            plan(old | head)
    del old["InceptionResnetV1/Block8/Conv2d_1x1/biases"]
    with pytest.raises(MappingError, match=r"missing \(5\)"):
        plan(old)
    assert plan_conversion(VARIABLES).variant.embedding_size == 512


# Weights that are no longer those of the network


def folded(info, normal, bias):
    """Leave out every BatchNorm, and give each layer before one a bias."""
    scopes = [
        name.partition(normal)[0] for name in info if normal in name and name.endswith(("mean", "beta"))
    ]
    return {name: each for name, each in info.items() if normal not in name} | {
        f"{s}{bias}": SCALAR for s in scopes
    }


@pytest.mark.parametrize("prefix", ["", "import/"])
def test_batch_norms_folded_into_biases(prefix):
    info = prefixed(prefix, folded(VARIABLES, "/BatchNorm/", "/biases"))
    with pytest.raises(
        MappingError, match=r"source: 112 BatchNorms are folded into weights and biases, and"
    ) as caught:
        plan(info)
    assert "`facenet-port audit FILE --against CHECKPOINT` judges" in str(caught.value)


def test_batch_norms_of_a_state_dict_folded_into_biases():
    info = {row.key: row.info for row in ROWS}
    whole = folded(
        {key: each for key, each in info.items() if not key.startswith("last_bn.")}, ".bn.", ".conv.bias"
    )
    whole["last_linear.bias"] = SCALAR
    with pytest.raises(MappingError, match="112 BatchNorms are folded into weights and biases"):
        plan_tensors(NetworkTensors(Described(whole, "pytorch")))
    del whole["last_linear.bias"], whole["conv2d_1a.conv.bias"]
    with pytest.raises(MappingError, match="missing "):
        plan_tensors(NetworkTensors(Described(whole, "pytorch")))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4"])
def test_weights_that_are_integers_are_quantised(dtype, state_dict):
    kernels = [name for name, each in VARIABLES.items() if len(each.shape) == 4]
    info = VARIABLES | {name: TensorInfo(np.dtype(dtype), VARIABLES[name].shape) for name in kernels}
    message = (
        rf"quantised to integers \(tensors: 132 of {np.dtype(dtype)}\); the float32 weights are gone\. Give"
    )
    with pytest.raises(MappingError, match=message):
        plan(info)
    rounded = {key: each.numpy() for key, each in state_dict.items()}
    rounded["conv2d_1a.conv.weight"] = rounded["conv2d_1a.conv.weight"].astype(dtype)
    with pytest.raises(MappingError, match=rf"\(tensors: 1 of {np.dtype(dtype)}\)"):
        to_tensorflow(rounded)


# What a user sees


@pytest.fixture(scope="module")
def state_dict(tensors):
    return {key: torch.from_numpy(array) for key, array in to_numpy_state_dict(tensors).items()}


@pytest.fixture(scope="module")
def training_file(state_dict, tmp_path_factory):
    """A wrapped model of before PyTorch 0.4.1 with a head of its own, as a training script saves it."""
    path = tmp_path_factory.mktemp("training") / "epoch.pt"
    inside = {f"net.module.{key}": each for key, each in state_dict.items() if not key.endswith("tracked")}
    inside["net.arcface.weight"] = torch.ones(CLASSES, 512)
    content = {"epoch": 3, "model": inside, "best": np.float64(0.5)}
    torch.save(content, path, pickle_protocol=4)
    return path


def test_a_training_file_with_a_prefix_and_extras_without_counters(
    training_file, state_dict, tmp_path, capsys
):
    output = tmp_path / "weights.pt"
    assert main([str(training_file), "-o", str(output)]) == 3
    error = capsys.readouterr().err
    assert "unexpected (1):\n    net.arcface.weight: float32 (7, 512)\n" in error
    assert "--ignore 'net.arcface.*'" in error
    assert not list(tmp_path.iterdir())
    assert main([str(training_file), "-o", str(output), "--ignore", "net.arcface.*"]) == 0
    screen = capsys.readouterr().out
    for statement in (
        "the state_dict under 'model' is used; the other entries are not read: epoch, best",
        "the names of the network begin with 'net.module.', which is taken off",
        "1 tensor is left out by --ignore 'net.arcface.*'",
        "there is no num_batches_tracked, which carries no information",
    ):
        assert f"  {statement}\n" in screen
    manifest = json.loads((tmp_path / "weights.pt.json").read_text())
    assert (manifest["source"]["key"], manifest["source"]["prefix"]) == ("model", "net.module.")
    assert manifest["left_out"] == [{"name": "net.arcface.weight", "reason": "--ignore 'net.arcface.*'"}]
    loaded = torch.load(output, weights_only=True)
    assert list(loaded) == list(state_dict)
    assert all(same_bits(loaded[key].numpy(), state_dict[key].numpy()) for key in state_dict)


@pytest.mark.slow
def test_batch_counters_may_be_any_one_number(state_dict, tmp_path, capsys):
    """PyTorch's load_state_dict takes them too: of shape (1,), as before 0.4, and of any dtype."""
    path, output = tmp_path / "w.pt", tmp_path / "again.pt"
    counters = itertools.cycle((torch.zeros(1), torch.zeros(1, 1, dtype=torch.uint8)))
    torch.save({key: next(counters) if key.endswith("tracked") else state_dict[key] for key in KEYS}, path)
    assert main([str(path), "-o", str(output)]) == 0
    for loaded in (torch.load(output, weights_only=True), reference.load(path).state_dict()):
        assert all(same_bits(loaded[key], state_dict[key]) for key in KEYS)
    torch.save({**state_dict, "last_bn.num_batches_tracked": torch.zeros(2)}, path)
    assert main([str(path), "-o", str(tmp_path / "refused.pt")]) == 3
    assert "last_bn.num_batches_tracked: (2,), expected ()" in capsys.readouterr().err


def test_patterns_that_do_not_fit_write_nothing(training_file, tmp_path, capsys):
    for pattern, problem in (("arcface.*", "matches no tensor"), ("net.*", "which the network needs")):
        assert main([str(training_file), "-o", str(tmp_path / "w.pt"), "--ignore", pattern]) == 2
        assert problem in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# reference.load


def test_load_builds_the_network_that_a_file_needs(training_file, state_dict):
    model = reference.load(training_file, ignore=["net.arcface.*"])
    assert not model.training
    assert (model.last_linear.out_features, model.logits.out_features) == (512, CLASSES)
    assert all(torch.equal(value, state_dict[key]) for key, value in model.state_dict().items())
    with pytest.raises(MappingError, match=r"net\.arcface\.weight"):
        reference.load(training_file)


def test_load_takes_safetensors_without_logits_in_half_precision(state_dict, tmp_path):
    size = 16
    small = {
        key: value[:size] if key.startswith("last_") and value.ndim else value
        for key, value in state_dict.items()
        if not key.startswith("logits.")
    }
    halves = {
        key: value.numpy().astype(np.float16 if value.ndim else np.int64) for key, value in small.items()
    }
    save_file(halves, tmp_path / "w.safetensors")
    model = reference.load(tmp_path / "w.safetensors")
    assert (model.last_linear.out_features, model.logits) == (size, None)
    for key, value in model.state_dict().items():
        assert same_bits(value.numpy(), halves[key].astype(value.numpy().dtype))


@pytest.mark.slow
def test_load_verifies_the_manifest_beside_the_file(single_files, tmp_path):
    port = tmp_path / "port.pt"
    assert main([str(single_files / "weights.pt"), "-o", str(port), "--quiet"]) == 0
    reference.load(port)
    renamed = tmp_path / "renamed.pt"
    renamed.hardlink_to(port)
    (tmp_path / "renamed.pt.json").hardlink_to(tmp_path / "port.pt.json")
    reference.load(renamed)
    other = tmp_path / "other.pt"
    other.hardlink_to(single_files / "weights.pt")
    reference.load(other)
    (tmp_path / "other.pt.json").hardlink_to(tmp_path / "port.pt.json")
    with pytest.raises(SourceError, match=r"not the one in other\.pt\.json: it is not the file"):
        reference.load(other)
    (tmp_path / "other.pt.json").unlink()
    for foreign in ("{}", "", '{"network": 7}'):
        (tmp_path / "other.pt.json").write_text(foreign)
        with pytest.raises(SourceError, match=r"other\.pt\.json: .* not a manifest .* Move it away to load"):
            reference.load(other)


def test_load_of_a_name_says_how_to_load_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"InceptionResnetV1\(pretrained='vggface2'\)"):
        reference.load("vggface2")


def test_load_refuses_what_is_no_state_dict(single_files):
    with pytest.raises(UsageError, match=r"this is a Keras HDF5, .*facenet-port convert .* -o weights\.pt"):
        reference.load(single_files / "weights.h5")


def test_load_warns_of_values_that_are_not_finite(state_dict, tmp_path):
    broken = {f"module.{key}": value.clone() for key, value in state_dict.items()}
    broken["module.conv2d_1a.bn.running_var"][3] = float("nan")
    torch.save(broken, tmp_path / "broken.pt")
    message = r"1 of 492 tensors .*module\.conv2d_1a\.bn\.running_var \(1 of 32 values is NaN\)"
    with pytest.warns(UserWarning, match=message) as warned:
        reference.load(tmp_path / "broken.pt")
    assert warned[0].filename == __file__


def test_load_takes_a_list_of_patterns(training_file):
    with pytest.raises(UsageError, match=r"ignore=\['net\.arcface\.\*'\]"):
        reference.load(training_file, ignore="net.arcface.*")


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_source_is_not_its_own_output(single_files, tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    content = (single_files / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(content)
    assert main(["weights.pt", *options]) == 2
    assert "weights.pt is the source itself. Give another name with -o." in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"weights.pt": content}


@pytest.mark.parametrize(
    ("scope", "network"), [("InceptionResnetV2", "Inception-ResNet-v2"), ("squeezenet", "SqueezeNet")]
)
def test_other_networks_of_facenet_are_recognised(scope, network):
    """Their Bottleneck and Logits have the names of this network's, and show no prefix."""
    leaves = ("weights", "BatchNorm/beta", "BatchNorm/moving_mean", "BatchNorm/moving_variance")
    names = [f"{scope}/{layer}/{leaf}" for layer in ("conv1", "Bottleneck") for leaf in leaves]
    names += ["Logits/weights", "Logits/biases"]
    assert find_prefix(names, "tensorflow") == ""
    with pytest.raises(MappingError, match=f"^this is {network}, another network of facenet"):
        plan_conversion({name: TensorInfo(np.dtype("float32"), (1,)) for name in names})
