"""Attacks on the reader of checkpoints: .index and .data."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import google_crc32c

from converter.formats.tensorflow import sstable
from converter.formats.tensorflow.partitioned_variables import slice_key
from converter.formats.tensorflow.protos import (
    BundleEntryProto,
    BundleHeaderProto,
    TensorSliceProto,
)
from converter.formats.tensorflow.sstable_writer import write_table
from tests.attacks.attack import WEIGHTS, attack


def header(**fields: Any) -> bytes:
    message = BundleHeaderProto(**{"num_shards": 1, **fields})
    message.version.producer = 1
    return bytes(message.SerializeToString())


def entry(shape: tuple[int, ...], *, dtype: int = 1, slices: Any = (), **fields: int) -> bytes:
    message = BundleEntryProto(dtype=dtype, **fields)
    message.shape.SetInParent()
    for size in shape:
        message.shape.dim.add(size=size)
    message.slices.extend(slices)
    return bytes(message.SerializeToString())


def index(entries: Mapping[bytes, bytes], head: bytes | None = None) -> bytes:
    file = io.BytesIO()
    write_table(file, sorted({b"": header() if head is None else head, **entries}.items()))
    return file.getvalue()


def block(contents: bytes, kind: int = 0) -> bytes:
    body = contents + bytes([kind])
    return body + sstable.mask(google_crc32c.value(body)).to_bytes(4, "little")


def table(data: bytes, kind: int = 0) -> bytes:
    """A table of one data block, whose entries need not be sound."""
    varint = sstable.encode_varint
    restarts = struct.pack("<2I", 0, 1)
    handle = varint(0) + varint(len(data) + 8)
    blocks = [block(data + restarts, kind), block(restarts)]
    pointer = b"\0\1" + bytes([len(handle)]) + b"\xff" + handle
    places = [sum(map(len, blocks[:1])), sum(map(len, blocks))]
    blocks.append(block(pointer + restarts))
    footer = varint(places[0]) + varint(8) + varint(places[1]) + varint(len(pointer) + 8)
    return b"".join(blocks) + footer.ljust(40, b"\0") + sstable.MAGIC.to_bytes(8, "little")


def slice_of(*extents: tuple[int, int]) -> Any:
    message = TensorSliceProto()
    for start, length in extents:
        message.extent.add(start=start, length=length)
    return message


def make_index_attacks() -> None:
    """Add the attacks of this format: a flat list, over 60 lines because it has one call for each."""
    name = WEIGHTS.encode()
    attack(
        "shape-of-terabytes.index",
        "a shape of 4 TiB, and a size that agrees",
        index({name: entry((1 << 20, 1 << 20), size=1 << 42)}),
        data=b"",
    )
    attack(
        "product-overflows.index",
        "extents whose product is 0 modulo 2**64",
        index({name: entry((1 << 62, 4), size=0)}),
        data=b"",
    )
    attack("negative-extent.index", "an extent of -1", index({name: entry((-1, 3), size=12)}), data=bytes(12))
    attack(
        "negative-offset.index",
        "bytes that start before the file",
        index({name: entry((3,), size=12, offset=-12)}),
        data=bytes(12),
    )
    attack("negative-size.index", "a size of -12 bytes", index({name: entry((3,), size=-12)}), data=bytes(12))
    attack(
        "two-billion-shards.index",
        "2**31 - 1 data files, each to be opened",
        index({}, header(num_shards=2**31 - 1)),
    )
    attack(
        "shard-out-of-range.index",
        "a tensor in data file 7 of 1",
        index({name: entry((3,), size=12, shard_id=7)}),
        data=bytes(12),
    )
    attack(
        "overlap.index",
        "two tensors that share their bytes",
        index({name: entry((3,), size=12), name + b"2": entry((3,), size=12, offset=4)}),
        data=bytes(16),
    )
    attack(
        "strings-without-end.index",
        "2**40 strings in 8 bytes",
        index({name: entry((1 << 40,), dtype=7, size=8)}),
        data=bytes(8),
    )
    attack(
        "rank-of-thousands.index",
        "a shape of 3,000 dimensions",
        index({name: entry((1,) * 3000, size=4)}),
        data=bytes(4),
    )
    same = [slice_of((0, 1))] * 1500
    attack(
        "slice-listed-1500-times.index",
        "one slice, listed 1,500 times",
        index({name: entry((1500,), slices=same), slice_key(name, same[0]): entry((1,), size=4)}),
        data=bytes(4),
    )
    halves = [slice_of((0, 1)), slice_of((1 << 40, 1))]
    attack(
        "slices-with-a-gap.index",
        "two slices of one number that stand for a tensor of 4 TiB",
        index(
            {
                name: entry(((1 << 40) + 2,), slices=halves),
                slice_key(name, halves[0]): entry((1,), size=4),
                slice_key(name, halves[1]): entry((1,), size=4, offset=4),
            }
        ),
        data=bytes(8),
    )
    nothing = [slice_of((0, 0), (0, 1 << 40))]
    attack(
        "empty-slice-of-terabytes.index",
        "a slice of no rows as the whole of a tensor of 4 TiB",
        index({name: entry((1, 1 << 40), slices=nothing), slice_key(name, nothing[0]): entry((0, 1 << 40))}),
        data=b"",
    )
    attack(
        "big-endian.index", "the header of a big-endian machine", index({}, header(endianness=1)), data=b""
    )
    attack(
        "future-version.index",
        "a format of version 9",
        index(
            {},
            BundleHeaderProto(num_shards=1, version={"producer": 9, "min_consumer": 9}).SerializeToString(),
        ),
        data=b"",
    )
    attack(
        "snappy.index", "a compressed block", table(b"\0\0" + bytes([len(header())]) + header(), 1), data=b""
    )
    attack("v1-header.index", "a V1 checkpoint under the name of an index", table(b"\0\0\2\x0a\0"), data=b"")
    head = b"\0\0" + bytes([len(header())]) + header()
    empty = entry((0,))
    long = 30_000
    keys = b"\0" + sstable.encode_varint(long) + bytes([len(empty)]) + b"k" * long + empty
    shared = sstable.encode_varint(long)
    keys += b"".join(
        shared + b"\4" + bytes([len(empty)]) + number.to_bytes(4, "big") + empty for number in range(9000)
    )
    attack(
        "keys-of-270-megabytes.index",
        "names that share a prefix of 30,000 bytes, 9,000 of them",
        table(head + keys),
        data=b"",
    )
    twice = b"".join(b"\0" + bytes([len(name), len(empty)]) + name + empty for _ in range(2))
    attack("key-twice.index", "one name for two tensors", table(head + twice), data=b"")
    attack(
        "restarts-without-end.index",
        "2**32 - 1 restart points in a block of 12 bytes",
        index({})[: -sstable.FOOTER_SIZE]
        + (sstable.encode_varint(0) + sstable.encode_varint(7)) * 2
        + bytes(36)
        + sstable.MAGIC.to_bytes(8, "little"),
        data=b"",
    )
    far = sstable.encode_varint(2**63 - 8) + sstable.encode_varint(2**63 - 1)
    attack(
        "block-past-the-end.index",
        "blocks at 2**63 - 8 of 2**63 - 1 bytes",
        (far * 2).ljust(40, b"\0") + sstable.MAGIC.to_bytes(8, "little"),
        data=b"",
    )
    length = sstable.encode_varint(2**63)
    attack(
        "string-length.data-00000-of-00001",
        "a string of 2**63 bytes",
        length + bytes(10),
        index=index({name: entry((1,), dtype=7, size=len(length) + 10)}),
    )
    attack(
        "changed-byte.data-00000-of-00001",
        "a byte that is not what the checksum was made of",
        bytes(range(12)),
        index=index({name: entry((3,), size=12, crc32c=1)}),
    )
