"""Scanning serialised protobuf messages field by field, without building message objects.

The protobuf library turns two bytes of a file into an object of a hundred. A file of millions of fields is
therefore scanned here first; only the small parts that are needed are given to the library. The encoding:
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class ProtoError(Exception):
    """The bytes are not a message; the error names the byte and the problem."""


class Field(NamedTuple):
    """The place of a message's field in the data.

    Attributes:
        number: The field's number.
        wire_type: `VARINT`, `FIXED_64`, `BYTES` or `FIXED_32`.
        begin: Start of its tag.
        start: Start of its content, after the tag and, for `BYTES`, the length.
        stop: End of its content.
    """

    number: int
    wire_type: int
    begin: int
    start: int
    stop: int


class ProtoScanner:
    """Scans a serialised message.

    Args:
        data: The bytes.
        max_fields: Limit on the fields that are scanned in all.
    """

    def __init__(self, data: bytes, max_fields: int) -> None:
        self.data = data
        self._fields_left = max_fields

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """Yield the fields of the message between two positions.

        Raises:
            ProtoError: The bytes are not a message, or there are too many fields.
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
                raise ProtoError(f"byte {begin}: a field has the unknown type {wire_type}")
            if end > stop or not tag >> 3:
                raise ProtoError(f"byte {begin}: a field runs past the end of its message")
            yield Field(tag >> 3, wire_type, begin, start, end)
            start = end

    def text(self, field: Field) -> str:
        """Return the content of a field as text.

        Raises:
            ProtoError: The content is not UTF-8.
        """
        try:
            return self.data[field.start : field.stop].decode()
        except UnicodeDecodeError as error:
            raise ProtoError(f"byte {field.start}: a name is not UTF-8") from error

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        """Read a number; returns it and the position after it."""
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
        raise ProtoError(f"byte {position}: a number does not end")
