"""Bad input of every kind: the expected exit code, one message that names the culprit, and no file."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import converter
from converter.__main__ import main
from converter.convert import to_pytorch
from converter.formats.tensorflow.bundle import TensorBundle
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.formats.tensorflow.protos import GraphDef
from converter.hub.catalog import BUILT_IN_BY_NAME
from tests.conftest import write_keras

DRIVE_PAGE = b"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head>
<body>Google Drive can't scan this file for viruses. Would you still like to download this file?</body></html>
"""
EXTENSIONS = ["pb", "h5", "pt", "safetensors", "meta", "index", "data-00000-of-00001", "bin"]


class Command:
    """Runs the command in a folder of its own, which must stay empty."""

    def __init__(self, folder, capsys):
        self.folder = folder
        self.capsys = capsys

    def __call__(self, *arguments):
        self.capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, self.capsys.readouterr()

    def refuses(self, *arguments, code=3, says=()):
        """Check the exit code and the message, and that no file was written."""
        found, output = self(*arguments)
        assert found == code, output.err
        assert output.out == ""
        assert output.err.startswith("python -m converter: error: ")
        assert output.err.count("error: ") == 1, output.err
        assert output.err.endswith("\n")
        assert "\n\n" not in output.err
        for forbidden in ("Traceback", "unexpected ", "Please report", "Warning"):
            assert forbidden not in output.err.replace("unexpected (", "")
        for part in says:
            assert str(part) in output.err, output.err
        assert list(self.folder.iterdir()) == []
        return output.err


@pytest.fixture
def command(tmp_path_factory, monkeypatch, capsys):
    folder = tmp_path_factory.mktemp("output")
    monkeypatch.chdir(folder)
    return Command(folder, capsys)


@pytest.fixture(scope="module")
def trained(tensors, tmp_path_factory):
    """A checkpoint with a tensor that no conversion reads. A test that changes the files restores them."""
    prefix = tmp_path_factory.mktemp("trained") / "model.ckpt-1"
    write_tensor_bundle(prefix, tensors | {"Logits/weights/Adam": tensors["Logits/weights"]})
    return prefix


def ending(prefix, suffix):
    return prefix.with_name(prefix.name + suffix)


def flip(path, position, bit=0):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def small_checkpoint(prefix, tensors=None):
    write_tensor_bundle(prefix, tensors or {"resnet/conv1/kernel": np.zeros((7, 7, 3, 4), np.float32)})
    return prefix


# Nothing there, or too much


@pytest.mark.parametrize("name", ["nothing", "nothing.pb", "no/such/folder/model.ckpt-3", "x" * 300])
def test_a_path_that_is_not_there(command, tmp_path, name):
    command.refuses(tmp_path / name, says=[tmp_path / name])


def test_a_name_that_no_path_can_have(command):
    command.refuses("a\0b", says=[r"a\x00b: no such file"])


def test_an_empty_folder(command, tmp_path):
    command.refuses(tmp_path, says=[tmp_path, "it holds nothing", "Give the folder that holds the .index"])


def test_a_folder_of_other_things(command, tmp_path):
    (tmp_path / "notes.txt").write_text("weights are elsewhere")
    command.refuses(tmp_path, says=[tmp_path, "it holds notes.txt"])


def test_two_checkpoints_in_one_folder(command, tmp_path):
    for model in ("one", "other"):  # of one model, the latest would be taken
        small_checkpoint(tmp_path / f"{model}.ckpt-1")
    names = ["one.ckpt-1.index", "other.ckpt-1.index", "Name one of these files"]
    command.refuses(tmp_path, code=2, says=[tmp_path, "2 checkpoints in one folder", *names])


@pytest.mark.parametrize("name", ["vggface2", "20180408-102900"])
def test_a_published_name_without_network(command, tmp_path, monkeypatch, name):
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path / "cache"))
    known = BUILT_IN_BY_NAME[name]
    says = [
        f"{known.name} is not in the cache",
        known.sources[0].place,
        f"facenet-port convert {known.name} --archive FILE",
    ]
    command.refuses(name, "--offline", code=4, says=says)


def test_an_archive_for_what_is_no_name(command, tmp_path):
    small_checkpoint(tmp_path / "model.ckpt-1")
    for source in (tmp_path / "model.ckpt-1", "vggface3"):
        command.refuses(source, "--archive", "x.zip", code=2, says=["--archive goes with a name", source])


@pytest.mark.parametrize("name", ["model.pb", "model.h5", "model.ckpt-1.index"])
def test_a_folder_that_is_called_like_a_file(command, tmp_path, name):
    (tmp_path / name).mkdir()
    command.refuses(tmp_path / name, says=[tmp_path / name, "no checkpoint in this folder"])


def test_a_file_that_cannot_be_read(command):
    path = Path("/proc/self/mem")  # a file whose first byte even root may not read
    if not path.is_file():
        pytest.skip("there is no /proc here")
    command.refuses(path, says=[f"{path}: the file cannot be read (Input/output error)"])


@pytest.mark.parametrize(
    ("name", "problem"),
    [("pipe", "not a regular file"), ("loop", "no such file"), ("file/inside", "no such file")],
)
def test_things_that_are_no_files(command, tmp_path, name, problem):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"x")
    command.refuses(tmp_path / name, says=[tmp_path / name, problem])


def test_an_output_folder_that_is_not_there(command, trained, tmp_path):
    command.refuses(
        trained, "-o", tmp_path / "no" / "w.pt", code=2, says=[tmp_path / "no", "there is no such folder"]
    )
    assert list(tmp_path.iterdir()) == []


# Files that are not what they are called


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_an_empty_file(command, tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    path.touch()
    command.refuses(path, says=[path, "the file is empty", "Download or copy it again"])


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_random_bytes(command, tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    command.refuses(path, says=[tmp_path / "x"])


@pytest.mark.parametrize("extension", ["pb", "h5", "pt", "meta", "zip"])
def test_a_web_page(command, tmp_path, extension):
    path = tmp_path / f"20180402-114759.{extension}"
    path.write_bytes(DRIVE_PAGE)
    command.refuses(path, says=[path, "this is a web page, not the file itself", "save the file itself"])


def test_a_folder_that_holds_a_web_page(command, tmp_path):
    (tmp_path / "20180402-114759.pb").write_bytes(b"\n " + DRIVE_PAGE)
    command.refuses(tmp_path, says=[tmp_path / "20180402-114759.pb", "web page"])


@pytest.mark.parametrize("names", [["20180402-114759/20180402-114759.pb"], []])
def test_a_zip_that_is_no_torch_file(command, tmp_path, names):
    path = tmp_path / "20180402-114759.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"weights")
    says = [path, "a zip archive, not a PyTorch file", names[0], "Run `unzip "] if names else [path]
    command.refuses(path, says=says)


def test_a_damaged_zip(command, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(3)}, path)
    content = path.read_bytes()
    flip(path, content.index(b"PK\x01\x02"))
    command.refuses(path, says=[path, "a damaged zip archive"])


# Checkpoints


@pytest.mark.parametrize("cut", [1, 4096, 40 << 20])
def test_a_truncated_data_file(command, trained, tmp_path, cut):
    for path in (ending(trained, ".index"), ending(trained, ".data-00000-of-00001")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = tmp_path / f"{trained.name}.data-00000-of-00001"
    os.truncate(data, data.stat().st_size - cut)
    command.refuses(
        tmp_path, says=[data, "tensor '", f"{cut} fewer than the index says", "Download or copy it again"]
    )


def test_a_missing_data_file(command, trained, tmp_path):
    index = tmp_path / "model.ckpt-1.index"
    index.write_bytes(ending(trained, ".index").read_bytes())
    command.refuses(index, says=[tmp_path / "model.ckpt-1.data-00000-of-00001", "there is no such file"])


def test_a_data_file_alone(command, tmp_path):
    path = tmp_path / "model.ckpt-1.data-00000-of-00001"
    path.write_bytes(bytes(100))
    command.refuses(path, says=[tmp_path / "model.ckpt-1.index", "there is no such file"])


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 12))
def test_one_flipped_bit_in_the_index(command, trained, share):
    index = ending(trained, ".index")
    position = int(index.stat().st_size * share)
    flip(index, position, position % 8)
    try:
        command.refuses(trained, says=[index])
    finally:
        flip(index, position, position % 8)


def test_one_flipped_bit_in_a_tensor_that_is_read(command, trained, tensors):
    data = ending(trained, ".data-00000-of-00001")
    names = sorted(tensors)  # the order of the file, in which the Adam slot follows its variable at the end
    starts = np.cumsum([0, *(tensors[name].nbytes for name in names)])
    chosen = {0, len(names) - 1, *np.random.default_rng(0).integers(0, len(names), 3).tolist()}
    for number in chosen:
        start, array = int(starts[number]), tensors[names[number]]
        if names[number] > "Logits/weights/Adam":
            start += tensors["Logits/weights"].nbytes
        position = start + array.nbytes // 2
        flip(data, position, 7)
        try:
            command.refuses(
                trained, says=[f"{data}: tensor {names[number]!r}: its bytes do not match their checksum"]
            )
        finally:
            flip(data, position, 7)


def test_what_is_not_read_may_be_damaged(command, trained, tmp_path, tensors):
    """The control of the two tests above: they would pass if every file were refused."""
    data = ending(trained, ".data-00000-of-00001")
    slot = tensors["Logits/weights"].nbytes
    position = data.stat().st_size - slot // 2  # "Logits/weights/Adam" is the last name of all
    flip(data, position)
    try:
        with TensorBundle(trained) as bundle, pytest.raises(Exception, match="checksum"):
            bundle["Logits/weights/Adam"]
        code, _ = command(trained, "-o", tmp_path / "w.pt", "--quiet")
    finally:
        flip(data, position)
    assert code == 0


def test_a_checkpoint_of_another_network(command, tmp_path):
    prefix = small_checkpoint(tmp_path / "resnet.ckpt")
    command.refuses(
        prefix,
        says=[
            prefix,
            "not an Inception-ResNet-v1",
            "an expected name, such as InceptionResnetV1/Conv2d_1a_3x3/weights",
            "resnet/conv1/kernel",
        ],
    )


def test_a_checkpoint_with_a_tensor_too_few_and_one_too_many(command, tensors, tmp_path):
    changed = {name: array for name, array in tensors.items() if not name.startswith("Logits/")}
    removed = "InceptionResnetV1/Block8/Conv2d_1x1/biases"
    changed["InceptionResnetV1/Block9/Conv2d_1x1/biases"] = changed.pop(removed)
    prefix = small_checkpoint(tmp_path / "near.ckpt", changed)
    missing = f"missing (1):\n    {removed}: for block8.conv2d.bias"
    extra = "unexpected (1):\n    InceptionResnetV1/Block9/Conv2d_1x1/biases: float32 (1792,)"
    command.refuses(
        prefix,
        says=[
            f"{prefix}: not the tensors of an Inception-ResNet-v1: 1 missing, 1 unexpected (490 given, 490",
            missing,
            extra,
        ],
    )


def test_averages_that_are_not_there(command, trained):
    says = [f"{trained}: it holds no moving averages, which", "Leave out --weights average to take the"]
    command.refuses(trained, "--weights", "average", says=says)


def test_a_v1_checkpoint(command, tmp_path):
    pytest.importorskip("tensorflow")
    from facenet_tf.graph import tf1
    from facenet_tf.session import legacy_graph, open_session

    path = tmp_path / "model.ckpt"
    with legacy_graph() as graph:
        tf1.get_variable("w", (3,))
        saver = tf1.train.Saver(write_version=tf1.train.SaverDef.V1)
        with open_session(graph) as session:
            session.run(tf1.global_variables_initializer())
            saver.save(session, str(path), write_meta_graph=False, write_state=False)
    command.refuses(path, says=[path, "V1 checkpoint", "save it again"])


def test_a_meta_alone(command, checkpoint, tmp_path):
    path = tmp_path / checkpoint.meta.name
    path.hardlink_to(checkpoint.meta)
    command.refuses(path, says=[path, "a graph without weights", "beside it"])


# Graphs, Keras files, state_dicts


def test_a_graph_without_weights(command, tmp_path):
    graph = GraphDef()
    graph.node.add(name="input", op="Placeholder")
    graph.node.add(name="w", op="VariableV2")
    path = tmp_path / "graph.pb"
    path.write_bytes(graph.SerializeToString())
    command.refuses(path, says=[path, "a graph without weights (1 variable, not frozen)"])


def test_a_truncated_graph(command, checkpoint, tmp_path):
    path = tmp_path / "cut.pb"
    path.write_bytes(checkpoint.frozen.read_bytes()[:1_000_000])
    command.refuses(path, says=[path, "the graph is damaged or cut off, after "])


def test_a_keras_file_of_another_network(command, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense"]
        group = file.create_group("dense")
        group.attrs["weight_names"] = [b"dense/kernel:0"]
        group.create_dataset("dense/kernel:0", data=np.zeros((2, 3), np.float32))
    command.refuses(
        tmp_path / "other.h5", says=[tmp_path / "other.h5", "not an Inception-ResNet-v1", "dense/kernel:0"]
    )


def test_an_hdf5_file_of_something_else(command, tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["table"] = np.zeros(3)
    command.refuses(tmp_path / "data.h5", says=[tmp_path / "data.h5", "has no Keras weights"])


@pytest.mark.parametrize("size", [8, 100, 50_000])
def test_a_truncated_keras_file(command, tensors, tmp_path, size):
    few = {name: array for name, array in tensors.items() if "Conv2d_1a_3x3" in name}
    path = write_keras(tmp_path / "k.h5", few)
    os.truncate(path, size)
    command.refuses(path, says=[path, "HDF5"])


class Evil:
    """Leaves a trace wherever it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.pb"])
def test_a_pickle_with_code_in_it(command, tmp_path, legacy, name):
    trace = tmp_path / "trace"
    torch.save({"w": Evil(trace)}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    command.refuses(tmp_path / name, says=[tmp_path / name, "it was not run", "in a file of their own"])
    assert not trace.exists()
    torch.load(tmp_path / name, weights_only=False)  # the control: the code works where it is trusted
    assert trace.exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.complex64])
def test_a_state_dict_of_another_type_of_number(command, tensors, tmp_path, dtype):
    state_dict = to_pytorch(tensors)
    content = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in state_dict.items()
    }
    torch.save(content, tmp_path / "other.pt")
    name = str(dtype).removeprefix("torch.")
    says = ["wrong dtype (604):", f"conv2d_1a.conv.weight: {name}, expected float32"]
    if not dtype.is_complex:
        says = [
            f"its weights are quantised to integers (tensors: 604 of {name}); the float32 weights are gone"
        ]
    command.refuses(tmp_path / "other.pt", says=[tmp_path / "other.pt", *says])


def test_a_training_checkpoint_of_pytorch(command, tmp_path):
    path = tmp_path / "epoch.pt"
    torch.save({"epoch": 3, "weights": {"w": torch.zeros(2)}}, path)
    command.refuses(path, says=[path, "a training file, with tensors under 'weights'", "['weights'], "])
    torch.save({"epoch": 3, "w": torch.zeros(2)}, path)
    command.refuses(path, says=[path, "'epoch' is an int", "save its tensors in a file of their own"])


def test_a_flipped_bit_in_a_state_dict(command, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"w": torch.full((1000,), 1.5)}, path)
    flip(path, path.read_bytes().index(np.full(4, 1.5, np.float32).tobytes()) + 400)
    command.refuses(path, says=[path, "data/0' is corrupt (CRC-32)"])


# The command itself


def test_debug_shows_the_traceback(command, tmp_path):
    path = tmp_path / "x.pb"
    path.write_bytes(DRIVE_PAGE)
    _, plain = command(path)
    code, debug = command(path, "--debug")
    assert code == 3
    assert debug.err.startswith("Traceback (most recent call last):")
    assert debug.err.endswith(plain.err)


def test_quiet_does_not_silence_an_error(command, tmp_path):
    message = command.refuses(tmp_path / "nothing", says=["no such file"])
    assert command.refuses(tmp_path / "nothing", "--quiet") == message


@pytest.mark.parametrize(
    "arguments", [[], ["x", "--format", "onnx"], ["x", "--weights", "all"], ["x", "--wat"]]
)
def test_wrong_arguments(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m converter" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "shown"), [((), False), (("--debug",), True)])
def test_the_process_ends_as_the_function_does(tmp_path, option, shown):
    path = tmp_path / "x.pb"
    path.write_bytes(DRIVE_PAGE)
    run = subprocess.run(
        [sys.executable, "-m", "converter", path, *option],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(converter.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 3
    assert run.stdout == ""
    assert ("Traceback" in run.stderr) == shown
    assert run.stderr.splitlines()[-1].startswith(f"python -m converter: error: {path}: this is a web page")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pb"]
