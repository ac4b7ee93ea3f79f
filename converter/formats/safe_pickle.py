"""Reading a pickle without running it.

A pickle is a program that may call any function. A `PickleReader` follows its opcodes on a stack of
stand-ins, to find out what an unpickler would make: dicts, lists, tuples, texts, numbers and the tensors of a
format. It imports nothing and calls nothing that the pickle names; each format says which names it allows and
what a call of them stands for. Opcodes: Python's pickletools.
"""

from __future__ import annotations

import io
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

_MAX_OPCODES = 500_000
"""Limit on the opcodes of all pickles of a file; 716 tensors take 25,000."""


class DamagedPickleError(Exception):
    """The pickle is damaged, or was not written by the format's own library."""


class ForbiddenPickleError(Exception):
    """The pickle asks for code or for objects that weights do not need."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A function or class that the pickle names; it is never imported."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Unread:
    """A value that no reader looks at, and that stays what it is in a message.

    Attributes:
        kind: What it is, such as "a tuple".
    """

    kind: str

    def __str__(self) -> str:
        return self.kind


_MARK = object()
_T = TypeVar("_T")


class PickleReader(ABC):
    """Reads the pickles of one file. A format derives from it."""

    def __init__(self) -> None:
        self._opcodes = 0

    def load(self, file: io.BytesIO) -> Any:
        """Read one pickle.

        Args:
            file: Positioned at the start of the pickle; left at its end.

        Returns:
            What the pickle makes: dicts, lists, tuples, texts, numbers and the stand-ins of the format.

        Raises:
            DamagedPickleError: The pickle is damaged, or larger than that of any network.
            ForbiddenPickleError: It asks for something that the format does not allow.
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
        """Carry out one opcode."""
        if opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode]())
        elif opcode in _VALUES:
            stack.append(argument)
        elif opcode == "LONG4":  # of more than 255 bytes, which take long to print
            stack.append(Unread("a large number"))
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif opcode in _TUPLES:
            count = _TUPLES[opcode]
            stack[-count:] = [tuple(expect_count(stack[-count:], count))]
        elif opcode == "TUPLE":
            stack.append(tuple(_pop_to_mark(stack)))
        elif opcode == "GLOBAL":
            stack.append(self._global(".".join(argument.split(" "))))
        elif opcode == "STACK_GLOBAL":
            name = expect_type(str, stack.pop())
            stack.append(self._global(f"{expect_type(str, stack.pop())}.{name}"))
        elif opcode == "REDUCE":
            arguments = expect_type(tuple, stack.pop())
            stack.append(self._call(expect_type(Global, stack.pop()).name, arguments))
        elif opcode in ("APPEND", "APPENDS"):
            items = [stack.pop()] if opcode == "APPEND" else _pop_to_mark(stack)
            expect_type(list, stack[-1]).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = expect_count(stack[-2:], 2) if opcode == "SETITEM" else _pop_to_mark(stack)
            if opcode == "SETITEM":
                del stack[-2:]
            set_items(expect_type(dict, stack[-1]), zip(items[::2], items[1::2], strict=True))
        elif opcode == "BUILD":
            state = stack.pop()
            self._build(stack[-1], state)
        elif opcode not in ("PROTO", "FRAME"):
            raise ForbiddenPickleError(opcode)

    def _global(self, name: str) -> Global:
        """The stand-in of a function or class, if the format allows it."""
        if not self._allows(name):
            raise ForbiddenPickleError(name[:200])
        return Global(name)

    @abstractmethod
    def _allows(self, name: str) -> bool:
        """Return whether a pickle of the format may name this function or class."""

    @abstractmethod
    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Return the stand-in for the result of a call of an allowed function."""

    @abstractmethod
    def _build(self, target: Any, state: Any) -> None:
        """Set the state of the result of a call."""


_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": lambda: (),
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING",
    "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINUNICODE8", "BINBYTES8",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def expect_type(kind: type[_T], value: Any) -> _T:
    """Return the value if its type is exactly this one.

    Raises:
        TypeError: It is not.
    """
    if type(value) is not kind:
        raise TypeError(kind)
    return value


def expect_size(value: Any) -> int:
    """Return the value if it can be an extent, an offset or a size.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is not between 0 and 2**63 - 1.
    """
    if not 0 <= expect_type(int, value) < 1 << 63:
        raise ValueError(value)
    return int(value)


def expect_count(items: list[Any], count: int) -> list[Any]:
    """Return the items if there are this many.

    Raises:
        ValueError: There are not, or one of them is a mark.
    """
    if len(items) != count or any(item is _MARK for item in items):
        raise ValueError(count)
    return items


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def set_items(target: dict[Any, Any], items: Iterable[Any]) -> None:
    """Put pairs of key and value into a dict; a key that is neither a text nor a number as `Unread`.

    Raises:
        DamagedPickleError: A key is in the dict already.
    """
    for key, value in items:
        # Hashing nested tuples that share their parts takes time exponential in their depth.
        if type(key) not in (str, int, float, bool, Unread):
            key = Unread(f"a key of type {type(key).__name__}")
        if key in target:
            raise DamagedPickleError(f"key {str(key)[:200]!r} appears twice")
        target[key] = value
