"""The TensorBundle: the checkpoint that TensorFlow's Saver writes since version 1.0 (V2 checkpoints).

A checkpoint `P` is a set of files: `P.index`, a sorted table (see `sstable`), and the shards
`P.data-00000-of-0000N`, the tensors' bytes one after another. The table's first key is empty and holds a
BundleHeaderProto; every other key is a variable's name and holds a BundleEntryProto: element type, shape,
shard, offset, size and masked CRC-32C of the bytes. A partitioned variable has no bytes of its own: its entry
lists slices, and each slice has an entry under a key that starts with a zero byte.

Source of the layout and of the constants, unless said otherwise: TensorFlow's
core/util/tensor_bundle/tensor_bundle.cc, naming.cc in the same folder, and core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from converter.errors import SourceError
from converter.formats.limits import MAX_TENSORS, check_name, open_regular
from converter.formats.source import TensorInfo, TensorSource
from converter.formats.tensorflow import protos, sstable

MAX_INDEX_BYTES = 4 << 20
"""Largest `.index` that is read, a limit of this reader: a real one of a thousand variables has 0.1 MB."""

MAX_SLICES = 2_000
"""Slices that the variables of one checkpoint may be cut into, a limit of this reader."""

MAX_SHARDS = 1_000
"""Data files of one checkpoint, a limit of this reader: each takes a file descriptor."""

_VERSION = 1
_LITTLE = 0
_STRING_CHECKSUM_SIZE = 4
_Extents = tuple[tuple[int, int], ...]
_GET_IT_AGAIN = "Download it again"
_SAVE_AS_V2 = "Restore it in TensorFlow and save it again with tf.train.Saver, which writes V2 checkpoints"


class TensorBundle(TensorSource):
    """An open TensorFlow checkpoint.

    Opening reads the whole index and checks all of it: block checksums, the order of keys, the version, and
    for every tensor that its type can be read, its size is that of its type and shape, its bytes lie inside
    its shard and overlap no other's. No tensor's bytes are touched. Reading a tensor maps them, checks their
    checksum and returns a view of the map: read-only, not copied and not necessarily aligned. Strings and
    partitioned variables are copied, as they must be put together.

    Arrays stay valid after `close()`, which only drops this object's own hold on the maps. The files must
    not be shortened while they are mapped.

    Args:
        prefix: The checkpoint's path without `.index`.

    Raises:
        SourceError: A file is missing, is not a checkpoint, is corrupt, or holds what cannot be read.
    """

    format = "TensorFlow checkpoint (TensorBundle)"
    naming = "tensorflow"

    def __init__(self, prefix: Path) -> None:
        self.path = prefix
        index = Path(f"{prefix}.index")
        num_shards, self._entries = _read_index(index, prefix)
        shards = _map_shards(prefix, num_shards)
        self._maps: list[mmap.mmap | bytes] | None = list(shards.values())
        self.files = (index, *shards)
        _check_layout(index, [(path, len(shard)) for path, shard in shards.items()], self._entries)
        self._slices = _find_slices(index, self._entries)
        whole = (entry for entry in self._entries.values() if not entry.is_slice)
        self.info = {entry.name: TensorInfo(entry.dtype, entry.shape) for entry in whole}

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
        if name not in self.info:
            raise KeyError(name)
        entry = self._entries[name.encode()]
        if name not in self._slices:
            return self._read(entry)
        whole = np.empty(entry.shape, entry.dtype)
        for region, part in self._slices[name]:
            whole[region] = self._read(part)
        whole.flags.writeable = False
        return whole

    def release(self) -> None:
        """Give the pages of tensors read so far back to the system.

        They leave the process's resident set at once and are read from the file again when an array that is
        still in use touches them. Does nothing where the system has no madvise.
        """
        for shard in self._maps or ():
            if isinstance(shard, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                shard.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Drop the maps. Arrays that were read keep theirs until they are gone."""
        self._maps = None

    def _read(self, entry: _Entry) -> NDArray[Any]:
        """Read the bytes of one entry that has bytes of its own."""
        if self._maps is None:
            raise ValueError(f"{self.path} is closed")
        shard = self._maps[entry.shard]
        where = self.files[1 + entry.shard]
        # A page of a map that is no longer in the file ends the process, so a file cut off since then is not
        # touched; one that is cut off this very moment cannot be helped.
        if isinstance(shard, mmap.mmap) and shard.size() < entry.end:
            raise SourceError(where, "the file was cut off after it was opened", tensor=entry.name)
        data = np.frombuffer(shard, np.uint8)[entry.offset : entry.end]
        try:
            if entry.dtype.hasobject:
                array = _decode_strings(data.tobytes(), entry)
            else:
                array = _decode_numbers(data, entry)
        except _EntryError as error:
            raise SourceError(where, str(error), tensor=entry.name, next_step=_GET_IT_AGAIN) from None
        array.flags.writeable = False
        return array


def is_v1_checkpoint(path: Path) -> bool:
    """Tell whether a file is a V1 checkpoint: all tensors in one table, as TensorFlow wrote before 1.0.

    Such a file is a sorted table like an index, but its empty key holds a SavedTensorSlices message, whose
    only field is a message with number 1 (core/util/saved_tensor_slice.proto); a BundleHeaderProto starts
    with a number there. Only the table's index and first block are read.

    Args:
        path: Any path.

    Returns:
        True for a V1 checkpoint; False for anything else, unreadable files included.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            key, value = next(iter(sstable.Table(data)), (b"", b""))
    except (OSError, ValueError, sstable.TableError):
        return False
    return _is_v1_header(key, value)


def _is_v1_header(key: bytes, value: bytes) -> bool:
    return key == b"" and value[:1] == b"\x0a"


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the index says of one tensor or of one slice of a partitioned variable.

    Attributes:
        name: The variable's name, also for a slice of it.
        is_slice: Whether this is a slice.
        slices: For a partitioned variable, for each slice its key and its extents (start, stop); else empty.
    """

    name: str
    is_slice: bool
    dtype: np.dtype
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[tuple[bytes, _Extents], ...]

    @property
    def end(self) -> int:
        return self.offset + self.size


_Part = tuple[tuple[slice, ...], _Entry]
"""Where in a partitioned variable a slice goes, and the slice."""


class _EntryError(Exception):
    """What is wrong with a tensor, before it is known where the tensor stands."""


def _read_index(index: Path, prefix: Path) -> tuple[int, dict[bytes, _Entry]]:
    """Read and check the index: the number of shards and, by key, the entries."""
    try:
        with open_regular(index) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_INDEX_BYTES:
                raise SourceError(index, f"the file has {size} bytes, more than any index")
            data = file.read(size)
    except FileNotFoundError:
        if is_v1_checkpoint(prefix):
            raise SourceError(prefix, "this is a V1 checkpoint", next_step=_SAVE_AS_V2) from None
        next_step = "Give the checkpoint's path without .index or .data"
        raise SourceError(index, "there is no such file", next_step=next_step) from None
    except OSError as error:
        raise SourceError(index, f"the file cannot be read ({error.strerror})") from error
    entries: dict[bytes, _Entry] = {}
    try:
        table = iter(sstable.Table(data))
        num_shards = _parse_header(index, *next(table, (None, b"")))
        slices = 0
        for key, value in table:
            entry = _parse_entry(index, key, value, num_shards)
            slices += len(entry.slices)
            if len(entries) >= MAX_TENSORS or slices > MAX_SLICES:
                problem = f"it has more than {MAX_TENSORS} tensors or {MAX_SLICES} slices"
                raise SourceError(index, problem)
            check_name(index, entry.name)
            entries[key] = entry
    except sstable.TableError as error:
        raise SourceError(index, str(error), next_step=error.next_step or _GET_IT_AGAIN) from error
    return num_shards, entries


def _parse_header(index: Path, key: bytes | None, value: bytes) -> int:
    """Check from the table's first entry that the checkpoint can be read, and tell its number of shards."""
    if key != b"":
        raise SourceError(index, "the table does not start with a checkpoint's header")
    if _is_v1_header(key, value):
        raise SourceError(index, "this is a V1 checkpoint", next_step=_SAVE_AS_V2)
    try:
        header = protos.BundleHeaderProto.FromString(value)
    except DecodeError:
        raise SourceError(index, "the checkpoint's header is not a valid message") from None
    if header.endianness != _LITTLE:
        problem = "the checkpoint was written on a big-endian machine, which is not supported"
        raise SourceError(index, problem, next_step="Save it again in TensorFlow on a little-endian machine")
    # core/framework/versions.cc, CheckVersions: what a consumer of version 1 may read.
    version = header.version
    if version.producer < 0 or version.min_consumer > _VERSION or _VERSION in version.bad_consumers:
        problem = f"its format is of version {version.producer}, and this reader knows version {_VERSION}"
        raise SourceError(index, problem)
    if not 1 <= header.num_shards <= MAX_SHARDS:
        raise SourceError(index, f"the checkpoint claims {header.num_shards} data files")
    return int(header.num_shards)


def _parse_entry(index: Path, key: bytes, value: bytes, num_shards: int) -> _Entry:
    """Parse one entry and check all that it says by itself."""
    is_slice = key.startswith(b"\0")
    try:
        name = protos.variable_of_slice(key) if is_slice else key.decode()
    except UnicodeDecodeError:
        raise SourceError(index, f"the tensor name {key!r} is not UTF-8") from None
    try:
        proto = protos.BundleEntryProto.FromString(value)
        dtype = protos.numpy_dtype(proto.dtype)
        shape = protos.shape_of(proto.shape, dtype)
        if len(proto.slices) > MAX_SLICES:
            raise _EntryError(f"it is cut into {len(proto.slices)} slices, more than {MAX_SLICES}")
        if proto.slices and is_slice:
            raise _EntryError("a slice is itself cut into slices")
        slices = tuple((protos.slice_key(key, s), protos.slice_extents(s, shape)) for s in proto.slices)
        if not 0 <= proto.shard_id < num_shards:
            raise _EntryError(f"it is in data file {proto.shard_id} of {num_shards}")
        if proto.offset < 0 or proto.size < 0:
            raise _EntryError(f"it starts at byte {proto.offset} and has {proto.size} bytes")
        _check_size(proto.size, dtype, shape, partitioned=bool(slices))
    except DecodeError:
        raise SourceError(index, "its entry is not a valid message", tensor=name) from None
    except (_EntryError, ValueError) as error:
        raise SourceError(index, str(error), tensor=name) from None
    return _Entry(
        name, is_slice, dtype, shape, proto.shard_id, proto.offset, proto.size, proto.crc32c, slices
    )


def _check_size(size: int, dtype: np.dtype, shape: tuple[int, ...], *, partitioned: bool) -> None:
    """Check a tensor's size in bytes against its type and shape."""
    count = math.prod(shape)
    if partitioned:
        if size:
            raise _EntryError(f"it is cut into slices and has {size} bytes of its own")
    elif dtype.hasobject:
        # Each string has a length of at least one byte, and the lengths have a checksum.
        if size < count + _STRING_CHECKSUM_SIZE:
            raise _EntryError(f"it has {size} bytes, too few for {count} strings")
    elif size != count * dtype.itemsize:
        expected = count * dtype.itemsize
        raise _EntryError(f"it has {size} bytes, and {dtype} of shape {shape} takes {expected}")


def _shard_path(prefix: Path, shard: int, num_shards: int) -> Path:
    return Path(f"{prefix}.data-{shard:05d}-of-{num_shards:05d}")


def _map_shards(prefix: Path, num_shards: int) -> dict[Path, mmap.mmap | bytes]:
    """Map every shard read-only; an empty file, which cannot be mapped, is no bytes."""
    maps: dict[Path, mmap.mmap | bytes] = {}
    for shard in range(num_shards):
        path = _shard_path(prefix, shard, num_shards)
        try:
            with open_regular(path) as file:
                empty = os.fstat(file.fileno()).st_size == 0
                maps[path] = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            problem = f"there is no such file, and the checkpoint has {num_shards} data file(s)"
            raise SourceError(path, problem, next_step="Put it beside the .index file") from None
        except (OSError, ValueError) as error:
            raise SourceError(path, f"the file cannot be read ({error})") from error
    return maps


def _check_layout(index: Path, shards: Sequence[tuple[Path, int]], entries: Mapping[bytes, _Entry]) -> None:
    """Check that all bytes lie inside their shard, given its size, and that no two tensors share any."""
    by_end = sorted(entries.values(), key=lambda entry: (entry.shard, entry.end))
    for last in {entry.shard: entry for entry in by_end}.values():
        path, size = shards[last.shard]
        if last.end > size:
            problem = f"the file has {size} bytes, {last.end - size} fewer than the index says"
            raise SourceError(path, problem, tensor=last.name, next_step=_GET_IT_AGAIN)
    for before, entry in pairwise(entry for entry in by_end if entry.size):
        if before.shard == entry.shard and before.end > entry.offset:
            raise SourceError(index, f"its bytes overlap those of tensor {before.name!r}", tensor=entry.name)


def _find_slices(index: Path, entries: Mapping[bytes, _Entry]) -> dict[str, tuple[_Part, ...]]:
    """Find the slices of every partitioned variable, and check that they make it up exactly."""
    unused = {key for key, entry in entries.items() if entry.is_slice}
    found: dict[str, tuple[_Part, ...]] = {}
    for entry in entries.values():
        for key, extents in entry.slices:
            if key not in unused:
                raise SourceError(index, f"slice {extents} is missing or listed twice", tensor=entry.name)
            unused.remove(key)
            part = entries[key]
            if part.dtype != entry.dtype or part.shape != tuple(stop - start for start, stop in extents):
                problem = f"slice {extents} is stored as {part.dtype} of shape {part.shape}"
                raise SourceError(index, problem, tensor=entry.name)
        if entry.slices:
            if not _tile([extents for _, extents in entry.slices], entry.shape):
                problem = "its slices leave a gap, overlap or do not form a grid"
                raise SourceError(index, problem, tensor=entry.name)
            found[entry.name] = tuple(
                (tuple(slice(*extent) for extent in extents), entries[key]) for key, extents in entry.slices
            )
    if unused:
        raise SourceError(index, "a slice belongs to no variable", tensor=entries[min(unused)].name)
    return found


def _tile(boxes: Sequence[_Extents], shape: tuple[int, ...]) -> bool:
    """Tell whether boxes fill a shape exactly, cut along its first axis, each piece along its second, ...

    TensorFlow's own partitioners cut along one axis only (python/ops/partitioned_variables.py).
    """
    if not shape:
        return len(boxes) == 1
    pieces: dict[tuple[int, int], list[_Extents]] = {}
    for box in boxes:
        pieces.setdefault(box[0], []).append(box[1:])
    position = 0
    for (start, stop), rest in sorted(pieces.items()):
        if start != position or not _tile(rest, shape[1:]):
            return False
        position = stop
    return position == shape[0]


def _decode_numbers(data: NDArray[np.uint8], entry: _Entry) -> NDArray[Any]:
    """View a tensor's bytes as its numbers."""
    if sstable.mask(google_crc32c.value(data)) != entry.crc32c:
        raise _EntryError("its bytes do not match their checksum")
    if entry.dtype == np.bool_ and data.max(initial=0) > 1:
        raise _EntryError("a boolean is neither 0 nor 1")
    return data.view(entry.dtype).reshape(entry.shape)


def _decode_strings(data: bytes, entry: _Entry) -> NDArray[Any]:
    """Cut a string tensor's bytes into its strings.

    They are the strings' lengths as varints, the masked checksum of the lengths, and the strings. The
    checksums take each length as 4 bytes, or 8 where it needs them (ReadStringTensor).
    """
    array = np.empty(math.prod(entry.shape), object)
    lengths = []
    position = 0
    for _ in range(array.size):
        try:
            length, position = sstable.read_varint(data, position, len(data))
        except sstable.TableError:
            raise _EntryError("the length of a string is not valid") from None
        lengths.append(length)
    crc = google_crc32c.value(b"".join(n.to_bytes(4 if n < 1 << 32 else 8, "little") for n in lengths))
    start = position + _STRING_CHECKSUM_SIZE
    if sstable.mask(crc) != int.from_bytes(data[position:start], "little"):
        raise _EntryError("the lengths of its strings do not match their checksum")
    if start + sum(lengths) != len(data):
        raise _EntryError("its strings do not fill its bytes")
    if sstable.mask(google_crc32c.extend(crc, data[position:])) != entry.crc32c:
        raise _EntryError("its bytes do not match their checksum")
    for i, length in enumerate(lengths):
        array[i] = data[start : start + length]
        start += length
    return array.reshape(entry.shape)


def write_tensor_bundle(prefix: Path, tensors: Mapping[str, NDArray[Any]]) -> tuple[Path, Path]:
    """Write a checkpoint of one shard that TensorFlow restores.

    The same tensors give the same bytes: those that TensorFlow's own BundleWriter gives (tf.raw_ops.SaveV2)
    for tensors in sorted order. Tensors are written one at a time, each fetched once and let go. Nothing is
    overwritten, since cutting off a file that is mapped would kill the process that reads it; a caller that
    wants the files whole or not at all gives a temporary prefix and renames.

    Args:
        prefix: The checkpoint's path without `.index`; its folder exists.
        tensors: Numeric arrays by variable name, of any byte order and memory layout.

    Returns:
        The paths of the `.index` and of the `.data-00000-of-00001` file.

    Raises:
        ValueError: A name is empty or starts with a zero byte, or TensorFlow has no such numeric dtype.
        FileExistsError: One of the files is there already.
        OSError: A file cannot be written.
    """
    index, data = Path(f"{prefix}.index"), _shard_path(prefix, 0, 1)
    header = protos.BundleHeaderProto(num_shards=1)
    header.version.producer = _VERSION
    entries = [(b"", header.SerializeToString())]
    offset = 0
    with data.open("xb") as file, index.open("xb") as index_file:
        for key, name in sorted((name.encode(), name) for name in tensors):
            entry, content = _encode_entry(name, tensors[name], offset)
            file.write(content.data)
            offset += entry.size
            entries.append((key, entry.SerializeToString()))
        sstable.write_table(index_file, entries)
    return index, data


def _encode_entry(name: str, array: NDArray[Any], offset: int) -> tuple[Any, NDArray[np.uint8]]:
    """Make a tensor's entry and its bytes, which are a view of the array where its layout allows."""
    if not name or name.startswith("\0") or array.dtype.hasobject:
        raise ValueError(f"tensor {name!r} of dtype {array.dtype} cannot be written")
    number = protos.data_type(array.dtype)
    content = np.asarray(array, protos.NUMPY_DTYPES[number], order="C").reshape(-1).view(np.uint8)
    entry = protos.BundleEntryProto(dtype=number, offset=offset, size=content.size)
    entry.crc32c = sstable.mask(google_crc32c.value(content))
    entry.shape.SetInParent()
    for size in array.shape:
        entry.shape.dim.add(size=size)
    return entry, content
