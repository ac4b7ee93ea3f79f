"""Attacks on the readers of graphs: .pb and .meta."""

from __future__ import annotations

from typing import Any

from converter.formats.tensorflow import sstable
from converter.formats.tensorflow.protos import GraphDef
from tests.attacks.attack import WEIGHTS, attack


def field(number: int, content: bytes) -> bytes:
    return sstable.encode_varint(number << 3 | 2) + sstable.encode_varint(len(content)) + content


def graph(*constants: tuple[str, tuple[int, ...], dict[str, Any]]) -> bytes:
    message = GraphDef()
    for name, shape, fields in constants:
        tensor = message.node.add(name=name, op="Const").attr["value"].tensor
        tensor.dtype = fields.pop("dtype", 1)
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        for key, value in fields.items():
            target = getattr(tensor, key)
            target.extend(value) if isinstance(value, list) else setattr(tensor, key, value)
        message.node.add(name=f"{name}/read", op="Identity", input=[name])
    return bytes(message.SerializeToString(deterministic=True))


def make_graph_attacks() -> None:
    attack(
        "shape-of-terabytes.pb",
        "one number that stands for 4 TiB",
        graph((WEIGHTS, (1 << 20, 1 << 20), {"float_val": [1.0]})),
    )
    attack(
        "sixty-times-64-megabytes.pb",
        "60 numbers that stand for 64 MB each",
        graph(*((f"{WEIGHTS}{n}", (1 << 24,), {"float_val": [1.0]}) for n in range(60))),
    )
    attack(
        "product-overflows.pb", "extents whose product is 0 modulo 2**64", graph((WEIGHTS, (1 << 62, 4), {}))
    )
    attack("negative-extent.pb", "extents of -1", graph((WEIGHTS, (-1, -1), {"float_val": [1.0]})))
    attack(
        "rank-of-thousands.pb",
        "a shape of 3,000 dimensions",
        graph((WEIGHTS, (1,) * 3000, {"float_val": [1.0]})),
    )
    attack(
        "empty-and-endless.pb",
        "a shape of no elements with an extent of 2**62",
        graph((WEIGHTS, (0, 1 << 62, 1 << 62), {})),
    )
    attack(
        "data-too-short.pb", "4 bytes for a shape of 12", graph((WEIGHTS, (3,), {"tensor_content": b"abcd"}))
    )
    attack(
        "name-twice.pb",
        "two constants of one name",
        graph((WEIGHTS, (1,), {"float_val": [1.0]}), (WEIGHTS, (1,), {"float_val": [2.0]})),
    )
    attack(
        "strings.pb", "a weight made of strings", graph((WEIGHTS, (1,), {"dtype": 7, "string_val": [b"x"]}))
    )
    attack("unknown-type.pb", "an element type of number 99", graph((WEIGHTS, (1,), {"dtype": 99})))
    attack("length-of-gigabytes.pb", "a node of 2**31 - 1 bytes in a file of 6", b"\x0a\xff\xff\xff\xff\x07")
    attack("length-varint-without-end.pb", "a length that never ends", b"\x0a" + b"\xff" * 4000)
    attack(
        "groups-without-end.pb", "50,000 groups that open and do not close", b"\x0a\x00" + b"\x0b" * 50_000
    )
    nested = b""
    for _ in range(3000):
        nested = field(5, nested)
    attack("nested-messages.pb", "messages nested 3,000 deep", field(1, nested))
    attack(
        "length-of-gigabytes.meta",
        "a first field of 4 GiB in a file of 9",
        b"\x0a\xff\xff\xff\xff\x0f\x12\x00\x00",
    )
    attack("without-weights.meta", "a graph that belongs to no checkpoint", field(1, b"") + field(2, b""))
