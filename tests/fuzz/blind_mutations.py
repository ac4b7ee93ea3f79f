"""Mutations that do not know the format: they change bits, bytes, numbers and regions of a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

Mutation = Callable[[Random, bytes], bytes]

INTERESTING = (
    0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**24,
    2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
"""Numbers at which lengths, offsets and products overflow or change their sign."""


def varint(number: int) -> bytes:
    """Encode a number, modulo 2**64, as protobuf and LevelDB do."""
    number %= 1 << 64
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def interesting(rng: Random) -> int:
    """Draw a number near a boundary."""
    return (rng.choice(INTERESTING) + rng.choice((0, 0, 0, -1, 1, 3))) % (1 << 64)


def flip_bit(rng: Random, data: bytes) -> bytes:
    position = rng.randrange(len(data))
    return replace(data, position, bytes([data[position] ^ 1 << rng.randrange(8)]))


def set_byte(rng: Random, data: bytes) -> bytes:
    return replace(data, rng.randrange(len(data)), bytes([rng.randrange(256)]))


def set_number(rng: Random, data: bytes) -> bytes:
    """Write an interesting number of 1 to 8 bytes in either byte order, aligned or not."""
    size = rng.choice((1, 2, 4, 4, 8, 8))
    position = rng.randrange(len(data))
    if rng.random() < 0.5:
        position -= position % size
    number = interesting(rng) % (1 << 8 * size)
    return replace(data, position, number.to_bytes(size, rng.choice(("little", "little", "big"))))


def set_varint(rng: Random, data: bytes) -> bytes:
    """Replace the bytes at a position, read as a varint, by an interesting varint."""
    start = rng.randrange(len(data))
    end = start
    while end < min(start + 9, len(data) - 1) and data[end] >= 0x80:
        end += 1
    return data[:start] + varint(interesting(rng)) + data[end + 1 :]


def truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def insert(rng: Random, data: bytes) -> bytes:
    position = rng.randrange(len(data) + 1)
    return data[:position] + rng.randbytes(rng.choice((1, 2, 4, 8, 100))) + data[position:]


def delete(rng: Random, data: bytes) -> bytes:
    start, end = region(rng, data)
    return data[:start] + data[end:]


def duplicate(rng: Random, data: bytes) -> bytes:
    start, end = region(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def swap(rng: Random, data: bytes) -> bytes:
    (a, b), (c, d) = sorted((region(rng, data), region(rng, data)))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data[:a] + data[c:]


def fill(rng: Random, data: bytes) -> bytes:
    start, end = region(rng, data)
    return replace(data, start, bytes([rng.choice((0, 0xFF, 0x80))]) * (end - start))


def copy_over(rng: Random, data: bytes) -> bytes:
    """Write one region over another of the same length."""
    start, end = region(rng, data)
    return replace(data, rng.randrange(len(data)), data[start:end])


def region(rng: Random, data: bytes) -> tuple[int, int]:
    """Draw start and end of a region, short ones more often."""
    start = rng.randrange(len(data))
    length = rng.choice((1, 2, 4, 8, 16, 64, 512, len(data)))
    return start, min(len(data), start + rng.randint(1, length))


def replace(data: bytes, position: int, new: bytes) -> bytes:
    """Overwrite bytes without making the data longer."""
    return (data[:position] + new + data[position + len(new) :])[: len(data)]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bit, flip_bit, set_byte, set_byte, set_number, set_number, set_number, set_varint, set_varint,
    truncate, insert, delete, duplicate, swap, fill, copy_over,
)  # fmt: skip


def havoc(rng: Random, data: bytes) -> bytes:
    """Apply one mutation, or a few in a row."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not data:
            break
        data = rng.choice(MUTATIONS)(rng, data)
    return data


def splice(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Join the start of a seed and the end of another, or copy a region of one into the other."""
    other = rng.choice(others)
    if rng.random() < 0.5:
        return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
    start, end = region(rng, other)
    return replace(data, rng.randrange(len(data)), other[start:end])
