"""The pickle of a PyTorch file, walked without running any of it, to know what torch.load would do.

`torch.load(weights_only=True)` runs no foreign code, but it takes a pickle at its word where that costs
memory or time: a tensor larger than its storage makes it allocate, a key of nested tuples takes years.
Here only what torch.save writes for a state_dict is followed, on a stack of stand-ins. Opcodes: Python's
pickletools; the meaning of the calls: torch/_utils.py and torch/serialization.py, both formats.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from converter.formats.limits import MAX_RANK

MAX_PICKLE_BYTES = 8 << 20
"""Bytes of a file's pickle; 716 tensors take 0.1 MB."""

_MAX_OPCODES = 500_000
"""Steps of all pickles of a file; 716 tensors take 25,000."""

_DTYPES = {
    "torch.DoubleStorage": ("float64", 8),
    "torch.FloatStorage": ("float32", 4),
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.LongStorage": ("int64", 8),
    "torch.IntStorage": ("int32", 4),
    "torch.ShortStorage": ("int16", 2),
    "torch.CharStorage": ("int8", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.BoolStorage": ("bool", 1),
    "torch.ComplexFloatStorage": ("complex64", 8),
    "torch.ComplexDoubleStorage": ("complex128", 16),
}


class PickleDamageError(Exception):
    """The pickle is damaged, or is none that torch.save writes."""


class PickleDemandError(Exception):
    """The pickle asks for code or for objects that no state_dict needs."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes that tensors are views of.

    Attributes:
        key: Its name in the file.
        dtype: NumPy's name of the element type, in which sizes and offsets are counted.
        itemsize: Bytes of an element.
        numel: Number of elements.
    """

    key: str
    dtype: str
    itemsize: int
    numel: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense tensor that lies within its storage and has no element twice."""

    storage: Storage
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Other:
    """What a call of PyTorch gives that is no dense tensor: a sparse, quantised or meta tensor, a device."""

    function: str


@dataclass(frozen=True, slots=True, eq=False)
class _Global:
    name: str


_MARK = object()
_T = TypeVar("_T")


class PickleWalk:
    """Walks the pickles of one file.

    Attributes:
        storages: The storages that they name, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._opcodes = 0

    def load(self, file: io.BytesIO) -> Any:
        """Walk one pickle, and leave the file behind its end.

        Args:
            file: Stands where the pickle starts.

        Returns:
            What it makes: dicts, lists, tuples, texts, numbers, `Tensor` and `Other`.

        Raises:
            PickleDamageError: It is damaged, or larger than any of a state_dict.
            PickleDemandError: It asks for something that is not PyTorch's, or to change what it made.
        """
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(file):
                self._opcodes += 1
                if self._opcodes > _MAX_OPCODES:
                    raise PickleDamageError("larger than any of a state_dict")
                if opcode.name == "STOP":
                    (result,) = stack
                    return result
                self._step(opcode.name, argument, stack, memo)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise PickleDamageError("damaged") from error
        raise PickleDamageError("cut off")

    def _step(self, opcode: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
        if opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode]())
        elif opcode in _VALUES:
            stack.append(argument)
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif opcode in _TUPLES:
            count = _TUPLES[opcode]
            stack[-count:] = [tuple(_some(stack[-count:], count))]
        elif opcode == "TUPLE":
            stack.append(tuple(_to_mark(stack)))
        elif opcode == "GLOBAL":
            name = ".".join(argument.split(" "))
            if not name.startswith("torch.") and name != "collections.OrderedDict":
                raise PickleDemandError(name[:200])
            stack.append(_Global(name))
        elif opcode == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif opcode == "REDUCE":
            arguments = stack.pop()
            stack.append(_call(stack.pop(), arguments))
        elif opcode in ("APPEND", "APPENDS"):
            items = [stack.pop()] if opcode == "APPEND" else _to_mark(stack)
            _as(list, stack[-1]).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = _some(stack[-2:], 2) if opcode == "SETITEM" else _to_mark(stack)
            if opcode == "SETITEM":
                del stack[-2:]
            _set_items(_as(dict, stack[-1]), zip(items[::2], items[1::2], strict=True))
        elif opcode == "BUILD":
            # The one object that torch.save gives attributes is an OrderedDict (`_metadata`).
            if type(_as(dict, stack.pop())) is not type(stack[-1]):
                raise PickleDemandError(opcode)
        elif opcode not in ("PROTO", "FRAME"):
            raise PickleDemandError(opcode)

    def _storage(self, identity: Any) -> Storage:
        """Find a storage by what names it: kind, type, key, location, size, in the old format a view."""
        kind, storage_type, key, _, numel, *view = _as(tuple, identity)
        if kind != "storage" or view not in ([], [None]):
            raise PickleDemandError("a view of a storage")
        name = _as(_Global, storage_type).name
        if name not in _DTYPES:
            raise PickleDemandError(name[:200])
        storage = Storage(_as(str, key), *_DTYPES[name], _natural(numel))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise PickleDamageError("a storage has two sizes")
        return storage


_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": lambda: (),
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _as(kind: type[_T], value: Any) -> _T:
    if type(value) is not kind:
        raise TypeError(kind)
    return value


def _natural(value: Any) -> int:
    if not 0 <= _as(int, value) < 1 << 63:
        raise ValueError(value)
    return int(value)


def _some(items: list[Any], count: int) -> list[Any]:
    if len(items) != count or any(item is _MARK for item in items):
        raise ValueError(count)
    return items


def _to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _set_items(target: dict[Any, Any], items: Any) -> None:
    for key, value in items:
        # The hash of nested tuples, shared by way of the memo, takes time exponential in their depth.
        if type(key) not in (str, int, float, bool):
            raise PickleDamageError("a key that is no name")
        if key in target:
            raise PickleDamageError(f"key {str(key)[:200]!r} is there twice")
        target[key] = value


def _call(function: Any, arguments: Any) -> Any:
    name, arguments = _as(_Global, function).name, _as(tuple, arguments)
    if name == "collections.OrderedDict":
        target: dict[Any, Any] = {}
        if arguments:  # as Python 2 writes it
            (pairs,) = arguments
            _set_items(target, (_some(list(pair), 2) for pair in _as(list, pairs)))
        return target
    if name == "torch._utils._rebuild_parameter":
        data, _, hooks = arguments
        return data if hooks == {} else Other(name)
    if name == "torch._utils._rebuild_tensor":
        return _tensor(*arguments)
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, stride, _, hooks, *metadata = arguments
        return Other(name) if hooks or any(metadata) else _tensor(storage, offset, shape, stride)
    return Other(name)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
    storage = _as(Storage, storage)
    shape = tuple(map(_natural, _as(tuple, shape)))
    strides = tuple(map(_natural, _as(tuple, stride)))
    if len(shape) > MAX_RANK or len(shape) != len(strides):
        raise PickleDamageError("a tensor of impossible shape")
    count = math.prod(shape)
    last = _natural(offset)
    if count:
        last += sum((extent - 1) * step for extent, step in zip(shape, strides, strict=True)) + 1
    # PyTorch would make the storage larger; an expanded tensor costs a file nothing.
    if last > storage.numel or count > storage.numel:
        raise PickleDamageError("a tensor is larger than its storage")
    return Tensor(storage, shape)
