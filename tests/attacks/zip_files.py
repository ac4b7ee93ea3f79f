"""Attacks on the unpacking of zip archives."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile

from tests.attacks.attack import MARK, attack


def archive(members: list[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of these members, two of which may have one name."""
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w", method) as opened:
        for name, content in members:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            opened.writestr(info, content, method)
    return file.getvalue()


def member(name: str, *, mode: int = 0, flags: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.flag_bits |= flags
    return info


def make_zip_attacks() -> None:
    small: list[tuple[str | zipfile.ZipInfo, bytes]] = [("m/m.pb", b"weights")]
    attack("leads-out.zip", "a member called ../../executed", archive([*small, (f"../../{MARK}", b"x")]))
    attack("absolute.zip", "a member called /tmp/executed", archive([*small, (f"/tmp/{MARK}", b"x")]))
    attack("backslash.zip", "a member called ..\\executed", archive([*small, (f"m/..\\{MARK}", b"x")]))
    link = member("m/link", mode=stat.S_IFLNK | 0o777)
    attack(
        "link.zip",
        "a symbolic link to /etc, and a member in it",
        archive([*small, (link, b"/etc"), ("m/link/x", b"x")]),
    )
    attack(
        "device.zip",
        "a character device",
        archive([*small, (member("m/tty", mode=stat.S_IFCHR | 0o666), b"")]),
    )
    attack("capitals.zip", "two names that differ by capitals only", archive([*small, ("m/M.PB", b"other")]))
    attack("name-twice.zip", "one name for two members", archive([*small, ("m/m.pb", b"other")]))
    attack("members-without-end.zip", "300 members", archive([(f"m/{n}.pb", b"") for n in range(300)]))
    attack("two-folders.zip", "two checkpoints in two folders", archive([*small, ("n/n.pb", b"other")]))
    attack(
        "bomb.zip",
        "8 MB of zeros in 8 KB",
        archive([("m/m.pb", bytes(8 << 20))], zipfile.ZIP_DEFLATED),
        exact=False,
    )
    whole = archive([("m/m.pb", b"weights"), ("m/m.meta", b"graph")])
    directory = whole.index(b"PK\1\2")
    second = whole.index(b"PK\1\2", directory + 1)
    attack(
        "encrypted.zip",
        "a member that is said to be encrypted",
        whole[: directory + 8] + b"\1" + whole[directory + 9 :],
    )
    attack(
        "overlap.zip",
        "two members that share their bytes",
        whole[: second + 42] + bytes(4) + whole[second + 46 :],
    )
    attack(
        "swallowed.zip",
        "a member that hides in the comment of the one before it",
        whole[: directory + 32] + struct.pack("<H", len(whole) - 22 - second) + whole[directory + 34 :],
    )
    attack(
        "lies-about-its-size.zip",
        "a member of 7 bytes that says it has 2**32 - 2",
        whole[: directory + 24] + b"\xfe\xff\xff\xff" + whole[directory + 28 :],
    )
    attack(
        "another-name-inside.zip",
        "a member whose own header has another name",
        whole.replace(b"m/m.pb", b"m/x.pb", 1),
    )
