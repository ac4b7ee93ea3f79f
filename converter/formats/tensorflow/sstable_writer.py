"""Writing the sorted table of a checkpoint's index, byte for byte as TensorFlow does.

The layout is described in `sstable`. When to end a block and how to shorten a separator key: LevelDB's
table/table_builder.cc and util/comparator.cc; TensorFlow's core/lib/io/table_builder.cc.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import BinaryIO

import google_crc32c

from converter.formats.tensorflow.sstable import HANDLES_SIZE, MAGIC, RAW, TRAILER_SIZE, encode_varint, mask

BLOCK_SIZE = 262_144
"""Bytes at which TensorFlow ends a data block (core/lib/io/table_options.h; LevelDB's own is 4,096)."""

RESTART_INTERVAL = 16
"""Keys between two restart points of a data block (core/lib/io/table_options.h)."""


def write_table(
    file: BinaryIO,
    entries: Iterable[tuple[bytes, bytes]],
    *,
    block_size: int = BLOCK_SIZE,
    restart_interval: int = RESTART_INTERVAL,
) -> None:
    """Write an uncompressed table, byte for byte as TensorFlow's TableBuilder does.

    Args:
        file: File to write to; its current position is the table's byte 0.
        entries: Keys and values, in strictly ascending order of keys.
        block_size: Bytes at which a data block ends.
        restart_interval: Keys from one restart point to the next.

    Raises:
        ValueError: A key is not above the key before it.
    """
    writer = _Writer(file)
    index = _BlockBuilder(1)
    block = _BlockBuilder(restart_interval)
    last: bytes | None = None
    for key, value in entries:
        if last is not None and key <= last:
            raise ValueError(f"key {key!r} is not above the key before it")
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
    file.write(handles.ljust(HANDLES_SIZE, b"\0") + MAGIC.to_bytes(8, "little"))


class _Writer:
    """Appends blocks to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = 0

    def write(self, contents: bytes) -> bytes:
        """Append a block with its type and checksum, and return its encoded handle."""
        block = contents + bytes([RAW])
        self._file.write(block + mask(google_crc32c.value(block)).to_bytes(4, "little"))
        handle = encode_varint(self._offset) + encode_varint(len(contents))
        self._offset += len(contents) + TRAILER_SIZE
        return handle


class _BlockBuilder:
    """Builds the contents of one block."""

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
        """Bytes that the contents have if they end now."""
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
    """Count the leading bytes that two keys share."""
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)


def _shortest_separator(start: bytes, limit: bytes) -> bytes:
    """Find a short key from `start` on, below `limit` (FindShortestSeparator)."""
    i = _common_prefix(start, limit)
    if i < min(len(start), len(limit)) and start[i] + 1 < limit[i]:
        return start[:i] + bytes([start[i] + 1])
    return start


def _short_successor(key: bytes) -> bytes:
    """Find a short key that is at least `key` (FindShortSuccessor)."""
    i = next((i for i, byte in enumerate(key) if byte != 0xFF), None)
    return key if i is None else key[:i] + bytes([key[i] + 1])
