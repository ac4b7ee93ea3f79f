"""Attacks on the reader of .safetensors files."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests.attacks.attack import KEY, attack


def safetensors(text: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def described(shape: list[int], offsets: list[int], dtype: str = "F32", **more: Any) -> bytes:
    return json.dumps({KEY: {"dtype": dtype, "shape": shape, "data_offsets": offsets}, **more}).encode()


def make_safetensors_attacks() -> None:
    """Add the attacks of this format: a flat list, over 60 lines because it has one call for each."""
    attack(
        "header-without-end.safetensors", "a header of 2**63 - 1 bytes", safetensors(b"{}", length=2**63 - 1)
    )
    attack(
        "header-of-99-megabytes.safetensors",
        "a header of 99 MB in a file of 10",
        safetensors(b"{}", length=99 << 20),
    )
    attack(
        "shape-of-terabytes.safetensors",
        "a shape of 4 TiB, and offsets that agree",
        safetensors(described([1 << 20, 1 << 20], [0, 1 << 42])),
    )
    attack(
        "product-overflows.safetensors",
        "extents whose product is 0 modulo 2**64",
        safetensors(described([1 << 62, 4], [0, 0])),
    )
    attack(
        "empty-and-endless.safetensors",
        "a shape of no elements with an extent of 2**64 - 1",
        safetensors(described([0, 2**64 - 1], [0, 0])),
    )
    attack(
        "rank-of-thousands.safetensors",
        "a shape of 3,000 dimensions",
        safetensors(described([1] * 3000, [0, 4]), bytes(4)),
    )
    overlap = {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}
    attack(
        "overlap.safetensors",
        "two tensors that share their bytes",
        safetensors(described([2], [0, 8], other=overlap), bytes(12)),
    )
    attack(
        "hole.safetensors",
        "bytes between the tensors, for another file to hide in",
        safetensors(described([2], [0, 8], other=overlap | {"data_offsets": [16, 24]}), bytes(24)),
    )
    attack(
        "backwards.safetensors",
        "a tensor that ends before it starts",
        safetensors(described([2], [8, 0]), bytes(8)),
    )
    twice = described([1], [0, 4])
    attack(
        "key-twice.safetensors",
        "one name for two tensors",
        safetensors(twice[:-1] + b", " + described([1], [4, 8])[1:], bytes(8)),
    )
    attack("nested-json.safetensors", "JSON nested 50,000 deep", safetensors(b'{"a":' * 50_000))
    attack(
        "not-utf-8.safetensors",
        "a name that is not UTF-8",
        safetensors(described([1], [0, 4]).replace(b"conv2d", b"\xff\xfe\xfd", 1), bytes(4)),
    )
    attack(
        "unknown-type.safetensors",
        "an element type of 4 bits",
        safetensors(described([2], [0, 1], "F4"), bytes(1)),
    )
