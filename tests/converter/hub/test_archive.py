"""Usual zip archives, and archives with harmful names, links or sizes."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import SourceError
from converter.hub import archive as module
from converter.hub.archive import unpack

NAME = "20180402-114759"
FILES = {
    f"{NAME}.pb": bytes(range(256)) * 40,
    f"model-{NAME}.ckpt-275.data-00000-of-00001": b"weights" * 3,
    f"model-{NAME}.ckpt-275.index": b"",
    f"model-{NAME}.meta": b"graph",
}
LOCAL_CRC, LOCAL_SIZE = 14, 22  # offsets in a local file header
CENTRAL_CRC, CENTRAL_SIZE = 16, 24  # offsets in an entry of the table of contents


def member(
    name: str, mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_DEFLATED
) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = method
    return info


def zipped(*members: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return buffer.getvalue()


def patched(data: bytes, offset: int, layout: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, value)
    return bytes(changed)


def central(data: bytes) -> int:
    """The offset of the table of contents."""
    return data.index(b"PK\x01\x02")


def refuses(tmp_path: Path, data: bytes, says: str) -> None:
    """Check that the archive is not unpacked, and that the message states the reason."""
    path = tmp_path / "archive.zip"
    path.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        unpack(path, tmp_path / "model")
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["archive.zip"]


def unpacks(tmp_path: Path, data: bytes, files: dict[str, bytes]) -> None:
    """Check that exactly these files are unpacked, with these digests."""
    path = tmp_path / "archive.zip"
    path.write_bytes(data)
    digests = unpack(path, tmp_path / "model")
    assert {entry.name: entry.read_bytes() for entry in (tmp_path / "model").iterdir()} == files
    assert digests == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert list(digests) == sorted(files)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["archive.zip", "model"]


# What people have


def test_an_archive_laid_out_like_the_published_ones(tmp_path) -> None:
    folder = (member(f"{NAME}/", stat.S_IFDIR | 0o755, zipfile.ZIP_STORED), b"")
    unpacks(tmp_path, zipped(folder, *((f"{NAME}/{name}", data) for name, data in FILES.items())), FILES)


def test_bare_files(tmp_path) -> None:
    unpacks(tmp_path, zipped(*FILES.items()), FILES)


def test_stored_and_streamed_members_and_accents(tmp_path) -> None:
    files = {"modèle.pb": b"graph" * 99, "model.meta": b"meta"}

    class Stream(io.RawIOBase):  # cannot be sought in: zipfile then writes sizes behind the data
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            self.data += bytes(data)
            return len(data)

    stream = Stream()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr(member("modèle.pb"), files["modèle.pb"])
        opened.writestr(member("model.meta", method=zipfile.ZIP_STORED), files["model.meta"])
    unpacks(tmp_path, stream.data, files)


def test_what_macos_adds_is_left_out(tmp_path) -> None:
    added = [(f"__MACOSX/{NAME}/._{NAME}.pb", b"attributes"), (f"{NAME}/.DS_Store", b"window")]
    unpacks(tmp_path, zipped(*((f"{NAME}/{name}", data) for name, data in FILES.items()), *added), FILES)


def test_a_damaged_name_does_not_make_a_file_a_stray_one(tmp_path) -> None:
    data = bytearray(zipped(*((f"{NAME}/{name}", data) for name, data in FILES.items())))
    start = data.rindex(f"{NAME}/".encode()) + len(NAME) + 1  # in the directory, not before the content
    data[start : start + 1] = b"."
    refuses(tmp_path, bytes(data), "File name in directory")


def test_a_failure_to_write_leaves_nothing(tmp_path, monkeypatch) -> None:
    (tmp_path / "archive.zip").write_bytes(zipped(*FILES.items()))

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(tmp_path / "archive.zip", tmp_path / "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["archive.zip"]


# Names


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../outside",
        "model/../../outside",
        "model/..",
        "..\\outside",
        "C:outside",
        "C:/outside",
        "model/a:stream",
        "model//a.pb",
        "model/./a.pb",
        "model/a\n.pb",
        "one/two/a.pb",
        "",
    ],
)
def test_names_that_lead_elsewhere(name, tmp_path) -> None:
    message = "leads outside the folder, or into a second one"
    refuses(tmp_path, zipped((member(name), b"data")), message)
    refuses(tmp_path, zipped((f"{NAME}.pb", b"graph"), (member(name), b"data")), message)


def test_a_name_with_a_nul(tmp_path) -> None:
    refuses(tmp_path, zipped(("model/aX.pb", b"data")).replace(b"aX.pb", b"a\0.pb"), "leads outside")


def test_files_in_several_folders(tmp_path) -> None:
    refuses(tmp_path, zipped(("one/a.pb", b"1"), ("two/b.pb", b"2")), "several folders: 'one', 'two'")
    refuses(tmp_path, zipped(("one/a.pb", b"1"), ("b.pb", b"2")), "several folders: '', 'one'")


@pytest.mark.parametrize("other", ["model/a.pb", "model/A.pb", "other/a.pb"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(other, tmp_path) -> None:
    refuses(tmp_path, zipped(("model/a.pb", b"1"), (other, b"2")), "are called")


def test_a_name_that_the_local_header_does_not_have(tmp_path) -> None:
    data = zipped(("model/a.pb", b"data"))
    refuses(tmp_path, data.replace(b"model/a.pb", b"../../a.pb", 1), "differ")


# Kinds


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_special_files(kind, tmp_path) -> None:
    refuses(
        tmp_path, zipped((member("model/a.pb", kind | 0o777), b"/etc/passwd")), "a link or another special"
    )


def test_a_file_that_says_it_is_a_folder(tmp_path) -> None:
    refuses(tmp_path, zipped((member("model/a.pb", stat.S_IFDIR | 0o755), b"data")), "special file")


# Sizes


def test_a_bomb(tmp_path) -> None:
    refuses(tmp_path, zipped(("model/a.pb", bytes(4 << 20))), "more than 100 times as many")


def test_more_than_is_ever_unpacked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_SIZE", 1000)
    assert unpack_size(tmp_path, 1000) == 1000
    refuses(tmp_path, zipped(("model/a.pb", bytes(range(256)) * 3), ("model/b.pb", bytes(233))), "than 1000")


def unpack_size(tmp_path: Path, size: int) -> int:
    folder = tmp_path / "fits"
    folder.mkdir()
    (folder / "archive.zip").write_bytes(zipped(("model/a.pb", b"x" * size)))
    unpack(folder / "archive.zip", folder / "model")
    unpacked = (folder / "model" / "a.pb").stat().st_size
    for path in (folder / "model" / "a.pb", folder / "archive.zip"):
        path.unlink()
    (folder / "model").rmdir()
    folder.rmdir()
    return unpacked


def test_too_many_members(tmp_path) -> None:
    refuses(tmp_path, zipped(*((f"model/{count}", b"") for count in range(65))), "65 members")


@pytest.mark.parametrize("stated", [10, 5000])
def test_a_size_that_is_stated_wrong_everywhere(stated, tmp_path) -> None:
    data = zipped(("model/a.pb", bytes(range(250)) * 4))
    data = patched(patched(data, LOCAL_SIZE, "<L", stated), central(data) + CENTRAL_SIZE, "<L", stated)
    refuses(tmp_path, data, "Bad CRC-32" if stated == 10 else "states 5000 bytes and has 1000")


def test_a_checksum_that_is_wrong_everywhere(tmp_path) -> None:
    data = zipped(("model/a.pb", b"data" * 99), ("model/b.pb", b"fine"))
    data = patched(patched(data, LOCAL_CRC, "<L", 1), central(data) + CENTRAL_CRC, "<L", 1)
    refuses(tmp_path, data, "Bad CRC-32")


# Damage


def test_no_zip_an_empty_one_and_a_part_of_one(tmp_path) -> None:
    refuses(tmp_path, b"", "damaged archive")
    refuses(tmp_path, b"<html>quota</html>", "damaged archive")
    refuses(tmp_path, zipped(), "it holds no file")
    refuses(tmp_path, zipped((member(f"{NAME}/", stat.S_IFDIR | 0o755), b"")), "it holds no file")
    refuses(tmp_path, zipped(*FILES.items())[:-30], "damaged archive")


WHOLE = zipped(*((f"{NAME}/{name}", data) for name, data in FILES.items()))


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_any_flipped_byte_is_refused_or_changes_nothing(tmp_path_factory, data) -> None:
    position = data.draw(st.integers(0, len(WHOLE) - 1))
    changed = bytearray(WHOLE)
    changed[position] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("flip")
    (folder / "archive.zip").write_bytes(changed)
    try:
        unpack(folder / "archive.zip", folder / "model")
    except SourceError:
        assert [entry.name for entry in folder.iterdir()] == ["archive.zip"]
    else:  # a date, an attribute
        assert {entry.name: entry.read_bytes() for entry in (folder / "model").iterdir()} == FILES
