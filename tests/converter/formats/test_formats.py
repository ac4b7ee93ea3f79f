"""Frozen graphs, Keras HDF5, PyTorch files and safetensors, each compared with its own library."""

from __future__ import annotations

import argparse
import json
import marshal
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from uuid import UUID

import h5py
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from converter.convert import tensorflow_tensors
from converter.errors import SourceError
from converter.formats.detect import open_source
from converter.formats.hdf5.keras import KerasHdf5
from converter.formats.safetensors import SafetensorsFile, write_safetensors
from converter.formats.tensorflow.frozen_graph import FrozenGraph, is_meta_graph
from converter.formats.tensorflow.protos import GraphDef
from converter.formats.torch.state_dict import StateDictFile, write_state_dict
from converter.keras_layer_map import keras_names
from converter.layer_map import ConvertedRow, Variant, table
from converter.plan import MappingError
from tests.conftest import random_bits, same_bits, write_keras


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


def read_all(source):
    with source:
        return {name: source[name].copy() for name in source}


def refuses(opened, problem):
    with pytest.raises(SourceError, match=problem) as caught:
        read_all(opened())
    return caught.value


# Frozen graphs


def add_frozen(graph, name, proto, reader="read"):
    """Add a constant and the Identity that read the variable."""
    node = graph.node.add(name=name, op="Const")
    node.attr["dtype"].type = proto.dtype
    node.attr["value"].tensor.CopyFrom(proto)
    graph.node.add(name=f"{name}/{reader}", op="Identity", input=[name])


def write_graph(path, graph):
    path.write_bytes(graph.SerializeToString())
    return path


def assert_as_tensorflow_reads(tf, path):
    graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    constants = {node.name: node.attr["value"].tensor for node in graph.node if node.op == "Const"}
    with FrozenGraph(path) as source:
        for name in source:
            expected = tf.make_ndarray(constants[name])
            assert same_bits(source[name], expected), name
            assert (source.info[name].dtype, source.info[name].shape) == (expected.dtype, expected.shape)
        return set(source)


DTYPES = [
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int32",
    "int64",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "bool",
]


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3)])
def test_constants_that_tensorflow_makes(tf, tmp_path, shape):
    graph = tf.compat.v1.GraphDef()
    for name in DTYPES:
        array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) - 2).astype(
            tf.as_dtype(name).as_numpy_dtype
        )
        add_frozen(graph, f"{name}/bytes", tf.make_tensor_proto(array))
        add_frozen(graph, f"{name}/listed", tf.make_tensor_proto(array.tolist(), name, shape))
        add_frozen(graph, f"{name}/splat", tf.make_tensor_proto(True if name == "bool" else 1, name, shape))
    actual = assert_as_tensorflow_reads(tf, write_graph(tmp_path / "constants.pb", graph))
    assert len(actual) == 3 * len(DTYPES)


def test_odd_values_keep_their_bits(tf, tmp_path):
    graph = tf.compat.v1.GraphDef()
    array = random_bits((64, 3), 0)
    add_frozen(graph, "w", tf.make_tensor_proto(array))
    path = write_graph(tmp_path / "odd.pb", graph)
    assert same_bits(read_all(FrozenGraph(path))["w"], array)


@pytest.mark.parametrize(
    ("field", "dtype", "values"),
    [
        ("float_val", "float32", [1.5, -0.0, 2.5]),
        ("double_val", "float64", [1e-300]),
        ("half_val", "float16", [0x3C00, 0x8000]),
        ("half_val", "bfloat16", [0x3F80, 0xFF80]),
        ("int_val", "int32", [-7, 8]),
        ("int64_val", "int64", [-(1 << 60)]),
        ("bool_val", "bool", [False, True]),
        ("float_val", "float32", []),
    ],
)
def test_the_last_value_stands_for_all_that_follow(tf, tmp_path, field, dtype, values):
    proto = tf.make_tensor_proto(False if dtype == "bool" else 0, dtype)
    for other in (
        "tensor_content",
        "float_val",
        "double_val",
        "half_val",
        "int_val",
        "int64_val",
        "bool_val",
    ):
        proto.ClearField(other)
    proto.tensor_shape.CopyFrom(tf.TensorShape((2, 3)).as_proto())
    getattr(proto, field).extend(values)
    graph = tf.compat.v1.GraphDef()
    add_frozen(graph, "w", proto)
    path = write_graph(tmp_path / "repeated.pb", graph)
    assert assert_as_tensorflow_reads(tf, path) == {"w"}
    array = read_all(FrozenGraph(path))["w"]
    assert (array.reshape(-1)[max(0, len(values) - 1) :] == array.reshape(-1)[-1]).all()


def test_a_graph_that_tensorflow_builds_and_writes(tf, tmp_path):
    with tf.Graph().as_default() as graph:
        for scope in ("Bottleneck", "Logits"):
            weights = tf.constant(random_bits((4, 3), len(scope)), name=f"{scope}/weights")
            tf.identity(weights, name=f"{scope}/weights/read")
        resource = tf.constant(np.ones(3, np.float32), name="resource")
        tf.identity(resource, name="resource/Read/ReadVariableOp")
        tf.identity(tf.constant(0.17, name="scale"), name="product")
        tf.identity(tf.constant([1, 2], name="shape"), name="other/read")
    tf.io.write_graph(graph, str(tmp_path), "graph.pb", as_text=False)
    actual = assert_as_tensorflow_reads(tf, tmp_path / "graph.pb")
    assert actual == {"Bottleneck/weights", "Logits/weights", "resource"}


def test_a_graph_is_told_from_a_meta_graph(checkpoint):
    assert is_meta_graph(checkpoint.meta)
    assert not is_meta_graph(checkpoint.frozen)


def hostile_constant(**fields):
    """A frozen float32 constant of shape (2, 2) with some of its fields changed."""
    graph = GraphDef()
    node = graph.node.add(name="w", op="Const")
    tensor = node.attr["value"].tensor
    tensor.dtype = fields.get("dtype", 1)
    if fields.get("unknown_rank"):
        tensor.tensor_shape.unknown_rank = True
    for extent in fields.get("shape", (2, 2)):
        tensor.tensor_shape.dim.add(size=extent)
    tensor.tensor_content = fields.get("content", bytes(16))
    tensor.float_val.extend(fields.get("values", ()))
    graph.node.add(name="w/read", op="Identity", input=["w"])
    return graph


def test_hostile_control(tmp_path):
    source = FrozenGraph(write_graph(tmp_path / "control.pb", hostile_constant()))
    assert read_all(source)["w"].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"content": bytes(15)}, "does not have the size"),
        ({"content": bytes(20)}, "does not have the size"),
        ({"content": b"", "values": [1.0] * 5}, "does not have the size"),
        ({"content": b"", "shape": (1 << 20, 1 << 20)}, "does not have the size"),
        ({"shape": (-1, 2)}, "its shape is unknown"),
        ({"unknown_rank": True, "shape": ()}, "its shape is unknown"),
        ({"dtype": 7}, "a weight cannot be of dtype"),
        ({"dtype": 99}, "99"),
    ],
)
def test_constants_that_contradict_themselves_are_refused_by_name(tmp_path, fields, problem):
    path = write_graph(tmp_path / "hostile.pb", hostile_constant(**fields))
    assert refuses(lambda: FrozenGraph(path), problem).tensor == "w"


def test_a_name_that_stands_twice_is_refused(tmp_path):
    graph = hostile_constant()
    graph.node.extend(hostile_constant().node)
    path = write_graph(tmp_path / "twice.pb", graph)
    assert refuses(lambda: FrozenGraph(path), "has this name twice").tensor == "w"


def test_graphs_without_weights(tmp_path):
    graph = GraphDef()
    graph.node.add(name="scale", op="Const").attr["value"].tensor.dtype = 1
    path = write_graph(tmp_path / "bare.pb", graph)
    refuses(lambda: FrozenGraph(path), "no weights in it")
    graph.node.add(name="w", op="VariableV2")
    refuses(lambda: FrozenGraph(write_graph(path, graph)), r"\(1 variable, not frozen\)")


# Keras


@pytest.fixture(scope="module")
def few(tensors):
    """Variables of every kind of layer, small enough to write for each test."""
    scopes = (
        "InceptionResnetV1/Conv2d_1a_3x3/",
        "InceptionResnetV1/Repeat_1/block17_10/",
        "InceptionResnetV1/Repeat_2/block8_1/",
        "InceptionResnetV1/Block8/Branch_1/",
        "InceptionResnetV1/Bottleneck/BatchNorm/",
        "Logits/",
    )
    return {name: array for name, array in tensors.items() if name.startswith(scopes)}


def assert_holds(path, tensors):
    with KerasHdf5(path) as source:
        actual = tensorflow_tensors(source)
        assert actual.keys() == tensors.keys()
        assert all(same_bits(actual[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("full_model", [True, False])
def test_both_layouts_of_keras(few, tmp_path, full_model):
    assert_holds(write_keras(tmp_path / "k.h5", few, full_model=full_model), few)


def test_names_of_keras_are_those_published():
    names = keras_names()
    scope = "InceptionResnetV1"
    assert names["Conv2d_1a_3x3/kernel:0"] == f"{scope}/Conv2d_1a_3x3/weights"
    assert names["Conv2d_1a_3x3_BatchNorm/beta:0"] == f"{scope}/Conv2d_1a_3x3/BatchNorm/beta"
    assert (
        names["Block35_1_Branch_0_Conv2d_1x1/kernel:0"]
        == f"{scope}/Repeat/block35_1/Branch_0/Conv2d_1x1/weights"
    )
    block = f"{scope}/Repeat_1/block17_10/Branch_1/Conv2d_0c_7x1"
    assert names["Block17_10_Branch_1_Conv2d_0c_7x1/kernel:0"] == f"{block}/weights"
    assert (
        names["Mixed_6a_Branch_0_Conv2d_1a_3x3/kernel:0"]
        == f"{scope}/Mixed_6a/Branch_0/Conv2d_1a_3x3/weights"
    )
    assert names["Block8_6_Conv2d_1x1/bias:0"] == f"{scope}/Block8/Conv2d_1x1/biases"
    assert names["Bottleneck_BatchNorm/moving_variance:0"] == f"{scope}/Bottleneck/BatchNorm/moving_variance"
    variables = {
        row.variable for row in table(Variant(num_classes=1, gamma=True)) if isinstance(row, ConvertedRow)
    }
    assert set(names.values()) == variables


def irregular(layer):
    """Spell as deepface does some layers of a branch that Block17 and Block8 call Branch_1."""
    if layer.startswith(
        ("Block17_10_Branch_1_Conv2d_0b", "Block8_1_Branch_1", "Block8_6_Branch_1_Conv2d_0c")
    ):
        return layer.replace("Branch_1", "Branch_2")
    return layer


def test_irregular_names_of_deepface(few, tmp_path):
    path = write_keras(tmp_path / "deepface.h5", few, full_model=False, rename=irregular)
    with KerasHdf5(path) as source:
        assert {
            "Block8_1_Branch_2_Conv2d_0a_1x1/kernel:0",
            "Block17_10_Branch_1_Conv2d_0a_1x1/kernel:0",
        } <= set(source)
    assert_holds(path, few)


def test_a_branch_that_really_is_the_second_keeps_its_name():
    names = keras_names()
    assert names["Block35_1_Branch_2_Conv2d_0a_1x1/kernel:0"].endswith(
        "block35_1/Branch_2/Conv2d_0a_1x1/weights"
    )
    assert names["Block35_1_Branch_1_Conv2d_0a_1x1/kernel:0"].endswith(
        "block35_1/Branch_1/Conv2d_0a_1x1/weights"
    )


def test_both_names_of_one_variable_are_duplicates_in_the_one_report(few, tmp_path):
    path = write_keras(tmp_path / "twice.h5", few)
    with h5py.File(path, "a") as file:
        layer = file["model_weights/Block8_1_Branch_1_Conv2d_0a_1x1"]
        spare = file["model_weights"].create_group("spare")
        spare.attrs["weight_names"] = [b"Block8_1_Branch_2_Conv2d_0a_1x1/kernel:0", b"Foo/kernel:0"]
        for name in spare.attrs["weight_names"]:
            spare.create_dataset(name, data=layer["Block8_1_Branch_1_Conv2d_0a_1x1/kernel:0"])
        root = file["model_weights"]
        root.attrs["layer_names"] = np.append(root.attrs["layer_names"].astype("S"), b"spare")
    with KerasHdf5(path) as source, pytest.raises(MappingError) as caught:
        tensorflow_tensors(source)
    assert {problem.kind for problem in caught.value.problems} == {"duplicate", "missing", "unexpected"}
    duplicate = next(problem for problem in caught.value.problems if problem.kind == "duplicate")
    assert duplicate.name == "Block8_1_Branch_2_Conv2d_0a_1x1/kernel:0"
    assert "Repeat_2/block8_1/Branch_1/Conv2d_0a_1x1/weights" in duplicate.detail


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_lists_that_keras_splits(few, tmp_path, pieces):
    path = write_keras(tmp_path / "split.h5", few)
    with h5py.File(path, "a") as file:
        root = file["model_weights"]
        names = root.attrs["layer_names"]
        del root.attrs["layer_names"]
        for number, piece in enumerate(np.array_split(names, pieces)):
            root.attrs[f"layer_names{number}"] = piece
        group = root["Bottleneck_BatchNorm"]
        names = group.attrs["weight_names"]
        del group.attrs["weight_names"]
        for number, piece in enumerate(np.array_split(names, 2)):
            group.attrs[f"weight_names{number}"] = piece
    assert_holds(path, few)


class Evil:
    """Leaves a trace wherever it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")


WATCH = """
import sys
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event in watched else None)
watched = ()
from pathlib import Path
from converter.formats.hdf5.keras import KerasHdf5
with KerasHdf5(Path(sys.argv[1])) as source:
    sum(source[name].size for name in source)  # imports what h5py puts off
watched = ("marshal.loads", "pickle.find_class", "compile", "exec", "code.__new__", "function.__new__")
with KerasHdf5(Path(sys.argv[1])) as source:
    print(sum(source[name].size for name in source), opened)
{control}
"""


@pytest.mark.parametrize("control", ["", "import marshal; marshal.loads(marshal.dumps(1)); print(opened)"])
def test_code_in_the_configuration_is_never_touched(few, tmp_path, control):
    trace = tmp_path / "trace"
    code = marshal.dumps(compile(f"open({str(trace)!r}, 'w')", "lambda", "eval")).hex()
    config = {"class_name": "Lambda", "config": {"function": [code, None, None], "function_type": "lambda"}}
    path = write_keras(tmp_path / "lambda.h5", few)
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": {"layers": [config]}})
        file.attrs["training_config"] = np.void(pickle.dumps(Evil(trace)))
    run = subprocess.run(
        [sys.executable, "-c", WATCH.format(control=control), str(path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = run.stdout.splitlines()
    assert lines[0] == f"{sum(array.size for array in few.values())} []", run.stderr
    assert lines[1:] == (["['marshal.loads']"] if control else [])
    assert not trace.exists()


def small_keras(path, change=None):
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [b"a"]
        group = root.create_group("a")
        group.attrs["weight_names"] = [b"a/kernel:0"]
        group.create_dataset("a/kernel:0", data=np.arange(6, dtype=np.float32))
        if change is not None:
            change(file, group)
    return path


def drop_weight(_, group):
    del group["a/kernel:0"]


def name_twice(_, group):
    group.attrs["weight_names"] = [b"a/kernel:0", b"a/kernel:0"]


def make_external(_, group):
    del group["a/kernel:0"]
    group.create_dataset("a/kernel:0", (6,), np.float32, external=[("/etc/passwd", 0, 24)])


def make_virtual(_, group):
    del group["a/kernel:0"]
    layout = h5py.VirtualLayout((6,), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "x", (6,))
    group.create_virtual_dataset("a/kernel:0", layout)


def make_text(_, group):
    del group["a/kernel:0"]
    group.create_dataset("a/kernel:0", data=[b"text"])


def make_group(_, group):
    del group["a/kernel:0"]
    group.create_group("a/kernel:0")


def drop_layer(file, _):
    del file["model_weights/a"]


def drop_index(file, _):
    del file["model_weights"].attrs["layer_names"]


def test_small_keras_control(tmp_path):
    assert read_all(KerasHdf5(small_keras(tmp_path / "k.h5")))["a/kernel:0"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (drop_weight, "names this weight, but does not hold it"),
        (make_group, "names this weight, but does not hold it"),
        (name_twice, "names this weight twice"),
        (make_external, "its data is in another file"),
        (make_virtual, "its data is in another file"),
        (make_text, "not a number"),
        (drop_layer, "names this layer, but does not hold it"),
        (drop_index, "has no Keras weights"),
    ],
)
def test_hostile_keras_files_are_refused(tmp_path, change, problem):
    path = small_keras(tmp_path / "k.h5", change)
    assert refuses(lambda: KerasHdf5(path), problem).path == path


def test_a_truncated_keras_file_is_refused(tmp_path):
    path = small_keras(tmp_path / "k.h5")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-8])
    refuses(lambda: KerasHdf5(path), rf"HDF5 file is cut off at byte {size - 8} of {size}\. Download or copy")


# PyTorch

STATE = {
    "w": torch.from_numpy(random_bits((3, 2, 1, 1), 1)),
    "count": torch.tensor(275),
    "half": torch.tensor([1.5, -0.0], dtype=torch.float16),
    "none": torch.empty(0, 4),
    "far": torch.empty(0).as_strided((0, 4), (2**63 - 1, 0)),  # valid in PyTorch: nothing lies there
}


def save(path, content, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_both_formats_of_pytorch(tmp_path, legacy):
    path = save(tmp_path / "s.pt", STATE, legacy)
    assert zipfile.is_zipfile(path) != legacy
    with StateDictFile(path) as source:
        assert list(source) == list(STATE)
        for name, tensor in STATE.items():
            assert same_bits(source[name], tensor.numpy())
            assert source.info[name].shape == tuple(tensor.shape)


@pytest.mark.parametrize("legacy", [False, True])
def test_views_and_parameters_are_read_as_pytorch_sees_them(tmp_path, legacy):
    base = torch.arange(12.0).reshape(3, 4)
    content = {"turned": base.T, "row": base[1], "parameter": torch.nn.Parameter(base)}
    actual = read_all(StateDictFile(save(tmp_path / "v.pt", content, legacy)))
    for name, tensor in content.items():
        assert actual[name].tolist() == tensor.tolist()


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(tmp_path, legacy):
    trace = tmp_path / "trace"
    path = save(tmp_path / "evil.pt", {"w": torch.ones(2), "evil": Evil(trace)}, legacy)
    error = refuses(lambda: StateDictFile(path), "it was not run")
    assert error.path == path
    assert not trace.exists()
    with pytest.raises(Exception):  # noqa: B017 - the control: trusted, the same file leaves its trace
        torch.load(path, weights_only=False)["missing"]
    assert trace.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_any_damage_is_a_source_error(tmp_path, recwarn, legacy):
    whole = save(tmp_path / "s.pt", {"w": torch.arange(9.0)}, legacy).read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for position in generator.choice(len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.integers(8)
        for content in (damaged, whole[:position]):
            path = tmp_path / "damaged.pt"
            path.write_bytes(content)
            try:
                read_all(open_source(path))
            except SourceError as error:
                refused += 1
                assert str(path) in str(error)
    assert refused > 300
    assert not recwarn.list


def test_a_flipped_bit_in_a_tensor_is_seen(tmp_path):
    path = save(tmp_path / "s.pt", {"w": torch.arange(64.0)})
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<3f", 5, 6, 7))] ^= 1
    path.write_bytes(content)
    refuses(lambda: StateDictFile(path), r"member '.*/data/0' is corrupt \(CRC-32\)")


def test_compressed_members_are_refused(tmp_path):
    path = save(tmp_path / "s.pt", {"w": torch.zeros(1000)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refuses(lambda: StateDictFile(tmp_path / "c.pt"), "is compressed")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_file_is_called_one(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    error = refuses(lambda: StateDictFile(tmp_path / "script.pt"), "this is a TorchScript file")
    assert "write its weights with: torch.save(torch.jit.load(" in str(error)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch announces that it will drop them
    QINT8 = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([torch.ones(2)], "holds a list, not a state_dict"),
        (torch.ones(2), "holds a tensor or array"),
        (
            (3, STATE),
            r"holds a tuple, .*: torch\.save\(torch\.load\(.*weights_only=False\)\[1\], \"weights.pt\"\)",
        ),
        ({"state_dict": {}, "epoch": 3}, "'state_dict' is a dict, not a tensor"),
        (
            {"state_dict": {"w": torch.ones(2), "n": 3}},
            r"'n' is an int, .*\['state_dict'\]\.items\(\) if torch\.is",
        ),
        ({1: torch.ones(2)}, "its keys are not names: an int is among them"),
        ({(1, 2): STATE}, "its keys are not names: a key of type tuple is among them"),
        ({"w": torch.ones(1).expand(4)}, r"tensor 'w': .*expanded tensor.*{k: v\.contiguous\(\) for k, v in"),
        (
            {"w": torch.ones(4, dtype=torch.float8_e4m3fn)},
            r"tensor 'w': its dtype torch\.float8_e4m3fn is not converted.*{k: v\.float\(\) for",
        ),
        (
            {"w": torch.ones(4, dtype=torch.uint16)},
            r"tensor 'w': it is quantised to integers \(torch\.uint16\).* Give the state_dict from before",
        ),
        ({"w": QINT8}, "tensor 'w': it is quantised to integers, and the float32 weights are gone. Give"),
        (
            {"bn.num_batches_tracked": torch.ones((), dtype=torch.uint64)},
            r"torch\.uint64 is not converted; such a counter is not needed.* if v\.is_floating_point\(\)}",
        ),
        ({"w": torch.ones(2).to_sparse()}, r"tensor 'w': it is sparse.*{k: v\.to_dense\(\) for k, v in"),
        ({"w": torch.ones(2, device="meta")}, "tensor 'w': it was saved without its data"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, problem):
    path = save(tmp_path / "s.pt", content)
    refuses(lambda: StateDictFile(path), problem)


@pytest.mark.parametrize(
    "tensor", [torch.ones(3).to(torch.float8_e5m2), torch.eye(3).to_sparse(), torch.ones(1).expand(3)]
)
def test_the_line_for_another_kind_of_tensor_saves_a_state_dict(tmp_path, monkeypatch, tensor):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "s.pt", {"w": tensor, "n": torch.tensor(3)})
    error = refuses(lambda: StateDictFile(path), "in a file of their own: torch.save")
    exec(str(error).partition("own: ")[2].removesuffix("."), {"torch": torch})
    with StateDictFile(tmp_path / "weights.pt") as source:
        assert np.array_equal(source["w"], tensor.float().to_dense().numpy())
        assert source["n"] == 3


def training_file(state_dict, key="state_dict"):
    """A file as training scripts save it: the state_dict among Python's, PyTorch's and NumPy's objects."""
    model = torch.nn.Linear(2, 3)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    return {
        "epoch": 3,
        key: state_dict,
        "optimizer": optimiser.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimiser, [1, 2]).state_dict(),
        "best": np.float64(0.5),
        "counts": np.arange(3),
        "rng": np.random.default_rng(0).bit_generator.state,
        "args": argparse.Namespace(lr=0.1, classes=[1, 2]),
        "seen": {1, 2},
        "note": None,
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_the_state_dict_of_a_training_file(tmp_path, key, protocol, legacy):
    content = training_file(OrderedDict(STATE), key)
    path = tmp_path / "epoch.pt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with StateDictFile(path) as source:
        assert (source.key, source.format) == (key, f"PyTorch state_dict, under {key!r}")
        assert source.beside == tuple(name for name in content if name != key)
        assert list(source) == list(STATE)
        assert all(same_bits(source[name], tensor.numpy()) for name, tensor in STATE.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_below_another_entry(tmp_path, legacy):
    content = {"epoch": 3, "model": {"ema": torch.zeros(1), "state_dict": dict(STATE)}, "net": None}
    with StateDictFile(save(tmp_path / "s.pt", content, legacy)) as source:
        assert (source.key, source.format) == (
            "model.state_dict",
            "PyTorch state_dict, under 'model.state_dict'",
        )
        assert source.beside == ("epoch", "net", "model.ema")
        assert list(source) == list(STATE)


def test_one_state_dict_under_two_names_leaves_no_choice(tmp_path):
    with StateDictFile(save(tmp_path / "s.pt", {"state_dict": STATE, "model": STATE})) as source:
        assert (source.key, source.beside) == ("state_dict", ("model",))


@pytest.fixture
def options_of(monkeypatch):
    """A function that makes a dictionary of a library's class; the library is gone afterwards."""

    def make(name, **items):
        module, _, own = name.rpartition(".")
        parts = module.split(".")
        for number in range(1, len(parts) + 1):
            library = ModuleType(".".join(parts[:number]))
            library.__path__ = []  # pickle imports the packages around the module
            monkeypatch.setitem(sys.modules, library.__name__, library)
        setattr(library, own, type(own, (dict,), {"__module__": module}))
        options = getattr(library, own)(items)
        options.__dict__["frozen"] = True  # attributes are pickled too
        return options

    return make


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "name",
    [
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "easydict.EasyDict",
        "yacs.config.CfgNode",
    ],
)
def test_dictionaries_of_options_carry_no_code(tmp_path, options_of, name, protocol, legacy):
    """A checkpoint of PyTorch Lightning: the options of a training are in a dictionary of its own class."""
    content = {
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": options_of(name, lr=0.1, layers=[1, 2]),
        "state_dict": STATE,
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5)}},
        "metrics": defaultdict(list, {"loss": [0.1]}),
    }
    path = tmp_path / "epoch.ckpt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with open_source(path) as source:
        assert source.key == "state_dict"
        assert source.beside == tuple(name for name in content if name != "state_dict")
        assert all(same_bits(source[key], tensor.numpy()) for key, tensor in STATE.items())


def test_a_dictionary_of_an_unknown_class_is_refused(tmp_path, options_of):
    path = save(tmp_path / "s.pt", {"state_dict": STATE, "options": options_of("somewhere.Options", lr=0.1)})
    error = refuses(lambda: StateDictFile(path), r"asks for more than tensors \(somewhere\.Options\); it was")
    assert (
        f"torch.save(torch.load({str(path)!r}, map_location=\"cpu\", weights_only=False)['state_dict'],"
        in str(error)
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            {"model": STATE, "net": dict(STATE)},
            r"several state_dicts, under 'model' and 'net'.*s\.pt', .*\)\['model'\], \"weights.pt\"\)",
        ),
        (
            {"backbone": STATE, "epoch": 1},
            r"under 'backbone'; .*torch\.load\('.*s\.pt', .*\)\['backbone'\], \"weights.pt\"\)",
        ),
        (
            {"optimiser": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "model": {"weights": STATE}},
            r"under 'model\.weights', 'optimiser\.state\.0'; .*\)\['model'\]\['weights'\], ",
        ),
        (
            {"model": {"net": STATE, "state_dict": dict(STATE)}},
            r"several state_dicts, under 'model\.state_dict' and 'model\.net'",
        ),
    ],
)
def test_a_training_file_that_leaves_a_choice(tmp_path, content, problem):
    path = save(tmp_path / "s.pt", content)
    refuses(lambda: StateDictFile(path), problem)


@pytest.mark.parametrize("legacy", [False, True])
def test_paths_and_dates_beside_the_weights(tmp_path, legacy):
    options = argparse.Namespace(folder=Path("runs"), began=datetime(2026, 1, 2))
    path = save(tmp_path / "s.pt", {"state_dict": STATE, "args": options}, legacy)
    with StateDictFile(path) as source:
        assert source.beside == ("args",)


BESIDE = {
    "keys": {(1, (2, 3)): 1, None: 2, b"x": 3, torch.float16: 4, 2**4000: 5, frozenset({1}): 6},
    "numbers": [2**4000, 1j, Decimal("1.5"), Fraction(1, 3)],
    "texts": ["x" * 300, b"x" * 300, bytearray(b"x"), bytearray(b"x" * 300)],
    "collections": [deque([1], maxlen=3), deque(), frozenset({1, (2,)}), Counter("aab"), range(3), slice(1)],
    "times": [
        date(2026, 1, 2),
        time(3),
        datetime(2026, 1, 2, tzinfo=UTC),
        timedelta(1),
        timezone(timedelta(0, 60)),
    ],
    "options": SimpleNamespace(lr=0.1),
    "run": UUID(int=1),
    "tensors": [
        torch.ones(1).expand(5),
        torch.ones(3, dtype=torch.uint16),
        torch.ones(3, dtype=torch.float8_e4m3fn),
        torch.ones(2, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
    ],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_any_plain_value_may_stand_beside_the_weights(tmp_path, protocol, legacy):
    content = {"state_dict": STATE, **BESIDE, ("a", "key"): 1}
    torch.save(
        content, tmp_path / "s.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy
    )
    with StateDictFile(tmp_path / "s.pt") as source:
        assert source.beside == (*BESIDE, "a key of type tuple")
        assert all(same_bits(source[key], tensor.numpy()) for key, tensor in STATE.items())


def test_paths_of_python_3_13_beside_the_weights(tmp_path, monkeypatch):
    module = ModuleType("pathlib._local")
    module.PosixPath = type("PosixPath", (), {"__module__": "pathlib._local", "__reduce__": reduce_to_parts})
    monkeypatch.setitem(sys.modules, "pathlib._local", module)
    path = save(tmp_path / "s.pt", {"state_dict": STATE, "folder": module.PosixPath()})
    with StateDictFile(path) as source:
        assert source.beside == ("folder",)


def reduce_to_parts(path):
    return type(path), ("runs", "1")


@pytest.mark.parametrize("protocol", [2, 4])
def test_other_pickles_are_not_called_damaged(tmp_path, protocol):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"w": 1.0}, protocol))
    refuses(lambda: open_source(path), "this is a pickle that torch.save did not write")


def test_an_archive_of_numpy_arrays_is_called_that(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.zeros(2))
    refuses(lambda: open_source(tmp_path / "w.npz"), r"an archive of NumPy arrays \(.npz\)")


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda model: model, torch.nn.DataParallel, lambda model: {"net": model}])
def test_a_whole_model_is_refused_with_the_line_to_write(tmp_path, wrap, legacy):
    path = save(tmp_path / "s.pt", wrap(torch.nn.Sequential(torch.nn.Linear(2, 2))), legacy)
    error = refuses(lambda: StateDictFile(path), "a whole pickled model, which is code.*it was not run")
    load = f'model = torch.load({str(path)!r}, map_location="cpu", weights_only=False); '
    assert f"{load}torch.save(model.state_dict(), " in str(error)
    assert "an entry of the dictionary that torch.load returns" in str(error)


class CallsTorch:
    """Pickled as a call of a function of torch that downloads and runs code."""

    def __reduce__(self):
        return torch.hub.load, ("somebody/model", "model")


def test_a_call_of_torch_beside_the_weights_is_refused(tmp_path):
    path = save(tmp_path / "s.pt", {"state_dict": {"w": torch.zeros(2)}, "beside": CallsTorch()}, False)
    refuses(lambda: StateDictFile(path), r"torch\.hub\.load")


def test_written_state_dicts_are_pytorchs_and_always_the_same(tmp_path):
    arrays = {"w": random_bits((4, 3), 0), "n": np.zeros((), np.int64)}
    for name in ("one.pt", "other.pt"):
        with (tmp_path / name).open("wb") as file:
            write_state_dict(file, arrays)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()
    loaded = torch.load(tmp_path / "one.pt", weights_only=True)
    assert list(loaded) == ["w", "n"]
    assert all(same_bits(loaded[name].numpy(), array) for name, array in arrays.items())


# safetensors


def test_safetensors_both_ways(tmp_path):
    arrays = {
        "w": random_bits((3, 4), 0),
        "n": np.array(275),
        "b": np.array([1, -2], ml_dtypes.bfloat16),
        "h": np.array([True, False]),
        "none": np.empty((0, 2), np.float32),
    }
    write_safetensors(tmp_path / "one.safetensors", arrays)
    save_file(arrays, tmp_path / "theirs.safetensors")
    for name in ("one.safetensors", "theirs.safetensors"):
        actual = read_all(SafetensorsFile(tmp_path / name))
        assert actual.keys() == arrays.keys()
        assert all(same_bits(actual[key], arrays[key]) for key in arrays)
    write_safetensors(tmp_path / "other.safetensors", dict(reversed(arrays.items())))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_dtypes_that_numpy_lacks_are_refused_by_name(tmp_path):
    save_file({"w": np.zeros(2, np.uint32)}, tmp_path / "u.safetensors")
    error = refuses(
        lambda: SafetensorsFile(tmp_path / "u.safetensors"), "dtype U32 is not converted. Give the"
    )
    assert error.tensor == "w"
    save_torch_file({"w": torch.zeros(2, dtype=torch.float8_e5m2)}, tmp_path / "f.safetensors")
    refuses(
        lambda: SafetensorsFile(tmp_path / "f.safetensors"),
        r"F8_E5M2 is not .* v\.float\(\) for k, v in safetensors",
    )


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_truncated_safetensors_are_refused(tmp_path, cut):
    save_file({"w": np.zeros(8, np.float32)}, tmp_path / "s.safetensors")
    content = (tmp_path / "s.safetensors").read_bytes()
    (tmp_path / "s.safetensors").write_bytes(content[:-cut])
    refuses(lambda: open_source(tmp_path / "s.safetensors"), r"this safetensors file is cut off: its .* end")


def test_sources_know_no_other_names(tmp_path):
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "s.safetensors")
    save(tmp_path / "s.pt", {"w": torch.ones(2)})
    small_keras(tmp_path / "s.h5")
    for name in ("s.safetensors", "s.pt", "s.h5"):
        with open_source(tmp_path / name) as source, pytest.raises(KeyError):
            source["x"]
