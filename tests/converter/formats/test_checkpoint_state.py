"""The choice of a checkpoint in a training folder, compared with TensorFlow's own choice."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from converter.__main__ import main
from converter.errors import SourceError, UsageError
from converter.formats.detect import open_source
from converter.formats.tensorflow import protos
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.formats.tensorflow.checkpoint_state import (
    MAX_STATE_BYTES,
    choose_model,
    find_snapshots,
    find_state,
    read_latest,
)
from converter.network_names import NetworkTensors


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


def train(tf, prefix, steps, **options):
    """Save a variable that holds the step, at each of the steps."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variable = v1.get_variable("step", initializer=0, use_resource=False)
        saver = v1.train.Saver(**options)
        for step in steps:
            variable.load(step, session)
            saver.save(session, str(prefix), global_step=step)
    return prefix.parent


def small(folder, *names):
    for name in names:
        write_tensor_bundle(folder / name, {"name": np.frombuffer(name.encode(), np.uint8)})
    return folder


def opened(path, **options):
    with open_source(path, **options) as source:
        return source.path.name


def state(folder, text):
    (folder / "checkpoint").write_text(text)
    return folder


# What TensorFlow writes


@pytest.mark.parametrize("steps", [[90, 95, 100], [100, 9, 90], [5], list(range(8))])
@pytest.mark.parametrize("relative", [False, True])
def test_the_latest_is_the_one_that_tensorflow_takes(tf, tmp_path, steps, relative):
    folder = train(tf, tmp_path / "model-x.ckpt", steps, max_to_keep=3, save_relative_paths=relative)
    latest = tf.train.latest_checkpoint(str(folder))
    assert latest == str(folder / f"model-x.ckpt-{steps[-1]}")
    assert [snapshot.step for snapshot in find_snapshots(folder)] == sorted(steps[-3:])
    for path in (folder, folder / "checkpoint"):
        with open_source(path) as source:
            assert str(source.path) == latest
            assert source["step"] == steps[-1]
    for step in steps[-3:]:
        with open_source(folder, step=step) as source:
            assert source["step"] == step


def test_a_folder_that_was_moved_keeps_its_latest(tf, tmp_path):
    """The paths are absolute and lead nowhere: TensorFlow finds nothing, and the file is beside the list."""
    there = tmp_path / "another-machine"
    there.mkdir()
    train(tf, there / "model.ckpt", [7, 30, 4])
    here = shutil.move(there, tmp_path / "here")
    assert str(there) in (here / "checkpoint").read_text()
    assert tf.train.latest_checkpoint(str(here)) is None
    assert opened(here) == opened(here / "checkpoint") == "model.ckpt-4"


def test_the_message_is_described_as_tensorflow_does(tf):
    from tensorflow.python.training.checkpoint_state_pb2 import CheckpointState

    ours = [(f.name, f.number, f.type, f.is_repeated) for f in protos.CheckpointState.DESCRIPTOR.fields]
    assert ours == [(f.name, f.number, f.type, f.is_repeated) for f in CheckpointState.DESCRIPTOR.fields]


def test_a_name_that_is_not_ascii(tf, tmp_path):
    folder = train(tf, tmp_path / "modèle.ckpt", [1, 3, 2])
    assert read_latest(folder / "checkpoint")[0] == "modèle.ckpt-2"
    assert opened(folder) == "modèle.ckpt-2"


# Paths of other machines


@pytest.mark.parametrize(
    "path",
    [
        "m.ckpt-9",
        "./m.ckpt-9",
        "/home/david/models/20180402/m.ckpt-9",
        r"C:\\models\\20180402\\m.ckpt-9",
        r"\\\\server\\share\\m.ckpt-9",
        "../../../../m.ckpt-9",
        "file:///m.ckpt-9",
    ],
)
def test_only_the_base_name_of_a_path_counts(tmp_path, path):
    small(tmp_path, "m.ckpt-9", "m.ckpt-10")
    assert opened(tmp_path) == "m.ckpt-10"
    state(tmp_path, f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "{path}"\n')
    assert opened(tmp_path) == "m.ckpt-9"


# Files edited by hand, or on Windows


@pytest.mark.parametrize("path", ["", "checkpoint"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n") + b"\r\n\r\n",
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: text.decode().encode("utf-16"),
        lambda text: b"\xfe\xff" + text.decode().encode("utf-16-be"),
        lambda text: b"# kept for the paper\n" + text,
        lambda text: text.replace(b'"\n', b' "\n'),
        lambda text: text.replace(b'ckpt-9"', b'ckpt-9.index"'),
        lambda text: text.replace(b'ckpt-9"', b'ckpt-9.data-00000-of-00001"'),
        lambda text: text.replace(b'ckpt-9"', b'ckpt-9.meta"'),
    ],
)
def test_an_edited_list_names_the_same_checkpoint(tf, tmp_path, caplog, change, path):
    folder = train(tf, tmp_path / "m.ckpt", [10, 9])
    (folder / "checkpoint").write_bytes(change((folder / "checkpoint").read_bytes()))
    assert opened(folder / path) == "m.ckpt-9"
    assert not caplog.records


@pytest.mark.parametrize(
    "folder",
    [
        r"C:\models",
        r"C:\models\20180402-114759",  # \201 is an octal escape, \m is none
        r"D:\training\new\best",  # \t, \n and \b are escapes
        r"\\server\share\x41",
        r"C:\Users\Zoë",
        r"C:/Users\303\250",
    ],
)
@pytest.mark.parametrize("name", ["m.ckpt-9", "nine.ckpt-9", "20180402-114759.ckpt-9", "m.ckpt-9.index"])
def test_a_windows_path_with_single_backslashes(tmp_path, caplog, folder, name):
    stem = name.removesuffix(".index")
    small(tmp_path, stem, stem.replace("-9", "-10"))
    state(tmp_path, f'model_checkpoint_path: "{folder}\\{name}"\r\n')
    assert opened(tmp_path) == opened(tmp_path / "checkpoint") == stem
    assert not caplog.records


BY_HAND = {
    "a Windows code page": 'model_checkpoint_path: "D:\\Modèles\\m.ckpt-9"\r\n'.encode("cp1252"),
    "a Greek code page": 'model_checkpoint_path: "D:\\Μοντέλα\\m.ckpt-9"\r\n'.encode("cp1253"),
    "quotes of a code page": "model_checkpoint_path: “m.ckpt-9”".encode("cp1252"),
    "UTF-16 without its mark": 'model_checkpoint_path: "m.ckpt-9"\r\n'.encode("utf-16-le"),
    "UTF-16, big-endian, without its mark": 'model_checkpoint_path: "m.ckpt-9"'.encode("utf-16-be"),
    "UTF-16 without quotes": "model_checkpoint_path: m.ckpt-9.index".encode("utf-16"),
    "no quotes": b"model_checkpoint_path: /runs/a:b/m.ckpt-9\n",
    "an equals sign": b'model_checkpoint_path = "m.ckpt-9"\nall_model_checkpoint_paths = "m.ckpt-10"',
    "curly quotes": "model_checkpoint_path: „C:\\models\\m.ckpt-9“\n".encode(),
    "NULs at the end": b'model_checkpoint_path: "m.ckpt-9"\n' + bytes(512),
    "NULs of a lost write": b'model_checkpoint_path: "m.ckpt-9"' + bytes(512),
    "a field of the future": b'model_checkpoint_path: "m.ckpt-9"\nfuture_field: 3\n',
}


@pytest.mark.parametrize("content", BY_HAND.values(), ids=BY_HAND)
def test_what_editors_make_of_it_counts_if_the_checkpoint_is_there(tmp_path, caplog, content):
    small(tmp_path, "m.ckpt-9", "m.ckpt-10")
    (tmp_path / "checkpoint").write_bytes(content)
    assert opened(tmp_path) == opened(tmp_path / "checkpoint") == "m.ckpt-9"
    assert not caplog.records
    for path in tmp_path.glob("m.ckpt-9.*"):
        path.unlink()
    problem = r"not a readable list .*it seems to name 'm\.ckpt-9', which is not in that folder\. Delete it"
    with pytest.raises(SourceError, match=problem):
        opened(small(tmp_path, "m.ckpt-8"))
    assert not caplog.records


def test_a_name_with_an_ending_that_is_its_own(tmp_path):
    small(tmp_path, "m.index", "m")
    assert opened(state(tmp_path, 'model_checkpoint_path: "m.index"')) == "m.index"


@pytest.mark.parametrize("path", ["", "checkpoint"])
def test_another_checkpoint_than_the_named_one_is_never_taken_silently(tmp_path, caplog, path):
    """A folder with one checkpoint is no exception."""
    small(tmp_path, "m.ckpt-9")
    state(tmp_path, r'model_checkpoint_path: "C:\models\m.ckpt-11"')
    assert opened(tmp_path / path) == "m.ckpt-9"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path / 'checkpoint'} names 'm.ckpt-11', which is not in that folder; m.ckpt-9 is "
        "taken instead. To choose another one, name its .index file."
    )
    with open_source(tmp_path / path) as source:
        assert NetworkTensors(source).statements == (
            "the file checkpoint names 'm.ckpt-11', which is not in its folder; m.ckpt-9 is taken instead",
        )


def test_the_command_warns_of_it_once_and_in_its_own_name(tmp_path, capsys):
    small(tmp_path, "m.ckpt-9")
    state(tmp_path, 'model_checkpoint_path: "m.ckpt-11"')
    main([str(tmp_path), "--quiet", "--json", str(tmp_path / "r.json")])
    warning, error = capsys.readouterr().err.split("\n", 1)
    assert warning.startswith(f"python -m converter: warning: {tmp_path / 'checkpoint'} names 'm.ckpt-11', ")
    assert "warning" not in error


def test_the_meta_of_another_model_than_the_named_one(tmp_path, caplog):
    small(tmp_path, "model-a.ckpt-9", "model-a.ckpt-10", "model-b.ckpt-3")
    (tmp_path / "model-a.meta").write_bytes(b"\x0a\x00\x12\x00")
    state(tmp_path, 'model_checkpoint_path: "model-b.ckpt-3"')
    assert opened(tmp_path / "model-a.meta") == "model-a.ckpt-10"
    assert not caplog.records


def test_a_checkpoint_file_that_names_what_is_gone(tmp_path, caplog):
    small(tmp_path, "m.ckpt-9", "m.ckpt-10")
    state(tmp_path, 'model_checkpoint_path: "m.ckpt-11"')
    assert opened(tmp_path) == opened(tmp_path / "checkpoint") == "m.ckpt-10"
    assert [record.args[2] for record in caplog.records] == ["m.ckpt-10"] * 2
    for path in tmp_path.glob("m.*"):
        path.unlink()
    with pytest.raises(SourceError, match=r"'m\.ckpt-11', but there is no checkpoint beside it"):
        open_source(tmp_path / "checkpoint")


def test_a_checkpoint_file_decides_between_models(tmp_path):
    small(tmp_path, "a.ckpt-5", "b.ckpt-5", "b.ckpt-6")
    state(tmp_path, 'model_checkpoint_path: "a.ckpt-5"')
    assert opened(tmp_path) == opened(tmp_path, step=5) == "a.ckpt-5"
    assert opened(tmp_path, step=6) == "b.ckpt-6"
    chosen = choose_model(find_snapshots(tmp_path), tmp_path, state=find_state(tmp_path))
    assert [snapshot.name for snapshot in chosen] == ["a.ckpt-5"]
    state(tmp_path, 'model_checkpoint_path: "c.ckpt-7"')
    with pytest.raises(UsageError, match=r"3 checkpoints in one folder \(a\.ckpt-5\.index, b\.ckpt-5\.index"):
        open_source(tmp_path)


def test_a_name_without_a_step_is_no_step(tmp_path):
    small(tmp_path, "m.ckpt", "m.ckpt-10")
    with pytest.raises(UsageError, match=r"m\.ckpt\.index, m\.ckpt-10\.index"):
        open_source(tmp_path)
    assert opened(tmp_path, step=10) == "m.ckpt-10"
    assert opened(state(tmp_path, 'model_checkpoint_path: "m.ckpt"')) == "m.ckpt"


def test_a_single_checkpoint_needs_no_list(tmp_path, caplog):
    state(small(tmp_path, "m.ckpt-10"), "damaged")
    assert opened(tmp_path) == "m.ckpt-10"
    (record,) = caplog.records
    assert record.getMessage().endswith("m.ckpt-10 is the only checkpoint there and is taken.")
    with open_source(tmp_path) as source:
        assert source.notes == ("the file checkpoint cannot be read; m.ckpt-10 is the only checkpoint there",)
    with pytest.raises(SourceError, match=r"checkpoint: this is not a readable list of checkpoints"):
        open_source(tmp_path / "checkpoint")


def test_the_variables_of_a_saved_model_without_its_graph(tmp_path):
    (tmp_path / "variables").mkdir()
    small(tmp_path / "variables", "variables")
    (tmp_path / "fingerprint.pb").write_bytes(b"\x08\x01")
    assert opened(tmp_path) == "variables"


# Hostile lists


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"model_checkpoint_path", "not a readable list of checkpoints"),
        (b'model_checkpoint_path: "m.ckpt-9" surprise: 1', "not a readable list of checkpoints"),
        (b'model_checkpoint_path: "a"\nmodel_checkpoint_path: "b"', "not a readable list of checkpoints"),
        (b"model_checkpoint_path: 9", "not a readable list of checkpoints"),
        (b'model_checkpoint_path: "\xff\xfe"', "not a readable list of checkpoints"),
        (b'model_checkpoint_path: "\\377"', "not a readable list of checkpoints"),
        (b"model_checkpoint_path " + b"{ a " * 100_000, "not a readable list of checkpoints"),
        (b"a { " * 100_000, "not a readable list of checkpoints"),
        (b"[" * 100_000, "not a readable list of checkpoints"),
        (bytes(range(256)), "not a readable list of checkpoints"),
        (b"\0" * 400, "not a readable list of checkpoints"),
        (b" ", "does not name a checkpoint"),
        (b"all_model_checkpoint_paths: 'm.ckpt-9'", "does not name a checkpoint"),
        (b'model_checkpoint_path: "folder/"', "does not name a checkpoint"),
        (b"#" * (MAX_STATE_BYTES + 1), "over 1 MB"),
    ],
)
def test_a_damaged_list_is_named_and_nothing_is_guessed(tmp_path, content, problem):
    small(tmp_path, "m.ckpt-9", "m.ckpt-10")
    (tmp_path / "checkpoint").write_bytes(content)
    for path in (tmp_path, tmp_path / "checkpoint"):
        with pytest.raises(SourceError, match=problem) as caught:
            open_source(path)
        assert str(caught.value).startswith(str(tmp_path / "checkpoint"))
        assert str(caught.value).endswith(
            "Delete it to take the highest step, or name the checkpoint itself."
        )
        assert len(str(caught.value)) < 500


def test_the_largest_list_that_is_read(tmp_path):
    small(tmp_path, "m.ckpt-9", "m.ckpt-10")
    line = 'all_model_checkpoint_paths: "m.ckpt-9"\n'
    head = 'model_checkpoint_path: "m.ckpt-9"\n'
    state(tmp_path, head + line * ((MAX_STATE_BYTES - len(head)) // len(line)))
    assert opened(tmp_path) == "m.ckpt-9"


@pytest.mark.parametrize("content", ["", "a folder"])
def test_an_empty_list_and_a_folder_of_its_name(tmp_path, content):
    small(tmp_path, "m.ckpt-9", "m.ckpt-10")
    if content:
        (tmp_path / "checkpoint").mkdir()
        assert opened(tmp_path) == "m.ckpt-10"
    else:
        state(tmp_path, "")
        with pytest.raises(SourceError, match="does not name a checkpoint"):
            open_source(tmp_path)


def test_v1_checkpoints_have_steps_as_well(tf, tmp_path):
    """V1 checkpoints are one file each, and are recognised by their contents."""
    for step in (5, 30):
        name = str(tmp_path / f"m.ckpt-{step}")
        tf.raw_ops.Save(filename=name, tensor_names=["step"], data=[tf.constant([step])])
    (tmp_path / "notes.txt").write_text("weights")
    assert [snapshot.name for snapshot in find_snapshots(tmp_path)] == ["m.ckpt-5", "m.ckpt-30"]
    for options, step in (({}, 30), ({"step": 5}, 5)):
        with pytest.raises(SourceError, match=rf"m\.ckpt-{step}: this is a V1 checkpoint"):
            open_source(tmp_path, **options)
