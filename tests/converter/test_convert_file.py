"""Conversion of a file: the outputs, their names, their proof, and the effects of a failure."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file as save_torch

from converter import write_output as module
from converter.__main__ import main
from converter.atomic import AtomicFiles
from converter.convert import to_numpy_state_dict, to_pytorch
from converter.convert_file import convert_file
from converter.errors import DifferenceError, SourceError, UsageError
from converter.formats.detect import open_source
from converter.formats.tensorflow.bundle import TensorBundle
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.hub.catalog import BUILT_IN
from converter.hub.catalog_entry import FIXED, PER_IMAGE
from converter.hub.identify import find_namesake, identify
from converter.layer_map import ConvertedRow, Variant, table
from converter.manifest import read_manifest
from converter.plan import AVERAGE, MappingError
from reference import InceptionResnetV1
from tests.conftest import CLASSES, random_bits, same_bits, write_keras

ROOT = Path(module.__file__).parents[1]
NAME = "20180402-114759"
AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
VARIANT = Variant(num_classes=CLASSES)
VARIABLES = {row.key: row.variable for row in table(VARIANT) if isinstance(row, ConvertedRow)}


@pytest.fixture(scope="module")
def original():
    """Tensors of random bits, so that only a copy of the bits passes."""
    rows = [row for row in table(VARIANT) if isinstance(row, ConvertedRow)]
    return {row.variable: random_bits(row.shape, seed) for seed, row in enumerate(rows)}


@pytest.fixture(scope="module")
def source(original, tmp_path_factory):
    """A checkpoint under a published name, with training state that is not in a state_dict."""
    extra = {
        "global_step": np.array(275, np.int64),
        "Logits/biases/Adam": random_bits((CLASSES,), 1),
        f"Logits/biases/{AVERAGE}": random_bits((CLASSES,), 2),
    }
    prefix = tmp_path_factory.mktemp(NAME) / f"model-{NAME}.ckpt-275"
    write_tensor_bundle(prefix, original | extra)
    return prefix


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """The checkpoint as .pt with its parts, as .safetensors and as a checkpoint again."""
    folder = tmp_path_factory.mktemp("converted")
    return {
        "pt": convert_file(source, folder / "w.pt", parts=True),
        "safetensors": convert_file(
            source,
            folder / "w.safetensors",
            output_format="safetensors",
            sha256=["0" * 64, *(digest.upper() for digest in digests_of(source))],
        ),
        "tensorflow": convert_file(source, folder / "again", output_format="tensorflow"),
    }


def folder_of(conversion):
    return next(iter(conversion.outputs)).parent


@cache
def sha256(path):
    """Hash a file that stays as it is."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load(path):
    return {key: value.numpy() for key, value in torch.load(path, weights_only=True).items()}


def assert_converted(state_dict, original):
    """Compare a state_dict with its source; only the names in the table come from the converter."""
    keys = [key for key in VARIABLES if key in state_dict]
    for key in keys:
        array = original[VARIABLES[key]]
        assert same_bits(state_dict[key], array.transpose(AXES[array.ndim])), key
    for key in state_dict.keys() - set(keys):
        expected = (np.int64, 0) if key.endswith(".num_batches_tracked") else (np.float32, 1)
        assert (state_dict[key].dtype, set(state_dict[key].reshape(-1))) == (expected[0], {expected[1]}), key


# What is written


@pytest.mark.slow
def test_a_state_dict_of_pytorch(converted, original):
    path = folder_of(converted["pt"]) / "w.pt"
    state_dict = load(path)
    assert len(state_dict) == 716
    assert_converted(state_dict, original)
    with torch.device("meta"):  # without random weights
        model = InceptionResnetV1(num_classes=CLASSES)
    model.load_state_dict(torch.load(path, weights_only=True), strict=True, assign=True)
    assert list(model.state_dict()) == list(state_dict)


def test_the_judge_sees_one_exchanged_bit(original):
    state_dict = {"last_bn.bias": original["InceptionResnetV1/Bottleneck/BatchNorm/beta"].copy()}
    assert_converted(state_dict, original)
    state_dict["last_bn.bias"].view(np.uint32)[7] ^= 1
    with pytest.raises(AssertionError, match=r"last_bn\.bias"):
        assert_converted(state_dict, original)


def test_parts_are_the_state_dict_in_two(converted):
    folder = folder_of(converted["pt"])
    whole, features, logits = (load(folder / f"w{part}.pt") for part in ("", "-features", "-logits"))
    assert list(logits) == ["logits.weight", "logits.bias"]
    assert [*features, *logits] == list(whole)
    assert all(same_bits(array, whole[key]) for part in (features, logits) for key, array in part.items())
    with torch.device("meta"):
        model = InceptionResnetV1()
    model.load_state_dict({key: torch.from_numpy(a) for key, a in features.items()}, strict=True, assign=True)


def test_safetensors(converted, original):
    state_dict = load_file(folder_of(converted["safetensors"]) / "w.safetensors")
    assert len(state_dict) == 716
    assert_converted(state_dict, original)


def test_tensorflow_restores_what_is_written(converted, original):
    """By the operation that `tf.train.Saver` runs."""
    tf = pytest.importorskip("tensorflow")
    restored = tf.raw_ops.RestoreV2(
        prefix=str(folder_of(converted["tensorflow"]) / "again"),
        tensor_names=list(original),
        shape_and_slices=[""] * len(original),
        dtypes=[tf.float32] * len(original),
    )
    different = [
        name
        for (name, array), tensor in zip(original.items(), restored, strict=True)
        if not same_bits(tensor.numpy(), array)
    ]
    assert different == []


def test_a_checkpoint_written_holds_the_variables_and_no_more(converted, original):
    with TensorBundle(folder_of(converted["tensorflow"]) / "again") as bundle:
        assert set(bundle) == set(original)


@pytest.mark.slow
def test_there_and_back_again(converted, tmp_path, monkeypatch):
    back = folder_of(converted["pt"])
    for end in (".index", ".data-00000-of-00001"):
        (tmp_path / f"mine.ckpt-5{end}").hardlink_to(back / f"again{end}")
    monkeypatch.chdir(tmp_path)
    assert main(["mine.ckpt-5", "--quiet"]) == 0  # under the default name
    assert (tmp_path / "mine.ckpt-5.pt").read_bytes() == (back / "w.pt").read_bytes()
    convert_file(back / "w.safetensors", tmp_path / "x", output_format="tensorflow")
    assert_same = [(tmp_path / f"x{end}", back / f"again{end}") for end in (".index", ".data-00000-of-00001")]
    assert all(one.read_bytes() == other.read_bytes() for one, other in assert_same)


def test_an_older_variant_comes_back_with_its_gamma(tensors, tmp_path):
    older = {
        name.replace("InceptionResnetV1/Bottleneck/", "Bottleneck/"): array
        for name, array in tensors.items()
        if not name.startswith("Logits/")
    }
    betas = {name: array for name, array in older.items() if name.endswith("/beta")}
    older |= {name.replace("/beta", "/gamma"): array + 2 for name, array in betas.items()}
    write_tensor_bundle(tmp_path / "older", older)
    conversion = convert_file(tmp_path / "older", tmp_path / "again", output_format="tensorflow")
    assert conversion.plan.variant == Variant(512, None, gamma=True, bottleneck_scope="Bottleneck")
    with TensorBundle(tmp_path / "again") as bundle:
        assert set(bundle) == set(older)
        assert all(same_bits(bundle[name], older[name]) for name in older)


def test_averages_when_asked_for(source, original, tmp_path):
    with pytest.raises(MappingError, match=r"missing \(267\)") as caught:
        convert_file(source, tmp_path / "w.pt", weights="average")
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []
    averages = {f"{name}/{AVERAGE}": random_bits(array.shape, 1) for name, array in original.items()}
    write_tensor_bundle(tmp_path / "both", original | averages)
    convert_file(tmp_path / "both", tmp_path / "w.pt", weights="average")
    assert_converted(load(tmp_path / "w.pt"), {name: averages[f"{name}/{AVERAGE}"] for name in original})
    entry = json.loads((tmp_path / "w.pt.json").read_text())["tensors"][0]
    assert entry["source"] == f"{entry['variable']}/{AVERAGE}"


# Names


def test_only_digests_prove_a_published_checkpoint(converted):
    assert converted["pt"].published is None  # the name alone does not
    known = BUILT_IN[0].sources[0].files
    index, data = known[".index"], known[".data-00000-of-00001"]
    assert identify({"x.index": index, "x.data-00000-of-00001": data}) == NAME
    assert identify({"x.index": "0" * 64, "x.data-00000-of-00001": data}) is None
    assert identify({"x.h5": data}) is None
    assert identify({}) is None


def test_a_namesake_of_a_published_checkpoint_is_called_one(converted):
    assert converted["pt"].namesake == NAME
    index, data = f"model-{NAME}.ckpt-275.index", f"model-{NAME}.ckpt-275.data-00000-of-00001"
    known = {
        index: BUILT_IN[0].sources[0].files[".index"],
        data: BUILT_IN[0].sources[0].files[".data-00000-of-00001"],
    }
    assert find_namesake(NAME, known) is None
    assert find_namesake(NAME, known | {index: "0" * 64}) == NAME
    assert find_namesake(NAME, {f"{NAME}.pb": "0" * 64}) == NAME
    assert find_namesake(NAME, {f"{NAME}.h5": "0" * 64}) is None  # no digest of such a file was published
    assert find_namesake("20990101-000000", known | {index: "0" * 64}) is None
    assert find_namesake("vggface2", known | {index: "0" * 64}) is None


# What is expected of the source


def digests_of(source):
    return [sha256(Path(f"{source}{end}")) for end in (".index", ".data-00000-of-00001")]


def test_a_source_of_the_expected_digests(source, converted):
    assert sorted(converted["safetensors"].source_digests.values()) == sorted(digests_of(source))


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_source_of_another_digest_is_refused_and_nothing_written(source, tmp_path, wrong):
    digests = digests_of(source)
    expected = [digest for number, digest in enumerate(digests) if number != wrong] + ["f" * 64]
    steps = []
    with pytest.raises(SourceError) as caught:
        convert_file(source, tmp_path / "w.pt", sha256=expected, progress=lambda *step: steps.append(step))
    file = f"{source}{('.index', '.data-00000-of-00001')[wrong]}"
    assert str(caught.value).startswith(f"{file}: its SHA-256 is {digests[wrong]}, not ")
    assert all(digest in str(caught.value) for digest in expected)
    assert caught.value.exit_code == 3
    assert snapshot_names(tmp_path) == []
    assert steps[-1][0] < steps[-1][1] / 2 + 1  # the tensors were made, and none of them was written


@pytest.mark.parametrize("digest", ["", "0" * 63, "g" * 64, f"sha256:{'0' * 64}"])
def test_what_is_no_digest_is_said_so(source, tmp_path, digest):
    with pytest.raises(UsageError, match="is not a SHA-256, which has 64 hexadecimal digits"):
        convert_file(source, tmp_path / "w.pt", sha256=[digest])


# Other precisions


@pytest.fixture(scope="module")
def mixed(tensors, tmp_path_factory):
    """A checkpoint that TensorFlow wrote in four precisions, and the same as TensorFlow casts it."""
    tf = pytest.importorskip("tensorflow")
    dtypes = (tf.float16, tf.bfloat16, tf.float64, tf.float32)
    values = {name: tf.cast(array, dtypes[n % 4]) for n, (name, array) in enumerate(tensors.items())}
    factor = tf.constant(1 + 2.0**-30, tf.float64)
    values = {name: value * factor if value.dtype == tf.float64 else value for name, value in values.items()}
    prefix = tmp_path_factory.mktemp("mixed") / "mixed.ckpt-7"
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=list(values.values()),
    )
    single = {name: tf.cast(value, tf.float32).numpy() for name, value in values.items()}
    return prefix, {name: value.dtype.name for name, value in values.items()}, single


@pytest.mark.slow
def test_other_precisions_become_float32_and_the_change_is_stated(mixed, tmp_path):
    prefix, dtypes, single = mixed
    conversion = convert_file(prefix.parent, tmp_path / "w.pt", step=7)
    assert_converted(load(tmp_path / "w.pt"), single)
    assert {name: cast.dtype for name, cast in conversion.casts.items()} == {
        name: dtype for name, dtype in dtypes.items() if dtype != "float32"
    }
    assert conversion.plan.casts.keys() == conversion.casts.keys()
    half, brain, double = conversion.cast_statements
    assert re.fullmatch(
        r"123 tensors of float16 widened to float32, which holds each of the .* exactly", half
    )
    assert re.fullmatch(r"123 tensors of bfloat16 widened to float32, which holds each .* exactly", brain)
    assert re.fullmatch(
        r"123 tensors of float64 rounded to the nearest float32: 14,3[\d,]+ of 14,3[\d,]+ values changed, "
        r"by 9\.3e-10 of the value at most \(.*\)",  # 2^-30, which the factor is away from one
        double,
    )
    manifest = json.loads((tmp_path / "w.pt.json").read_text())
    for entry in manifest["tensors"]:
        if dtypes.get(entry.get("variable"), "float32") == "float32":
            assert "cast_from" not in entry
        else:
            assert entry["cast_from"] == asdict(conversion.casts[entry["variable"]])
            assert (entry["cast_from"]["changed"] > 0) == (entry["cast_from"]["dtype"] == "float64")


def test_a_value_beyond_float32_is_refused_by_name(mixed, tensors, tmp_path):
    name = "InceptionResnetV1/Bottleneck/BatchNorm/beta"
    large = tensors[name].astype(np.float64)
    large[3] = -1e200
    write_tensor_bundle(tmp_path / "large", tensors | {name: large})
    before = set(snapshot_names(tmp_path))
    with pytest.raises(MappingError) as caught:
        convert_file(tmp_path / "large", tmp_path / "w.pt")
    head = f"{tmp_path / 'large'}: not the tensors of an Inception-ResNet-v1: 1 out of range (492 given"
    assert head in str(caught.value)
    assert f"{name}: 1 of 512 values is beyond float32, the largest is -1e+200" in str(caught.value)
    assert set(snapshot_names(tmp_path)) == before


def test_a_frozen_graph_in_half_precision(tensors, tmp_path):
    tf = pytest.importorskip("tensorflow")
    halves = {name: array.astype(np.float16) for name, array in tensors.items()}
    with tf.Graph().as_default() as graph:
        for name, array in halves.items():
            tf.identity(tf.constant(array, name=name), name=f"{name}/read")
    (tmp_path / "half.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with open_source(tmp_path / "half.pb") as opened:
        state_dict = to_numpy_state_dict(opened)
    assert_converted(state_dict, {name: array.astype(np.float32) for name, array in halves.items()})


@pytest.mark.slow
def test_keras_weights_in_float64_under_the_default_name(tensors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_keras("facenet_keras.h5", {name: array.astype(np.float64) for name, array in tensors.items()})
    conversion = convert_file("facenet_keras.h5", output_format="safetensors")
    assert_converted(load_file(tmp_path / "facenet_keras.safetensors"), tensors)
    assert len(conversion.casts) == 492
    assert conversion.cast_statements[0].startswith(
        "492 tensors of float64 rounded to the nearest float32: none"
    )


def test_a_state_dict_in_bfloat16_whose_every_entry_was_cast(tensors, tmp_path):
    state_dict = to_pytorch(tensors)
    state_dict["last_bn.num_batches_tracked"] += 256
    halves = {key: value.bfloat16() for key, value in state_dict.items()}
    save_torch(halves, tmp_path / "half.safetensors")
    conversion = convert_file(tmp_path / "half.safetensors", tmp_path / "w.pt")
    state_dict["last_bn.num_batches_tracked"] *= 0
    again = torch.load(tmp_path / "w.pt", weights_only=True)
    for key, value in again.items():
        assert torch.equal(value, halves[key].to(value.dtype) if "batches" not in key else state_dict[key]), (
            key
        )
    assert [item.reason for item in conversion.left_out] == ["256 batches counted; written as 0"]


# The manifest


@pytest.mark.parametrize("kind", ["pt", "safetensors", "tensorflow"])
def test_manifest(converted, source, original, kind):
    conversion = converted[kind]
    folder = folder_of(conversion)
    manifest = json.loads((folder / {"tensorflow": "again.json"}.get(kind, f"w.{kind}.json")).read_text())
    files = {"tensorflow": ["again.index", "again.data-00000-of-00001"]}.get(kind, [f"w.{kind}"])
    assert manifest["output"] == {name: sha256(folder / name) for name in files}
    assert manifest["tool"] == {"name": "facenet-port", "version": "0.1.0"}
    beside = [Path(f"{source}{end}") for end in (".index", ".data-00000-of-00001")]
    assert manifest["source"] == {
        "name": source.name,
        "format": "TensorFlow checkpoint (TensorBundle)",
        "files": {path.name: sha256(path) for path in beside},
        "published": None,
    }
    assert manifest["network"]["num_classes"] == CLASSES
    assert manifest["left_out"] == [
        {"name": "Logits/biases/Adam", "reason": "slot of the Adam optimiser (first moment)"},
        {"name": f"Logits/biases/{AVERAGE}", "reason": "moving average; --weights average uses it"},
        {"name": "global_step", "reason": "step counter"},
    ]
    assert [entry["key"] for entry in manifest["tensors"]] == [row.key for row in table(VARIANT)]
    for entry in manifest["tensors"]:
        if "variable" in entry:
            array = original[entry["variable"]]
            array = np.ascontiguousarray(array.transpose(AXES[array.ndim]))
            assert entry["variable"] == VARIABLES[entry["key"]]
            assert entry["layout"] == {4: "HWIO->OIHW", 2: "IO->OI", 1: "C->C"}[array.ndim]
        else:
            array = np.full(entry["shape"], entry["value"], entry["dtype"])
        assert entry["sha256"] == hashlib.sha256(array.tobytes()).hexdigest(), entry["key"]
        assert (entry["dtype"], tuple(entry["shape"])) == (array.dtype.name, array.shape)


def test_manifests_of_the_parts_share_the_work(converted):
    folder = folder_of(converted["pt"])
    whole, features, logits = (
        json.loads((folder / f"w{part}.pt.json").read_text()) for part in ("", "-features", "-logits")
    )
    assert features["tensors"] + logits["tensors"] == whole["tensors"]
    assert features["output"] == {"w-features.pt": sha256(folder / "w-features.pt")}


def test_what_the_caller_is_told_is_what_is_there(converted):
    for conversion in converted.values():
        assert conversion.outputs
        assert all(sha256(path) == digest for path, digest in conversion.outputs.items())
    reported = {path.name for conversion in converted.values() for path in conversion.outputs}
    assert reported == set(snapshot_names(folder_of(converted["pt"])))


def snapshot_names(folder):
    return [path.name for path in folder.iterdir()]


def test_counted_batches_are_said_to_be_left_out(converted, tmp_path):
    state_dict = torch.load(folder_of(converted["pt"]) / "w.pt", weights_only=True)
    state_dict["last_bn.num_batches_tracked"] += 90
    torch.save(state_dict, tmp_path / "trained.pt")
    conversion = convert_file(tmp_path / "trained.pt", tmp_path / "again.pt")
    assert {item.name: item.reason for item in conversion.left_out} == {
        "last_bn.num_batches_tracked": "90 batches counted; written as 0"
    }


def test_json_and_table(source, tmp_path, capsys):
    assert main([str(source), "-o", str(tmp_path / "w.pt"), "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["converted"], result["synthesised"], result["num_classes"]) == (492, 224, CLASSES)
    assert result["outputs"][str(tmp_path / "w.pt")] == sha256(tmp_path / "w.pt")
    output = capsys.readouterr().out
    assert (
        "492 of 492 variables consumed, 716 of 716 keys produced (492 converted, 224 synthesised)" in output
    )
    assert sha256(tmp_path / "w.pt") in output
    assert "1 left out: step counter" in output
    layouts = ["HWIO->OIHW"], ["IO->OI"], ["C->C"]
    rows = [line.split() for line in output.splitlines() if line.split()[-1:] in layouts]
    assert sum(int(row[-4]) for row in rows) == 492
    assert sum(int(row[-3]) for row in rows) == 716


# The same bytes


SEVERAL = """
import json, sys
from converter.__main__ import main
sys.exit(any(main(arguments) for arguments in json.loads(sys.argv[1])))
"""


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes_under_the_default_names(converted, source, tmp_path):
    """In another process, with another hash seed, folder and thread timing; the manifests state the names."""
    runs = [["--parts"], ["--format", "safetensors"], ["--to", "tensorflow"]]
    arguments = json.dumps([[str(source.parent), *run] for run in runs])
    process = subprocess.run(
        [sys.executable, "-c", SEVERAL, arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr  # which warns of the random bits that are no numbers
    expected = {}
    for name, content in snapshot(folder_of(converted["pt"])).items():
        given, default = ("again", f"model-{NAME}.ckpt-0") if name[0] == "a" else ("w", f"{NAME}-vggface2")
        if name.endswith(".json"):
            content = re.sub(rf'"{given}(?=[-.])'.encode(), f'"{default}'.encode(), content)
        expected[default + name.removeprefix(given)] = content
    written = snapshot(tmp_path)
    assert len(written) == 11
    assert written.keys() == expected.keys()
    assert [name for name in written if written[name] != expected[name]] == []


def test_the_standardisation_of_a_source_goes_with_its_conversions(small_source, tmp_path):
    """Weights that were trained here state it in their manifest alone."""
    trained = tmp_path / "best" / "weights.pt"
    trained.parent.mkdir()
    convert_file(small_source, trained, standardisation=PER_IMAGE)
    for output, output_format in (("again.safetensors", "safetensors"), ("det1.npy", "npy")):
        convert_file(trained.parent, tmp_path / output, output_format=output_format)
        assert read_manifest(tmp_path / f"{output}.json").standardisation == PER_IMAGE
    convert_file(trained, tmp_path / "stated.pt", standardisation=FIXED)
    assert read_manifest(tmp_path / "stated.pt.json").standardisation == FIXED
    torch.save(
        {**torch.load(trained)}, trained
    )  # the same weights in other bytes, which nothing is stated of
    convert_file(trained, tmp_path / "unknown.pt")
    assert read_manifest(tmp_path / "unknown.pt.json").standardisation is None


# What is there already


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ([], "w w.json"),
        (["--parts"], "w-logits"),
        (["--to", "tensorflow"], "w.data-00000-of-00001 w.index"),
    ],
)
def test_nothing_is_overwritten_unasked(source, small_source, tmp_path, capsys, options, taken):
    source = source if options else small_source
    files = [tmp_path / name for name in taken.split()]
    for file in files:
        file.write_text("precious")
        assert main([str(source), "-o", str(tmp_path / "w"), *options]) == 2
        assert (
            f"{file} exists. Give another name, or let the converter replace it with --overwrite"
            in capsys.readouterr().err
        )
        assert snapshot(tmp_path) == {file.name: b"precious"}
        file.unlink()
    for file in files:
        file.write_text("precious")
    assert main([str(source), "-o", str(tmp_path / "w"), "--overwrite", "--quiet", *options]) == 0
    assert all(file.read_bytes() != b"precious" for file in files)


def test_a_source_may_be_replaced_by_what_it_became(small_source, tmp_path):
    convert_file(small_source, tmp_path / "w.pt")
    before = (tmp_path / "w.pt").read_bytes()
    convert_file(tmp_path / "w.pt", tmp_path / "w.pt", overwrite=True)
    assert (tmp_path / "w.pt").read_bytes() == before


def test_a_folder_is_not_a_name(source, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    for options in ([], ["--overwrite"]):
        assert main([str(source), "-o", str(tmp_path / "out"), *options]) == 2
        assert f"{tmp_path / 'out'} is a folder" in capsys.readouterr().err
    assert snapshot_names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--to", "tensorflow", "--parts"], "--parts splits a state_dict"),
        (["--to", "tensorflow", "--format", "pt"], "--format is the format of a state_dict"),
        (["-o", "missing/w.pt"], "missing: there is no such folder"),
    ],
)
def test_wrong_usage(source, tmp_path, monkeypatch, capsys, options, problem):
    monkeypatch.chdir(tmp_path)
    assert main([str(source), *options]) == 2
    assert problem in capsys.readouterr().err
    assert snapshot_names(tmp_path) == []


def test_no_parts_without_logits(original, tmp_path, capsys):
    features = {name: array for name, array in original.items() if not name.startswith("Logits/")}
    write_tensor_bundle(tmp_path / "f", features)
    before = set(snapshot_names(tmp_path))
    assert main([str(tmp_path / "f"), "-o", str(tmp_path / "w.pt"), "--parts"]) == 2
    assert "--parts needs a source with logits" in capsys.readouterr().err
    assert set(snapshot_names(tmp_path)) == before


# Whole or not at all


@contextmanager
def files_of_at_most(size):
    """Let the system refuse writes beyond a file size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("options", [[], ["--format", "safetensors"]])
def test_a_full_disk_leaves_nothing_behind(small_source, tmp_path, capsys, options):
    """With the options that P-Net lacks: tests/fuzz/test_killed_writers.py."""
    arguments = [str(small_source), "-o", str(tmp_path / "w"), "--quiet", *options]
    with files_of_at_most(20_000):
        assert main(arguments) == 4
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"error: {tmp_path / 'w'}: cannot be written (" in message
    assert "File too large" in message
    assert snapshot_names(tmp_path) == []
    with files_of_at_most(200 << 20):
        assert main(arguments) == 0


@pytest.mark.parametrize("share", [0.1, 0.49, 0.9])
def test_an_interruption_leaves_nothing_behind(small_source, tmp_path, share):
    seen = []

    def interrupt(done, total):
        if done > share * total:
            seen.extend(snapshot_names(tmp_path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_file(small_source, tmp_path / "w.pt", progress=interrupt)
    assert len(seen) == 1  # the hidden folder, and nothing under a name of its own
    assert seen[0].startswith(".facenet-port-")
    assert snapshot_names(tmp_path) == []


def test_progress_ends_at_its_total(small_source, tmp_path):
    steps = []
    convert_file(small_source, tmp_path / "w.pt", progress=lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps)
    assert len({total for _, total in steps}) == 1
    assert steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize("taken", ["w.pt", "w.pt.json"])
def test_a_file_that_appears_meanwhile_is_not_replaced(small_source, tmp_path, taken):
    def intrude(done, total):
        (tmp_path / taken).write_text("another's")

    with pytest.raises(UsageError, match="has appeared while it was being written"):
        convert_file(small_source, tmp_path / "w.pt", progress=intrude)
    assert snapshot(tmp_path) == {taken: b"another's"}


def test_files_appear_together(tmp_path):
    with AtomicFiles(tmp_path, overwrite=False) as files:
        for name in ("one", "other"):
            files.stage(name).write_text(name)
        assert [name for name in snapshot_names(tmp_path) if not name.startswith(".")] == []
        files.commit()
    assert snapshot(tmp_path) == {"one": b"one", "other": b"other"}
    with AtomicFiles(tmp_path, overwrite=True) as files:
        files.stage("one").write_text("not committed")
    assert snapshot(tmp_path) == {"one": b"one", "other": b"other"}


# Read back


def test_a_bit_that_changes_on_the_disk_is_seen(source, tmp_path):
    """The file changes between the write and the comparison of its last tensor."""
    changed = []

    def flip(done, total):
        for path in tmp_path.glob(".facenet-port-*/w.pt"):
            if done > total / 2 and not changed:
                with path.open("r+b") as file:
                    content = file.read()
                    # The bytes of logits.bias stand once in the file.
                    with TensorBundle(source) as bundle:
                        position = content.index(bundle["Logits/biases"].tobytes())
                    file.seek(position)
                    file.write(bytes([content[position] ^ 1]))
                changed.append(path)

    with pytest.raises(DifferenceError, match=r"w\.pt: tensor 'logits\.bias' reads back different") as caught:
        convert_file(source, tmp_path / "w.pt", progress=flip)
    assert changed
    assert caught.value.exit_code == 1
    assert snapshot_names(tmp_path) == []


def spoil(array):
    array = array.copy()
    array.reshape(-1).view(np.uint32)[0] ^= 1
    return array


WRITERS = {
    "pt": ("converter.formats.torch.state_dict.write_state_dict", "conv3.bias"),
    "safetensors": ("converter.formats.safetensors.write_safetensors", "conv3.bias"),
    "tensorflow": ("converter.write_output.write_tensor_bundle", "Logits/biases"),
}


@pytest.mark.parametrize(
    ("output_format", "fault", "problem"),
    [
        ("tensorflow", spoil, "tensor 'logits.bias' reads back different"),
        *((form, spoil, "tensor 'conv3.bias' reads back different") for form in ("pt", "safetensors")),
        ("pt", lambda array: array.astype(np.float64), "tensor 'conv3.bias' reads back different"),
        ("safetensors", lambda array: array[:-1], "tensor 'conv3.bias' reads back different"),
        ("pt", None, "reads back with other tensors"),
        ("tensorflow", None, "cannot be read back"),
    ],
)
def test_a_writer_that_errs_is_found_out(
    source, small_source, tmp_path, monkeypatch, capsys, output_format, fault, problem
):
    """The real writer gets one wrong tensor or none, and writes a sound file of other content."""
    writer, key = WRITERS[output_format]
    home, _, name = writer.rpartition(".")
    write = getattr(import_module(home), name)

    def wrong(target, part):
        others = {other: array for other, array in part.items() if other != key}
        return write(target, others if fault is None else others | {key: fault(part[key])})

    monkeypatch.setattr(writer, wrong)
    options = ["--to", "tensorflow"] if output_format == "tensorflow" else ["--format", output_format]
    # P-Net has no checkpoint of TensorFlow.
    given = source if output_format == "tensorflow" else small_source
    assert main([str(given), "-o", str(tmp_path / "w"), *options]) == 1
    assert problem in capsys.readouterr().err
    assert snapshot_names(tmp_path) == []


def test_a_file_that_does_not_read_back_is_a_difference(source, tmp_path, monkeypatch, capsys):
    real = module.write_tensor_bundle

    def write(prefix, tensors):
        _, data = real(prefix, tensors)
        with data.open("r+b") as file:
            file.write(b"\x01\x02")

    monkeypatch.setattr(module, "write_tensor_bundle", write)
    assert main([str(source), "-o", str(tmp_path / "w"), "--to", "tensorflow"]) == 1
    assert "w: it cannot be read back" in capsys.readouterr().err
    assert snapshot_names(tmp_path) == []
