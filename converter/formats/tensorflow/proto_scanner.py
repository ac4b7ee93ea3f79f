"""protobuf's wire format, walked without building messages.

The protobuf library turns two bytes of a file into an object of a hundred. What a file has by the million is
walked here first, and only what is needed, and small, is given to the library. Source:
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class ProtoError(Exception):
    """The bytes are not a message."""


class Field(NamedTuple):
    """Where in the data a field of a message stands.

    Attributes:
        number: The field's number.
        wire_type: `VARINT`, `FIXED_64`, `BYTES` or `FIXED_32`.
        begin: Where its tag starts.
        start: Where its content starts, after the tag and, for `BYTES`, the length.
        stop: Where its content stops.
    """

    number: int
    wire_type: int
    begin: int
    start: int
    stop: int


class ProtoScanner:
    """A serialised message, whose fields may be walked as long as there are not too many.

    Args:
        data: The bytes.
        max_fields: Fields that may be walked in all.
    """

    def __init__(self, data: bytes, max_fields: int) -> None:
        self.data = data
        self._fields_left = max_fields

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """Walk the fields of the message that lies between two positions.

        Raises:
            ProtoError: The bytes are no message, or there are too many fields.
        """
        while start < stop:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ProtoError("more fields than any graph has")
            begin = start
            tag, start = self._varint(start, stop)
            wire_type = tag & 7
            if wire_type == BYTES:
                length, start = self._varint(start, stop)
                end = start + length
            elif wire_type == VARINT:
                _, end = self._varint(start, stop)
            elif wire_type in (FIXED_64, FIXED_32):
                end = start + (8 if wire_type == FIXED_64 else 4)
            else:
                raise ProtoError(f"a field of wire type {wire_type} at byte {begin}")
            if end > stop or not tag >> 3:
                raise ProtoError(f"a field at byte {begin} that runs past its message")
            yield Field(tag >> 3, wire_type, begin, start, end)
            start = end

    def text(self, field: Field) -> str:
        """The content of a field as text.

        Raises:
            ProtoError: It is no UTF-8.
        """
        try:
            return self.data[field.start : field.stop].decode()
        except UnicodeDecodeError as error:
            raise ProtoError(f"a name at byte {field.start} that is not UTF-8") from error

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        data = self.data
        value = 0
        for count in range(_MAX_VARINT_BYTES):
            if position >= stop:
                break
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << 7 * count
            if byte < 0x80:
                return value, position
        raise ProtoError(f"no number at byte {position}")
