"""Attacks on the reader of NumPy's pickles: .npy."""

from __future__ import annotations

import struct

from tests.attacks.attack import MARK, attack
from tests.support.numpy_files import around, array, dtype, items, npy, number, string

_FOUR = string(bytes(16))
_SYSTEM = b"cos\nsystem\n" + string(f"touch {MARK}".encode()) + b"\x85R"
_SOUND = {string(b"biases"): array((4,), _FOUR)}


def layer(arrays: dict[bytes, bytes]) -> bytes:
    """A network of one layer."""
    return around(items({string(b"conv1"): items(arrays)}))


def weights(made: bytes) -> bytes:
    """A network of one array, which these opcodes make."""
    return layer({string(b"weights"): made})


def make_numpy_attacks() -> None:
    _make_code()
    _make_arrays()
    _make_bombs()
    _make_headers()


def _make_code() -> None:
    attack("runs-a-command.npy", "a pickle that runs a shell command", weights(_SYSTEM))
    attack(
        "stack-global.npy",
        "the same in the words of protocol 4",
        npy(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0e" + f"touch {MARK}".encode() + b"\x85R."),
    )
    attack(
        "dtype-of-a-function.npy",
        "an element type that is a function",
        weights(array((4,), _FOUR, kind=b"h\x04cos\nsystem\nK\0K\x01\x87R")),
    )
    attack(
        "reconstructs-another-class.npy",
        "an array of a class that is not NumPy's",
        weights(b"h\x01csubprocess\nPopen\nK\0\x85U\x01b\x87R"),
    )
    attack(
        "makes-an-array.npy",
        "an array made by its class, with any shape",
        weights(b"h\x02" + number(1 << 40) + b"\x85R"),
    )
    attack(
        "two-pickles.npy",
        "a sound network, and behind it a pickle that runs a command",
        layer(_SOUND) + b"\x80\x02" + _SYSTEM + b".",
    )
    attack(
        "evaluates.npy",
        "a header that runs a command when it is evaluated",
        npy(b"", header=f"__import__('os').system('touch {MARK}')".encode()),
    )


def _make_arrays() -> None:
    attack(
        "objects-inside.npy",
        "an array of objects in the place of weights",
        weights(array((1,), b"]}a", "|O8")),
    )
    attack(
        "metadata.npy",
        "an element type with metadata, which may hold anything",
        weights(
            array((4,), _FOUR, kind=dtype(state=b"(K\x04U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0}t"))
        ),
    )
    attack("shape-of-terabytes.npy", "a shape of 4 TiB", weights(array((1 << 20, 1 << 20), _FOUR)))
    attack(
        "product-overflows.npy",
        "extents whose product is 0 modulo 2**64",
        weights(array((1 << 62, 4), string(b""))),
    )
    attack("negative-extent.npy", "extents of -1 and -4", weights(array((-1, -4), _FOUR)))
    attack(
        "empty-and-endless.npy",
        "a shape of no elements with an extent of 2**62",
        weights(array((0, 1 << 62, 1 << 62), string(b""))),
    )
    attack(
        "rank-of-thousands.npy",
        "a shape of 3,000 dimensions",
        weights(array((1,) * 3000, string(bytes(4)))),
    )
    attack("big-endian.npy", "the numbers of a big-endian machine", weights(array((4,), _FOUR, ">f4")))
    twice = b"(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    attack(
        "two-byte-orders.npy",
        "an element type that is given two byte orders",
        weights(array((4,), _FOUR, kind=dtype() + twice)),
    )
    attack(
        "key-twice.npy",
        "one name for two arrays",
        around(items({string(b"conv1"): b"}(" + (string(b"weights") + array((4,), _FOUR)) * 2 + b"u"})),
    )
    attack(
        "slashes.npy",
        "a/b of c and b/c of a: one name for two arrays",
        around(
            items(
                {
                    string(b"a/b"): items({string(b"c"): array((4,), _FOUR)}),
                    string(b"a"): items({string(b"b/c"): array((4,), _FOUR)}),
                }
            )
        ),
    )
    attack("no-text.npy", "a layer whose name is a number", around(items({b"K\x01": items(_SOUND)})))


def _make_bombs() -> None:
    attack(
        "string-of-gigabytes.npy", "2**31 - 1 bytes in a pickle of 9", npy(b"\x80\x02T\xff\xff\xff\x7fabc")
    )
    attack("memo-of-billions.npy", "a memo of 2**32 - 1 entries", npy(b"\x80\x02}r\xff\xff\xff\xff."))
    attack(
        "nested-lists.npy",
        "lists nested 40,000 deep",
        around(b"]" * 40_000 + b"a" * 39_999),
    )
    first = b"]q\x40" + b"".join(
        b"]q" + bytes([n]) + b"(" + (b"h" + bytes([n - 1])) * 10 + b"e" for n in range(0x41, 0x60)
    )
    attack("billion-laughs.npy", "10**31 references to one list", around(b"](" + first + b"e"))
    doubled = b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(0x40, 0x7C))
    attack(
        "tuple-of-tuples.npy",
        "a key of 2**60 elements, by doubling a tuple 60 times, to be hashed",
        around(b"}(" + doubled + b"K\0u"),
    )
    attack(
        "byte-order-of-tuples.npy",
        "the same as a byte order, to be shown",
        weights(array((4,), _FOUR, kind=dtype(state=b"(K\x03" + doubled + b"NNNK\0K\0K\0t"))),
    )
    text = b"X" + struct.pack("<I", 1 << 16) + b"0" * (1 << 16) + b"q\x40"
    latin = string(b"latin1") + b"q\x41"
    encoded = b"c_codecs\nencode\nq\x42(" + text + latin + b"tR" + b"h\x42h\x40h\x41\x86R" * 10_000
    attack(
        "encoded-10000-times.npy",
        "640 MB of bytes out of one text of 64 KB",
        around(b"](" + encoded + b"e"),
    )
    arrays = items(
        {string(b"%d" % n): (array((4,), _FOUR) + b"q\x40") if n == 0 else b"h\x40" for n in range(1000)}
    )
    names = b"".join(string(b"%d" % n) + b"h\x41" for n in range(1, 1000))
    attack(
        "million-arrays.npy",
        "1,000 layers that are one and the same dict of 1,000 arrays",
        around(b"}(" + string(b"0") + arrays + b"q\x41" + names + b"u"),
    )


def _make_headers() -> None:
    attack(
        "header-without-end.npy", "a header of 2**32 - 1 bytes", b"\x93NUMPY\x02\0\xff\xff\xff\xff{'descr'"
    )
    attack(
        "nested-header.npy",
        "a header of 9,000 parentheses",
        npy(b"", header=b"{'descr': '|O', 'fortran_order': False, 'shape': " + b"(" * 9000),
    )
    attack(
        "fields.npy",
        "a header with the fields of a structure, one of 2 GB",
        npy(b"", header=b"{'descr': [('a', '|V2147483647')], 'fortran_order': False, 'shape': (), }"),
    )
    attack("future-version.npy", "a format of version 9", npy(b"", version=(9, 0)))
    attack(
        "array-of-terabytes.npy",
        "one array of 4 TiB in a file of 128 bytes",
        npy(b"", header=b"{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576), }"),
    )
