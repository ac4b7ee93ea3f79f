"""TensorFlow checkpoints (V2): the TensorBundle that TensorFlow's Saver writes since version 1.0.

A checkpoint `P` is a set of files: `P.index` (see `bundle_index`) and the data files, or shards,
`P.data-00000-of-0000N`, which hold the tensors' bytes one after another.

Sources of the layout: TensorFlow's core/util/tensor_bundle/tensor_bundle.cc and naming.cc beside it.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from converter.counts import counted
from converter.errors import SourceError
from converter.formats.limits import open_regular
from converter.formats.neighbours import HEAD_BYTES, refuse_placeholder
from converter.formats.source import DOWNLOAD_AGAIN, Naming, TensorInfo, TensorSource
from converter.formats.tensorflow import sstable
from converter.formats.tensorflow.bundle_index import (
    STRING_CHECKSUM_SIZE,
    BundleEntry,
    EntryError,
    read_index,
)
from converter.formats.tensorflow.find_proto_fields import ProtoError
from converter.formats.tensorflow.graph_def import SLIM_LEAVES
from converter.formats.tensorflow.object_graph import MAX_BYTES, OBJECT_GRAPH, variable_names

_MOST_POINTER_BYTES = 1 << 20  # of what stands for a data file: a pointer of Git LFS, a web page
_LEAVES = SLIM_LEAVES | {"kernel", "bias"}  # and those of Keras


class TensorBundle(TensorSource):
    """An open TensorFlow checkpoint.

    The constructor reads and checks the whole index: block checksums, the order of keys, the version, and for
    every tensor that its type is supported, that its size fits its type and shape, and that its bytes lie
    inside their data file and overlap no other's. It touches no tensor's bytes. Reading a tensor maps its
    bytes, checks their checksum and returns a view of the map: read-only, not copied and not necessarily
    aligned. Strings and partitioned variables are copied, because they are assembled.

    Arrays stay valid after `close()`, which only drops this object's own hold on the maps. The files must
    not be shortened while they are mapped.

    Args:
        prefix: The checkpoint's path without `.index`.

    Raises:
        SourceError: A file is missing, is not a checkpoint, is corrupt, or holds something unsupported.
    """

    format = "TensorFlow checkpoint (TensorBundle)"
    naming: Naming = "tensorflow"

    def __init__(self, prefix: Path) -> None:
        self.path = prefix
        self._index = read_index(prefix)
        shards = _map_shards(prefix, self._index.num_shards)
        self._index.check_shards([(path, len(shard)) for path, shard in shards.items()])
        self._maps: list[mmap.mmap | bytes] | None = list(shards.values())
        self.files = (self._index.path, *shards)
        variables = {entry.name: entry for entry in self._index.entries.values() if not entry.is_slice}
        object_based = OBJECT_GRAPH in variables
        if object_based:
            self.format = "TensorFlow 2 checkpoint (object-based)"
            variables = self._name_by_object_graph(variables)
        if _is_keras(variables, object_based):
            self.naming = "keras"
            variables = {f"{name}:0": entry for name, entry in variables.items()}
        self._keys = {name: entry.name for name, entry in variables.items()}
        self.info = {name: TensorInfo(entry.dtype, entry.shape) for name, entry in variables.items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read and check one tensor.

        Args:
            name: The variable's full name.

        Returns:
            A read-only array of the dtype and shape that `info` gives, little-endian; a string tensor is an
            object array of `bytes`.

        Raises:
            KeyError: There is no tensor of this name.
            SourceError: The tensor's bytes do not match their checksum, or its strings or booleans are not
                well-formed.
            ValueError: The source is closed.
        """
        key = self._keys[name]
        entry = self._index.entries[key.encode()]
        if key not in self._index.slices:
            return self._read(entry)
        variable = np.empty(entry.shape, entry.dtype)
        for region, part in self._index.slices[key]:
            variable[region] = self._read(part)
        variable.flags.writeable = False
        return variable

    def _name_by_object_graph(self, variables: Mapping[str, BundleEntry]) -> dict[str, BundleEntry]:
        """Put the variables' own names in place of their keys.

        A SavedModel of Keras holds every variable twice; the copies have the same bytes, by their checksums.
        A variable without a name, or with that of another one, keeps its key.
        """
        entry = variables[OBJECT_GRAPH]
        try:
            if entry.size > MAX_BYTES or not entry.dtype.hasobject or entry.shape:
                raise ProtoError("not one string")
            names = variable_names(self._read(entry).item())
        except ProtoError as error:
            problem = "the list of its variables is damaged"
            raise SourceError(self.path, problem, tensor=OBJECT_GRAPH, next_step=DOWNLOAD_AGAIN) from error
        named: dict[str, BundleEntry] = {}
        for key, entry in variables.items():
            known = named.setdefault(names.get(key, key), entry)
            if known is not entry and not known.has_same_bytes(entry):
                named[key] = entry
        named.pop(OBJECT_GRAPH)
        if named and not any(name.rpartition("/")[2] in _LEAVES for name in named):
            raise SourceError(
                self.path,
                "this is a TensorFlow 2 checkpoint (object-based), and its variables do not have the names "
                f"of this network: one is called {next(iter(named))[:200]!r}",
                next_step="Restore it into the model that wrote it, and save its variables under the "
                "network's names "
                "with tf.compat.v1.train.Saver({NAME: VARIABLE})",
            )
        return named

    def release(self) -> None:
        """Give the pages of tensors read so far back to the system.

        They leave the process's resident set at once. An array that is still in use reads them from the file
        again. Does nothing on a system without madvise.
        """
        for shard in self._maps or ():
            if isinstance(shard, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                shard.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Drop the maps. Arrays that were read keep theirs until they are gone."""
        self._maps = None

    def _read(self, entry: BundleEntry) -> NDArray[Any]:
        """Read the bytes of a tensor or slice."""
        if self._maps is None:
            raise ValueError(f"{self.path} is closed")
        shard = self._maps[entry.shard]
        path = self.files[1 + entry.shard]
        # Touching a mapped page that the file no longer has ends the process. A file that is cut off between
        # this check and the reading still does.
        if isinstance(shard, mmap.mmap) and shard.size() < entry.end:
            raise SourceError(path, "the file was cut off after it was opened", tensor=entry.name)
        data = np.frombuffer(shard, np.uint8)[entry.offset : entry.end]
        try:
            if entry.dtype.hasobject:
                array = _decode_strings(data.tobytes(), entry)
            else:
                array = _decode_numbers(data, entry)
        except EntryError as error:
            raise SourceError(path, str(error), tensor=entry.name, next_step=DOWNLOAD_AGAIN) from None
        array.flags.writeable = False
        return array


def _is_keras(names: Collection[str], object_based: bool) -> bool:
    """Return whether variables are called as Keras calls them: it has kernels where tf-slim has weights.

    In a checkpoint of TensorFlow 1 only `LAYER/kernel` is a name of Keras; others have such layers of their
    own.
    """
    if any(name.endswith("/weights") for name in names):
        return False
    return any(name.endswith("/kernel") and (object_based or name.count("/") == 1) for name in names)


def shard_path(prefix: Path, shard: int, num_shards: int) -> Path:
    """Return the path of a checkpoint's data file."""
    return Path(f"{prefix}.data-{shard:05d}-of-{num_shards:05d}")


def _map_shards(prefix: Path, num_shards: int) -> dict[Path, mmap.mmap | bytes]:
    """Map every data file read-only; an empty file, which cannot be mapped, is `b""`."""
    maps: dict[Path, mmap.mmap | bytes] = {}
    for shard in range(num_shards):
        path = shard_path(prefix, shard, num_shards)
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                if size < _MOST_POINTER_BYTES:
                    refuse_placeholder(path, file.read(HEAD_BYTES))
                is_empty = size == 0
                maps[path] = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            problem = f"there is no such file, but the checkpoint has {counted(num_shards, 'data file')}"
            raise SourceError(path, problem, next_step="Put it beside the .index file") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(path, f"the file cannot be read ({reason})") from error
    return maps


def _decode_numbers(data: NDArray[np.uint8], entry: BundleEntry) -> NDArray[Any]:
    """View a tensor's bytes as its numbers."""
    if sstable.mask(google_crc32c.value(data)) != entry.crc32c:
        raise EntryError("its bytes do not match their checksum")
    if entry.dtype == np.bool_ and data.max(initial=0) > 1:
        raise EntryError("a boolean is neither 0 nor 1")
    return data.view(entry.dtype).reshape(entry.shape)


def _decode_strings(data: bytes, entry: BundleEntry) -> NDArray[Any]:
    """Cut a string tensor's bytes into its strings.

    The bytes are the strings' lengths as varints, the masked checksum of the lengths, and the strings. In the
    checksums each length counts as 4 bytes, or as 8 if it needs them (ReadStringTensor).
    """
    array = np.empty(math.prod(entry.shape), object)
    lengths = []
    position = 0
    for _ in range(array.size):
        try:
            length, position = sstable.read_varint(data, position, len(data))
        except sstable.TableError:
            raise EntryError("the length of a string is not valid") from None
        lengths.append(length)
    crc = google_crc32c.value(b"".join(n.to_bytes(4 if n < 1 << 32 else 8, "little") for n in lengths))
    start = position + STRING_CHECKSUM_SIZE
    if sstable.mask(crc) != int.from_bytes(data[position:start], "little"):
        raise EntryError("the lengths of its strings do not match their checksum")
    if start + sum(lengths) != len(data):
        raise EntryError("its strings do not fill its bytes")
    if sstable.mask(google_crc32c.extend(crc, data[position:])) != entry.crc32c:
        raise EntryError("its bytes do not match their checksum")
    for i, length in enumerate(lengths):
        array[i] = data[start : start + length]
        start += length
    return array.reshape(entry.shape)
