"""Messages between two processes, over a socket: a JSON object and arrays.

A message is a frame: the length of a JSON object (4 bytes, little-endian), the object, and the bytes of its
arrays. The object has "arrays": [[dtype, shape], ...]. Between processes that trust each other, arrays can be
in shared memory instead, whose file descriptor comes with the length.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Arrays = Sequence[NDArray[Any]]

MOST_BYTES = 16 << 30
"""Largest number of bytes of the arrays of a frame."""

_LENGTH = struct.Struct("<I")
_MOST_JSON = 16 << 20  # bytes of a JSON object
_ALIGNMENT = 64  # bytes, of an array in shared memory: a cache line


def encode_header(content: dict[str, Any], arrays: Arrays = ()) -> bytes:
    """Encode the part of a frame before the bytes of its arrays.

    Raises:
        ValueError: The object is too long.
    """
    described = [[array.dtype.str, array.shape] for array in arrays]
    encoded = json.dumps(content | {"arrays": described}).encode()
    if len(encoded) > _MOST_JSON:
        raise ValueError(f"a message of {len(encoded)} bytes, {_MOST_JSON} at most")
    return _LENGTH.pack(len(encoded)) + encoded


def send_frame(connection: socket.socket, header: bytes, arrays: Arrays, *, shared: bool) -> None:
    """Send a frame.

    Args:
        connection: The socket.
        header: As `encode_header` gives it.
        arrays: The arrays that the header describes.
        shared: Whether to send them in shared memory.
    """
    if shared and any(array.nbytes for array in arrays):
        with _shared_file() as file:
            offsets = _offsets([array.nbytes for array in arrays])
            file.truncate(offsets[-1])
            for array, offset in zip(arrays, offsets, strict=False):
                file.seek(offset)
                file.write(_bytes_of(np.ascontiguousarray(array)))
            file.flush()
            socket.send_fds(connection, [header[: _LENGTH.size]], [file.fileno()])
        connection.sendall(header[_LENGTH.size :])
        return
    connection.sendall(header)
    for array in arrays:
        connection.sendall(_bytes_of(np.ascontiguousarray(array)))


def _shared_file() -> IO[bytes]:
    """Open an empty file that no other process finds; on Linux it has no place on a disk."""
    if sys.platform == "linux":
        return open(os.memfd_create("arrays"), "wb")  # noqa: PTH123 - not a path
    return tempfile.TemporaryFile()


def _offsets(sizes: Sequence[int]) -> list[int]:
    """The offsets of arrays of these sizes in shared memory, and the end of the last one; in bytes."""
    return list(accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0))


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def receive_frame(
    connection: socket.socket, most_bytes: int, deadline: float | None = None, *, shared: bool
) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Receive a frame.

    Args:
        connection: The socket.
        most_bytes: Limit on the bytes of the arrays.
        deadline: By the clock of `time.monotonic`; None waits for ever.
        shared: Whether the arrays may come in shared memory.

    Returns:
        The object and the arrays, C-contiguous and writable.

    Raises:
        EOFError: The other side has closed the connection.
        OSError: The connection is broken; `TimeoutError` at the deadline.
        ValueError: This is not a frame, or its arrays take too many bytes.
    """
    head = bytearray(_LENGTH.size)
    descriptors: list[int] = []
    try:
        _receive_into(connection, memoryview(head), deadline, descriptors if shared else None)
        (length,) = _LENGTH.unpack(head)
        if length > _MOST_JSON:
            raise ValueError(f"a message of {length} bytes")
        encoded = bytearray(length)
        _receive_into(connection, memoryview(encoded), deadline)
        try:
            header = json.loads(encoded)
        except RecursionError:
            raise ValueError("a message that is nested too deeply") from None
        described = _described_arrays(header, most_bytes)
        if descriptors:
            return header, _map_arrays(descriptors[0], described)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    arrays = [np.empty(shape, dtype) for dtype, shape in described]
    for array in arrays:
        _receive_into(connection, _bytes_of(array), deadline)
    return header, arrays


def _map_arrays(descriptor: int, described: Sequence[tuple[np.dtype, tuple[int, ...]]]) -> list[NDArray[Any]]:
    """Map the arrays of a frame from shared memory; what this process writes to them stays its own."""
    offsets = _offsets([dtype.itemsize * math.prod(shape) for dtype, shape in described])
    mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    return [
        np.ndarray(shape, dtype, mapping, offset)
        for (dtype, shape), offset in zip(described, offsets, strict=False)
    ]


def _described_arrays(header: Any, most_bytes: int) -> list[tuple[np.dtype, tuple[int, ...]]]:
    """Check the description of a frame's arrays."""
    try:
        described = [(np.dtype(str(dtype)), tuple(shape)) for dtype, shape in header.get("arrays", [])]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError("a message that does not describe its arrays") from error
    for dtype, shape in described:
        if dtype.kind not in "biuf" or not all(type(extent) is int and extent >= 0 for extent in shape):
            raise ValueError(f"an array of {dtype} {shape}")
    size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in described)
    if size > most_bytes:
        raise ValueError(f"arrays of {size} bytes, {most_bytes} at most")
    return described


def _receive_into(
    connection: socket.socket,
    buffer: memoryview,
    deadline: float | None,
    descriptors: list[int] | None = None,
) -> None:
    """Fill a buffer; append file descriptors that come with its bytes to `descriptors`, if it is given."""
    while buffer:
        if deadline is not None:
            connection.settimeout(max(1e-3, deadline - time.monotonic()))
        if descriptors is None:
            count = connection.recv_into(buffer)
        else:
            received, sent, _, _ = socket.recv_fds(connection, len(buffer), 1)
            descriptors += sent
            count = len(received)
            buffer[:count] = received
        if count == 0:
            raise EOFError
        buffer = buffer[count:]
