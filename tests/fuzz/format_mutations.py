"""Mutations that know a format, so that a changed file passes the checks of its checksums and lengths.

Each function takes a random generator and a file. It returns a file with one change inside, whose lengths,
block checksums and CRC-32s are correct.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Sequence
from random import Random
from typing import Any

import google_crc32c

from converter.formats.tensorflow import sstable, sstable_writer
from tests.fuzz.blind_mutations import havoc, interesting, replace, varint

# Protobuf: a message as a list of (number, wire type, value), values not yet parsed.
_Field = tuple[int, int, Any]
_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)
_DEEP = (50, 150, 5000, 100_000)


def parse_message(data: bytes) -> list[_Field] | None:
    """Parse protobuf's wire format one level deep; None if the bytes are not a message."""
    fields: list[_Field] = []
    position = 0
    try:
        while position < len(data):
            tag, position = sstable.read_varint(data, position, len(data))
            number, wire = tag >> 3, tag & 7
            if number == 0 or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
                return None
            if wire == _VARINT:
                value: Any
                value, position = sstable.read_varint(data, position, len(data))
            else:
                size = 8 if wire == _FIXED64 else 4
                if wire == _BYTES:
                    size, position = sstable.read_varint(data, position, len(data))
                value, position = data[position : position + size], position + size
                if position > len(data):
                    return None
            fields.append((number, wire, value))
    except sstable.TableError:
        return None
    return fields


def build_message(fields: list[_Field]) -> bytes:
    parts = []
    for number, wire, value in fields:
        parts.append(varint(number << 3 | wire))
        if wire == _VARINT:
            parts.append(varint(value))
        elif wire == _BYTES:
            parts += [varint(len(value)), value]
        else:
            parts.append(value)
    return b"".join(parts)


def mutate_message(rng: Random, data: bytes, depth: int = 0) -> bytes:
    """Change one field somewhere in a message, and adapt the lengths of the messages around it."""
    fields = parse_message(data)
    if not fields:
        return havoc(rng, data) if data else varint(interesting(rng))
    chosen = rng.randrange(len(fields))
    number, wire, value = fields[chosen]
    if wire == _BYTES and value and depth < 20 and rng.random() < 0.85 and parse_message(value):
        fields[chosen] = (number, wire, mutate_message(rng, value, depth + 1))
        return build_message(fields)
    kind = rng.randrange(12)
    if kind <= 3:
        fields[chosen] = (number, wire, _other_value(rng, wire, value))
    elif kind == 4:
        del fields[chosen]
    elif kind == 5:
        fields[chosen:chosen] = [fields[chosen]] * rng.choice((1, 1, 2, 40, 300))
    elif kind == 6:
        other = rng.randrange(len(fields))
        fields[chosen], fields[other] = fields[other], fields[chosen]
    elif kind == 7:
        fields[chosen] = (rng.choice((1, 2, 3, 4, 5, 7, 8, 10, 13, 2**29 - 1)), wire, value)
    elif kind == 8:
        new = rng.choice((_VARINT, _FIXED64, _BYTES, _FIXED32))
        plain = {_VARINT: interesting(rng), _FIXED64: bytes(8), _BYTES: b"\xff" * 9, _FIXED32: b"\x7f" * 4}
        fields[chosen] = (number, new, plain[new])
    elif kind == 9:
        return build_message(fields[:chosen]) + _nested(rng, number) + build_message(fields[chosen:])
    elif kind == 10:  # a wrong length
        tail = build_message(fields[chosen + 1 :])
        claimed = varint(number << 3 | _BYTES) + varint(interesting(rng))
        return build_message(fields[:chosen]) + claimed + tail
    else:
        donor = rng.choice(fields)
        fields[chosen] = (number, donor[1], donor[2])
    return build_message(fields)


def _other_value(rng: Random, wire: int, value: Any) -> Any:
    if wire == _VARINT:
        return rng.choice((interesting(rng), value + 1, value - 1, value ^ 1 << rng.randrange(63)))
    if wire == _BYTES:
        return rng.choice((b"", havoc(rng, value) if value else b"\0", value * 2, b"\xff" + value))
    return havoc(rng, value)[: len(value)].ljust(len(value), b"\0")


def _nested(rng: Random, number: int) -> bytes:
    """A field in itself, many times over, or groups that open and do not close."""
    depth = rng.choice(_DEEP)
    if rng.random() < 0.3:
        return varint(number << 3 | _GROUP) * depth
    inner = b""
    for _ in range(min(depth, 5000)):
        inner = varint(number << 3 | _BYTES) + varint(len(inner)) + inner
    return inner


# .index: a table whose blocks carry checksums.


def resign_table(data: bytes) -> bytes:
    """Give every block that the footer and the index lead to the checksum of what it holds now."""
    try:
        footer = data[-sstable.FOOTER_SIZE :]
        position = 0
        handles = []
        for _ in range(2):
            offset, position = sstable.read_varint(footer, position, 40)
            size, position = sstable.read_varint(footer, position, 40)
            handles.append((offset, size))
        # The data blocks fill the file up to the metaindex; of one block only, its size follows.
        starts = sorted({0, *(offset for offset, _ in handles)})
        out = bytearray(data)
        for start, end in zip(starts, [*starts[1:], len(data) - sstable.FOOTER_SIZE], strict=True):
            if start + 5 <= end <= len(data):
                crc = sstable.mask(google_crc32c.value(bytes(out[start : end - 4])))
                out[end - 4 : end] = struct.pack("<I", crc)
    except (sstable.TableError, ValueError):
        return data
    return bytes(out)


def mutate_block(rng: Random, data: bytes) -> bytes:
    """Change bytes of the blocks without changing their length, then sign them anew."""
    body = data[: -sstable.FOOTER_SIZE]
    changed = havoc(rng, body)
    return resign_table(replace(body, 0, changed) + data[-sstable.FOOTER_SIZE :])


def mutate_entries(rng: Random, data: bytes) -> bytes:
    """Change a key or a value of the table, and write the table anew."""
    entries = list(sstable.Table(data))
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not entries:
            break
        chosen = rng.randrange(len(entries))
        key, value = entries[chosen]
        other_key, other_value = rng.choice(entries)
        kind = rng.randrange(10)
        if kind <= 5:
            entries[chosen] = key, mutate_message(rng, value)
        elif kind == 6:
            entries[chosen] = (havoc(rng, key) if key else b"\0"), value
        elif kind == 7:
            del entries[chosen]
        elif kind == 8:
            entries[chosen] = key, other_value
        else:
            entries.append((other_key + rng.choice((b"/x", b"\0", b"\xff")), value))
    file = io.BytesIO()
    sstable_writer.write_table(
        file,
        sorted(dict(entries).items()),
        block_size=rng.choice((64, 512, sstable_writer.BLOCK_SIZE)),
        restart_interval=rng.choice((1, 16)),
    )
    return file.getvalue()


# Pickles, and the zip archive around one.

_OPCODES = (
    b"(", b"0", b"1", b"2", b"R", b"b", b"N", b"]", b"}", b"t", b")", b"\x85", b"\x86", b"\x87", b"e", b"u",
    b"s", b"Q", b"\x88", b"\x89", b"o", b"\x81", b"\x8f", b"\x90", b"\x93", b".", b"h\x00", b"q\x00",
    b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"cbuiltins\neval\n", b"cos\nsystem\n", b"X\x01\0\0\0x",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n",
    b"(" * 3000, b"]" * 3000 + b"a" * 2999, b"ctorch\nSize\n", b"cbuiltins\nbytearray\n",
    b"\x95" + b"\xff" * 8,
)  # fmt: skip


def mutate_pickle(rng: Random, data: bytes, opcodes: Sequence[bytes] = _OPCODES) -> bytes:
    """Change one opcode of a pickle: its argument, its kind, its place; or add one of another pickle."""
    positions = []
    try:
        positions += [position for _, _, position in pickletools.genops(data) if position is not None]
    except Exception:
        return havoc(rng, data)
    chosen = rng.randrange(len(positions))
    start = positions[chosen]
    end = positions[chosen + 1] if chosen + 1 < len(positions) else start + 1
    opcode = data[start:end]
    kind = rng.randrange(9)
    if kind == 0:
        return data[:start] + data[end:]
    if kind == 1:
        return data[:end] + opcode * rng.choice((1, 2, 1000)) + data[end:]
    if kind == 2:
        return data[:start] + rng.choice(opcodes) + data[start:]
    if kind == 3:
        return data[:start] + rng.choice(opcodes) + data[end:]
    if kind == 4:
        number = interesting(rng) % (1 << 32)
        return data[:start] + b"J" + number.to_bytes(4, "little") + data[end:]
    if kind == 5:
        return data[:start] + b"\x8a\x08" + interesting(rng).to_bytes(8, "little") + data[end:]
    if kind == 6:
        other = rng.randrange(len(positions) - 1)
        return data[:start] + data[positions[other] : positions[other + 1]] + data[end:]
    if kind == 7 and len(opcode) > 1:
        return data[: start + 1] + havoc(rng, opcode[1:]) + data[end:]
    return havoc(rng, data)


_NUMPY_OPCODES = (
    *_OPCODES, b"\x94", b"\x93", b"C\x04abcd", b"\x8c\x02os", b"\x8c\x06system", b"U\x04abcd", b"U\x01>",
    b"U\x02O8", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"\x85", b"h\x01", b"h\x04", b"h\x06",
)  # fmt: skip


def mutate_numpy_pickle(rng: Random, data: bytes) -> bytes:
    """Change the header of a .npy file or, most often, an opcode of the pickle behind it."""
    end = 10 + int.from_bytes(data[8:10], "little")
    header, pickled = data[:end], data[end:]
    if rng.random() < 0.1:
        return havoc(rng, header) + pickled
    return header + mutate_pickle(rng, pickled, _NUMPY_OPCODES)


def mutate_archive(rng: Random, data: bytes) -> bytes:
    """Change one member of a zip archive, most often its pickle if it has one, and write the archive anew."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    pickles = [number for number, (name, _) in enumerate(members) if name.endswith(".pkl")]
    chosen = rng.choice(pickles) if pickles and rng.random() < 0.7 else rng.randrange(len(members))
    name, content = members[chosen]
    kind = rng.randrange(8)
    if kind == 0:
        del members[chosen]
    elif kind == 1:
        folder = rng.choice(("", "archive/", "../", "/"))
        members[chosen] = folder + name.rpartition("/")[2], content
    elif kind == 2:
        members.append((name, havoc(rng, content) if content else b"x"))
    elif name.endswith(".pkl"):
        members[chosen] = name, mutate_pickle(rng, content)
    elif name.endswith(".h5") and rng.random() < 0.5:
        members[chosen] = name, mutate_hdf5(rng, content)
    elif name.endswith(".json") and rng.random() < 0.5:
        members[chosen] = name, mutate_text(rng, content)
    else:
        members[chosen] = name, havoc(rng, content) if content else b"\0"
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            # The Unix time 0 of zip, so that a case gives the same bytes on every day.
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def mutate_zip_headers(rng: Random, data: bytes) -> bytes:
    """Put a number in a local header, a central directory entry or an end record of a zip archive."""
    return _near(rng, data, (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"), 46)


# safetensors: eight bytes of length, a JSON header, the data.


def mutate_header(rng: Random, data: bytes) -> bytes:
    """Change a value of the header and keep its length right, most often."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = rng.choice(list(header))
    entry = header[name]
    kind = rng.randrange(9)
    if kind <= 2 and "shape" in entry:
        key = rng.choice(("shape", "data_offsets"))
        numbers = entry[key] or [1]
        numbers[rng.randrange(len(numbers))] = rng.choice((interesting(rng), -1, 1.5, None, "1", [1]))
        entry[key] = numbers
    elif kind == 3 and "dtype" in entry:
        entry["dtype"] = rng.choice(("F64", "BF16", "F8_E4M3", "F4", "U64", "C64", "", None, 7, "BOOL"))
    elif kind == 4:
        other = rng.choice(list(header))
        header[name], header[other] = header[other], header[name]
    elif kind == 5:
        del header[name]
    elif kind == 6:
        header[rng.choice(("", "\0", "x" * 300, "__metadata__", "\ud800", name + "x"))] = entry
    elif kind == 7 and "shape" in entry:
        entry["shape"] = entry["shape"] + [1] * rng.choice((1, 30, 70, 5000))
    text = json.dumps(header).encode()
    if kind == 8:
        depth = rng.choice(_DEEP)
        text = rng.choice(
            (
                b'{"a":' * depth + b"1" + b"}" * depth,
                text[:-1] + b"," + text[1:],
                havoc(rng, text),
                b"[" * depth,
            )
        )
    length = len(text) if rng.random() < 0.95 else interesting(rng)
    return length.to_bytes(8, "little") + text + body


# HDF5: structures that are found by their signatures.

_HDF5_SIGNATURES = (
    b"\x89HDF\r\n\x1a\n", b"TREE", b"HEAP", b"SNOD", b"OHDR", b"OCHK", b"GCOL", b"FRHP", b"FHDB", b"FHIB",
    b"BTHD", b"BTLF", b"BTIN", b"FSHD", b"FADB", b"FAHD", b"layer_names", b"weight_names",
)  # fmt: skip


def mutate_hdf5(rng: Random, data: bytes) -> bytes:
    """Put a number beside a signature: in a superblock, an object header, a B-tree, a heap."""
    return _near(rng, data, _HDF5_SIGNATURES, 96)


def _near(rng: Random, data: bytes, signatures: tuple[bytes, ...], reach: int) -> bytes:
    places = []
    for signature in signatures:
        start = data.find(signature)
        while start >= 0:
            places.append(start)
            start = data.find(signature, start + 1)
    if not places:
        return havoc(rng, data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        size = rng.choice((1, 1, 2, 4, 8))
        position = max(0, min(len(data) - size, rng.choice(places) + rng.randrange(-reach // 2, reach)))
        number = interesting(rng)
        if rng.random() < 0.5:  # another structure's address, or a small change of what is there
            number = rng.choice((*places, int.from_bytes(data[position : position + size], "little") + 1))
        data = replace(data, position, (number % (1 << 8 * size)).to_bytes(size, "little"))
    return data


# Text: manifests, catalogs, lists of checkpoints.

_TEXTS = (
    b"[", b"]", b"{", b"}", b'"', b"'", b",", b":", b"=", b"\n", b"\0", b"\xff", b"\\u0000", b"\\ud800",
    b"NaN", b"1e999", b"-1", b"null", b"true", b"[" * 100_000, b"{" * 5000, b'{"a":' * 50_000,
    b"9" * 5000, b"0x" + b"f" * 20_000, b'"""', b"#", b"\xef\xbb\xbf",
    b"[[a]]\n", b"1979-05-27T07:32:00Z",
)  # fmt: skip


def mutate_text(rng: Random, data: bytes) -> bytes:
    """Put a token of JSON, TOML or protobuf's text format somewhere, once or very often."""
    start, end = rng.randrange(len(data)), 0
    words = list(re.finditer(rb"[\w.+-]+|[^\w\s]", data))
    if words and rng.random() < 0.7:  # instead of a word or a sign
        start, end = rng.choice(words).span()
    return data[:start] + rng.choice(_TEXTS) + data[max(start, end) :]
