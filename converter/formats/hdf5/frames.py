"""What `hdf5_process` and `hdf5_worker` say to each other over sockets; no pickle, as one side may be broken.

Over the socket FD come orders, each answered:

    b"o" with a socket    fork a worker that serves one file over that socket; the answer is its process id
    b"w" and a process id  kill that worker; the answer is its exit status, as os.waitpid gives it

Process ids and statuses are 8 bytes, little-endian. A worker is asked and answers in frames, which `receive`
and `send` define: 4 bytes that tell the length of a JSON object, the object, and for a tensor its bytes. The
first frame asks for the file's weights, each one after it for a tensor's bytes.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

LENGTH = struct.Struct("<I")
NUMBER = struct.Struct("<q")
MAX_FRAME = 16 << 20
"""Bytes of a frame's JSON; 490 weights take 0.1 MB."""


def receive(connection: socket.socket) -> Any:
    """Receive a frame's object; None where the other side has closed the connection.

    Raises:
        OSError: The connection is broken.
        ValueError: The frame is too long, cut off or not JSON.
    """
    header = receive_exactly(connection, LENGTH.size)
    if not header:
        return None
    (length,) = LENGTH.unpack(header)
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes")
    return json.loads(receive_exactly(connection, length))


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Receive so many bytes, or none where the other side has closed the connection.

    Raises:
        OSError: The connection is broken.
        ValueError: It ends in between.
    """
    content = b""
    while len(content) < size:
        piece = connection.recv(size - len(content))
        if not piece and content:
            raise ValueError("cut off")
        if not piece:
            break
        content += piece
    return content


def send(connection: socket.socket, message: Any) -> None:
    """Send a frame.

    Raises:
        OSError: The connection is broken.
        ValueError: The frame is too long.
    """
    encoded = json.dumps(message).encode()
    if len(encoded) > MAX_FRAME:
        raise ValueError(f"the names take {len(encoded)} bytes")
    connection.sendall(LENGTH.pack(len(encoded)) + encoded)
