"""Attacks on the reader of PyTorch files: .pt."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.attacks.attack import KEY, MARK, attack
from tests.attacks.zip_files import archive


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.identity if isinstance(obj, Storage) else None


@dataclass
class Storage:
    """A storage as torch.save refers to it."""

    identity: tuple[object, ...]


@dataclass
class Call:
    """Pickles as the call of a function."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def dumps(content: object) -> bytes:
    file = io.BytesIO()
    Pickler(file, 2).dump(content)
    return file.getvalue()


def tensor(size: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0, numel: int = 4) -> Call:
    storage = Storage(("storage", torch.FloatStorage, "0", "cpu", numel))
    return Call(torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, {}))


def saved(content: object, *, data: bytes = bytes(16), raw: bytes | None = None) -> bytes:
    """A file as torch.save writes it, of any pickle."""
    pickled = dumps(content) if raw is None else raw
    return archive(
        [
            ("archive/data.pkl", pickled),
            ("archive/byteorder", b"little"),
            ("archive/data/0", data),
            ("archive/version", b"3\n"),
        ]
    )


def legacy(raw: bytes) -> bytes:
    """The same in the format before PyTorch 1.6."""
    information = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    start = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, information)]
    return b"".join(start) + raw + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16)


def make_pytorch_attacks() -> None:
    """Add the attacks of this format: a flat list, over 60 lines because it has one call for each."""
    run = dumps({KEY: Call(os.system, (f"touch {MARK}",))})
    evaluate = dumps({KEY: Call(eval, (f"open({MARK!r}, 'w')",))})
    attack("runs-a-command.pt", "a pickle that runs a shell command", saved(None, raw=run))
    attack("runs-a-command-legacy.pt", "the same in the format before PyTorch 1.6", legacy(run))
    attack("evaluates.pt", "a pickle that evaluates Python", saved(None, raw=evaluate))
    attack("bare-pickle.pt", "a bare pickle that evaluates Python", evaluate)
    attack(
        "text-pickle.pth",
        "a pickle of protocol 0 that runs a command",
        f"cos\nsystem\n(S'touch {MARK}'\ntR.".encode(),
    )
    attack(
        "stride-0.pt",
        "a stride of 0 that makes 4 TiB of 16 bytes",
        saved({KEY: tensor((1 << 20, 1 << 20), (0, 0))}),
    )
    attack(
        "larger-than-its-storage.pt",
        "a shape of 4 TiB over 16 bytes",
        saved({KEY: tensor((1 << 20, 1 << 20), (1 << 20, 1))}),
    )
    attack(
        "offset-past-the-end.pt",
        "a tensor that starts 2**61 elements into 16 bytes",
        saved({KEY: tensor((2,), (1,), offset=1 << 61)}),
    )
    attack("negative-stride.pt", "a stride of -1", saved({KEY: tensor((2,), (-1,))}))
    attack(
        "storage-of-terabytes.pt",
        "a storage of 2**40 elements in 16 bytes",
        saved({KEY: tensor((4,), (1,), numel=1 << 40)}),
    )
    attack(
        "missing-storage.pt",
        "a storage that is not in the archive",
        archive([("archive/data.pkl", dumps({KEY: tensor((4,), (1,))})), ("archive/version", b"3\n")]),
    )
    attack(
        "storage-of-terabytes-legacy.pt",
        "a storage of 2**62 elements",
        legacy(dumps({KEY: tensor((4,), (1,), numel=1 << 62)})),
    )
    attack(
        "string-of-gigabytes.pt",
        "a name of 2**31 - 1 bytes in a pickle of 20",
        legacy(b"\x80\x02}X\xff\xff\xff\x7fabc"),
    )
    attack(
        "memo-of-billions.pt", "a memo of 2**32 - 1 entries", saved(None, raw=b"\x80\x02}r\xff\xff\xff\xff.")
    )
    deep = b"\x80\x02" + b"]" * 40_000 + b"a" * 39_999 + b"."
    attack("nested-lists.pt", "lists nested 40,000 deep", saved(None, raw=deep))
    laughs = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([n]) + b"(" + (b"h" + bytes([n - 1])) * 10 + b"e" for n in range(1, 30)
    )
    attack("billion-laughs.pt", "10**29 references to one list", saved(None, raw=laughs + b"."))
    doubled = b"".join(
        b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) + b"0" for n in range(60)
    )
    attack(
        "tuple-of-tuples.pt",
        "a key of 2**60 elements, by doubling a tuple 60 times, to be hashed",
        saved(None, raw=b"\x80\x02}(Nq\x000" + doubled + b"h\x3cNu."),
    )
    attack("flat-mapping-of-other-things.pt", "a state_dict of numbers", saved({KEY: 7}))
    attack(
        "compressed-bomb.pt",
        "4 MB of zeros as a compressed member of 4 KB",
        archive([("archive/data.pkl", dumps({})), ("archive/data/0", bytes(4 << 20))], zipfile.ZIP_DEFLATED),
        exact=False,
    )
    attack(
        "two-pickles.pt",
        "two members called data.pkl, the second of which runs a command",
        archive(
            [
                ("archive/data.pkl", dumps({KEY: tensor((4,), (1,))})),
                ("archive/data.pkl", run),
                ("archive/data/0", bytes(16)),
                ("archive/version", b"3\n"),
            ]
        ),
    )
    whole = saved({KEY: tensor((4,), (1,))})
    attack("directory-past-the-end.pt", "a table of contents at 4 GiB", whole[:-6] + b"\xff\xff\xff\xfe\0\0")
    attack(
        "wrong-crc.pt",
        "weights that are not what the CRC-32 was made of",
        saved({KEY: tensor((4,), (1,))}, data=b"0123456789abcdef").replace(b"0123", b"9123", 1),
    )
