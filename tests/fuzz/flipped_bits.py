"""Single flipped bits in a checkpoint of real size: all bits of the .index, sampled bits of the .data."""

from __future__ import annotations

import bisect
import os
from itertools import accumulate
from pathlib import Path
from random import Random

from converter.errors import SourceError
from converter.formats.tensorflow.bundle import TensorBundle


def flip_index(prefix: Path, *, stride: int = 1, first: int = 0) -> tuple[int, list[int]]:
    """Flip bits of an .index, one at a time, and open the checkpoint.

    Args:
        prefix: The checkpoint. Its .index is changed and restored.
        stride: Distance between the bits to flip.
        first: The first bit to flip.

    Returns:
        The number of flipped bits, and the bits that went unnoticed.
    """
    index = prefix.with_name(prefix.name + ".index")
    data = index.read_bytes()
    bits = range(first, 8 * len(data), stride)
    missed = []
    descriptor = os.open(index, os.O_WRONLY)
    try:
        for bit in bits:
            position = bit // 8
            os.pwrite(descriptor, bytes([data[position] ^ 1 << bit % 8]), position)
            try:
                TensorBundle(prefix).close()
                missed.append(bit)
            except SourceError:
                pass
            os.pwrite(descriptor, data[position : position + 1], position)
    finally:
        os.close(descriptor)
    return len(bits), missed


def flip_data(prefix: Path, count: int, *, seed: int = 0) -> tuple[int, list[int]]:
    """Flip sampled bits of a .data file, one at a time, and read the tensor of each.

    Args:
        prefix: The checkpoint, of one shard that its tensors fill in sorted order. Its .data is changed and
            restored.
        count: Number of bits.
        seed: Seed of the sample.

    Returns:
        The number of flipped bits, and the bits that went unnoticed.
    """
    path = prefix.with_name(prefix.name + ".data-00000-of-00001")
    rng = Random(seed)
    missed = []
    descriptor = os.open(path, os.O_RDWR)
    try:
        with TensorBundle(prefix) as bundle:
            names = sorted(bundle, key=str.encode)
            ends = list(
                accumulate(bundle.info[name].size * bundle.info[name].dtype.itemsize for name in names)
            )
            size = path.stat().st_size
            if ends[-1] != size:
                raise AssertionError(f"the tensors take {ends[-1]} bytes of {size}")
            for _ in range(count):
                position = rng.randrange(size)
                byte = os.pread(descriptor, 1, position)
                os.pwrite(descriptor, bytes([byte[0] ^ 1 << rng.randrange(8)]), position)
                try:
                    bundle[names[bisect.bisect_right(ends, position)]]
                    missed.append(position)
                except SourceError:
                    pass
                os.pwrite(descriptor, byte, position)
    finally:
        os.close(descriptor)
    return count, missed
