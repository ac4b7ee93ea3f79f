"""The `.index` file of a TensorFlow checkpoint: parsed, and checked before any tensor is read.

The index is a sorted table (see `sstable`). The first key is empty and holds a BundleHeaderProto. Every other
key is a variable's name and holds a BundleEntryProto: element type, shape, data file ("shard"), offset, size
and masked CRC-32C of the bytes. The entry of a partitioned variable has no bytes; it lists slices, which have
entries of their own (see `partitioned_variables`).

Sources: TensorFlow's core/util/tensor_bundle/tensor_bundle.cc and core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from converter.counts import counted
from converter.errors import SourceError
from converter.formats.limits import MAX_TENSORS, check_name, open_regular
from converter.formats.source import DOWNLOAD_AGAIN
from converter.formats.tensorflow import protos, sstable
from converter.formats.tensorflow.data_types import numpy_dtype, shape_of
from converter.formats.tensorflow.partitioned_variables import (
    Extents,
    slice_extents,
    slice_key,
    slices_fill,
    variable_of_slice,
)
from converter.formats.tensorflow.v1_checkpoint import SAVE_AS_V2, is_v1_checkpoint, is_v1_header

VERSION = 1
"""Version of the format."""

STRING_CHECKSUM_SIZE = 4
"""Bytes of the checksum of a string tensor's lengths."""

MAX_INDEX_BYTES = 4 << 20
"""Limit on the size of an `.index`; that of a thousand variables has 0.1 MB."""

MAX_SLICES = 2_000
"""Limit on the slices of all variables of a checkpoint."""

MAX_SHARDS = 1_000
"""Limit on the data files of a checkpoint: each takes a file descriptor."""

_LITTLE_ENDIAN = 0


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """The index's entry for a tensor, or for a slice of a partitioned variable.

    Attributes:
        name: The variable's name, also for a slice of it.
        is_slice: Whether this is a slice.
        dtype: NumPy dtype; `object` for strings.
        shape: Row-major extents.
        shard: Number of the data file.
        offset: Position of the first byte in the data file.
        size: Bytes in the data file.
        crc32c: Masked checksum of the bytes.
        slices: For a partitioned variable, the key and the extents of each slice; otherwise empty.
    """

    name: str
    is_slice: bool
    dtype: np.dtype
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[tuple[bytes, Extents], ...]

    @property
    def end(self) -> int:
        """Position after the last byte in the data file."""
        return self.offset + self.size

    def has_same_bytes(self, other: BundleEntry) -> bool:
        """Return whether another tensor has the same type, shape and checksum."""
        mine = self.dtype, self.shape, self.size, self.crc32c, self.slices
        return mine == (other.dtype, other.shape, other.size, other.crc32c, other.slices)


Slices = tuple[tuple[tuple[slice, ...], BundleEntry], ...]
"""The slices of a partitioned variable: the region of the variable that each fills, and its entry."""


class EntryError(Exception):
    """A fault of a tensor, raised where its name and its file are not known."""


@dataclass(frozen=True, slots=True)
class BundleIndex:
    """The content of an index whose every part was checked.

    Attributes:
        path: The `.index` file.
        num_shards: Number of data files.
        entries: Key to entry, in the index's order.
        slices: Name of each partitioned variable to its slices.
    """

    path: Path
    num_shards: int
    entries: Mapping[bytes, BundleEntry]
    slices: Mapping[str, Slices]

    def check_shards(self, shards: Sequence[tuple[Path, int]]) -> None:
        """Check that every tensor lies inside its data file and that no two tensors share bytes.

        Args:
            shards: Path and size in bytes of each data file.

        Raises:
            SourceError: They do not; the error names the file and the tensor.
        """
        by_end = sorted(self.entries.values(), key=lambda entry: (entry.shard, entry.end))
        for last in {entry.shard: entry for entry in by_end}.values():
            path, size = shards[last.shard]
            if last.end > size:
                problem = f"the file has {counted(size, 'byte')}, {last.end - size} fewer than the index says"
                raise SourceError(path, problem, tensor=last.name, next_step=DOWNLOAD_AGAIN)
        for before, entry in pairwise(entry for entry in by_end if entry.size):
            if before.shard == entry.shard and before.end > entry.offset:
                problem = f"its bytes overlap those of tensor {before.name!r}"
                raise SourceError(self.path, problem, tensor=entry.name)


def read_index(prefix: Path) -> BundleIndex:
    """Read and check the index of a checkpoint.

    Args:
        prefix: The checkpoint's path without `.index`.

    Raises:
        SourceError: The index is missing, corrupt, contradictory, of another version, or not supported.
    """
    path = Path(f"{prefix}.index")
    data = _read_file(path, prefix)
    entries: dict[bytes, BundleEntry] = {}
    num_slices = 0
    try:
        table = iter(sstable.Table(data))
        num_shards = _parse_header(path, *next(table, (None, b"")))
        for key, value in table:
            entry = _parse_entry(path, key, value, num_shards)
            num_slices += len(entry.slices)
            if len(entries) >= MAX_TENSORS or num_slices > MAX_SLICES:
                problem = f"it has more than {MAX_TENSORS} tensors or {MAX_SLICES} slices"
                raise SourceError(path, problem)
            check_name(path, entry.name)
            entries[key] = entry
    except sstable.TableError as error:
        problem = str(error) if error.next_step else "the index is damaged or cut off"
        raise SourceError(path, problem, next_step=error.next_step or DOWNLOAD_AGAIN) from error
    return BundleIndex(path, num_shards, entries, _find_slices(path, entries))


def _read_file(path: Path, prefix: Path) -> bytes:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_INDEX_BYTES:
                raise SourceError(path, f"the file has {size} bytes, more than any index")
            return file.read(size)
    except FileNotFoundError:
        if is_v1_checkpoint(prefix):
            raise SourceError(prefix, "this is a V1 checkpoint", next_step=SAVE_AS_V2) from None
        next_step = "Give the checkpoint's path without .index or .data"
        raise SourceError(path, "there is no such file", next_step=next_step) from None
    except OSError as error:
        raise SourceError(path, f"the file cannot be read ({error.strerror})") from error


def _parse_header(index: Path, key: bytes | None, value: bytes) -> int:
    """Check the table's first entry; returns the number of data files."""
    if key != b"":
        raise SourceError(index, "this is not the index of a checkpoint: it does not start with a header")
    if is_v1_header(key, value):
        raise SourceError(index, "this is a V1 checkpoint", next_step=SAVE_AS_V2)
    try:
        header = protos.BundleHeaderProto.FromString(value)
    except DecodeError:
        raise SourceError(index, "the header is damaged", next_step=DOWNLOAD_AGAIN) from None
    if header.endianness != _LITTLE_ENDIAN:
        problem = "the checkpoint was written on a big-endian machine, which is not supported"
        raise SourceError(index, problem, next_step="Save it again in TensorFlow on a little-endian machine")
    # core/framework/versions.cc, CheckVersions: what a consumer of this version may read.
    version = header.version
    if version.producer < 0 or version.min_consumer > VERSION or VERSION in version.bad_consumers:
        problem = f"its format has version {version.producer}; only version {VERSION} is supported"
        raise SourceError(index, problem)
    if not 1 <= header.num_shards <= MAX_SHARDS:
        raise SourceError(index, f"the checkpoint claims to have {header.num_shards} data files")
    return int(header.num_shards)


def _parse_entry(index: Path, key: bytes, value: bytes, num_shards: int) -> BundleEntry:
    """Parse an entry and check everything that can be checked without the other entries."""
    is_slice = key.startswith(b"\0")
    try:
        name = variable_of_slice(key) if is_slice else key.decode()
    except UnicodeDecodeError:
        raise SourceError(index, f"the tensor name {key!r} is not UTF-8") from None
    try:
        proto = protos.BundleEntryProto.FromString(value)
        dtype = numpy_dtype(proto.dtype)
        shape = shape_of(proto.shape, dtype)
        if len(proto.slices) > MAX_SLICES:
            raise EntryError(f"it has {len(proto.slices)} slices, more than {MAX_SLICES}")
        if proto.slices and is_slice:
            raise EntryError("a slice has slices itself")
        slices = tuple((slice_key(key, s), slice_extents(s, shape)) for s in proto.slices)
        if not 0 <= proto.shard_id < num_shards:
            raise EntryError(f"it is in data file {proto.shard_id} of {num_shards}")
        if proto.offset < 0 or proto.size < 0:
            raise EntryError(f"it starts at byte {proto.offset} and has {proto.size} bytes")
        _check_size(proto.size, dtype, shape, is_partitioned=bool(slices))
    except DecodeError:
        problem = "its entry in the index is damaged"
        raise SourceError(index, problem, tensor=name, next_step=DOWNLOAD_AGAIN) from None
    except (EntryError, ValueError) as error:
        raise SourceError(index, str(error), tensor=name) from None
    return BundleEntry(
        name, is_slice, dtype, shape, proto.shard_id, proto.offset, proto.size, proto.crc32c, slices
    )


def _check_size(size: int, dtype: np.dtype, shape: tuple[int, ...], *, is_partitioned: bool) -> None:
    """Check a tensor's size in bytes against its type and shape."""
    count = math.prod(shape)
    if is_partitioned:
        if size:
            raise EntryError(f"it is stored as slices, but has {size} bytes of its own")
    elif dtype.hasobject:
        # Each string has a length of at least one byte, and the lengths have a checksum.
        if size < count + STRING_CHECKSUM_SIZE:
            raise EntryError(f"it has {size} bytes, too few for {count} strings")
    elif size != count * dtype.itemsize:
        expected = count * dtype.itemsize
        raise EntryError(f"it has {size} bytes, but {dtype} of shape {shape} takes {expected}")


def _find_slices(index: Path, entries: Mapping[bytes, BundleEntry]) -> dict[str, Slices]:
    """Find the slices of every partitioned variable, and check that they fill it exactly."""
    unused = {key for key, entry in entries.items() if entry.is_slice}
    found: dict[str, Slices] = {}
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
            if not slices_fill(entry.shape, [extents for _, extents in entry.slices]):
                problem = "its slices leave a gap, overlap or do not form a grid"
                raise SourceError(index, problem, tensor=entry.name)
            found[entry.name] = tuple(
                (tuple(slice(*extent) for extent in extents), entries[key]) for key, extents in entry.slices
            )
    if unused:
        raise SourceError(index, "a slice belongs to no variable", tensor=entries[min(unused)].name)
    return found
