"""Limits that every reader checks before it trusts a file, far above any checkpoint of FaceNet."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from converter.errors import SourceError
from converter.formats.source import TensorInfo

MAX_TENSORS = 20_000
"""Limit on the tensors of a file; a training checkpoint with averages and optimiser slots has 2,500."""

MAX_NAME_LENGTH = 1_000
"""Limit on the characters of a tensor's name; the longest of this network has 71."""

MAX_RANK = 32
"""Limit on the dimensions of an array, that of NumPy 1; NumPy 2 allows 64, TensorFlow 254."""

_SPARE_BYTES = 64 << 20


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. Anything else, such as a pipe or a device, may never end.

    Raises:
        SourceError: The path is not a regular file.
        OSError: It cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer. It has no effect on regular files.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise SourceError(path, "this is not a regular file", next_step="Copy its content to a file")
    return file


def is_utf_8(path: Path) -> bool:
    """Return whether every byte of a path is UTF-8; libraries in C++ take no other path."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_whole(path: Path, most_bytes: int, problem: str) -> bytes:
    """Read a regular file.

    Args:
        path: The file.
        most_bytes: Limit on its size.
        problem: The message about a larger file, a clause.

    Raises:
        SourceError: The file is larger, is not a regular file, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most_bytes:
                raise SourceError(path, problem)
            return file.read(size)
    except OSError as error:
        problem = f"the file cannot be read ({error.strerror})"
        raise SourceError(path, problem, next_step="Check its name and its permissions") from error


def most_bytes(file_size: int) -> int:
    """Limit on the bytes of all tensors of a file of this size.

    Compression, views of one storage and repeated values make the tensors larger than the file, but weights
    do not compress to half their size.
    """
    return 2 * file_size + _SPARE_BYTES


def check_claims(path: Path, info: Mapping[str, TensorInfo], file_size: int) -> None:
    """Check the names, shapes and sizes of a file's tensors before memory is allocated for them.

    Args:
        path: The file.
        info: Its tensors, as the file describes them.
        file_size: Its size in bytes.

    Raises:
        SourceError: There are too many tensors, a name is too long, an array cannot have a shape, or the
            tensors take more memory than a file of this size justifies.
    """
    if len(info) > MAX_TENSORS:
        raise SourceError(path, f"it holds {len(info)} tensors, more than {MAX_TENSORS}")
    claimed = 0
    for name, tensor in info.items():
        check_name(path, name)
        if len(tensor.shape) > MAX_RANK:
            problem = f"the shape has {len(tensor.shape)} dimensions, more than {MAX_RANK}"
            raise SourceError(path, problem, tensor=name)
        if any(extent < 0 for extent in tensor.shape):
            raise SourceError(path, f"the shape {tensor.shape} has a negative dimension", tensor=name)
        # NumPy refuses a shape whose other dimensions overflow, even if one is zero.
        if math.prod(extent for extent in tensor.shape if extent) * tensor.dtype.itemsize >= 1 << 63:
            raise SourceError(path, f"the shape {tensor.shape} overflows", tensor=name)
        claimed += tensor.nbytes
        if claimed > most_bytes(file_size):
            problem = f"with it the tensors claim {claimed} bytes, but the file has {file_size}"
            raise SourceError(path, problem, tensor=name)


def check_name(path: Path, name: str) -> None:
    """Check the length of a name.

    Raises:
        SourceError: It is longer than `MAX_NAME_LENGTH`.
    """
    if len(name) > MAX_NAME_LENGTH:
        problem = f"it has a name of {len(name)} characters, which starts with {name[:80]!r}"
        raise SourceError(path, problem)
