"""Files that systems and tools leave in folders and archives are no checkpoints and no photographs."""

import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checks.core.photographs import find_photographs
from converter.__main__ import main
from converter.errors import SourceError
from converter.formats.detect import open_source
from converter.hub import cache
from converter.hub.archive import unpack
from converter.hub.catalog_entry import ArchiveSource
from converter.stray_files import is_stray

APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100)
LEFT = [
    "._{}",
    ".{}.swp",
    "{}~",
    "{}.tmp",
    "{}.part",
    "{}.crdownload",
    ".~lock.{}#",
    "#{}#",
    "~${}",
    "{}.filepart",
    ".ipynb_checkpoints/{}",
    "__MACOSX/._{}",
    "@eaDir/{}",
    "$RECYCLE.BIN/{}",
    "RECYCLER/{}",
    "found.000/{}",
    "@Recycle/{}",
    "@Recently-Snapshot/{}",
    "@tmp/{}",
    "@GMT-2026.01.02-03.04.05/{}",
    "#snapshot/{}",
    "~snapshot/{}",
    "Network Trash Folder/{}",
    "Temporary Items/{}",
    ".Temporary Items/{}",
    "~{}",
    "{}.sb-1234ab-Xy12ab",
]
BY_SYSTEMS = [".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r", ".nfs0000000001", ".directory"]


def leave(folder: Path, *names: str) -> list[Path]:
    """Put what systems and tools leave beside files of these names, and return it."""
    paths = [folder / pattern.format(name) for pattern in LEFT for name in names]
    paths += [folder / name for name in BY_SYSTEMS]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(APPLE_DOUBLE)
    return paths


def test_a_training_folder_is_read_without_what_is_left_in_it(checkpoint, tmp_path: Path) -> None:
    for path in (checkpoint.index, checkpoint.data):
        shutil.copy(path, tmp_path / path.name)
    leave(tmp_path, checkpoint.index.name, checkpoint.data.name, "checkpoint", "model.pb")
    output = tmp_path / "out"
    output.mkdir()
    assert main([str(tmp_path), "-o", str(output / "w.pt"), "--quiet"]) == 0
    assert main([str(tmp_path), "-o", str(output), "--all-steps", "--quiet"]) == 0
    assert len(list(output.glob("*.pt"))) == 2


@pytest.mark.parametrize("ending", [".h5", ".pt", ".safetensors"])
def test_the_single_file_of_a_folder_is_found_beside_what_is_left(single_files, tmp_path, ending) -> None:
    (tmp_path / f"weights{ending}").hardlink_to(single_files / f"weights{ending}")
    leave(tmp_path, f"weights{ending}", "weights.pb")
    with open_source(tmp_path) as source:
        assert source.path == tmp_path / f"weights{ending}"


def test_a_folder_with_nothing_else_says_so(tmp_path: Path, capsys) -> None:
    (tmp_path / "20180402-114759.pb.crdownload").write_bytes(b"half")
    (tmp_path / ".DS_Store").write_bytes(b"window")
    assert main([str(tmp_path), "-o", str(tmp_path / "w.pt")]) == 3
    error = capsys.readouterr().err
    assert "only what a system or an unfinished download left: .DS_Store, 20180402-114759.pb.crd" in error
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SourceError, match=r"it holds notes\.txt\)"):
        open_source(tmp_path)


def test_advice_on_saved_models_leaves_out_what_is_left(tmp_path: Path) -> None:
    for name in ("1", ".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(b"graph")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path)
    assert str(caught.value).endswith(f"Give the SavedModel in it: {tmp_path / '1'}.")


def test_macos_metadata_that_is_named_is_called_that(tmp_path: Path, capsys) -> None:
    data = "._model.ckpt-1.data-00000-of-00001"
    for name in ("._20180402-114759.pb", "._weights.pt", "._model.ckpt-1.index", "._model.meta", data):
        (tmp_path / name).write_bytes(APPLE_DOUBLE)
        assert main([str(tmp_path / name), "-o", str(tmp_path / "w.pt")]) == 3
        error = capsys.readouterr().err
        assert "this is metadata of macOS (AppleDouble), not a model. Give the file itself" in error
        assert name.removeprefix("._") in error


def test_photographs_are_found_without_what_is_left(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "ann").mkdir()
    expected = [tmp_path / "ann" / "1.jpg", tmp_path / "ann" / "2.png"]
    for path in expected:
        image.save(path)
    leave(tmp_path / "ann", "1.jpg", "3.png")
    leave(tmp_path, "ann.jpg")
    (tmp_path / ".thumbnails").mkdir()
    image.save(tmp_path / ".thumbnails" / "1.png")
    assert find_photographs(tmp_path) == expected
    for path in expected:
        path.unlink()
    with pytest.raises(SourceError, match="no photographs"):
        find_photographs(tmp_path)


def test_a_folder_is_no_photograph_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "album.jpg").mkdir()
    with pytest.raises(SourceError, match="no photographs"):
        find_photographs(tmp_path)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "album.jpg" / "1.png")
    assert find_photographs(tmp_path) == [tmp_path / "album.jpg" / "1.png"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    people, elsewhere = tmp_path / "people", tmp_path / "elsewhere"
    (people / "ana").mkdir(parents=True)
    elsewhere.mkdir()
    image.save(people / "ana" / "1.png")
    image.save(elsewhere / "2.png")
    for link in ("ben", "cy"):
        (people / link).symlink_to(elsewhere)
    (people / "ana" / "again").symlink_to(people)
    (elsewhere / "people").symlink_to(people)
    found = [file.relative_to(people).as_posix() for file in find_photographs(people)]
    assert found == ["ana/1.png", "ben/2.png", "cy/2.png"]


def test_a_hidden_folder_that_the_user_names_is_searched(tmp_path: Path) -> None:
    folder = tmp_path / ".faces"
    folder.mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "1.png")
    assert find_photographs(folder) == [folder / "1.png"]


def test_an_archive_is_unpacked_without_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    left = leave(tmp_path / "m", "m.pb")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in left:
            archive.writestr(str(path.relative_to(tmp_path)), b"left")
        archive.writestr("m/m.pb", b"graph")
    assert unpack(tmp_path / "a.zip", tmp_path / "out") == {"m.pb": hashlib.sha256(b"graph").hexdigest()}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.pb"]


@pytest.mark.parametrize(
    "name", ["../.bashrc", "/etc/.profile", "m/../../.x", ".ssh/../../key", "__MACOSX/../x"]
)
def test_a_hidden_name_that_leads_outside_is_still_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("m.pb", b"graph")
        archive.writestr(name, b"left")
    with pytest.raises(SourceError, match="leads outside the folder"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_the_cache_of_published_models_bears_what_is_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "m.pb").write_bytes(b"graph")
    cache.write_record(tmp_path, {"m.pb": hashlib.sha256(b"graph").hexdigest()})
    source = ArchiveSource(sha256="0" * 64, files={})
    leave(tmp_path, "m.pb")
    cache.check_model_folder(tmp_path, "m", source)
    (tmp_path / "model-m.ckpt-1.index").write_bytes(b"planted")
    with pytest.raises(SourceError, match="did not come with the archive"):
        cache.check_model_folder(tmp_path, "m", source)


def test_names_of_users_are_not_stray() -> None:
    for name in (
        "model-20180402-114759.ckpt-275.index",
        "temp",
        "part.pt",
        "a.partial.pt",
        "tmp/x",
        "recycled/x",
        "snapshot/x",
        "found.1.jpg",
        "#1.jpg",
        "@ann.jpg",
        "a.sb-1.jpg",
        "..",
        ".",
    ):
        assert not is_stray(name)
