"""Reading the sorted table of a checkpoint's index: LevelDB's table format, as TensorFlow writes it.

A table is a run of data blocks, a metaindex block, an index block and a footer, with nothing in between:

    data block ... | metaindex block | index block | footer (48 bytes)

    block    contents, type (1 byte: 0 raw, 1 Snappy), masked CRC-32C of contents and type (4 bytes)
    contents entries, offsets of the restart points (4 bytes each), their number (4 bytes)
    entry    shared, non_shared, value_length (varints), the last `non_shared` bytes of the key, the value
    footer   handle of the metaindex, handle of the index, zeros up to byte 40, magic number (8 bytes)
    handle   offset and size of a block (varints); the size does not count the type and the checksum

A key shares its first `shared` bytes with the key before it; at a restart point it shares none. The index
block has one entry for each data block: a separator key and the block's handle. The separator is at least
the last key of its block and less than the first key of the next block. All numbers are little-endian.

The meaning of keys and values is in `bundle_index`; tables are written by `sstable_writer`. Layout and
constants: LevelDB's doc/table_format.md, table/format.h and util/crc32c.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from mmap import mmap
from typing import NamedTuple

import google_crc32c

MAGIC = 0xDB4775248B80FB57
FOOTER_SIZE = 48

HANDLES_SIZE = 40
"""Bytes of a footer before the magic number."""

TRAILER_SIZE = 5
"""Bytes of a block after its contents: type and checksum."""

RAW = 0
SNAPPY = 1

MAX_KEY_BYTES = 16 << 20
"""Limit on the bytes of all keys with their shared prefixes restored.

Because of the prefixes, 4 bytes in the file can stand for a key of any length. The index of a thousand
variables has 0.1 MB of keys.
"""

_MASK_DELTA = 0xA282EAD8
_UINT64 = 1 << 64


class TableError(Exception):
    """The bytes are not a valid table.

    Args:
        problem: What is wrong, a clause without a full stop.
        next_step: What the user can do about it, if there is more to do than to get the file again.
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
        position: Start of the varint.
        end: End of the bytes that it may use.

    Returns:
        The number, and the position after it.

    Raises:
        TableError: The varint runs past `end`, exceeds 64 bits, or is longer than necessary. Every number has
            one valid encoding only, so that a changed bit cannot give the same number.
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


class Handle(NamedTuple):
    """The place of a block in the file; `size` counts neither the block's type nor its checksum."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """Position after the block's type and checksum."""
        return self.offset + self.size + TRAILER_SIZE


class Table:
    """A table to read.

    The constructor checks the footer and the index; iteration checks each data block when it gets there.
    Iterating yields every key with its value, in order, and raises `TableError` at the first fault: a wrong
    checksum, a compressed block, a number out of bounds, keys that do not strictly ascend, a misplaced
    restart point, or a separator key on the wrong side of its block. Iterating to the end checks every byte
    of the table.

    Args:
        data: The whole file.

    Raises:
        TableError: The footer, the metaindex or the index is damaged, or the blocks do not fill the file.
    """

    def __init__(self, data: bytes | mmap) -> None:
        self._data = data
        self._key_bytes = 0
        if len(data) < FOOTER_SIZE:
            raise TableError(f"its size is {len(data)}, less than that of a table's footer ({FOOTER_SIZE})")
        metaindex, index = _decode_footer(data[len(data) - FOOTER_SIZE :])
        self._blocks: list[tuple[bytes, Handle]] = []
        for separator, value in self._entries(self._block(index)):
            handle, end = _decode_handle(value, 0, len(value))
            if end != len(value):
                raise TableError("an index entry has bytes after its block handle")
            self._blocks.append((separator, handle))
        self._check_blocks_fill_file([*(handle for _, handle in self._blocks), metaindex, index])
        if any(True for _ in self._entries(self._block(metaindex))):
            raise TableError("the metaindex block is not empty")

    def _check_blocks_fill_file(self, handles: list[Handle]) -> None:
        position = 0
        for handle in handles:
            if handle.offset != position:
                raise TableError(f"a block starts at byte {handle.offset}, not at byte {position}")
            position = handle.end
        footer = len(self._data) - FOOTER_SIZE
        if position != footer:
            raise TableError(f"the blocks end at byte {position}, but the footer starts at byte {footer}")

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        self._key_bytes = 0
        separator_before: bytes | None = None
        for separator, handle in self._blocks:
            key: bytes | None = None
            for key, value in self._entries(self._block(handle)):
                if separator_before is not None and key <= separator_before:
                    raise TableError(f"key {key[:200]!r} is not above the index key before its block")
                separator_before = None  # the other keys of the block are above its first one
                yield key, value
            if key is None:
                raise TableError(f"the data block at byte {handle.offset} is empty")
            if key > separator:
                raise TableError(f"key {key[:200]!r} is above the index key of its block")
            separator_before = separator

    def _block(self, handle: Handle) -> bytes:
        """Cut a block's contents out of the file, after checking its checksum and type."""
        if handle.end > len(self._data) - FOOTER_SIZE:
            raise TableError(f"the block at byte {handle.offset} runs past the footer")
        crc_position = handle.end - TRAILER_SIZE + 1
        block = self._data[handle.offset : crc_position]
        (crc,) = struct.unpack_from("<I", self._data, crc_position)
        if mask(google_crc32c.value(block)) != crc:
            raise TableError(f"the block at byte {handle.offset} does not match its checksum")
        contents, block_type = block[:-1], block[-1]
        if block_type == SNAPPY:
            raise TableError(
                "the index is compressed with Snappy, which is not supported",
                "Restore the checkpoint in TensorFlow and save it again with tf.train.Saver, which does not "
                "compress",
            )
        if block_type != RAW:
            raise TableError(f"the block at byte {handle.offset} is of unknown type {block_type}")
        return contents

    def _entries(self, block: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield a block's keys and values, with the shared prefixes restored."""
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
                raise TableError(f"key {key[:200]!r} is not above the key before it")
            position += non_shared
            yield key, block[position : position + value_length]
            position += value_length
        if end and next_restart != len(restarts):
            raise TableError("a restart point lies after the last key")


def _decode_footer(footer: bytes) -> tuple[Handle, Handle]:
    """Read the handles of the metaindex and of the index."""
    if footer[HANDLES_SIZE:] != MAGIC.to_bytes(8, "little"):
        raise TableError("the file does not end with a table's magic number")
    metaindex, position = _decode_handle(footer, 0, HANDLES_SIZE)
    index, position = _decode_handle(footer, position, HANDLES_SIZE)
    if any(footer[position:HANDLES_SIZE]):
        raise TableError("the footer's padding is not zero")
    return metaindex, index


def _decode_handle(data: bytes, position: int, end: int) -> tuple[Handle, int]:
    """Read a block handle, and the position after it."""
    offset, position = read_varint(data, position, end)
    size, position = read_varint(data, position, end)
    return Handle(offset, size), position


def _decode_restarts(block: bytes) -> tuple[tuple[int, ...], int]:
    """Read the offsets of a block's restart points, and the position where its entries end."""
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
