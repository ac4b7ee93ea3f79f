"""Writing a TensorFlow checkpoint (see `bundle`), byte for byte as TensorFlow does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from converter.formats.tensorflow import protos, sstable
from converter.formats.tensorflow.bundle import shard_path
from converter.formats.tensorflow.bundle_index import VERSION
from converter.formats.tensorflow.data_types import NUMPY_DTYPES, data_type
from converter.formats.tensorflow.sstable_writer import write_table


def write_tensor_bundle(prefix: Path, tensors: Mapping[str, NDArray[Any]]) -> tuple[Path, Path]:
    """Write a checkpoint with one data file that TensorFlow restores.

    The same tensors always give the same bytes: those of TensorFlow's own BundleWriter (tf.raw_ops.SaveV2),
    given the tensors in sorted order. Tensors are fetched and written one at a time. No file is overwritten,
    because shortening a mapped file kills the process that reads it; a caller that needs both files whole or
    not at all writes to a temporary prefix and renames.

    Args:
        prefix: The checkpoint's path without `.index`; its folder exists.
        tensors: Numeric arrays by variable name, of any byte order and memory layout.

    Returns:
        The paths of the `.index` and of the `.data-00000-of-00001` file.

    Raises:
        ValueError: A name is empty or starts with a zero byte, or TensorFlow has no such numeric dtype.
        FileExistsError: One of the files exists.
        OSError: A file cannot be written.
    """
    index, data = Path(f"{prefix}.index"), shard_path(prefix, 0, 1)
    header = protos.BundleHeaderProto(num_shards=1)
    header.version.producer = VERSION
    entries = [(b"", header.SerializeToString())]
    offset = 0
    with data.open("xb") as file, index.open("xb") as index_file:
        for key, name in sorted((name.encode(), name) for name in tensors):
            entry, content = _encode_entry(name, tensors[name], offset)
            file.write(content.data)
            offset += entry.size
            entries.append((key, entry.SerializeToString()))
        write_table(index_file, entries)
    return index, data


def _encode_entry(name: str, array: NDArray[Any], offset: int) -> tuple[Any, NDArray[np.uint8]]:
    """Build a tensor's entry and its bytes, which are a view of the array if its layout allows one."""
    if not name or name.startswith("\0") or array.dtype.hasobject:
        raise ValueError(f"tensor {name!r} of dtype {array.dtype} cannot be written")
    number = data_type(array.dtype)
    content = np.asarray(array, NUMPY_DTYPES[number], order="C").reshape(-1).view(np.uint8)
    entry = protos.BundleEntryProto(dtype=number, offset=offset, size=content.size)
    entry.crc32c = sstable.mask(google_crc32c.value(content))
    entry.shape.SetInParent()
    for size in array.shape:
        entry.shape.dim.add(size=size)
    return entry, content
