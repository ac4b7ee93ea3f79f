"""The sorted table that holds a checkpoint's index: LevelDB's table format, as TensorFlow writes it.

A table is a run of data blocks, a metaindex block, an index block and a footer, with nothing in between:

    data block ... | metaindex block | index block | footer (48 bytes)

    block    contents, type (1 byte: 0 raw, 1 Snappy), masked CRC-32C of contents and type (4 bytes)
    contents entries, offsets of the restart points (4 bytes each), their number (4 bytes)
    entry    shared, non_shared, value_length (varints), the last `non_shared` bytes of the key, the value
    footer   handle of the metaindex, handle of the index, zeros up to byte 40, magic number (8 bytes)
    handle   offset and size of a block (varints); the size leaves the type and the checksum out

A key shares its first `shared` bytes with the key before it; at a restart point it shares none. The index
block has one entry for each data block: a key that is not below the block's last one and is below the next
block's first one, and the block's handle. All numbers are little-endian.

Nothing here knows what the keys and values mean. Layout and constants: LevelDB's doc/table_format.md,
table/format.h, table/table_builder.cc and util/crc32c.h; TensorFlow's core/lib/io/table_builder.cc.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from mmap import mmap
from typing import BinaryIO

import google_crc32c

MAGIC = 0xDB4775248B80FB57
FOOTER_SIZE = 48
_HANDLES_SIZE = 40
_TRAILER_SIZE = 5

RAW = 0
SNAPPY = 1

BLOCK_SIZE = 262_144
"""Bytes at which TensorFlow ends a data block (core/lib/io/table_options.h; LevelDB's own is 4,096)."""

RESTART_INTERVAL = 16
"""Keys between two restart points of a data block (core/lib/io/table_options.h)."""

MAX_KEY_BYTES = 16 << 20
"""Bytes of keys that a table may hold once prefixes are restored. A limit of this reader: 4 bytes in the
file can stand for a key of any length, and a real index of a thousand variables stays below 0.1 MB."""

_MASK_DELTA = 0xA282EAD8
_UINT64 = 1 << 64


class TableError(Exception):
    """The bytes are not a sound table.

    Args:
        problem: What is wrong, a clause without a full stop.
        next_step: What the user can do about it, where that is not simply to get the file again.
    """

    def __init__(self, problem: str, next_step: str | None = None) -> None:
        super().__init__(problem)
        self.next_step = next_step


def mask(crc: int) -> int:
    """Mask a CRC-32C for storage beside the bytes it covers, as LevelDB's util/crc32c.h does.

    Args:
        crc: The checksum, 0 to 2**32 - 1.

    Returns:
        The checksum rotated right by 15 bits, plus 0xa282ead8, modulo 2**32.
    """
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def encode_varint(value: int) -> bytes:
    """Write a number as a varint: seven bits a byte, lowest first, the high bit set on all but the last.

    Args:
        value: 0 to 2**64 - 1.

    Returns:
        1 to 10 bytes.
    """
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(data: Sequence[int], position: int, end: int) -> tuple[int, int]:
    """Read one varint of at most 64 bits.

    Args:
        data: A sequence of bytes.
        position: Where the varint starts.
        end: Where the bytes it may use end.

    Returns:
        The number, and the position after it.

    Raises:
        TableError: It runs past `end`, exceeds 64 bits, or is longer than it need be (every number has one
            encoding only, so that no changed bit can pass for the same number).
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise TableError("a number runs past the end of its field")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= _UINT64 or (byte == 0 and shift):
                break
            return value, position
    raise TableError("a number is not a valid varint")


class Table:
    """A table to read: its footer and index are checked at once, each data block when iteration gets there.

    Iterating yields every key with its value, in order, and raises `TableError` at the first fault: a
    checksum that differs, a compressed block, a number out of bounds, keys that do not strictly ascend,
    restart points that are not where they should be, an index key on the wrong side of a block. A table
    that was iterated to its end has had every one of its bytes checked.

    Args:
        data: The whole file.

    Raises:
        TableError: The footer, the metaindex or the index is not sound, or the blocks do not fill the file.
    """

    def __init__(self, data: bytes | mmap) -> None:
        self._data = data
        self._key_bytes = 0
        if len(data) < FOOTER_SIZE:
            raise TableError(f"the file has {len(data)} bytes, and a table's footer alone {FOOTER_SIZE}")
        body = len(data) - FOOTER_SIZE
        metaindex, index = _decode_footer(data[body:])
        self._blocks: list[tuple[bytes, int, int]] = []
        position = 0
        for separator, value in self._entries(self._block(*index)):
            offset, size, end = _decode_handle(value, 0, len(value))
            if end != len(value):
                raise TableError("an index entry has bytes after its block handle")
            self._blocks.append((separator, offset, size))
        for offset, size in [*((offset, size) for _, offset, size in self._blocks), metaindex, index]:
            if offset != position:
                raise TableError(f"a block starts at byte {offset} where byte {position} was expected")
            position += size + _TRAILER_SIZE
        if position != body:
            raise TableError(f"the blocks end at byte {position}, the footer starts at byte {body}")
        if any(True for _ in self._entries(self._block(*metaindex))):
            raise TableError("the metaindex block is not empty")

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        self._key_bytes = 0
        floor: bytes | None = None
        for separator, offset, size in self._blocks:
            key: bytes | None = None
            for key, value in self._entries(self._block(offset, size)):
                if floor is not None and key <= floor:
                    raise TableError(f"key {key[:200]!r} is not above the index key before its block")
                floor = None
                yield key, value
            if key is None:
                raise TableError(f"the data block at byte {offset} is empty")
            if key > separator:
                raise TableError(f"key {key[:200]!r} is above the index key of its block")
            floor = separator

    def _block(self, offset: int, size: int) -> bytes:
        """Cut a block's contents out of the file, after checking its checksum and type."""
        end = offset + size
        if end + _TRAILER_SIZE > len(self._data) - FOOTER_SIZE:
            raise TableError(f"the block at byte {offset} runs past the footer")
        block = self._data[offset : end + 1]
        (stored,) = struct.unpack_from("<I", self._data, end + 1)
        if mask(google_crc32c.value(block)) != stored:
            raise TableError(f"the block at byte {offset} does not match its checksum")
        if block[-1] == SNAPPY:
            raise TableError(
                f"the block at byte {offset} is compressed with Snappy, which this reader does not support",
                "Restore the checkpoint in TensorFlow and save it again with tf.train.Saver, which does not "
                "compress",
            )
        if block[-1] != RAW:
            raise TableError(f"the block at byte {offset} is of unknown type {block[-1]}")
        return block[:-1]

    def _entries(self, block: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Walk a block's entries, restoring each key's shared prefix."""
        restarts, end = _decode_restarts(block)
        next_restart = 0
        position = 0
        key: bytes | None = None
        while position < end:
            start = position
            shared, position = read_varint(block, position, end)
            non_shared, position = read_varint(block, position, end)
            value_length, position = read_varint(block, position, end)
            if non_shared + value_length > end - position:
                raise TableError("an entry runs past the end of its block")
            if next_restart < len(restarts) and start >= restarts[next_restart]:
                if start > restarts[next_restart] or shared:
                    raise TableError("a restart point does not point at a whole key")
                next_restart += 1
            previous = key
            if shared > len(previous or b""):
                raise TableError("a key shares more bytes than the key before it has")
            self._key_bytes += shared + non_shared
            if self._key_bytes > MAX_KEY_BYTES:
                raise TableError(f"the keys take more than {MAX_KEY_BYTES >> 20} MB")
            suffix = block[position : position + non_shared]
            key = previous[:shared] + suffix if previous else suffix
            if previous is not None and key <= previous:
                raise TableError(f"key {key[:200]!r} does not ascend")
            position += non_shared
            yield key, block[position : position + value_length]
            position += value_length
        if end and next_restart != len(restarts):
            raise TableError("a restart point lies after the last key")


def _decode_footer(footer: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read the handles (offset, size) of the metaindex and of the index."""
    if footer[_HANDLES_SIZE:] != MAGIC.to_bytes(8, "little"):
        raise TableError("the file does not end with a table's magic number")
    metaindex_offset, metaindex_size, position = _decode_handle(footer, 0, _HANDLES_SIZE)
    index_offset, index_size, position = _decode_handle(footer, position, _HANDLES_SIZE)
    if any(footer[position:_HANDLES_SIZE]):
        raise TableError("the footer's padding is not zero")
    return (metaindex_offset, metaindex_size), (index_offset, index_size)


def _decode_handle(data: bytes, position: int, end: int) -> tuple[int, int, int]:
    """Read a block handle: the block's offset and size, and the position after the handle."""
    offset, position = read_varint(data, position, end)
    size, position = read_varint(data, position, end)
    return offset, size, position


def _decode_restarts(block: bytes) -> tuple[tuple[int, ...], int]:
    """Read the offsets of a block's restart points, and where its entries end."""
    count = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (count + 1)
    if count < 1 or end < 0:
        raise TableError("a block has no room for its restart points")
    restarts = struct.unpack_from(f"<{count}I", block, end)
    if restarts[0] != 0 or any(a >= b for a, b in pairwise(restarts)):
        raise TableError("the restart points of a block do not ascend from zero")
    if end == 0 and count != 1:
        raise TableError("an empty block has restart points")
    return restarts, end


def write_table(
    file: BinaryIO,
    entries: Iterable[tuple[bytes, bytes]],
    *,
    block_size: int = BLOCK_SIZE,
    restart_interval: int = RESTART_INTERVAL,
) -> None:
    """Write a table, uncompressed, in the very bytes that TensorFlow's TableBuilder gives.

    Args:
        file: Where to write, from its present position on, which is the table's byte 0.
        entries: Keys and values, keys strictly ascending.
        block_size: Bytes at which a data block ends.
        restart_interval: Keys from one restart point to the next.

    Raises:
        ValueError: A key does not ascend.
    """
    writer = _Writer(file)
    index = _BlockBuilder(1)
    block = _BlockBuilder(restart_interval)
    last: bytes | None = None
    for key, value in entries:
        if last is not None and key <= last:
            raise ValueError(f"key {key!r} does not ascend")
        full = block.size_estimate >= block_size or len(key) + len(value) >= 2 * block_size
        if full and not block.empty:
            index.add(_shortest_separator(last or b"", key), writer.write(block.finish()))
            block = _BlockBuilder(restart_interval)
        block.add(key, value)
        last = key
    if not block.empty:
        index.add(_short_successor(last or b""), writer.write(block.finish()))
    metaindex_handle = writer.write(_BlockBuilder(restart_interval).finish())
    handles = metaindex_handle + writer.write(index.finish())
    file.write(handles.ljust(_HANDLES_SIZE, b"\0") + MAGIC.to_bytes(8, "little"))


class _Writer:
    """Appends blocks to a file and says where they went."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = 0

    def write(self, contents: bytes) -> bytes:
        """Append a block with its type and checksum, and return its encoded handle."""
        block = contents + bytes([RAW])
        self._file.write(block + mask(google_crc32c.value(block)).to_bytes(4, "little"))
        handle = encode_varint(self._offset) + encode_varint(len(contents))
        self._offset += len(contents) + _TRAILER_SIZE
        return handle


class _BlockBuilder:
    """The contents of one block while they grow."""

    def __init__(self, restart_interval: int) -> None:
        self._interval = restart_interval
        self._buffer = bytearray()
        self._restarts = [0]
        self._since_restart = 0
        self._last = b""

    @property
    def empty(self) -> bool:
        return not self._buffer

    @property
    def size_estimate(self) -> int:
        """Bytes the contents would have if they ended now."""
        return len(self._buffer) + 4 * (len(self._restarts) + 1)

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._since_restart < self._interval:
            shared = _common_prefix(self._last, key)
        else:
            self._restarts.append(len(self._buffer))
            self._since_restart = 0
        for number in (shared, len(key) - shared, len(value)):
            self._buffer += encode_varint(number)
        self._buffer += key[shared:] + value
        self._last = key
        self._since_restart += 1

    def finish(self) -> bytes:
        return bytes(self._buffer) + struct.pack(
            f"<{len(self._restarts) + 1}I", *self._restarts, len(self._restarts)
        )


def _common_prefix(a: bytes, b: bytes) -> int:
    """Count the bytes with which both begin."""
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)


def _shortest_separator(start: bytes, limit: bytes) -> bytes:
    """Shorten `start` to a key that is not below it and is below `limit` (FindShortestSeparator)."""
    i = _common_prefix(start, limit)
    if i < min(len(start), len(limit)) and start[i] + 1 < limit[i]:
        return start[:i] + bytes([start[i] + 1])
    return start


def _short_successor(key: bytes) -> bytes:
    """Shorten `key` to one that is not below it (FindShortSuccessor)."""
    i = next((i for i, byte in enumerate(key) if byte != 0xFF), None)
    return key if i is None else key[:i] + bytes([key[i] + 1])
