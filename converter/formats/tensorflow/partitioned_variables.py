"""Partitioned variables: variables that a checkpoint stores as several slices.

TensorFlow's partitioners cut a variable along one axis (python/ops/partitioned_variables.py); a checkpoint
may hold any grid of slices. The variable's entry in the index lists its slices. Each slice has an entry of
its own, under a key that starts with a zero byte and is written in ordered code (core/lib/strings/
ordered_code.cc), an encoding whose bytes sort as the values do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Extents = tuple[tuple[int, int], ...]
"""The part of a variable that a slice is: start and stop in each dimension."""

_FULL_EXTENT = -1
"""Length that stands for a whole dimension (core/framework/tensor_slice.h, kFullExtent)."""


def slice_extents(message: Any, shape: tuple[int, ...]) -> Extents:
    """Read which part of a partitioned variable a slice is.

    Args:
        message: A TensorSliceProto.
        shape: The shape of the whole variable.

    Returns:
        Start and stop in each dimension.

    Raises:
        ValueError: The slice has another rank or reaches outside the shape.
    """
    if len(message.extent) != len(shape):
        raise ValueError(f"a slice has {len(message.extent)} dimensions, not {len(shape)}")
    extents = []
    for extent, size in zip(message.extent, shape, strict=True):
        length = extent.length if extent.HasField("length") else size
        if not 0 <= extent.start <= extent.start + length <= size:
            raise ValueError(f"a slice of {length} from {extent.start} reaches outside the shape {shape}")
        extents.append((extent.start, extent.start + length))
    return tuple(extents)


def slices_fill(shape: tuple[int, ...], slices: Sequence[Extents]) -> bool:
    """Return whether slices fill a shape exactly.

    The first axis must be cut into consecutive pieces, each piece along its second axis, and so on.
    """
    if not shape:
        return len(slices) == 1
    pieces: dict[tuple[int, int], list[Extents]] = {}
    for extents in slices:
        pieces.setdefault(extents[0], []).append(extents[1:])
    position = 0
    for (start, stop), rest in sorted(pieces.items()):
        if start != position or not slices_fill(shape[1:], rest):
            return False
        position = stop
    return position == shape[0]


def slice_key(name: bytes, message: Any) -> bytes:
    """Build the key of a slice's entry in the index.

    The key is, in ordered code: the number 0, the variable's name, the number of dimensions, and start and
    length of each dimension (EncodeTensorNameSlice in core/util/saved_tensor_slice_util.cc).

    Args:
        name: The variable's name in UTF-8.
        message: A TensorSliceProto.

    Returns:
        The key; its first byte is zero.
    """
    # Ordered code escapes the byte 0xff as well, but UTF-8 never has it.
    escaped = name.replace(b"\0", b"\0\xff")
    rank = bytes([1, len(message.extent)]) if message.extent else b"\0"
    key = b"\0" + escaped + b"\0\1" + rank
    for extent in message.extent:
        key += _ordered_signed(extent.start)
        key += _ordered_signed(extent.length if extent.HasField("length") else _FULL_EXTENT)
    return key


def variable_of_slice(key: bytes) -> str:
    """Read the variable's name from the key of a slice.

    Args:
        key: A key that starts with a zero byte, as `slice_key` builds it.

    Returns:
        The variable's name. If the key is not in ordered code, the bytes in its place.

    Raises:
        UnicodeDecodeError: The name is not UTF-8.
    """
    return key[1:].partition(b"\0\1")[0].replace(b"\0\xff", b"\0").decode()


def _ordered_signed(number: int) -> bytes:
    """Write a signed number in ordered code.

    A number of n bytes is n ones, a zero and 7n - 1 bits; a negative number is the complement of all of that.
    """
    magnitude = ~number if number < 0 else number
    length = magnitude.bit_length() // 7 + 1
    code = magnitude | ((1 << length) - 1) << 7 * length
    if number < 0:
        code ^= (1 << 8 * length) - 1
    return code.to_bytes(length, "big")
