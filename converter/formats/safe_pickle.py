"""A pickle walked without running any of it, to know what an unpickler would make of it.

What files of weights are made of is followed on a stack of stand-ins: dicts, lists, tuples, texts, numbers.
What may be called, and what comes of it, each format says for itself. Opcodes: Python's pickletools.
"""

from __future__ import annotations

import io
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

_MAX_OPCODES = 500_000
"""Steps of all pickles of a file; 716 tensors take 25,000."""


class DamagedPickleError(Exception):
    """The pickle is damaged, or is none that the format's own library writes."""


class ForbiddenPickleError(Exception):
    """The pickle asks for code or for objects that no weights need."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A function or class that the pickle names; never looked up."""

    name: str


_MARK = object()
_T = TypeVar("_T")


class PickleReader(ABC):
    """Walks the pickles of one file."""

    def __init__(self) -> None:
        self._opcodes = 0

    def load(self, file: io.BytesIO) -> Any:
        """Walk one pickle, and leave the file behind its end.

        Args:
            file: Stands where the pickle starts.

        Returns:
            What it makes: dicts, lists, tuples, texts, numbers and the stand-ins of the format.

        Raises:
            DamagedPickleError: It is damaged, or larger than any of a network.
            ForbiddenPickleError: It asks for something that is not the format's, or to change what it made.
        """
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(file):
                self._opcodes += 1
                if self._opcodes > _MAX_OPCODES:
                    raise DamagedPickleError("larger than any of a network")
                if opcode.name == "STOP":
                    (result,) = stack
                    return result
                self._step(opcode.name, argument, stack, memo)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise DamagedPickleError("damaged") from error
        raise DamagedPickleError("cut off")

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
            stack[-count:] = [tuple(some(stack[-count:], count))]
        elif opcode == "TUPLE":
            stack.append(tuple(_to_mark(stack)))
        elif opcode == "GLOBAL":
            stack.append(self._global(".".join(argument.split(" "))))
        elif opcode == "REDUCE":
            arguments = as_kind(tuple, stack.pop())
            stack.append(self._call(as_kind(Global, stack.pop()).name, arguments))
        elif opcode in ("APPEND", "APPENDS"):
            items = [stack.pop()] if opcode == "APPEND" else _to_mark(stack)
            as_kind(list, stack[-1]).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = some(stack[-2:], 2) if opcode == "SETITEM" else _to_mark(stack)
            if opcode == "SETITEM":
                del stack[-2:]
            set_items(as_kind(dict, stack[-1]), zip(items[::2], items[1::2], strict=True))
        elif opcode == "BUILD":
            state = stack.pop()
            self._build(stack[-1], state)
        elif opcode not in ("PROTO", "FRAME"):
            raise ForbiddenPickleError(opcode)

    def _global(self, name: str) -> Global:
        if not self._admits(name):
            raise ForbiddenPickleError(name[:200])
        return Global(name)

    @abstractmethod
    def _admits(self, name: str) -> bool:
        """Whether a pickle of the format may name this function or class."""

    @abstractmethod
    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What a call of an admitted function stands for."""

    @abstractmethod
    def _build(self, target: Any, state: Any) -> None:
        """Give what a call has made its state."""


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


def as_kind(kind: type[_T], value: Any) -> _T:
    """The value, where it is of this very type.

    Raises:
        TypeError: It is not.
    """
    if type(value) is not kind:
        raise TypeError(kind)
    return value


def natural(value: Any) -> int:
    """The value, where it is an extent, an offset or a size.

    Raises:
        TypeError: It is no integer.
        ValueError: It is none from 0 to 2**63 - 1.
    """
    if not 0 <= as_kind(int, value) < 1 << 63:
        raise ValueError(value)
    return int(value)


def some(items: list[Any], count: int) -> list[Any]:
    """The items, where there are so many of them.

    Raises:
        ValueError: There are not, or one is a mark.
    """
    if len(items) != count or any(item is _MARK for item in items):
        raise ValueError(count)
    return items


def _to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def set_items(target: dict[Any, Any], items: Any) -> None:
    """Put pairs of key and value into a dict.

    Raises:
        DamagedPickleError: A key is no text and no number, or is there already.
    """
    for key, value in items:
        # The hash of nested tuples, shared by way of the memo, takes time exponential in their depth.
        if type(key) not in (str, int, float, bool):
            raise DamagedPickleError("a key that is no name")
        if key in target:
            raise DamagedPickleError(f"key {str(key)[:200]!r} is there twice")
        target[key] = value
