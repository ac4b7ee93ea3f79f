"""Files that users take for a checkpoint: each is named, with the step that works, and nothing is written."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from converter.__main__ import main
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle

ENDINGS = ("pb", "h5", "pt", "safetensors", "meta", "index", "data-00000-of-00001", "npy", "weights", "zip")
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:bf2c12f31880aaa865fa5a9c168dcbd619f7a40b1633f6446d416fac2421ab99\nsize 95745767\n"
)
WEIGHTS = b"weights" * 100


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


@pytest.fixture
def refusal(capsys, tmp_path, monkeypatch):
    """A function that runs the command in an empty folder, and returns its one message without the path."""

    def run(path):
        folder = tmp_path / "output"
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        assert main([str(path)]) == 3
        printed = capsys.readouterr()
        head = f"python -m converter: error: {path}: "
        assert printed.out == ""
        assert printed.err.startswith(head)
        assert list(folder.iterdir()) == []
        return printed.err.removeprefix(head).removesuffix("\n")

    return run


def write(path, content):
    path.write_bytes(content)
    return path


# Placeholders


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_pointer_of_git_lfs(refusal, tmp_path, ending):
    assert refusal(write(tmp_path / f"model.{ending}", POINTER)) == (
        "this is a pointer of Git LFS, not the file itself of 95,745,767 bytes. Run `git lfs pull` in its "
        "repository, or download the file."
    )


def test_a_data_file_that_is_a_pointer_of_git_lfs(refusal, tmp_path):
    """The .index is small enough to be kept outside LFS."""
    write_tensor_bundle(tmp_path / "model.ckpt-1", {"w": np.zeros(1000, np.float32)})
    data = write(tmp_path / "model.ckpt-1.data-00000-of-00001", POINTER)
    assert refusal(data).startswith("this is a pointer of Git LFS")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>Quota</title>", b"\n<HTML><head>"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_web_page(refusal, tmp_path, ending, page):
    assert "this is a web page, not the file itself" in refusal(write(tmp_path / f"model.{ending}", page))


@pytest.mark.parametrize("ending", ["pb", "h5", "pt", "index"])
def test_the_error_of_a_bucket(refusal, tmp_path, ending):
    error = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code></Error>"
    assert refusal(write(tmp_path / f"model.{ending}", error)) == (
        "this is the error message of a server, not the file itself. Check the link and download the file "
        "again."
    )


@pytest.mark.parametrize(
    "text",
    [b"Entry not found", b'{"error": "Invalid credentials"}', b"404: Not Found\n", "Accès refusé".encode()],
)
@pytest.mark.parametrize("ending", ["pb", "h5", "pt", "meta"])
def test_the_answer_of_a_server(refusal, tmp_path, ending, text):
    first_line = text.decode().strip()
    assert refusal(write(tmp_path / f"model.{ending}", text)) == (
        f"this is a text file, not a model; it begins with {first_line!r}. Download or copy the model itself."
    )


def test_a_download_that_was_interrupted(refusal, tmp_path):
    message = refusal(write(tmp_path / "model.pb", bytes(100_000)))
    assert message.startswith("it begins with zeros only, like an interrupted download or copy. Download")


# Compressed files and archives


def follow(name: str, capsys) -> tuple[str, Path]:
    """Convert a file of the current folder, and run the command in the one message.

    Returns:
        The message without the path, and the one new entry of the folder.
    """
    assert main([name]) == 3
    message = capsys.readouterr().err.removeprefix(f"python -m converter: error: {name}: ").removesuffix("\n")
    (command,) = re.findall("`(.+?)`", message)
    before = set(Path().iterdir())
    subprocess.run(["bash", "-ec", command], check=True, stdin=subprocess.DEVNULL)
    (new,) = set(Path().iterdir()) - before
    return message, new


@pytest.mark.parametrize(
    ("compress", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
@pytest.mark.parametrize("name", ["model.pb.packed", "model.pb", "my model.h5", "model.pt", "model.pt.gz"])
def test_the_command_unpacks_a_compressed_file(tmp_path, monkeypatch, capsys, compress, kind, name):
    monkeypatch.chdir(tmp_path)
    content = compress(WEIGHTS)  # a gzip header has the time
    path = write(tmp_path / name, content)
    if name == "model.pt.gz":
        write(tmp_path / "model.pt", b"mine")
    message, new = follow(name, capsys)
    assert message.startswith(f"this file is compressed ({kind}). Run `")
    assert message.endswith(f" and give {new}.")
    assert new.read_bytes() == WEIGHTS
    assert path.read_bytes() == content
    assert name != "model.pt.gz" or (tmp_path / "model.pt").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["model.tar", "model.tar.gz", "model.TGZ", "my model.tar.xz", "model.pt"])
@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_the_command_unpacks_a_tar_archive(tmp_path, monkeypatch, capsys, layout, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()  # of the user
    content = write(tmp_path / "model.pb", WEIGHTS)
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz"}.get(Path(name).suffix.lower(), "w")
    with tarfile.open(tmp_path / name, mode, format=layout) as archive:
        archive.add(content, "20180402-114759/model.pb")
    message, new = follow(name, capsys)
    assert message.endswith(" and give what was in it.")
    assert (new / "20180402-114759" / "model.pb").read_bytes() == WEIGHTS
    assert list((tmp_path / "model").iterdir()) == []


def test_a_zip_of_a_saved_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for name in ("saved_model.pb", "variables/variables.index"):
            archive.writestr(f"export/{name}", WEIGHTS)
    message, new = follow("export.zip", capsys)
    assert message.startswith("this is a zip archive, not a PyTorch file (it holds export/saved_model.pb, ")
    assert (new / "export" / "saved_model.pb").read_bytes() == WEIGHTS


# Other formats of models


def test_graphs_in_text_form(tf, refusal, tmp_path):
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        output = tf.identity(tf.constant([1.0], name="weights"), "embeddings")
        tf.io.write_graph(graph, str(tmp_path), "graph.pbtxt", as_text=True)
        tf.io.write_graph(graph, str(tmp_path), "graph.pb", as_text=True)
        tf.compat.v1.train.export_meta_graph(str(tmp_path / "model.meta"), as_text=True)
        builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "export"))
        signature = tf.compat.v1.saved_model.predict_signature_def({"x": output}, {"y": output})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save(as_text=True)
    expected = (
        "this is a graph in text form (.pbtxt), which is not read, and most often without weights. Give the "
        "checkpoint beside it; write a frozen one in binary form, in TensorFlow: "
        "tf.io.write_graph(graph_def, '.', 'frozen.pb', as_text=False)."
    )
    for name in ("graph.pbtxt", "graph.pb", "model.meta", "export/saved_model.pbtxt"):
        assert refusal(tmp_path / name) == expected


def test_an_onnx_graph(refusal, tmp_path):
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    for name, options in (("named.onnx", {"producer_name": "pytorch"}), ("bare.pb", {})):
        onnx.save(onnx.helper.make_model(graph, **options), tmp_path / name)
        assert refusal(tmp_path / name) == (
            "this is an ONNX graph, which is not converted. Give the checkpoint that it was made from. "
            f"`facenet-port audit {tmp_path / name} --against CHECKPOINT` compares the two."
        )


def test_a_tflite_graph(tf, refusal, tmp_path):
    function = tf.function(lambda x: x + 1.0).get_concrete_function(tf.TensorSpec((1,), tf.float32))
    path = write(tmp_path / "m.tflite", tf.lite.TFLiteConverter.from_concrete_functions([function]).convert())
    assert refusal(path).startswith("this is a TFLite graph, which is not converted. Give the checkpoint")


@pytest.mark.parametrize(
    ("name", "content", "framework"),
    [
        ("m.mlmodel", b"\x08\x01\x12\x10\x0a\x0e\x0a\x05input", "Core ML"),
        ("m.caffemodel", b"\x0a\x04face\xa2\x06\x00", "Caffe"),
        ("m.xml", b'<?xml version="1.0"?>\n<net name="facenet" version="10">', "OpenVINO"),
    ],
)
def test_models_of_other_frameworks(refusal, tmp_path, name, content, framework):
    assert refusal(write(tmp_path / name, content)) == (
        f"this is a model of {framework}, which is not read. Give the checkpoint that it was made from."
    )
