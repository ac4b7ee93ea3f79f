"""Every path to a source leads to the same tensors; the format is detected from the file's contents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from converter.convert import tensorflow_tensors
from converter.errors import SourceError, UsageError
from converter.formats.detect import open_source
from converter.formats.tensorflow.protos import GraphDef
from tests.conftest import MODEL, STEP, same_bits, write_keras

PREFIX = f"model-{MODEL}.ckpt-{STEP}"
TABLE = "TensorFlow checkpoint (TensorBundle)"
GRAPH = "TensorFlow frozen graph"


def link(target, path):
    """Give a file another name without copying it."""
    path.parent.mkdir(exist_ok=True)
    path.hardlink_to(target)
    return path


def assert_holds(path, expected, source_format):
    with open_source(path) as source:
        assert source.format == source_format
        actual = tensorflow_tensors(source)
        assert actual.keys() == expected.keys()
        assert [name for name in expected if not same_bits(actual[name], expected[name])] == []


def without_logits(tensors):
    return {name: array for name, array in tensors.items() if not name.startswith("Logits/")}


@pytest.fixture
def folder(checkpoint, tmp_path):
    """The checkpoint's files in a folder that a test may change."""
    for path in (checkpoint.index, checkpoint.data, checkpoint.meta):
        link(path, tmp_path / path.name)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["", PREFIX, f"{PREFIX}.index", f"{PREFIX}.data-00000-of-00001", f"model-{MODEL}.meta"]
)
def test_ways_to_name_a_checkpoint(checkpoint, tensors, name):
    assert_holds(checkpoint.index.parent / name, tensors, TABLE)
    assert_holds(str(checkpoint.index.parent / name), tensors, TABLE)


def test_a_meta_with_the_step_in_its_name(folder, tensors):
    with_step = (folder / f"model-{MODEL}.meta").rename(folder / f"{PREFIX}.meta")
    assert_holds(with_step, tensors, TABLE)


def test_a_frozen_graph(checkpoint, tensors):
    assert_holds(checkpoint.frozen, without_logits(tensors), GRAPH)


@pytest.mark.parametrize(
    ("name", "source_format"),
    [
        ("weights.h5", "Keras HDF5"),
        ("weights.pt", "PyTorch state_dict"),
        ("weights.safetensors", "safetensors"),
    ],
)
def test_single_files(single_files, tensors, tmp_path, name, source_format):
    assert_holds(single_files / name, tensors, source_format)
    link(single_files / name, tmp_path / "folder" / name)
    assert_holds(tmp_path / "folder", tensors, source_format)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    """Format to a file with one tensor."""
    folder = tmp_path_factory.mktemp("small")
    kernel = np.ones((2, 3), np.float32)
    graph = GraphDef()
    tensor = graph.node.add(name="Logits/weights", op="Const").attr["value"].tensor
    tensor.dtype = 1  # DT_FLOAT
    for size in kernel.shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = kernel.tobytes()
    (folder / "graph").write_bytes(graph.SerializeToString())
    write_keras(folder / "keras", {"Logits/weights": kernel})
    torch.save({"logits.weight": torch.from_numpy(kernel)}, folder / "torch")
    save_file({"logits.weight": kernel}, folder / "safetensors")
    formats = (GRAPH, "Keras HDF5", "PyTorch state_dict", "safetensors")
    return dict(
        zip(formats, (folder / name for name in ("graph", "keras", "torch", "safetensors")), strict=True)
    )


@pytest.mark.parametrize("name", ["x.pb", "x.h5", "x.pt", "x.safetensors", "x.zip", "x", "x.ckpt"])
def test_a_misleading_name_does_not_matter(small_files, tmp_path, name):
    """This test checks the source's description only; other tests check the tensors."""
    for number, (source_format, file) in enumerate(small_files.items()):
        with open_source(link(file, tmp_path / str(number) / name)) as source:
            assert source.format == source_format
            assert source.path == tmp_path / str(number) / name


@pytest.mark.parametrize("name", ["weights.h5", "weights.pt", "weights.safetensors"])
def test_a_file_called_meta_that_is_none(single_files, tmp_path, name):
    with open_source(single_files / name) as expected:
        described = dict(expected.info)
    with open_source(link(single_files / name, tmp_path / "x.meta")) as source:
        assert source.info == described


def test_a_meta_under_another_name_leads_to_its_checkpoint(folder, tensors):
    renamed = (folder / f"model-{MODEL}.meta").rename(folder / f"model-{MODEL}.pb")
    assert_holds(renamed, tensors, TABLE)


def test_an_index_under_another_name_is_called_one(checkpoint, tmp_path):
    with pytest.raises(SourceError, match=r"Rename it to PREFIX\.index, beside"):
        open_source(link(checkpoint.index, tmp_path / "x.pb"))


# Choices that are the user's


def test_a_folder_with_a_checkpoint_and_its_frozen_graph_means_the_checkpoint(checkpoint):
    assert checkpoint.frozen.parent == checkpoint.index.parent
    with open_source(checkpoint.index.parent) as source:
        assert "Logits/weights" in source


def test_checkpoints_of_two_models_are_for_the_user_to_choose_from(folder, tensors):
    for path in sorted(folder.glob(f"{PREFIX}.*")):
        link(path, folder / path.name.replace("model-", "other-"))
    names = f"model-{MODEL}.ckpt-90.index, other-{MODEL}.ckpt-90.index"
    with pytest.raises(
        UsageError, match=rf"2 checkpoints in one folder \({names}\). Name one of these files"
    ):
        open_source(folder)
    with pytest.raises(UsageError, match=rf"2 checkpoints are of step 90 \({names}\)"):
        open_source(folder, step=STEP)
    assert_holds(folder / f"{PREFIX}.index", tensors, TABLE)


@pytest.fixture
def steps(folder):
    """The checkpoint again under two more steps."""
    for step in (9, 100):
        for path in sorted(folder.glob(f"{PREFIX}.*")):
            link(path, folder / path.name.replace(f"-{STEP}.", f"-{step}."))
    return folder


@pytest.mark.parametrize("name", ["", f"model-{MODEL}.meta"])
def test_the_highest_step_is_a_number_and_not_a_name(steps, name):
    with open_source(steps / name) as source:
        assert source.path.name == f"model-{MODEL}.ckpt-100"


@pytest.mark.parametrize("name", ["", f"model-{MODEL}.meta", "checkpoint"])
def test_a_step_is_chosen(steps, name):
    (steps / "checkpoint").write_text(f'model_checkpoint_path: "model-{MODEL}.ckpt-90"')
    for step in (9, 90, 100):
        with open_source(steps / name, step=step) as source:
            assert source.path.name == f"model-{MODEL}.ckpt-{step}"
    with pytest.raises(
        UsageError, match=r"there is no checkpoint of step 91 \(.*-9\.index, .*-90\.index, .*-100"
    ):
        open_source(steps / name, step=91)


def test_a_list_of_checkpoints_under_another_name(steps):
    (steps / "of-yesterday").write_text(f'model_checkpoint_path: "model-{MODEL}.ckpt-9"')
    with open_source(steps / "of-yesterday") as source:
        assert source.path.name == f"model-{MODEL}.ckpt-9"


def test_a_single_checkpoint_must_be_of_the_step(checkpoint, single_files):
    folder = checkpoint.index.parent
    for name in ("", PREFIX, f"{PREFIX}.index", f"{PREFIX}.data-00000-of-00001", f"model-{MODEL}.meta"):
        with open_source(folder / name, step=STEP) as source:
            assert source.path == checkpoint.prefix
    for name in (PREFIX, f"{PREFIX}.index", f"{PREFIX}.data-00000-of-00001"):
        with pytest.raises(UsageError, match="this is step 90, but step 91 was asked for"):
            open_source(folder / name, step=91)
    for path in (checkpoint.frozen, single_files / "weights.pt"):
        with pytest.raises(UsageError, match="its name has no step, but step 90 was asked for"):
            open_source(path, step=STEP)


def test_a_meta_is_not_given_a_longer_name_s_checkpoint(folder):
    meta = (folder / f"model-{MODEL}.meta").rename(folder / f"model-{MODEL[:-2]}.meta")
    with pytest.raises(
        SourceError, match="a graph without weights, and no checkpoint of its name is beside it"
    ):
        open_source(meta)


def test_two_single_files_in_a_folder(single_files):
    with pytest.raises(UsageError, match=r"weights\.h5, weights\.pt, weights\.safetensors"):
        open_source(single_files)


def test_a_source_says_which_files_it_reads(checkpoint):
    with open_source(checkpoint.index.parent) as source:
        assert source.files == (checkpoint.index, checkpoint.data)
    with open_source(checkpoint.frozen) as source:
        assert source.files == (checkpoint.frozen,)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.safetensors", "epoch-3.ckpt", "best.pth.tar", "weights.h5", "w.PTH"]
)
def test_a_folder_with_one_file_of_weights_means_that_file(single_files, tmp_path, name):
    source = {".safetensors": "weights.safetensors", ".h5": "weights.h5"}.get(Path(name).suffix, "weights.pt")
    (tmp_path / name).symlink_to(single_files / source)
    for other in ("config.json", "README.md", ".gitattributes", f".{name}.swp"):
        (tmp_path / other).write_text("{}")
    with open_source(tmp_path) as opened:
        assert opened.path == tmp_path / name


def test_an_archive_beside_a_model_is_not_a_second_one(checkpoint, tmp_path):
    (tmp_path / "frozen.pb").symlink_to(checkpoint.frozen)
    for name in ("photographs.tar", "rng.bin"):
        (tmp_path / name).touch()
    with open_source(tmp_path) as opened:
        assert opened.path.name == "frozen.pb"


def test_a_home_folder_that_was_not_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("~/model", "~someone/w.pt"):
        with pytest.raises(SourceError, match=rf"no such file: {path.partition('/')[0]} is taken literally"):
            open_source(path)
    with pytest.raises(SourceError) as caught:
        open_source("model~/w.pt")
    assert "literally" not in str(caught.value)
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "model.pb").touch()
    with pytest.raises(SourceError, match="the file is empty"):
        open_source("~/model.pb")
