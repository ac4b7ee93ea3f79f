"""NumPy .npy files of a whole network: a pickle, read without running it.

caffe-tensorflow writes networks in this form, among them the face detector of davidsandberg/facenet
(det1.npy, det2.npy and det3.npy): an array without axes, whose only element is a dict of layers, each a dict
of arrays.
The header: numpy.lib.format. The pickle: `array_reduce` and `array_setstate` of NumPy's methods.c,
`arraydescr_reduce` of its descriptor.c.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converter.errors import SourceError
from converter.formats.limits import MAX_RANK, MAX_TENSORS, check_claims, read_whole
from converter.formats.safe_pickle import (
    DamagedPickleError,
    ForbiddenPickleError,
    Global,
    PickleReader,
    expect_size,
    expect_type,
)
from converter.formats.source import DOWNLOAD_AGAIN, Naming, TensorInfo, TensorSource

_MAGIC = b"\x93NUMPY"
_MAX_FILE_BYTES = 64 << 20
"""Limit on the size of a file, which is read as a whole; det3.npy has 1.6 MB."""

_COUNT_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
"""Version of the format to the number of bytes of the header's length."""

_MAX_HEADER_BYTES = 10_000
"""NumPy's own limit (`max_header_size`)."""

# NumPy reads the header as a Python literal. For arrays without fields it always writes this one.
_HEADER = re.compile(
    rb"\{'descr': '([<>=|]?\w+)', 'fortran_order': (?:True|False), 'shape': \(([\dL, ]*)\), \} *\n"
)
# TensorFlow's rule for the name of a scope, without the slash between two of them.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}
_OBJECTS = {"O4", "O8"}  # pointers of 32 and 64 bits
# Of a dtype's state: version, byte order, subarray, names, fields, itemsize, alignment, flags.
_PLAIN_STATE = (None, None, None, -1, -1, 0)
_OBJECT_STATE = (3, "|", None, None, None, -1, -1, 63)
_EMPTY = (((0,), b"b"), ((0,), "b"))  # how NumPy creates an array before it sets its state
_FUNCTIONS = {
    "numpy.core.multiarray._reconstruct": "reconstruct",
    "numpy._core.multiarray._reconstruct": "reconstruct",  # NumPy 2
    "numpy.dtype": "dtype",
    "_codecs.encode": "encode",  # Python 3 writes bytes like this before protocol 3
}
_TAKE_ANOTHER = "Give det1.npy, det2.npy or det3.npy as davidsandberg/facenet has them"


@dataclass(slots=True, eq=False)
class _Dtype:
    code: str
    state: tuple[Any, ...] | None = None


@dataclass(slots=True, eq=False)
class _Array:
    state: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    """Bytes as a text of Latin-1. Encoding waits, because a pickle may ask for it any number of times."""

    text: str


@dataclass(frozen=True, slots=True)
class _Stored:
    """An array in the pickle: its bytes, or the same as a text of Latin-1, and their memory order."""

    data: bytes | str
    order: Literal["C", "F"]


class _NumpyPickleReader(PickleReader):
    def _allows(self, name: str) -> bool:
        return name in _FUNCTIONS or name == "numpy.ndarray"

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        function = _FUNCTIONS.get(name)
        if function == "encode":
            text, encoding = arguments
            if encoding == "latin1":
                return _Encoded(expect_type(str, text))
        elif function == "dtype":
            code, align, copy = arguments
            if (align, copy) == (False, True):
                return _Dtype(expect_type(str, code))
        elif function == "reconstruct":
            subtype, shape, kind = arguments
            if expect_type(Global, subtype).name == "numpy.ndarray" and (shape, _raw(kind)) in _EMPTY:
                return _Array()
        raise ForbiddenPickleError(f"an unusual call of {name}")

    def _build(self, target: Any, state: Any) -> None:
        if not isinstance(target, _Array | _Dtype) or target.state is not None:
            raise ForbiddenPickleError("BUILD")
        target.state = expect_type(tuple, state)


def _raw(value: Any) -> bytes | str:
    """Return bytes, or a text of Latin-1, which is a string of Python 2 or what Python 3 encodes."""
    if isinstance(value, _Encoded):
        return value.text
    if not isinstance(value, bytes | str):
        raise TypeError(type(value))
    return value


class NumpyPickle(TensorSource):
    """A network's arrays in a .npy file, named as TensorFlow variables (`conv1/weights`).

    Args:
        path: The file.

    Raises:
        SourceError: The file is damaged, asks for code to be run, holds anything but layers of arrays, has a
            layer whose name is not a TensorFlow scope, or has an array whose elements are not plain
            little-endian floats or integers or whose size does not fit its shape.
    """

    format = "NumPy pickle"
    naming: Naming = "tensorflow"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        too_large = f"it has over {_MAX_FILE_BYTES >> 20} MiB, more than any network of this format"
        content = read_whole(path, _MAX_FILE_BYTES, too_large)
        self.info: dict[str, TensorInfo] = {}
        self._stored: dict[str, _Stored] = {}
        for name, array in self._arrays(self._load(content)):
            if len(self.info) == MAX_TENSORS:
                raise self._foreign(f"it holds more than {MAX_TENSORS} arrays")
            self.info[name], self._stored[name] = self._describe(name, array)
        check_claims(path, self.info, len(content))

    def _load(self, content: bytes) -> Any:
        """Check the header; returns the value of the pickle after it."""
        position = self._read_header(content)
        file = io.BytesIO(content)
        file.seek(position)
        try:
            unpickled = _NumpyPickleReader().load(file)
        except ForbiddenPickleError as error:
            raise SourceError(
                self.path,
                "the pickle inside asks for more than arrays, or is damaged; it was not run",
                next_step=_TAKE_ANOTHER,
            ) from error
        except DamagedPickleError as error:
            raise self._damaged(f"the pickle inside: {error}") from error
        if file.tell() != len(content):
            raise self._damaged(f"its pickle ends at byte {file.tell()}, but it has {len(content)} bytes")
        return unpickled

    def _read_header(self, content: bytes) -> int:
        """Check the header; returns the position after it."""
        start = len(_MAGIC) + 2
        if not content.startswith(_MAGIC) or len(content) < start:
            raise self._damaged("it does not start as a .npy file")
        major, minor = content[start - 2 : start]
        if (major, minor) not in _COUNT_BYTES:
            problem = f"version {major}.{minor} of the .npy format is not supported"
            raise SourceError(self.path, problem, next_step=DOWNLOAD_AGAIN)
        count = _COUNT_BYTES[major, minor]
        length = int.from_bytes(content[start : start + count], "little")
        end = start + count + length
        if length > _MAX_HEADER_BYTES or end > len(content):
            raise self._damaged(f"its header has {length} bytes")
        header = _HEADER.fullmatch(content, start + count, end)
        if header is None:
            raise self._damaged("NumPy writes another header for a network")
        kind, shape = header.groups()
        if kind != b"|O" or shape != b"":
            raise SourceError(self.path, "it holds one array, not a network", next_step=_TAKE_ANOTHER)
        return end

    def _arrays(self, unpickled: Any) -> Iterator[tuple[str, _Array]]:
        """Yield name and array of every layer."""
        for layer, parameters in self._layers(unpickled).items():
            self._check_name(layer)
            if not isinstance(parameters, dict):
                raise self._foreign(f"layer {layer!r} is of type {_kind(parameters)}, not a dict of arrays")
            for parameter, array in parameters.items():
                self._check_name(parameter)
                name = f"{layer}/{parameter}"
                if not isinstance(array, _Array):
                    raise self._foreign(f"it is of type {_kind(array)}, not an array", name)
                yield name, array
        if not self.info:
            raise self._foreign("there are no arrays in it")

    def _check_name(self, part: Any) -> None:
        if not isinstance(part, str) or not _NAME.fullmatch(part):
            raise self._foreign(f"{str(part)[:200]!r} is not the name of a layer or a variable")

    def _layers(self, unpickled: Any) -> dict[Any, Any]:
        """Return the dict of layers: the one element of the array without axes."""
        try:
            version, shape, dtype, fortran, items = expect_type(_Array, unpickled).state or ()
            (layers,) = expect_type(list, items)
            is_object = expect_type(_Dtype, dtype).code in _OBJECTS and dtype.state == _OBJECT_STATE
            if (version, shape) != (1, ()) or not is_object or not isinstance(fortran, bool):
                raise ValueError("not an array of one object")
        except (TypeError, ValueError) as error:
            raise self._damaged("its pickle does not fit its header") from error
        if not isinstance(layers, dict):
            raise self._foreign(f"it holds a value of type {_kind(layers)}, not a dict of layers")
        return layers

    def _describe(self, name: str, array: _Array) -> tuple[TensorInfo, _Stored]:
        """Check one array, all but its bytes."""
        try:
            version, extents, dtype, fortran, content = array.state or ()
            shape = tuple(map(expect_size, expect_type(tuple, extents)))
            order: Literal["C", "F"] = "F" if expect_type(bool, fortran) else "C"
            if version != 1 or len(shape) > MAX_RANK:  # before the extents are multiplied
                raise ValueError("not an array as NumPy writes it")
            info = TensorInfo(self._dtype(name, expect_type(_Dtype, dtype)), shape)
            stored = _Stored(_raw(content), order)
        except (TypeError, ValueError) as error:
            raise SourceError(
                self.path, "NumPy does not describe an array like this", tensor=name, next_step=DOWNLOAD_AGAIN
            ) from error
        if len(stored.data) != info.nbytes:
            problem = f"it has {len(stored.data)} bytes, but its shape {shape} takes {info.nbytes}"
            raise SourceError(self.path, problem, tensor=name, next_step=DOWNLOAD_AGAIN)
        return info, stored

    def _dtype(self, name: str, dtype: _Dtype) -> np.dtype:
        version, byte_order, *state = dtype.state or ()
        kind = f"{expect_type(str, byte_order)}{dtype.code}"
        if dtype.code not in _DTYPES or byte_order not in ("<", "|"):
            problem = f"its elements are {kind[:80]!r}, not plain little-endian floats or integers"
            raise self._foreign(problem, name)
        if version != 3 or (byte_order == "|") != dtype.code.endswith("1") or tuple(state) != _PLAIN_STATE:
            raise ValueError("not a dtype as NumPy writes it")
        return np.dtype(kind)

    def _foreign(self, problem: str, tensor: str | None = None) -> SourceError:
        return SourceError(self.path, problem, tensor=tensor, next_step=_TAKE_ANOTHER)

    def _damaged(self, problem: str) -> SourceError:
        return SourceError(
            self.path,
            f"this .npy file is damaged or cut off ({problem})",
            next_step=DOWNLOAD_AGAIN,
        )

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Copy one array out of the pickle, in C order.

        Raises:
            KeyError: There is no array of this name.
            SourceError: The text that stands for its bytes is not Latin-1.
        """
        stored, info = self._stored[name], self.info[name]
        try:
            data = stored.data.encode("latin-1") if isinstance(stored.data, str) else stored.data
        except UnicodeEncodeError as error:
            raise SourceError(
                self.path,
                "its bytes are stored as a text that is not Latin-1",
                tensor=name,
                next_step=DOWNLOAD_AGAIN,
            ) from error
        return np.array(np.frombuffer(data, info.dtype).reshape(info.shape, order=stored.order), order="C")

    def close(self) -> None:
        """Drop the arrays; those that were read stay valid."""
        self._stored = {}


def _kind(value: Any) -> str:
    """Name the type of a value; stand-ins are named after what they stand for."""
    return type(value).__name__.lstrip("_").lower()
