"""Unpacking into a new folder: the zip of a checkpoint whole, or single files of a package.

The caller has compared the archive's SHA-256. The checks of names, links and sizes here keep every file in
its folder and of a sane size, whoever made the archive. zipfile compares the CRC-32.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from converter.atomic import sync
from converter.errors import SourceError
from converter.stray_files import is_stray

MAX_MEMBERS = 64  # the published archives hold four files and a folder
MAX_SIZE = 4 << 30  # bytes unpacked; a published checkpoint takes 0.2 GiB, one with optimiser slots 0.5 GiB
MAX_RATIO = 100  # bytes unpacked to bytes of the archive; weights hardly compress, a bomb reaches 1000
_CHUNK = 1 << 20  # bytes
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError, EOFError, ValueError,
    struct.error, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
)  # fmt: skip
# A file, in a folder or in none. Any other slash, a backslash, a drive's colon or a control character leads
# outside the folder on some system.
_NAME = re.compile(r"((?P<folder>[^/\\:\x00-\x1f\x7f]+)/)?(?P<file>[^/\\:\x00-\x1f\x7f]+)")


def unpack(archive: Path, folder: Path) -> dict[str, str]:
    """Unpack an archive of one model folder, or of bare files, into a new folder, flat.

    Stray files, such as those that macOS adds, are left out. Before anything is written, the archive is
    refused for

    - a name that leads outside the folder or into a second one,
    - two names that differ only in capitals,
    - a link or another special file,
    - a member with a comment, since zipfile takes the next member for one,
    - more than `MAX_MEMBERS` members, `MAX_SIZE` bytes or a ratio of `MAX_RATIO`.

    Args:
        archive: The zip.
        folder: The folder to create; its parent exists. It is removed if anything fails.

    Returns:
        Name of each file to its SHA-256, in the order of names.

    Raises:
        SourceError: The archive is damaged or refused.
        OSError: A file cannot be read or written.
    """
    digests = {}
    with _filling(folder, archive), zipfile.ZipFile(archive) as opened:
        for name, info in sorted(_checked_files(archive, opened).items()):
            with opened.open(info) as content:
                digests[name] = _copy(archive, info.filename, content, info.file_size, folder / name)
    return digests


def extract(archive: Path, members: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Extract single files of a wheel or a source archive into a new folder, flat.

    Nothing else in the archive is written, and nothing of it is run.

    Args:
        archive: A zip (wheel), or a tar with any compression that Python knows.
        members: Path of each file in the archive to its SHA-256.
        folder: The folder to create; its parent exists. It is removed if anything fails.

    Returns:
        Name of each file, without its folder in the archive, to its SHA-256.

    Raises:
        SourceError: The archive is damaged, or a member is missing, no regular file, too large or another
            file.
        OSError: A file cannot be read or written.
    """
    digests: dict[str, str] = {}
    with _filling(folder, archive):
        reader = _zip_members if zipfile.is_zipfile(archive) else _tar_members
        for member, size, content in reader(archive, members):
            name = member.rpartition("/")[2]
            digests[name] = _copy(archive, member, content, size, folder / name)
            if digests[name] != members[member]:
                raise SourceError(
                    archive,
                    f"the SHA-256 of its member {member!r} is {digests[name]}, not {members[member]}",
                    next_step="Correct the catalog's entry",
                )
        if len(digests) < len(members):
            missing = next(member for member in members if member.rpartition("/")[2] not in digests)
            raise SourceError(
                archive, f"it has no member {missing!r}", next_step="Correct the catalog's entry"
            )
    return digests


@contextmanager
def _filling(folder: Path, archive: Path) -> Iterator[None]:
    """Create a folder for the files of an archive, which is removed if anything fails.

    Raises:
        SourceError: The archive is damaged.
    """
    folder.mkdir()
    try:
        yield
        sync(folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, _DAMAGED):
            raise SourceError(archive, f"a damaged archive ({error})", next_step="Get it again") from error
        raise


def _zip_members(archive: Path, members: Mapping[str, str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield the path, size and content of each member that is asked for."""
    with zipfile.ZipFile(archive) as opened:
        for member in members:
            if member not in opened.NameToInfo:
                continue
            info = opened.getinfo(member)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise _refused(archive, f"member {member!r} is a link or another special file")
            with opened.open(info) as content:
                yield member, info.file_size, content


def _tar_members(archive: Path, members: Mapping[str, str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    missing, total = set(members), 0
    with tarfile.open(archive) as opened:
        for info in opened:
            total += info.size
            if total > MAX_SIZE:
                raise _refused(archive, f"more than {MAX_SIZE} bytes when unpacked")
            if info.name not in missing:
                continue
            content = opened.extractfile(info) if info.isreg() else None
            if content is None:
                raise _refused(archive, f"member {info.name!r} is a link or another special file")
            yield info.name, info.size, content
            missing.remove(info.name)
            if not missing:
                return  # the rest would only be decompressed


def _checked_files(archive: Path, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Map each file's name without the folder to its member, or refuse the archive."""
    infos = opened.infolist()
    if len(infos) > MAX_MEMBERS:
        raise _refused(archive, f"{len(infos)} members, more than {MAX_MEMBERS}")
    size, packed = sum(info.file_size for info in infos), archive.stat().st_size
    if size > MAX_SIZE:
        raise _refused(archive, f"{size} bytes when unpacked, more than {MAX_SIZE}")
    if size > MAX_RATIO * packed:
        raise _refused(archive, f"{packed} bytes that become {size}, more than {MAX_RATIO} times as many")
    files: dict[str, zipfile.ZipInfo] = {}
    folders, names = set(), set()
    for info in infos:
        for problem in _problems(info):
            raise _refused(archive, f"member {info.orig_filename!r} {problem}")
        if info.is_dir():
            continue
        if is_stray(info.filename):
            _check_stray(opened, info)
            continue
        folder, _, name = info.filename.rpartition("/")
        if name.casefold() in names:
            raise _refused(archive, f"two members are called {name!r}, capitals apart")
        names.add(name.casefold())
        folders.add(folder)
        files[name] = info
    if not files:
        raise _refused(archive, "it holds no file")
    if len(folders) > 1:
        raise _refused(archive, f"files in several folders: {', '.join(map(repr, sorted(folders)))}")
    return files


def _problems(info: zipfile.ZipInfo) -> Iterator[str]:
    """Yield the reasons to refuse a member."""
    name = info.orig_filename  # zipfile cuts `filename` at the first NUL
    match = _NAME.fullmatch(name.removesuffix("/"))
    plain = match is not None and not {".", ".."} & set(match.groupdict().values())
    if not plain and not _is_stray_inside(name):
        yield "has a name that leads outside the folder, or into a second one"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        yield "is a link or another special file"
    if info.comment:
        yield "has a comment, which may hide another member"
    if info.header_offset < 0:
        yield "lies outside the archive"


def _is_stray_inside(name: str) -> bool:
    """Return whether a member is a stray file inside the folder: it is not written, so it may lie deeper."""
    inside = all(part not in ("", ".", "..") for part in name.removesuffix("/").split("/"))
    return inside and is_stray(name) and not {"\\", ":", "\0"} & set(name)


def _refused(archive: Path, problem: str) -> SourceError:
    return SourceError(
        archive,
        problem,
        next_step="Nothing was unpacked; do not use this archive unless you know who made it",
    )


def _check_stray(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Read a stray file, which zipfile checks: a damaged name may look like that of one."""
    with opened.open(info) as content:
        while content.read(_CHUNK):
            pass


def _copy(archive: Path, member: str, content: IO[bytes], stated: int, path: Path) -> str:
    """Write one file through to the disk and return its SHA-256."""
    if stated > MAX_SIZE:
        raise _refused(archive, f"member {member!r} has {stated} bytes, more than {MAX_SIZE}")
    hasher, size = hashlib.sha256(), 0
    with path.open("xb") as target:
        while chunk := content.read(_CHUNK):  # never more than the stated size in all
            size += len(chunk)
            hasher.update(chunk)
            target.write(chunk)
    if size != stated:
        raise _refused(archive, f"member {member!r} states {stated} bytes and has {size}")
    sync(path)
    return hasher.hexdigest()
