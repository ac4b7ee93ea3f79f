"""Unpacking a zip that may have been made to do harm: all that it says is checked before it is unpacked."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from converter.atomic import sync
from converter.errors import SourceError

MAX_MEMBERS = 64  # the published archives hold four files and a folder
MAX_SIZE = 4 << 30  # bytes unpacked; a published checkpoint takes 0.2 GiB, one with optimiser slots 0.5 GiB
MAX_RATIO = 100  # bytes unpacked to bytes of the archive; weights hardly compress, a bomb reaches 1000
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""File names that Windows takes for devices, with any ending."""

_MAX_DIRECTORY = 1 << 20  # bytes of the central directory, which zipfile reads at once
_CHUNK = 1 << 20  # bytes
# PKWARE's APPNOTE.TXT (.ZIP file format specification 6.3): 4.3.7 local file header, 4.4.4 flag bits.
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")  # 4.3.16 end of central directory record, without its comment
_END_MAGIC = b"PK\x05\x06"
_COUNT_ELSEWHERE = 0xFFFF  # in the ZIP64 record
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # encrypted, strongly encrypted, its header masked
_SIZES_FOLLOW = 0x0008  # the local header leaves CRC and sizes to a descriptor behind the data
_PATCH = 0x0020
_UTF8 = 0x0800
_DOS_FOLDER = 0x10
_ZIP64 = 0xFFFFFFFF  # the size stands in an extra field
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What macOS adds to its archives: attributes and the look of a window.
_BY_MACOS = re.compile(r"__MACOSX/.*|(.*/)?\.DS_Store")


class _Reader(io.BufferedReader):
    """A file for zipfile, which would read a central directory of any size into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a table of contents of {size} bytes, more than {_MAX_DIRECTORY}")
        return super().read(size)


def unpack(archive: Path, folder: Path) -> dict[str, str]:
    """Unpack an archive of one model folder, or of bare files, into a new folder, flat.

    First every member is looked at, and one that is amiss refuses the whole archive: an absolute name, one
    with a drive, a backslash, `..`, a control character or a device's name; the same name twice, capitals
    apart; another number of members than stated; a name, a size or a checksum that the member's own header
    states otherwise; a link or another special file; encryption or an unusual compression; data that overlaps
    other data; files in several folders; more than `MAX_MEMBERS`, `MAX_SIZE` or `MAX_RATIO`. Then the files
    are written, and their sizes and CRC-32 compared with what was stated. `__MACOSX/` and `.DS_Store`, which
    macOS adds, are checked alike and left out.

    Args:
        archive: The zip.
        folder: The folder to create; its parent exists.

    Returns:
        Name of each file to its SHA-256, in the order of names.

    Raises:
        SourceError: The archive is damaged, or refused for one of the reasons above.
        OSError: A file cannot be read or written.

    Whatever is raised, no folder is left behind.
    """
    try:
        with _Reader(io.FileIO(archive)) as file, zipfile.ZipFile(file) as opened:
            files = _checked_files(archive, file, opened)
            folder.mkdir()
            try:
                digests = {
                    name: _write(archive, opened, info, folder / name) for name, info in sorted(files.items())
                }
                sync(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except (
        zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error, zlib.error
    ) as error:  # fmt: skip
        raise SourceError(archive, f"a damaged zip archive ({error})", next_step="Get it again") from error
    return digests


def _checked_files(
    archive: Path, file: io.BufferedReader, opened: zipfile.ZipFile
) -> dict[str, zipfile.ZipInfo]:
    """Every file by its name without the folder, after all that can be checked before unpacking."""
    infos = opened.infolist()
    if len(infos) > MAX_MEMBERS:
        raise _refused(archive, f"{len(infos)} members, more than {MAX_MEMBERS}")
    for info in infos:
        for problem in _problems(info):
            raise _refused(archive, f"member {info.orig_filename!r} {problem}")
    _check_count(archive, file, opened)
    size, packed = sum(info.file_size for info in infos), archive.stat().st_size
    if size > MAX_SIZE:
        raise _refused(archive, f"{size} bytes when unpacked, more than {MAX_SIZE}")
    if size > MAX_RATIO * packed:
        raise _refused(archive, f"{packed} bytes that become {size}, more than {MAX_RATIO} times as many")
    _check_local_headers(archive, file, opened)
    files: dict[str, zipfile.ZipInfo] = {}
    same: dict[str, str] = {}
    for info in infos:
        if info.is_dir() or _BY_MACOS.fullmatch(info.filename):
            continue
        name = info.filename.rpartition("/")[2]
        if _folded(name) in same:
            raise _refused(archive, f"members {same[_folded(name)]!r} and {info.filename!r} have one name")
        same[_folded(name)] = info.filename
        files[name] = info
    if not files:
        raise _refused(archive, "no file in it")
    folders = sorted({info.filename.rpartition("/")[0] for info in files.values()})
    if len(folders) > 1 or "/" in folders[0]:
        raise _refused(archive, f"files that are not in one folder, but in {', '.join(map(repr, folders))}")
    return files


def _check_count(archive: Path, file: io.BufferedReader, opened: zipfile.ZipFile) -> None:
    """Compare the number of members with the one stated: zipfile takes an entry for another one's comment."""
    file.seek(-_END.size - len(opened.comment), io.SEEK_END)
    magic, _, _, _, count, *_ = _END.unpack(file.read(_END.size))
    if magic != _END_MAGIC or count not in (len(opened.infolist()), _COUNT_ELSEWHERE):
        raise _refused(archive, f"{count} members stated, and {len(opened.infolist())} found")


def _refused(archive: Path, problem: str) -> SourceError:
    return SourceError(
        archive,
        problem,
        next_step="Nothing was unpacked; do not use this archive unless you know who made it",
    )


def _folded(name: str) -> str:
    """The name as a file system sees it that knows no capitals and composes accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _problems(info: zipfile.ZipInfo) -> Iterable[str]:
    """What is amiss with a member as the table of contents describes it."""
    name = info.orig_filename  # `filename` ends at the first NUL
    parts = name.removesuffix("/").split("/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if name.startswith("/"):
        yield "has an absolute name"
    if "\\" in name or ":" in name:
        yield "has a backslash or a drive in its name"
    if any(unicodedata.category(character) == "Cc" for character in name):
        yield "has a control character in its name"
    if ".." in parts:
        yield "leads out of its folder"
    if any(part in ("", ".") or part != part.rstrip(" .") or len(part.encode()) > 255 for part in parts):
        yield "has a name that no file can have everywhere"
    if any(DEVICE_NAME.fullmatch(part) for part in parts):
        yield "has the name of a device"
    if info.flag_bits & _ENCRYPTED:
        yield "is encrypted"
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        yield "is a link or another special file"
    if bool(info.file_size) if info.is_dir() else info.external_attr & _DOS_FOLDER:
        yield "is a file and a folder at once"
    if info.compress_type not in _METHODS or info.flag_bits & _PATCH or info.volume:
        yield "is compressed or split in a way that is not read"
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        yield "is stored as it is, and states two sizes"


def _check_local_headers(archive: Path, file: io.BufferedReader, opened: zipfile.ZipFile) -> None:
    """Compare each member's own header with the table of contents, and the extents with each other."""
    extents = []
    for info in opened.infolist():
        member = f"member {info.filename!r}"
        if not 0 <= info.header_offset <= opened.start_dir - _LOCAL_HEADER.size:
            raise _refused(archive, f"{member} lies outside the archive")
        file.seek(info.header_offset)
        magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL_HEADER.unpack(
            file.read(_LOCAL_HEADER.size)
        )
        name = file.read(name_length).decode("utf-8" if flags & _UTF8 else "cp437")
        if magic != _LOCAL_MAGIC or name != info.orig_filename or method != info.compress_type:
            raise _refused(archive, f"{member} has a header that is not its own")
        sizes = (packed, size)
        stated = (crc, *sizes) == (info.CRC, info.compress_size, info.file_size)
        if not stated and not flags & _SIZES_FOLLOW and _ZIP64 not in sizes:
            raise _refused(archive, f"{member} has a header that states another size or checksum")
        start = info.header_offset
        extents.append((start, file.tell() + extra_length + info.compress_size, info.filename))
    end, previous = 0, ""
    for start, next_end, name in sorted(extents):
        if start < end:
            raise _refused(archive, f"members {previous!r} and {name!r} overlap")
        end, previous = next_end, name
    if end > opened.start_dir:
        raise _refused(archive, f"member {previous!r} overlaps the table of contents")


def _write(archive: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> str:
    """Write one file and wait until it is on the disk; returns its SHA-256. zipfile compares the CRC-32."""
    hasher, size = hashlib.sha256(), 0
    with opened.open(info) as source, path.open("xb") as target:
        while chunk := source.read(_CHUNK):  # never more than the stated size in all
            size += len(chunk)
            hasher.update(chunk)
            target.write(chunk)
    if size != info.file_size:
        raise _refused(archive, f"member {info.filename!r} states {info.file_size} bytes and has {size}")
    sync(path)
    return hasher.hexdigest()
