"""From a path to an open source of tensors, whatever the format: what a file is, its bytes tell."""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path

from converter.catalog import PUBLISHED
from converter.errors import RequirementError, SourceError, UsageError
from converter.tensor_source import TensorSource

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"  # HDF5 file format specification 3.0, section II.A
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")  # protocols 2 to 5; torch.save wrote 2 before PyTorch 1.6
_TABLE_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # LevelDB, table/format.h: kTableMagicNumber
_SHARD = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-\d{5}")
_SINGLE_FILES = (".pb", ".h5", ".hdf5", ".pt", ".pth", ".safetensors")
_DOWNLOAD_AGAIN = "Download or copy it again"


def open_source(path: Path | str) -> TensorSource:
    """Open a checkpoint, a frozen graph, Keras weights or a state_dict.

    Args:
        path: A model folder, a checkpoint prefix, an .index, a .data shard, a .meta (its sibling checkpoint
            is opened), a frozen .pb, a Keras .h5, a .pt or a .safetensors.

    Raises:
        SourceError: Nothing is there, or it is unreadable, corrupt or of no known format.
        UsageError: A folder holds several checkpoints.
        RequirementError: `path` is no path but the name of a published checkpoint.
    """
    from converter.formats.tensor_bundle import TensorBundle

    path = Path(path)
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.is_file():
            return _open_file(path)
        if _sibling(path, ".index").is_file():
            return TensorBundle(path)
    except OSError as error:
        raise SourceError(path, f"cannot be read ({error.strerror or error})") from error
    published = PUBLISHED.get(str(path))
    if published is not None:
        raise RequirementError(
            f"{path}: published checkpoints are not downloaded. Get {published.url} with a browser, "
            "unpack it and give the folder."
        )
    raise SourceError(
        path,
        "no such file, folder or checkpoint prefix",
        next_step="Give a model folder, a checkpoint prefix, or an .index, .data, .meta, .pb, .h5, .pt or "
        ".safetensors file",
    )


def _sibling(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _open_folder(folder: Path) -> TensorSource:
    from converter.formats.tensor_bundle import TensorBundle

    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    indices = [file for file in files if file.suffix == ".index"]
    candidates = indices or [file for file in files if file.suffix in _SINGLE_FILES]
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
    return TensorBundle(candidates[0].with_suffix("")) if indices else _open_file(candidates[0])


def _open_file(path: Path) -> TensorSource:
    from converter.formats.tensor_bundle import TensorBundle

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
        from converter.formats.keras_hdf5 import KerasHdf5

        return KerasHdf5(path)
    is_text_pickle = path.suffix in (".pt", ".pth") and head[:1] in b"c(]}"  # protocols 0 and 1 have no magic
    if head.startswith(_ZIP_MAGIC) or _PICKLE.match(head) or is_text_pickle:
        return _open_archive_or_pickle(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        from converter.formats.safetensors_file import SafetensorsFile

        return SafetensorsFile(path)
    return _open_protobuf(path)


def _open_table(path: Path) -> TensorSource:
    from converter.formats.tensor_bundle import is_v1_checkpoint

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


def _open_archive_or_pickle(path: Path) -> TensorSource:
    from converter.formats.state_dict_file import StateDictFile

    try:
        names = None
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise SourceError(path, f"a damaged zip archive ({error})", next_step=_DOWNLOAD_AGAIN) from error
    if names is not None and not any(name.endswith("/data.pkl") for name in names):
        raise SourceError(
            path,
            f"a zip archive, not a PyTorch file (it holds {', '.join(names[:4]) or 'nothing'})",
            next_step="Unpack it and give the folder",
        )
    return StateDictFile(path)


def _open_protobuf(path: Path) -> TensorSource:
    from converter.formats.frozen_graph import FrozenGraph, is_meta_graph

    if path.suffix == ".meta" or is_meta_graph(path):
        return _open_beside_meta(path)
    return FrozenGraph(path)


def _open_beside_meta(path: Path) -> TensorSource:
    """Open the checkpoint of a .meta; the published ones leave the step out of the .meta's name."""
    from converter.formats.tensor_bundle import TensorBundle

    prefix = path.with_suffix("")
    if _sibling(prefix, ".index").is_file():
        return TensorBundle(prefix)
    beside = sorted(file for file in path.parent.glob("*.index") if file.name.startswith(prefix.name + "."))
    if not beside:
        raise SourceError(
            path,
            "a graph without weights, and no checkpoint of its name beside it",
            next_step=f"Put {prefix.name}.ckpt-STEP.index and its .data file beside it",
        )
    if len(beside) > 1:
        names = ", ".join(file.name for file in beside)
        raise UsageError(
            f"{path}: {len(beside)} checkpoints belong to it ({names}). Name one of these files."
        )
    return TensorBundle(beside[0].with_suffix(""))
