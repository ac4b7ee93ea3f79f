"""Checking the zip archive of a PyTorch file before PyTorch's own reader sees it.

PyTorch reads the archive in C++, Python with `zipfile`. This check refuses a file that two zip readers can
read as different archives, and anything that torch.save does not write. Layout and constants: PKWARE's
APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.3.16.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from converter.errors import SourceError
from converter.formats.limits import MAX_TENSORS
from converter.formats.source import DOWNLOAD_AGAIN
from converter.formats.torch.state_dict_pickle import MAX_PICKLE_BYTES
from converter.free_names import free_name, quoted, save_line

_END = struct.Struct("<4s4H2LH")
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_MAX_DIRECTORY_BYTES = 8 << 20  # 716 tensors take 0.1 MB
_ENCRYPTED = 1
_DAMAGED = "this is a damaged zip archive"


@dataclass(frozen=True, slots=True)
class Archive:
    """The content of a PyTorch file's archive.

    Attributes:
        sizes: The size in bytes of every member, by its name below the archive's one folder.
        starts: The position in the file of every member's first byte.
        pickle: The member data.pkl.
        byte_order: The member byteorder. Archives from before PyTorch 2.1 have none and are little-endian.
    """

    sizes: Mapping[str, int]
    starts: Mapping[str, int]
    pickle: bytes
    byte_order: bytes


def read_archive(path: Path, file: io.BufferedReader, *, verify: bool) -> Archive:
    """Check and read the archive of a PyTorch file.

    Args:
        path: The file, for messages.
        file: The same, open.
        verify: Whether to check the CRC-32 of every member as well.

    Raises:
        SourceError: The archive is damaged, or holds something that torch.save does not write.
        OSError: The file cannot be read.
    """
    size = file.seek(0, io.SEEK_END)
    directory = _find_directory(path, file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(path, members)
            starts = _check_extents(path, file, members, directory)
            damaged = archive.testzip() if verify else None
            folder = members[0].filename.partition("/")[0]
            sizes = {member.filename.partition("/")[2]: member.file_size for member in members}
            small = {name: sizes.get(name, 0) for name in ("data.pkl", "byteorder")}
            if max(small.values()) > MAX_PICKLE_BYTES:
                raise SourceError(path, "its pickle is larger than that of any state_dict")
            content = {name: archive.read(f"{folder}/{name}") for name in small if name in sizes}
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        RuntimeError,
        EOFError,
        struct.error,
    ) as error:
        raise SourceError(path, _DAMAGED, next_step=DOWNLOAD_AGAIN) from error
    if damaged is not None:
        raise SourceError(path, f"member {damaged!r} is corrupt (CRC-32)", next_step=DOWNLOAD_AGAIN)
    return Archive(sizes, starts, content["data.pkl"], content.get("byteorder", b"little"))


def _find_directory(path: Path, file: io.BufferedReader, size: int) -> int:
    """Find the start of the central directory; only the end records may follow it."""
    file.seek(max(0, size - _END_64.size - _END_64_LOCATOR.size - _END.size))
    tail = file.read()
    end = size - _END.size
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\5\6"):
        problem = f"{_DAMAGED} (it does not end with the end of its directory)"
        raise SourceError(path, problem, next_step=DOWNLOAD_AGAIN)
    *_, length, offset, comment = _END.unpack(tail[-_END.size :])
    tail = tail[: -_END.size]
    if tail[-_END_64_LOCATOR.size :].startswith(b"PK\6\7"):
        _, _, end, _ = _END_64_LOCATOR.unpack(tail[-_END_64_LOCATOR.size :])
        tail = tail[: -_END_64_LOCATOR.size]
        if end != size - _END.size - _END_64_LOCATOR.size - _END_64.size or not tail.startswith(b"PK\6\6"):
            raise SourceError(path, f"{_DAMAGED} (its end records disagree)", next_step=DOWNLOAD_AGAIN)
        *_, length_64, offset_64 = _END_64.unpack(tail)
        if length not in (length_64, 0xFFFFFFFF) or offset not in (offset_64, 0xFFFFFFFF):
            raise SourceError(path, f"{_DAMAGED} (its end records disagree)", next_step=DOWNLOAD_AGAIN)
        length, offset = length_64, offset_64
    if comment or offset + length != end:
        raise SourceError(path, f"{_DAMAGED} (its directory is not at its end)", next_step=DOWNLOAD_AGAIN)
    if length > _MAX_DIRECTORY_BYTES:
        raise SourceError(path, f"its zip directory has {length} bytes, more than torch.save writes")
    return int(offset)


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    _refuse_programs(path, {name.partition("/")[2] for name in names})
    if not any(name.partition("/")[2] == "data.pkl" for name in names):
        if names and all(name.endswith(".npy") for name in names):
            raise SourceError(
                path,
                "this is an archive of NumPy arrays (.npz), not a PyTorch file (it holds "
                f"{', '.join(names[:4])[:200]})",
                next_step="Give the checkpoint that it was made from",
            )
        raise SourceError(
            path,
            f"this is a zip archive, not a PyTorch file (it holds {', '.join(names[:4])[:200] or 'nothing'})",
            next_step=f"Run `unzip {quoted(path)} -d {quoted(free_name(path.stem))}` and give that folder",
        )
    if len(members) > 2 * MAX_TENSORS:
        raise SourceError(path, f"it holds {len(members)} members, more than torch.save writes")
    folders = {name.partition("/")[0] for name in names}
    # PyTorch ignores the case of a member's name, and takes the folder from the first member.
    if len({name.lower() for name in names}) != len(names) or len(folders) != 1:
        raise SourceError(
            path, "a member appears twice, or in a second folder, which torch.save does not write"
        )
    for member in members:
        shown = repr(member.filename[:200])
        # A compressed member may be a bomb.
        if member.compress_type != zipfile.ZIP_STORED:
            raise SourceError(path, f"member {shown} is compressed, which torch.save does not do")
        if member.flag_bits & _ENCRYPTED or member.orig_filename != member.filename:
            raise SourceError(
                path, f"member {shown} is encrypted or has two names, which torch.save does not write"
            )
        if member.file_size != member.compress_size:
            raise SourceError(path, f"{_DAMAGED} (member {shown} has two sizes)", next_step=DOWNLOAD_AGAIN)


def _refuse_programs(path: Path, members: set[str]) -> None:
    """Refuse TorchScript and exported programs by name: they hold a program beside the weights.

    Args:
        path: The file, for messages.
        members: The names of the archive's members below its folder.
    """
    load = ""
    if "data/weights/model_weights_config.json" in members or "archive_format" in members:
        what = "an exported program (torch.export)"
        load = f"torch.export.load({str(path)!r}).state_dict"
    elif "constants.pkl" in members or any(name.startswith("code/") for name in members):
        what = "a TorchScript file"
        if any(name.startswith("data/") for name in members):
            load = f'torch.jit.load({str(path)!r}, map_location="cpu").state_dict()'
    else:
        return
    if load:
        raise SourceError(
            path,
            f"this is {what}: it holds code beside the weights",
            next_step=f"If you trust it, write its weights with: {save_line(load)}",
        )
    raise SourceError(
        path,
        f"this is {what} whose weights have become constants without names (torch.jit.freeze)",
        next_step="Ask its author for the model from before it was frozen, or export it as ONNX and run "
        "`facenet-port audit` on that",
    )


def _check_extents(
    path: Path, file: io.BufferedReader, members: list[zipfile.ZipInfo], directory: int
) -> dict[str, int]:
    """Check that the local headers agree with the directory, and that no two members share bytes.

    Returns:
        The name of each member below the folder, to the position of its first byte.
    """
    spans = []
    starts = {}
    for member in members:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER.size)
        magic, _, flags, method, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        name = file.read(name_length)
        encoding = "utf-8" if flags & 0x800 else "cp437"
        if magic != b"PK\3\4" or method != zipfile.ZIP_STORED or name.decode(encoding) != member.filename:
            problem = f"{_DAMAGED} (the header of member {member.filename[:200]!r} contradicts the directory)"
            raise SourceError(path, problem, next_step=DOWNLOAD_AGAIN)
        start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        starts[member.filename.partition("/")[2]] = start
        spans.append((member.header_offset, start + member.file_size))
    spans.sort()
    spans.append((directory, directory))
    if spans[0][0] != 0 or any(end > start for (_, end), (start, _) in pairwise(spans)):
        raise SourceError(path, f"{_DAMAGED} (its members overlap)", next_step=DOWNLOAD_AGAIN)
    return starts
