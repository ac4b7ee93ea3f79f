"""From a path to an open source of tensors, whatever the format: what a file is, its bytes tell."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

from converter.errors import SourceError, UsageError
from converter.formats.source import TensorSource
from converter.formats.tensorflow.checkpoint_state import (
    STATE_FILE,
    Snapshot,
    choose,
    find_snapshots,
    find_state,
    read_latest,
)
from converter.hub import catalog

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"  # HDF5 file format specification 3.0, section II.A
_NUMPY_MAGIC = b"\x93NUMPY"  # numpy.lib.format
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")  # protocols 2 to 5; torch.save wrote 2 before PyTorch 1.6
_TABLE_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # LevelDB, table/format.h: kTableMagicNumber
_STATE_BEGINNING = b"model_checkpoint_path:"  # first field of a CheckpointState in text format
_SHARD = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-\d{5}")
_SINGLE_FILES = (".pb", ".h5", ".hdf5", ".pt", ".pth", ".safetensors")
_DOWNLOAD_AGAIN = "Download or copy it again"


def locate(
    source: Path | str,
    *,
    offline: bool = False,
    archive: Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Turn the name of a known checkpoint into the folder of its verified files.

    Args:
        source: A name or alias of the catalog, or a path, which is returned as it is; what exists as a path
            is no name.
        offline: Never download.
        archive: The zip of the named checkpoint, downloaded by other means.
        progress: Told of the download, in bytes done and in all.

    Raises:
        UsageError: `archive` is given, and `source` is no name.
        RequirementError: The checkpoint is not in the cache and cannot be had.
        SourceError: What was downloaded, given or cached is damaged, or the user's catalog is.
    """
    path = Path(source)
    checkpoint = None if _exists(path) else catalog.find_entry(str(source))
    if checkpoint is not None:
        from converter.hub.download import model_folder

        return model_folder(checkpoint, offline=offline, archive=archive, progress=progress)
    if archive is not None:
        raise UsageError(f"--archive goes with a name, such as vggface2; {source} is a path or unknown.")
    return path


def _exists(path: Path) -> bool:
    try:
        return path.exists() or _sibling(path, ".index").exists()
    except (OSError, ValueError):  # a name that no path can have
        return False


def open_source(path: Path | str, *, step: int | None = None) -> TensorSource:
    """Open a checkpoint, a frozen graph, Keras weights or a state_dict.

    Args:
        path: A name of the catalog, as `locate` takes it; a model folder or its `checkpoint` file (the
            latest checkpoint is opened, as `choose` says), a checkpoint prefix, an .index, a .data shard, a
            .meta (its sibling checkpoint is opened), a frozen .pb, a Keras .h5, a .pt, a .safetensors or the
            .npy of a network of MTCNN.
        step: The training step to take where there are several. A path that is one checkpoint must be of it.

    Raises:
        SourceError: Nothing is there, or it is unreadable, corrupt or of no known format.
        UsageError: A folder holds checkpoints of several models, or none of this step.
        RequirementError: `path` is a name, and its files are not in the cache and cannot be had.
    """
    path = locate(path)
    source = _open(path, step)
    if step is not None and (found := Snapshot.of(source.path).step) != step:
        source.close()
        what = "its name tells no step" if found is None else f"this is step {found}"
        raise UsageError(f"{path}: {what}, and step {step} is asked for. Leave it out, or give the folder.")
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
            raise SourceError(path, "not a regular file", next_step="Copy its content to a file")
    except OSError as error:
        raise SourceError(path, f"cannot be read ({error.strerror or error})") from error
    raise SourceError(
        path,
        "no such file, folder or checkpoint prefix",
        next_step="Give a model folder, a checkpoint prefix, an .index, .data, .meta, .pb, .h5, .pt or "
        ".safetensors file, or a name that `python -m converter list` shows",
    )


def _sibling(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _open_folder(folder: Path, step: int | None) -> TensorSource:
    snapshots = find_snapshots(folder)
    if snapshots:
        return _open_file(choose(snapshots, folder, step=step, state=find_state(folder)).path, step)
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    candidates = [file for file in files if file.suffix in _SINGLE_FILES]
    if not candidates:
        found = ", ".join(file.name for file in files[:5]) or "nothing"
        raise SourceError(
            folder,
            f"no checkpoint in this folder (it holds {found})",
            next_step="Give the folder that holds the .index and .data files, or the .pb",
        )
    if len(candidates) > 1:
        names = ", ".join(file.name for file in candidates)
        raise UsageError(
            f"{folder}: {len(candidates)} checkpoints in one folder ({names}). Name one of these files."
        )
    return _open_file(candidates[0], step)


def _open_file(path: Path, step: int | None) -> TensorSource:
    from converter.formats.tensorflow.bundle import TensorBundle

    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(max(0, size - len(_TABLE_MAGIC)))
        tail = file.read(len(_TABLE_MAGIC))
    if size == 0:
        raise SourceError(path, "the file is empty", next_step=_DOWNLOAD_AGAIN)
    shard = _SHARD.fullmatch(path.name)
    if shard:
        return TensorBundle(path.with_name(shard["prefix"]))
    if path.suffix == ".index":
        return TensorBundle(path.with_suffix(""))
    if tail == _TABLE_MAGIC:
        return _open_table(path)
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise SourceError(
            path,
            "this is a web page, not a model: Google Drive answers so when it asks for a confirmation or its "
            "quota is used up",
            next_step="Open the link in a browser and save the file itself",
        )
    if head.startswith(_HDF5_MAGIC):
        from converter.formats.hdf5.keras import KerasHdf5

        return KerasHdf5(path)
    if head.startswith(_NUMPY_MAGIC):
        from converter.formats.numpy_arrays import NumpyPickle

        return NumpyPickle(path)
    is_text_pickle = path.suffix in (".pt", ".pth") and head[:1] in b"c(]}"  # protocols 0 and 1 have no magic
    if head.startswith(_ZIP_MAGIC) or _PICKLE.match(head) or is_text_pickle:
        from converter.formats.torch.state_dict import StateDictFile

        return StateDictFile(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        from converter.formats.safetensors import SafetensorsFile

        return SafetensorsFile(path)
    if path.name == STATE_FILE or head.startswith(_STATE_BEGINNING):
        return _open_beside_state(path, step)
    return _open_protobuf(path, step)


def _open_table(path: Path) -> TensorSource:
    from converter.formats.tensorflow.bundle import is_v1_checkpoint

    if is_v1_checkpoint(path):
        raise SourceError(
            path,
            "a V1 checkpoint (one file, as TensorFlow wrote before 0.12), which is not read",
            next_step="Restore it in TensorFlow and save it again with tf.train.Saver",
        )
    raise SourceError(
        path,
        "the table of a checkpoint, under a name that does not tell where its data is",
        next_step="Call it PREFIX.index, beside PREFIX.data-00000-of-00001",
    )


def _open_protobuf(path: Path, step: int | None) -> TensorSource:
    from converter.formats.tensorflow.frozen_graph import FrozenGraph, is_meta_graph

    if path.suffix == ".meta" or is_meta_graph(path):
        return _open_beside_meta(path, step)
    return FrozenGraph(path)


def _open_beside_meta(path: Path, step: int | None) -> TensorSource:
    """Open the checkpoint of a .meta; the published ones leave the step out of the .meta's name."""
    prefix = path.with_suffix("")
    if _sibling(prefix, ".index").is_file():
        return _open_file(_sibling(prefix, ".index"), step)
    beside = [
        snapshot for snapshot in find_snapshots(path.parent) if snapshot.name.startswith(f"{prefix.name}.")
    ]
    if not beside:
        raise SourceError(
            path,
            "a graph without weights, and no checkpoint of its name beside it",
            next_step=f"Put {prefix.name}.ckpt-STEP.index and its .data file beside it",
        )
    return _open_file(choose(beside, path, step=step, state=find_state(path.parent)).path, step)


def _open_beside_state(path: Path, step: int | None) -> TensorSource:
    """Open the checkpoint that a `checkpoint` file names, or if it is gone the one of the highest step."""
    latest = read_latest(path)
    snapshots = find_snapshots(path.parent)
    if not snapshots:
        raise SourceError(
            path,
            f"a list of checkpoints, and {latest!r} is not beside it, nor is any other",
            next_step=f"Put {latest}.index and its .data file beside it",
        )
    return _open_file(choose(snapshots, path, step=step, state=path).path, step)
