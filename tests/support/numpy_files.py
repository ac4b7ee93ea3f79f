"""Networks in .npy files, as NumPy pickles them today and as Python 2 pickled them."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Network = Mapping[str, Mapping[str, NDArray[Any]]]

OBJECT_HEADER = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
_MINUS_ONE = b"J\xff\xff\xff\xff"
# The start of a pickle of an array without axes, by Python 2. Memo 1 is _reconstruct, 2 ndarray, 4 dtype.
_START = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\0\x85U\x01b\x87Rq\x03(K\x01)"
    b"cnumpy\ndtype\nq\x04U\x02O8K\0K\x01\x87Rq\x05(K\x03U\x01|NNN" + 2 * _MINUS_ONE + b"K?tb\x89]q\x06"
)


def small_network() -> dict[str, dict[str, NDArray[Any]]]:
    """Make a few small arrays of several dtypes in both orders, including one without axes."""
    random = np.random.default_rng(0)
    return {
        "conv4-1": {
            "weights": np.asfortranarray(random.standard_normal((3, 3, 4, 5), np.float32)),
            "biases": random.standard_normal(5, np.float32),
        },
        "PReLU1": {"alpha": random.standard_normal((5, 2)), "half": np.arange(4).astype(np.float16)},
        "counts": {
            "int64": np.array(7),
            "int8": np.arange(-3, 3, dtype=np.int8),
            "u2": np.ones(3, np.uint16),
        },
    }


def flat(network: Network) -> dict[str, NDArray[Any]]:
    """Map the names of the variables to their arrays."""
    return {f"{layer}/{name}": array for layer, arrays in network.items() for name, array in arrays.items()}


def npy(pickled: bytes, *, header: bytes = OBJECT_HEADER, version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file with this header, padded as NumPy does, and this pickle."""
    start = b"\x93NUMPY" + bytes(version)
    count = "<H" if version == (1, 0) else "<I"
    padded = header + b" " * (-(len(start) + struct.calcsize(count) + len(header) + 1) % 64) + b"\n"
    return start + struct.pack(count, len(padded)) + padded + pickled


def by_numpy(network: Network, protocol: int) -> bytes:
    """The file that `numpy.save` writes, with a protocol of the pickle, which `numpy.save` does not offer."""
    return npy(pickle.dumps(np.array(network, dtype=object), protocol))


def by_python2(network: Network) -> bytes:
    """The file that `numpy.save` of Python 2 writes: names and bytes are both strings."""
    layers = {}
    for layer, arrays in network.items():
        fields = {}
        for name, values in arrays.items():
            fortran = values.flags.f_contiguous and not values.flags.c_contiguous
            content = string(values.tobytes("F" if fortran else "C"))
            fields[string(name.encode())] = array(values.shape, content, values.dtype.str, fortran=fortran)
        layers[unicode(layer)] = items(fields)
    return around(items(layers))


def around(content: bytes) -> bytes:
    """A file whose array holds the object that these opcodes build."""
    return npy(_START + content + b"atb.")


def items(content: Mapping[bytes, bytes]) -> bytes:
    """Opcodes of a dict, from the opcodes of its keys and values."""
    return b"}(" + b"".join(key + value for key, value in content.items()) + b"u"


def string(content: bytes) -> bytes:
    """Opcodes of a string of Python 2."""
    if len(content) < 256:
        return b"U" + bytes([len(content)]) + content
    return b"T" + struct.pack("<i", len(content)) + content


def unicode(text: str) -> bytes:
    """Opcodes of a text."""
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    """Opcodes of an integer."""
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def dtype(code: str = "<f4", *, state: bytes | None = None) -> bytes:
    """Opcodes of a dtype, spelled as in `numpy.dtype.str`."""
    start = b"h\x04" + string(code[1:].encode()) + b"K\0K\x01\x87R"
    plain = b"(K\x03" + string(code[:1].encode()) + b"NNN" + 2 * _MINUS_ONE + b"K\0t"
    return start + (plain if state is None else state) + b"b"


def array(
    shape: tuple[int, ...],
    content: bytes,
    code: str = "<f4",
    *,
    kind: bytes | None = None,
    fortran: bool = False,
) -> bytes:
    """Opcodes of an array in `around`.

    Args:
        shape: The shape of the array.
        content: The opcodes of its bytes.
        code: Its dtype, spelled as in `numpy.dtype.str`.
        kind: The opcodes of its dtype, in place of those for `code`.
        fortran: Whether its bytes are in Fortran's order.
    """
    extents = b"(" + b"".join(map(number, shape)) + b"t"
    state = b"(K\x01" + extents + (dtype(code) if kind is None else kind) + (b"\x88" if fortran else b"\x89")
    return b"h\x01h\x02K\0\x85U\x01b\x87R" + state + content + b"tb"
