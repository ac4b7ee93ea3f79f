"""Recognising V1 checkpoints, which TensorFlow wrote before 1.0 and which are not supported.

A V1 checkpoint is one file: a sorted table, like the index of a V2 checkpoint, that holds all tensors. Its
empty key holds a SavedTensorSlices message, whose only field is a message with number 1 (core/util/
saved_tensor_slice.proto). The BundleHeaderProto of an index starts with a number there.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from converter.formats.tensorflow import sstable

SAVE_AS_V2 = "Restore it in TensorFlow and save it again with tf.train.Saver, which writes V2 checkpoints"
"""The advice to a user who has one."""


def is_v1_checkpoint(path: Path) -> bool:
    """Return whether a file is a V1 checkpoint.

    Only the table's index and first block are read.

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
    return is_v1_header(key, value)


def is_v1_header(key: bytes, value: bytes) -> bool:
    """Return whether the first entry of a table is that of a V1 checkpoint."""
    return key == b"" and value[:1] == b"\x0a"
