"""Opening a file of any format: the format is detected from the file's contents.

`_FORMATS` is the table of all formats. To add one, write a module with a `TensorSource`, a function here that
opens it, and a row in the table.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.errors import SourceError, UsageError
from converter.formats.neighbours import HEAD_BYTES, recognise, recognise_text, refuse_placeholder
from converter.formats.source import TensorSource
from converter.formats.tensorflow.checkpoint_state import (
    STATE_FILE,
    Snapshot,
    choose,
    find_snapshots,
    find_state,
    read_latest,
)
from converter.stray_files import is_stray

_SHARD = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-\d{5}")
_FIRST_OF_KERAS = b"metadata.json"  # the first member of a .keras archive, at byte 30
_MOST_OF_DIRECTORY = 1024  # bytes at the end of a .keras archive, whose directory has three entries
_TEXT_PICKLE_STARTS = b"c(]}"  # pickle protocols 0 and 1, which have no magic bytes
_SAVED_MODEL = "saved_model.pb"  # cc/saved_model/constants.h: kSavedModelFilenamePb
_SINGLE_FILES = (".pb", ".h5", ".hdf5", ".keras", ".pt", ".pth", ".safetensors")
_OFTEN_MODELS = (".bin", ".ckpt", ".tar")  # the last for .pth.tar, as PyTorch's examples write


def open_source(path: Path | str, *, step: int | None = None) -> TensorSource:
    """Open a checkpoint, a frozen graph, Keras weights or a state_dict.

    Args:
        path: A model folder or its `checkpoint` file (the latest checkpoint is opened, as `choose` says), a
            checkpoint prefix, an .index, a .data shard, a .meta (its sibling checkpoint is opened), a frozen
            .pb, a Keras .h5 or .keras, a .pt, a .safetensors or the .npy of a network of MTCNN.
            `converter.hub.locate` turns the name of a published model into such a path.
        step: The training step to take from a folder of several. A path to one checkpoint must be of this
            step.

    Raises:
        SourceError: The path does not exist, or is unreadable, corrupt or of no known format.
        UsageError: The folder holds checkpoints of several models, or none of this step.
    """
    path = Path(path)
    source = _open(path, step)
    if step is not None and (actual := Snapshot.of(source.path).step) != step:
        source.close()
        what = "its name has no step" if actual is None else f"this is step {actual}"
        raise UsageError(f"{path}: {what}, but step {step} was asked for. Leave it out, or give the folder.")
    return source


def _open(path: Path, step: int | None) -> TensorSource:
    try:
        if path.is_dir():
            return _open_folder(path, step)
        if path.is_file():
            return _open_file(path, step)
        if _sibling(path, ".index").is_file():
            return _open_file(_sibling(path, ".index"), step)
        if path.exists():
            raise SourceError(path, "this is not a regular file", next_step="Copy its content to a file")
    except OSError as error:
        raise SourceError(path, f"the file cannot be read ({error.strerror or error})") from error
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise SourceError(
            path,
            f"no such file: {path.parts[0]} is taken literally here",
            next_step="Write the path in full, or use Path.expanduser in Python and no quotes in a shell",
        )
    raise SourceError(
        path,
        "no such file, folder or checkpoint prefix",
        next_step="Check its name, or give the name of a model that `facenet-port list` shows",
    )


def _sibling(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _open_folder(folder: Path, step: int | None) -> TensorSource:
    snapshots = find_snapshots(folder)
    if snapshots:
        return _open_snapshot(choose(snapshots, folder, step=step, state=find_state(folder)), step)
    for name in (_SAVED_MODEL, f"{_SAVED_MODEL}txt"):
        if (folder / name).is_file():
            return _open_file(folder / name, step)
    variables = folder / "variables" / "variables.index"  # of a SavedModel that was copied in part
    if variables.is_file():
        return _open_file(variables, step)
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    found = [file for file in files if not is_stray(file.name)]
    candidates = [file for file in found if file.suffix.lower() in _SINGLE_FILES]
    candidates = candidates or [file for file in found if file.suffix.lower() in _OFTEN_MODELS]
    if not candidates:
        if inside := _saved_models_inside(folder):
            problem, next_step = "no checkpoint in this folder itself", f"Give the SavedModel in it: {inside}"
        elif (folder / "best").is_dir():  # the folder of a training
            problem, next_step = "no checkpoint in this folder itself", f"Give {folder / 'best'}"
        else:
            problem = f"no checkpoint in this folder (it holds {_list_content(files)})"
            next_step = "Give the folder that holds the .index and .data files, or the model's file itself"
        raise SourceError(folder, problem, next_step=next_step)
    if len(candidates) > 1:
        names = ", ".join(file.name for file in candidates)
        raise UsageError(
            f"{folder}: {len(candidates)} checkpoints in one folder ({names}). Name one of these files."
        )
    return _open_file(candidates[0], step)


def _open_snapshot(snapshot: Snapshot, step: int | None) -> TensorSource:
    source = _open_file(snapshot.path, step)
    source.notes += (snapshot.note,) if snapshot.note else ()
    return source


def _list_content(files: Sequence[Path]) -> str:
    """List the first files of a folder for a message, those that a tool left behind last."""
    stray = [file.name for file in files if is_stray(file.name)]
    names = [file.name for file in files if file.name not in stray]
    if names or not stray:
        return ", ".join(names[:5]) or "nothing"
    return f"only what a system or an unfinished download left: {', '.join(stray[:5])}"


def _saved_models_inside(folder: Path) -> str:
    """List the SavedModels in numbered folders, as TensorFlow Serving keeps them; empty without one."""
    graphs = [graph for graph in folder.glob(f"*/{_SAVED_MODEL}") if not is_stray(graph.parent.name)]
    return ", ".join(str(folder / name) for name in sorted(graph.parent.name for graph in graphs)[:5])


@dataclass(frozen=True, slots=True)
class _File:
    """The parts of a file that its format is detected from.

    Attributes:
        path: The file.
        size: Bytes.
        head: The first `HEAD_BYTES`.
        tail: The last 8 bytes.
    """

    path: Path
    size: int
    head: bytes
    tail: bytes


def _open_file(path: Path, step: int | None) -> TensorSource:
    size = path.stat().st_size
    with path.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
        opened.seek(max(0, size - 8))
        tail = opened.read(8)
    if size == 0:
        raise SourceError(path, "the file is empty", next_step="Download or copy it again")
    refuse_placeholder(path, head)
    file = _File(path, size, head, tail)
    return next(row.open for row in _FORMATS if row.matches(file))(path, step)


# Detecting a format


def _starts_with(*magic: bytes) -> Callable[[_File], bool]:
    return lambda file: file.head.startswith(magic)


def _is_macos_metadata(file: _File) -> bool:
    """Return whether a file is AppleDouble (RFC 1740, appendix B), which macOS writes as ._NAME.

    The data of a checkpoint may begin with any bytes.
    """
    may_be = file.path.name.startswith("._") or not _SHARD.fullmatch(file.path.name)
    return may_be and file.head.startswith(b"\0\5\x16\7")


def _is_text_pickle(file: _File) -> bool:
    return file.path.suffix in (".pt", ".pth") and file.head[:1] in _TEXT_PICKLE_STARTS


def _has_json_header(file: _File) -> bool:
    """Return whether the file starts with the length of a JSON object and the object, as safetensors does.

    The object may be cut off, and be as long as the library allows.
    """
    if file.size <= 8:
        return file.path.suffix == ".safetensors"
    return file.head[8:9] == b"{" and int.from_bytes(file.head[:8], "little") <= 100_000_000


def _is_keras_archive(file: _File) -> bool:
    """Return whether a zip archive is by Keras 3: by its first member, or the directory at its end."""
    if not file.head.startswith(b"PK\3\4"):
        return False
    if file.head.startswith(_FIRST_OF_KERAS, 30):
        return True
    with file.path.open("rb") as opened:
        opened.seek(max(0, file.size - _MOST_OF_DIRECTORY))
        return b"model.weights.h5" in opened.read()


def _is_meta_graph(file: _File) -> bool:
    from converter.formats.tensorflow.frozen_graph import is_meta_graph

    return file.path.suffix == ".meta" or is_meta_graph(file.path)


# Opening a file of a detected format


def _open_saved_model(path: Path, step: int | None) -> TensorSource:
    from converter.formats.tensorflow.saved_model import SavedModel

    return SavedModel(path)


def _open_index(path: Path, step: int | None) -> TensorSource:
    from converter.formats.tensorflow.bundle import TensorBundle

    if path.name == "variables.index" and (graph := path.parent.with_name(_SAVED_MODEL)).is_file():
        return _open_saved_model(graph, step)
    return TensorBundle(path.with_suffix(""))


def _open_shard(path: Path, step: int | None) -> TensorSource:
    from converter.formats.tensorflow.bundle import TensorBundle

    shard = _SHARD.fullmatch(path.name)
    assert shard is not None  # the row of the table matched
    return TensorBundle(path.with_name(shard["prefix"]))


def _refuse_table(path: Path, step: int | None) -> TensorSource:
    """Refuse a sorted table that is not called .index."""
    from converter.formats.tensorflow.v1_checkpoint import is_v1_checkpoint

    if is_v1_checkpoint(path):
        raise SourceError(
            path,
            "this is a V1 checkpoint (one file, as TensorFlow wrote before 0.12), which is not supported",
            next_step="Restore it in TensorFlow and save it again with tf.train.Saver",
        )
    raise SourceError(
        path,
        "this is the index of a checkpoint, but its name does not say which data files belong to it",
        next_step="Rename it to PREFIX.index, beside PREFIX.data-00000-of-00001",
    )


def _refuse_neighbour(path: Path, step: int | None) -> TensorSource:
    """Refuse a file that `converter.formats.neighbours` knows."""
    with path.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    problem, next_step = (
        recognise(path, head) or recognise_text(head) or ("it was changed while it was read", "")
    )
    raise SourceError(path, problem, next_step=next_step)


def _refuse_macos_metadata(path: Path, step: int | None) -> TensorSource:
    raise SourceError(
        path,
        "this is metadata of macOS (AppleDouble), not a model",
        next_step=f"Give the file itself, {path.name.removeprefix('._')}"
        if path.name.startswith("._")
        else "Copy the file itself",
    )


def _open_keras(path: Path, step: int | None) -> TensorSource:
    from converter.formats.hdf5.keras import KerasHdf5

    return KerasHdf5(path)


def _open_numpy(path: Path, step: int | None) -> TensorSource:
    from converter.formats.numpy_arrays import NumpyPickle

    return NumpyPickle(path)


def _open_state_dict(path: Path, step: int | None) -> TensorSource:
    from converter.formats.torch.state_dict import StateDictFile

    return StateDictFile(path)


def _open_safetensors(path: Path, step: int | None) -> TensorSource:
    from converter.formats.safetensors import SafetensorsFile

    return SafetensorsFile(path)


def _open_beside_state(path: Path, step: int | None) -> TensorSource:
    """Open the checkpoint that a `checkpoint` file names, or the highest step if that one is gone."""
    latest = read_latest(path)[-1]
    snapshots = find_snapshots(path.parent)
    if not snapshots:
        raise SourceError(
            path,
            f"it names the checkpoint {latest!r}, but there is no checkpoint beside it",
            next_step=f"Put {latest}.index and its .data file beside it",
        )
    return _open_snapshot(choose(snapshots, path, step=step, state=path), step)


def _open_beside_meta(path: Path, step: int | None) -> TensorSource:
    """Open the checkpoint of a .meta; the published ones leave the step out of the .meta's name.

    Without one the .meta may be that of a frozen graph, which holds the weights itself.
    """
    prefix = path.with_suffix("")
    if _sibling(prefix, ".index").is_file():
        return _open_file(_sibling(prefix, ".index"), step)
    beside = [
        snapshot for snapshot in find_snapshots(path.parent) if snapshot.name.startswith(f"{prefix.name}.")
    ]
    if not beside:
        from converter.formats.tensorflow.frozen_graph import FrozenGraph, find_meta_graph

        return FrozenGraph(path, find_meta_graph)
    return _open_snapshot(choose(beside, path, step=step, state=find_state(path.parent)), step)


def _open_frozen_graph(path: Path, step: int | None) -> TensorSource:
    from converter.formats.tensorflow.frozen_graph import FrozenGraph

    return FrozenGraph(path)


# The table of formats


@dataclass(frozen=True, slots=True)
class _Format:
    """A row of the table: how a format is recognised, and what opens a file of it.

    Attributes:
        name: For people.
        matches: Whether a file that no row above matched is of this format.
        open: Opens the file, or refuses it with advice. Readers are imported here, so that a command loads
            only the libraries that it needs. Takes the path and the training step that was asked for.
    """

    name: str
    matches: Callable[[_File], bool]
    open: Callable[[Path, int | None], TensorSource]


_FORMATS = (
    _Format("macOS metadata", _is_macos_metadata, _refuse_macos_metadata),
    # A checkpoint's files belong together by their names.
    _Format("checkpoint: data", lambda file: bool(_SHARD.fullmatch(file.path.name)), _open_shard),
    _Format(
        "checkpoint: index",
        lambda file: file.path.suffix == ".index" and recognise_text(file.head) is None,
        _open_index,
    ),
    # LevelDB, table/format.h: kTableMagicNumber, at the end of the file.
    _Format(
        "checkpoint under another name",
        lambda file: file.tail == struct.pack("<Q", 0xDB4775248B80FB57),
        _refuse_table,
    ),
    _Format("neighbour", lambda file: recognise(file.path, file.head) is not None, _refuse_neighbour),
    # HDF5 file format specification 3.0, section II.A.
    _Format("Keras HDF5", _starts_with(b"\x89HDF\r\n\x1a\n"), _open_keras),
    # numpy.lib.format.
    _Format("NumPy .npy", _starts_with(b"\x93NUMPY"), _open_numpy),
    _Format("Keras archive", _is_keras_archive, _open_keras),
    # torch.save: a zip archive; before PyTorch 1.6 a bare pickle, of protocol 2 unless asked otherwise.
    _Format("PyTorch: zip", _starts_with(b"PK\x03\x04"), _open_state_dict),
    _Format("PyTorch: pickle", _starts_with(b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"), _open_state_dict),
    _Format("PyTorch: text pickle", _is_text_pickle, _open_state_dict),
    _Format("safetensors", _has_json_header, _open_safetensors),
    # The first field of a CheckpointState in protobuf's text format.
    _Format("list of checkpoints", lambda file: file.path.name == STATE_FILE, _open_beside_state),
    _Format("list of checkpoints", _starts_with(b"model_checkpoint_path:"), _open_beside_state),
    _Format("text", lambda file: recognise_text(file.head) is not None, _refuse_neighbour),
    # The version of a SavedModel, which is 1, and the start of its graph.
    _Format("SavedModel", _starts_with(b"\x08\x01\x12"), _open_saved_model),
    # Protobuf has no magic bytes: whatever is left is read as a graph.
    _Format("graph of a checkpoint (.meta)", _is_meta_graph, _open_beside_meta),
    _Format("frozen graph (.pb)", lambda file: True, _open_frozen_graph),
)
