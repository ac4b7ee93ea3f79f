"""The sorted table: entries survive writing and reading, and all damage is detected."""

from __future__ import annotations

import io
import random
import struct

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.formats.tensorflow import sstable
from converter.formats.tensorflow.sstable import Table, TableError, encode_varint, read_varint
from converter.formats.tensorflow.sstable_writer import write_table

ENTRIES = [(b"", b"header"), (b"a", b""), (b"ab", b"1" * 200), (b"abc", b"2"), (b"b\xff", b"3"), (b"c", b"4")]


def table_bytes(entries, **options):
    file = io.BytesIO()
    write_table(file, entries, **options)
    return file.getvalue()


def entry(shared, suffix, value, non_shared=None):
    lengths = (shared, len(suffix) if non_shared is None else non_shared, len(value))
    return b"".join(encode_varint(n) for n in lengths) + suffix + value


def contents(*entries, restarts=(0,)):
    return b"".join(entries) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def assemble(*data_blocks, separators=None, block_type=0, metaindex=None, index=None, footer=None):
    """Put raw block contents into a table with correct checksums."""
    file = b""

    def append(block, kind):
        nonlocal file
        handle = encode_varint(len(file)) + encode_varint(len(block))
        sealed = block + bytes([kind])
        file += sealed + struct.pack("<I", sstable.mask(google_crc32c.value(sealed)))
        return handle

    handles = [append(block, block_type) for block in data_blocks]
    separators = separators or [bytes([0xF0 + i]) for i in range(len(handles))]
    meta_handle = append(contents() if metaindex is None else metaindex, 0)
    index_entries = [entry(0, key, handle) for key, handle in zip(separators, handles, strict=True)]
    restarts = [sum(map(len, index_entries[:i])) for i in range(max(1, len(index_entries)))]
    index_handle = append(contents(*index_entries, restarts=restarts) if index is None else index, 0)
    magic = struct.pack("<Q", sstable.MAGIC)
    return file + (footer or (meta_handle + index_handle).ljust(40, b"\0") + magic)


def refuses(data, problem):
    with pytest.raises(TableError, match=problem):
        list(Table(data))


def test_round_trip():
    assert list(Table(table_bytes(ENTRIES))) == ENTRIES
    assert list(Table(table_bytes([]))) == []


@settings(max_examples=100)
@given(
    st.dictionaries(st.binary(max_size=40), st.binary(max_size=300), max_size=80),
    st.sampled_from([1, 64, 1000, 262_144]),
    st.sampled_from([1, 2, 16]),
)
def test_round_trip_of_any_keys_and_values(mapping, block_size, restart_interval):
    entries = sorted(mapping.items())
    table = Table(table_bytes(entries, block_size=block_size, restart_interval=restart_interval))
    assert list(table) == entries
    assert list(table) == entries


def test_value_larger_than_a_block_gets_its_own():
    entries = [(b"a", b"1"), (b"b", bytes(3 * 64)), (b"c", b"2")]
    assert list(Table(table_bytes(entries, block_size=64))) == entries


@pytest.mark.parametrize("keys", [[b"b", b"a"], [b"a", b"a"]])
def test_writer_refuses_keys_that_do_not_ascend(keys):
    with pytest.raises(ValueError, match="is not above the key before it"):
        table_bytes([(key, b"") for key in keys])


def test_mask_is_that_of_leveldb():
    # LevelDB's util/crc32c_test.cc checks the same property: masking changes a checksum, twice changes again.
    crc = google_crc32c.value(b"foo")
    assert sstable.mask(0) == 0xA282EAD8
    assert len({crc, sstable.mask(crc), sstable.mask(sstable.mask(crc))}) == 3


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=3))
def test_varint_round_trip(number, tail):
    encoded = encode_varint(number)
    assert read_varint(encoded + tail, 0, len(encoded) + len(tail)) == (number, len(encoded))
    with pytest.raises(TableError):
        read_varint(encoded, 0, len(encoded) - 1)


@pytest.mark.parametrize(
    "encoded", [b"", b"\x80", b"\x80\x00", b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\x01"]
)
def test_varint_refused(encoded):
    with pytest.raises(TableError):
        read_varint(encoded, 0, len(encoded))


@pytest.mark.parametrize("block_size", [64, 262_144])
def test_every_changed_bit_is_seen(block_size):
    good = table_bytes(ENTRIES, block_size=block_size)
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TableError):
            list(Table(bytes(bad)))


def test_every_truncation_and_any_extension_is_seen():
    good = table_bytes(ENTRIES, block_size=64)
    for length in range(len(good)):
        with pytest.raises(TableError):
            list(Table(good[:length]))
    for bad in (good + b"\0", b"\0" + good, good + good):
        with pytest.raises(TableError):
            list(Table(bad))


def test_assembled_table_is_sound():
    """The control for the tests below: without a fault the table is read."""
    data = assemble(contents(entry(0, b"a", b"1"), entry(1, b"b", b"2")), contents(entry(0, b"\xf1", b"3")))
    assert list(Table(data)) == [(b"a", b"1"), (b"ab", b"2"), (b"\xf1", b"3")]


ONE = contents(entry(0, b"a", b"1"))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (assemble(ONE, block_type=1), "Snappy"),
        (assemble(ONE, block_type=7), "unknown type 7"),
        (assemble(contents()), "is empty"),
        (assemble(ONE, metaindex=contents(entry(0, b"filter.x", b""))), "metaindex block is not empty"),
        (assemble(contents(entry(0, b"b", b""), entry(0, b"a", b""))), "is not above the key before it"),
        (assemble(contents(entry(0, b"a", b""), entry(0, b"a", b""))), "is not above the key before it"),
        (assemble(contents(entry(0, b"a", b""), entry(1, b"", b""))), "is not above the key before it"),
        (assemble(contents(entry(1, b"a", b""))), "does not point at a whole key"),
        (assemble(contents(entry(0, b"a", b""), entry(2, b"b", b""))), "shares more bytes"),
        (assemble(contents(entry(0, b"a", b"", non_shared=99))), "runs past the end of its block"),
        (assemble(contents(entry(0, b"a", b"", non_shared=1 << 40))), "runs past the end of its block"),
        (assemble(contents(entry(0, b"a", b""), restarts=(4,))), "do not ascend from zero"),
        (assemble(contents(entry(0, b"a", b""), restarts=(0, 0))), "do not ascend from zero"),
        (assemble(contents(entry(0, b"a", b""), restarts=(0, 2))), "after the last key"),
        (assemble(contents(entry(0, b"a", b""), entry(1, b"b", b""), restarts=(0, 4))), "whole key"),
        (assemble(contents(entry(0, b"a", b""), entry(0, b"b", b""), restarts=(0, 2))), "whole key"),
        (assemble(contents(restarts=(0, 4))), "empty block has restart points"),
        (assemble(b"\xff\xff\xff\xff"), "no room for its restart points"),
        (assemble(b""), "no room for its restart points"),
        (assemble(struct.pack("<I", 0)), "no room for its restart points"),
        (assemble(ONE, separators=[b"Z"]), "above the index key of its block"),
        (assemble(ONE, ONE, separators=[b"a", b"b"]), "not above the index key before"),
        (assemble(ONE, ONE, separators=[b"b", b"a"]), "is not above the key before it"),
        (assemble(ONE, index=contents(entry(0, b"b", b"\x00"))), "runs past the end of its field"),
        (assemble(ONE, index=contents(entry(0, b"b", b"\x00\x0c\x00"))), "after its block handle"),
        (assemble(ONE, index=contents(entry(0, b"b", b"\x01\x0b"))), "starts at byte 1"),
        (assemble(ONE, index=contents(entry(0, b"b", b"\x00\x7f"))), "not at byte"),
        (assemble(ONE, index=contents()), "not at byte"),
        (assemble(ONE, ONE, index=contents(entry(0, b"b", b"\x00\x0d"))), "not at byte"),
        (
            assemble(ONE, footer=b"\x7f\x7f\x7f\x7f".ljust(40, b"\0") + struct.pack("<Q", sstable.MAGIC)),
            "past",
        ),
        (assemble(ONE, footer=bytes(40) + struct.pack(">Q", sstable.MAGIC)), "magic"),
        (b"", "its size is 0"),
    ],
)
def test_refused_with_right_checksums(data, problem):
    refuses(data, problem)


def test_blocks_out_of_order_are_refused():
    first, second = contents(entry(0, b"a", b"")), contents(entry(0, b"b", b""))
    good = assemble(first, second, separators=[b"a", b"b"])
    size = len(first) + 5
    swapped = good[size : 2 * size] + good[:size] + good[2 * size :]
    refuses(swapped, "above the index key of its block")


def test_a_key_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(sstable, "MAX_KEY_BYTES", 10_000)
    long = b"k" * 1000
    bomb = contents(entry(0, long, b""), *(entry(1000 + i, b"k", b"") for i in range(50)))
    refuses(assemble(bomb), "keys take more than")


def test_mutations_with_right_checksums_raise_nothing_else():
    """Any bytes with a correct checksum give entries or a TableError."""
    rng = random.Random(7)
    good = contents(entry(0, b"a", b"12345"), entry(1, b"b", b""), entry(0, b"c", b"9"), restarts=(0, 13))
    assert list(Table(assemble(good)))
    seen = {True: 0, False: 0}
    for _ in range(3000):
        block = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            block[rng.randrange(len(block))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        as_index = rng.random() < 0.5
        data = assemble(ONE, index=bytes(block)) if as_index else assemble(bytes(block))
        try:
            list(Table(data))
            seen[True] += 1
        except TableError:
            seen[False] += 1
    assert min(seen.values()) > 10
