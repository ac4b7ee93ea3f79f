"""Writing a network as a NumPy .npy file (see `numpy_arrays`), byte for byte as NumPy does under Python 2.

det1.npy, det2.npy and det3.npy of davidsandberg/facenet were written so. Any NumPy reads them, with
`allow_pickle=True, encoding="latin1"`. The opcodes: Python 2's cPickle, protocol 2, which remembers an object
that it may meet again under a number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
_ALIGNMENT = 16  # of the pickle in the file, as NumPy before 1.14 has it
_MINUS_ONE = struct.pack("<ci", b"J", -1)


def write_numpy_pickle(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a network; a file of this name is replaced.

    The same tensors in the same order and memory layout always give the same bytes.

    Args:
        path: The file; its folder exists.
        tensors: Variable (`conv1/weights`) to float32 array. The variables of a layer follow each other. An
            array in Fortran's memory order is stored in that order.

    Raises:
        ValueError: An array is not float32, or a name is not a layer and a variable.
        OSError: The file cannot be written.
    """
    layers: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in tensors.items():
        layer, _, variable = name.partition("/")
        if array.dtype != np.float32 or not variable or "/" in variable:
            raise ValueError(f"tensor {name!r} of dtype {array.dtype} cannot be written")
        layers.setdefault(layer, {})[variable] = array
    start = b"\x93NUMPY\x01\x00"
    padding = -(len(start) + 2 + len(_HEADER) + 1) % _ALIGNMENT
    header = _HEADER + b" " * padding + b"\n"
    path.write_bytes(start + struct.pack("<H", len(header)) + header + _Pickler().pickle(layers))


class _Pickler:
    """Writes one pickle; the methods add its opcodes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = [b"\x80\x02"]  # the protocol
        self._numbers: dict[object, int] = {}

    def pickle(self, layers: Mapping[str, Mapping[str, NDArray[Any]]]) -> bytes:
        """Pickle an array without axes whose one element is the dict of layers."""
        self._start_array()
        self._add(b"(K\x01)")
        self._dtype(b"O8", b"|", b"K?")  # the flags of a dtype of objects: 63
        self._add(b"\x89]")
        self._remember()
        self._add(b"}")
        self._remember()
        self._items(list(layers), lambda layer: self._layer(layer, layers[layer]))
        self._add(b"atb.")
        return b"".join(self._parts)

    def _layer(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        text = name.encode()
        self._add(struct.pack("<cI", b"X", len(text)) + text)
        self._remember()
        self._add(b"}")
        self._remember()
        self._items(list(arrays), lambda variable: self._variable(variable, arrays[variable]))

    def _variable(self, name: str, array: NDArray[Any]) -> None:
        self._once(_string(name.encode()))
        self._start_array()
        is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        self._add(b"(K\x01" + _tuple(array.shape))
        self._dtype(b"f4", b"<", b"K\0")
        content = array.astype("<f4", copy=False).tobytes("F" if is_fortran else "C")
        self._add((b"\x88" if is_fortran else b"\x89") + _string(content) + b"tb")

    def _items(self, keys: Sequence[str], add: Callable[[str], None]) -> None:
        """Fill a dict; `add` adds the opcodes of a key and its value."""
        if len(keys) != 1:
            self._add(b"(")
        for key in keys:
            add(key)
        self._add(b"s" if len(keys) == 1 else b"u")

    def _start_array(self) -> None:
        self._once(b"cnumpy.core.multiarray\n_reconstruct\n")
        self._once(b"cnumpy\nndarray\n")
        self._add(b"K\0\x85U\x01b\x87R")
        self._remember()

    def _dtype(self, code: bytes, byte_order: bytes, flags: bytes) -> None:
        if code in self._numbers:
            self._recall(code)
            return
        self._once(b"cnumpy\ndtype\n")
        self._add(_string(code) + b"K\0K\x01\x87R")
        self._remember(code)
        self._add(b"(K\x03" + _string(byte_order) + b"NNN" + 2 * _MINUS_ONE + flags + b"tb")

    def _once(self, opcodes: bytes) -> None:
        """Add an object with its opcodes, or from the second time on with its number."""
        if opcodes in self._numbers:
            self._recall(opcodes)
            return
        self._add(opcodes)
        self._remember(opcodes)

    def _remember(self, key: object = None) -> None:
        """Number the last object; without a key it is not met again."""
        number = len(self._numbers) + 1
        self._numbers[number if key is None else key] = number
        self._add(b"q" + bytes([number]) if number < 256 else struct.pack("<cI", b"r", number))

    def _recall(self, key: object) -> None:
        number = self._numbers[key]
        self._add(b"h" + bytes([number]) if number < 256 else struct.pack("<cI", b"j", number))

    def _add(self, opcodes: bytes) -> None:
        self._parts.append(opcodes)


def _string(content: bytes) -> bytes:
    if len(content) < 256:
        return b"U" + bytes([len(content)]) + content
    return struct.pack("<ci", b"T", len(content)) + content


def _tuple(extents: Sequence[int]) -> bytes:
    numbers = b"".join(map(_number, extents))
    if len(extents) > 3:
        return b"(" + numbers + b"t"
    return numbers + (b")", b"\x85", b"\x86", b"\x87")[len(extents)]


def _number(value: int) -> bytes:
    if value < 1 << 8:
        return b"K" + bytes([value])
    return struct.pack("<cH", b"M", value) if value < 1 << 16 else struct.pack("<ci", b"J", value)
