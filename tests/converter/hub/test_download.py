"""Downloads with gdown from a server that imitates Google Drive, and every way to fail."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from converter.errors import PortError, RequirementError, SourceError
from converter.hub import cache, download
from converter.hub.catalog import find_entry
from converter.hub.catalog_entry import CatalogEntry
from converter.hub.download import model_folder
from tests.support import google_drive_server
from tests.support.google_drive_server import (
    INFECTED_PAGE,
    NOT_FOUND_PAGE,
    QUOTA_PAGE,
    broken_file,
    endless,
    file,
    file_without_length,
    held_file,
    page,
    proxy_environment,
    scan_page,
    scan_page_that_leads_nowhere,
    scan_page_without_form,
    sign_in,
    whole_file_only,
)

ROOT = Path(__file__).parents[3]
NAME = "20990101-000000"
ID = "1aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"
CHUNK = 512 * 1024  # gdown writes and counts so many bytes at once
FILES = {
    f"{NAME}.pb": b"graph" * 100,
    f"model-{NAME}.meta": b"meta" * 50,
    f"model-{NAME}.ckpt-90.index": b"index",
    # Random, so that the archive is larger than a chunk.
    f"model-{NAME}.ckpt-90.data-00000-of-00001": np.random.default_rng(0).bytes(3 * CHUNK),
}
BY_HAND = (f"https://drive.google.com/file/d/{ID}", f"facenet-port convert {NAME} --archive FILE")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped(files: dict[str, bytes], folder: str = f"{NAME}/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(folder + name, content)
    return buffer.getvalue()


ARCHIVE = zipped(FILES)
SMALL = zipped({f"{NAME}.pb": b"graph"})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with google_drive_server.running_server(tmp_path_factory.mktemp("authority")) as server:
        yield server


@pytest.fixture
def drive(server, tmp_path, monkeypatch):
    """The server without the state of other tests; this process and its children use it, with a new cache."""
    server.answers.clear()
    server.requests.clear()
    home = tmp_path / "home"
    home.mkdir()
    own = {"HOME": str(home), "FACENET_PORT_CACHE": str(tmp_path / "cache")}
    for variable, value in {**server.environment, **own}.items():
        monkeypatch.setenv(variable, value)
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "FACENET_PORT_CATALOG"):
        monkeypatch.delenv(variable, raising=False)
    return server


def catalog(
    monkeypatch, folder: Path, archive: bytes, *, place: str = f'drive_id = "{ID}"', size: bool = True,
    files: dict[str, str] | None = None,
) -> CatalogEntry:  # fmt: skip
    """Write the user's catalog with one checkpoint, and return its entry."""
    lines = [f'["{NAME}"]', 'dataset = "faces"', place, f'sha256 = "{sha256(archive)}"']
    lines += [f"size = {len(archive)}"] if size else []
    lines += [f'files."{ending}" = "{digest}"' for ending, digest in (files or {}).items()]
    path = folder / "catalog.toml"
    path.write_text("\n".join(lines))
    monkeypatch.setenv("FACENET_PORT_CATALOG", str(path))
    checkpoint = find_entry(NAME)
    assert checkpoint is not None
    return checkpoint


@pytest.fixture
def checkpoint(drive, monkeypatch, tmp_path) -> CatalogEntry:
    return catalog(monkeypatch, tmp_path, ARCHIVE)


def snapshot() -> dict[str, bytes | None]:
    """Map every name in the cache to the bytes of the file; the empty files of locks are left out."""
    root = cache.cache_folder()
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
        if path.relative_to(root).parts[0] != "locks"
    }


def fill_cache_with_another() -> None:
    """Put a model of another name into the cache, which no failure may change."""
    path = cache.cache_folder() / "models" / "other" / "SHA256SUMS"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"sums")


def fails(checkpoint: CatalogEntry, error: type[PortError], *says: str, **options) -> str:
    """Check that the download fails with this error and message, and that the cache has not changed."""
    fill_cache_with_another()
    before = snapshot()
    with pytest.raises(error) as caught:
        model_folder(checkpoint, **options)
    message = str(caught.value)
    for part in says:
        assert part in message, message
    assert "\n" not in message
    assert ".. " not in message
    assert snapshot() == before
    return message


def is_whole(folder: Path) -> bool:
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    record = contents.pop("SHA256SUMS").decode()
    return contents == FILES and record == "".join(f"{sha256(FILES[n])}  {n}\n" for n in sorted(FILES))


PROGRAM = """
import sys
from converter.hub.catalog import find_entry
from converter.hub.download import model_folder
print("ready", flush=True)
try:
    print(model_folder(find_entry(sys.argv[1]), **eval(sys.argv[2])))
except Exception as error:
    print(type(error).__name__, error)
"""


def process(options: str = "{}", before: str = "", **popen) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + PROGRAM, NAME, options]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def said(running: subprocess.Popen[str]) -> list[str]:
    output, errors = running.communicate(timeout=60)
    assert errors in ("", f"{NAME}: waiting for another process that works on it\n")
    return output.splitlines()


# What works


def test_a_download_is_unpacked_and_recorded(checkpoint, drive) -> None:
    drive.answers[ID] = [file(ARCHIVE)]
    told: list[tuple[int, int | None]] = []
    folder = model_folder(checkpoint, progress=lambda *counts: told.append(counts))
    assert folder == cache.cache_folder() / "models" / f"{NAME}-{sha256(ARCHIVE)[:16]}"
    assert is_whole(folder)
    assert {path.split("/")[0] for path in snapshot()} == {"models"}
    assert told[0] == (CHUNK, len(ARCHIVE))
    assert told[-1] == (len(ARCHIVE), len(ARCHIVE))
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True
    )
    assert check.returncode == 0


def test_the_virus_scan_page_of_a_large_file_is_passed_and_no_cookie_stays(checkpoint, drive) -> None:
    drive.answers[ID] = [scan_page, file(ARCHIVE)]
    folder = said(process())[-1]  # a process of its own, as gdown looks for the home folder once
    assert is_whole(Path(folder))
    hosts = [(request.host, request.path) for request in drive.requests]
    assert hosts == [("drive.google.com", "/uc"), ("drive.usercontent.google.com", "/download")]
    assert list(Path.home().rglob("*")) == []


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_checkpoint_may_lie_on_another_server(scheme, drive, monkeypatch, tmp_path) -> None:
    link = f"{scheme}://example.org/models/model.zip"
    checkpoint = catalog(monkeypatch, tmp_path, ARCHIVE, place=f'url = "{link}"', size=False)
    drive.answers["/models/model.zip"] = [file(ARCHIVE)]
    assert is_whole(model_folder(checkpoint))
    assert drive.requests[0].host == "example.org"


def test_what_is_in_the_cache_needs_no_network(checkpoint, drive) -> None:
    drive.answers[ID] = [file(ARCHIVE)]
    folder = model_folder(checkpoint)
    asked = len(drive.requests)
    assert model_folder(checkpoint) == model_folder(checkpoint, offline=True) == folder
    assert len(drive.requests) == asked


def test_an_archive_got_by_hand_is_verified_and_not_copied(checkpoint, drive, tmp_path) -> None:
    by_hand = tmp_path / "by-hand.zip"
    by_hand.write_bytes(ARCHIVE)
    assert is_whole(model_folder(checkpoint, archive=by_hand, offline=True))
    assert {path.split("/")[0] for path in snapshot()} == {"models"}
    assert drive.requests == []


def test_two_processes_download_once(checkpoint, drive) -> None:
    release = threading.Event()
    drive.answers[ID] = [held_file(ARCHIVE, 100, release)]
    both = [process(), process()]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    wait_for(lambda: drive.requests)
    time.sleep(1)  # for the second process to ask as well, if it did not wait for the first
    release.set()
    folder = str(cache.cache_folder() / "models" / f"{NAME}-{sha256(ARCHIVE)[:16]}")
    assert [said(one) for one in both] == [[folder], [folder]]
    assert len(drive.requests) == 1
    assert is_whole(Path(folder))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to this"
        time.sleep(0.02)


# Interrupted, and resumed


def test_a_connection_that_is_cut_goes_on_at_once_with_the_rest(checkpoint, drive) -> None:
    drive.answers[ID] = [broken_file(ARCHIVE, CHUNK + 1000), file(ARCHIVE)]
    assert is_whole(model_folder(checkpoint))
    assert drive.ranges() == [None, f"bytes={CHUNK}-"]


def test_a_transfer_that_broke_off_goes_on_next_time_with_the_rest(checkpoint, drive) -> None:
    drive.answers[ID] = [broken_file(ARCHIVE, CHUNK + 1000), broken_file(ARCHIVE, 10)]
    with pytest.raises(RequirementError) as caught:
        model_folder(checkpoint)
    assert f"broke off after {CHUNK} of {len(ARCHIVE)} bytes" in str(caught.value)
    assert "Run the command again: it continues from there" in str(caught.value)
    files = {name: content for name, content in snapshot().items() if content is not None}
    assert list(files.values()) == [ARCHIVE[:CHUNK]]
    assert next(iter(files)).startswith(f"incomplete/{NAME}/")

    # Failures in between leave it where it is.
    drive.answers[ID] = [page(QUOTA_PAGE)]
    fails(checkpoint, RequirementError, "quota")

    drive.requests.clear()
    drive.answers[ID] = [file(ARCHIVE)]
    assert is_whole(model_folder(checkpoint))
    assert drive.ranges() == [None, f"bytes={CHUNK}-"]
    assert {path.split("/")[0] for path in snapshot()} == {"models"}


def test_a_server_that_knows_no_parts_is_asked_for_the_whole_file(checkpoint, drive) -> None:
    drive.answers[ID] = [broken_file(ARCHIVE, CHUNK + 1000), broken_file(ARCHIVE, 10)]
    with pytest.raises(RequirementError):
        model_folder(checkpoint)
    drive.answers[ID] = [whole_file_only(ARCHIVE)]
    assert is_whole(model_folder(checkpoint))


def test_a_wrong_beginning_is_noticed_and_not_resumed_again(checkpoint, drive) -> None:
    drive.answers[ID] = [broken_file(bytes(len(ARCHIVE)), CHUNK + 1000), broken_file(ARCHIVE, 10)]
    with pytest.raises(RequirementError):
        model_folder(checkpoint)
    drive.answers[ID] = [file(ARCHIVE)]
    with pytest.raises(SourceError, match="SHA-256"):
        model_folder(checkpoint)
    assert snapshot() == {}
    assert is_whole(model_folder(checkpoint))


def test_an_interrupt_leaves_only_the_incomplete_file(checkpoint, drive) -> None:
    release = threading.Event()
    drive.answers[ID] = [held_file(ARCHIVE, CHUNK + 1000, release)]
    running = process()
    incomplete = cache.incomplete_folder(checkpoint)
    wait_for(lambda: any(path.stat().st_size == CHUNK for path in incomplete.glob("*")))
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGINT
    release.set()
    assert [content for content in snapshot().values() if content is not None] == [ARCHIVE[:CHUNK]]
    assert {path.split("/")[0] for path in snapshot()} == {"incomplete"}
    drive.answers[ID] = [file(ARCHIVE)]
    assert is_whole(model_folder(checkpoint))
    assert drive.ranges()[-1] == f"bytes={CHUNK}-"


# What Google Drive, other servers and the network do instead


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        pytest.param([page(QUOTA_PAGE)], ["quota", "Try again in a day"], id="quota"),
        pytest.param(
            [scan_page, page(QUOTA_PAGE)], ["quota", "Try again in a day"], id="quota behind the scan"
        ),
        pytest.param([page(INFECTED_PAGE)], ["infected", "Tell its owner"], id="infected"),
        pytest.param([scan_page_without_form], ["viruses", "needs a person to confirm"], id="scan"),
        pytest.param([page(NOT_FOUND_PAGE, 404)], ["the link is dead", "404"], id="dead"),
        pytest.param([sign_in], ["not shared", "sign in"], id="sign-in"),
        pytest.param([page("<html>Access denied</html>", 403)], ["not shared", "403"], id="denied"),
        pytest.param([page("<html>Sorry</html>", 500)], ["cannot serve it now", "500", "later"], id="error"),
        pytest.param([page("<title>Maintenance</title>")], ["a page came", "'Maintenance'"], id="other page"),
    ],
)
def test_a_page_instead_of_the_file(answers, says, checkpoint, drive) -> None:
    drive.answers[ID] = list(answers)
    drive.answers["/ServiceLogin"] = [page("<html><title>Sign in - Google Accounts</title></html>")]
    fails(checkpoint, RequirementError, *says, *BY_HAND)


def test_a_scan_page_that_leads_to_itself_is_not_followed_for_ever(checkpoint, drive, monkeypatch) -> None:
    monkeypatch.setattr(download, "_PATIENCE", 0.5)
    drive.answers[ID] = [scan_page_that_leads_nowhere]
    fails(checkpoint, RequirementError, "viruses", *BY_HAND)


def test_a_server_that_never_begins_is_not_waited_for_for_ever(checkpoint, drive, monkeypatch) -> None:
    monkeypatch.setattr(download, "_PATIENCE", 0.5)
    release = threading.Event()
    drive.answers[ID] = [held_file(ARCHIVE, 100, release)]
    fails(checkpoint, RequirementError, "nothing of the file came", *BY_HAND)
    release.set()


@pytest.mark.parametrize(("status", "says"), [(404, "the link is dead"), (503, "cannot serve it now")])
def test_an_error_of_another_server(status, says, drive, monkeypatch, tmp_path) -> None:
    link = "https://example.org/model.zip"
    checkpoint = catalog(monkeypatch, tmp_path, ARCHIVE, place=f'url = "{link}"')
    drive.answers["/model.zip"] = [page("<html>no</html>", status)]
    fails(checkpoint, RequirementError, says, str(status), link)


def test_a_transfer_that_ends_early_is_told_by_its_announced_length(drive, monkeypatch, tmp_path) -> None:
    checkpoint = catalog(monkeypatch, tmp_path, SMALL)
    drive.answers[ID] = [broken_file(SMALL, len(SMALL) // 2)]
    fails(checkpoint, RequirementError, "the transfer broke off", "Run the command again", *BY_HAND)


@pytest.mark.parametrize(("size", "says"), [(True, "it is cut short"), (False, "SHA-256 is")])
def test_a_transfer_that_ends_early_is_told_without_its_length(
    size, says, drive, monkeypatch, tmp_path
) -> None:
    checkpoint = catalog(monkeypatch, tmp_path, ARCHIVE, size=size)
    drive.answers[ID] = [file_without_length(ARCHIVE[:-1000])]
    fails(checkpoint, SourceError, says, "The download was removed", *BY_HAND)


def test_wrong_bytes_are_told_by_their_hash(checkpoint, drive) -> None:
    wrong = ARCHIVE[:-1] + b"!"
    drive.answers[ID] = [file(wrong)]
    fails(checkpoint, SourceError, sha256(wrong), sha256(ARCHIVE), "The download was removed", *BY_HAND)


def test_a_file_of_another_size_is_not_even_fetched(checkpoint, drive) -> None:
    told: list[int] = []
    drive.answers[ID] = [file(ARCHIVE + bytes(10 * CHUNK))]
    fails(
        checkpoint, SourceError, str(len(ARCHIVE)), "another file", *BY_HAND,
        progress=lambda done, total: told.append(done),
    )  # fmt: skip
    assert told == []


@pytest.mark.parametrize("size", [True, False])
def test_a_stream_without_end_is_stopped(size, drive, monkeypatch, tmp_path) -> None:
    checkpoint = catalog(monkeypatch, tmp_path, ARCHIVE, size=size)
    limit = len(ARCHIVE) if size else 4 * CHUNK
    monkeypatch.setattr(download, "MAX_ARCHIVE_SIZE", 4 * CHUNK)
    drive.answers[ID] = [endless]
    fails(checkpoint, SourceError, f"more than {limit} bytes")


def test_no_network(checkpoint, monkeypatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for variable, value in proxy_environment(f"http://127.0.0.1:{closed.getsockname()[1]}").items():
            monkeypatch.setenv(variable, value)
        fails(checkpoint, RequirementError, "drive.google.com cannot be reached", "refused", *BY_HAND)


def test_a_certificate_that_nobody_trusts(checkpoint, drive, monkeypatch) -> None:
    import certifi

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    fails(checkpoint, RequirementError, "certificate of drive.google.com", "REQUESTS_CA_BUNDLE", *BY_HAND)
    assert drive.requests == []


@pytest.mark.parametrize("what", ["archive", "file"])
def test_a_full_disk(what, drive, monkeypatch, tmp_path) -> None:
    # A limit on the size of a file stands for the end of the disk: the system refuses the write alike.
    archive = ARCHIVE if what == "archive" else zipped({f"{NAME}.pb": bytes(50_000) + os.urandom(50_000)})
    catalog(monkeypatch, tmp_path, archive)
    drive.answers[ID] = [file(archive)]
    fill_cache_with_another()
    before = snapshot()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (75_000, 75_000))\n"
    _, answer = said(process(before=limit))
    assert answer.startswith("RequirementError")
    assert "the disk is full" in answer
    assert "FACENET_PORT_CACHE" in answer
    assert snapshot() == before


def test_a_cache_that_cannot_be_written(checkpoint, drive, monkeypatch, tmp_path) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path / "a-file"))
    with pytest.raises(
        RequirementError,
        match=r"a-file/locks: the cache cannot be used \(Not a directory\)\. Set FACENET_PORT_CACHE",
    ):
        model_folder(checkpoint)


NO_SOCKETS = """
import socket
class Refused(socket.socket):
    def __init__(self, *arguments, **options):
        raise AssertionError("a socket")
socket.socket = Refused
"""


def test_offline_opens_no_socket(checkpoint, drive) -> None:
    fill_cache_with_another()
    before = snapshot()
    _, answer = said(process("{'offline': True}", before=NO_SOCKETS))
    assert answer.startswith(f"RequirementError {NAME} is not in the cache")
    for part in BY_HAND:
        assert part in answer
    assert snapshot() == before
    assert drive.requests == []
    _, answer = said(process(before=NO_SOCKETS))  # the same without offline does open one
    assert "a socket" in answer


# Archives and folders that are not what they should be


def test_a_wrong_archive_by_hand(checkpoint, drive, tmp_path) -> None:
    by_hand = tmp_path / "by-hand.zip"
    wrong = ARCHIVE[:-1] + b"!"
    by_hand.write_bytes(wrong)
    fails(checkpoint, SourceError, str(by_hand), sha256(wrong), sha256(ARCHIVE), archive=by_hand)
    by_hand.write_bytes(ARCHIVE[:-1])
    fails(checkpoint, SourceError, str(by_hand), "it is cut short", archive=by_hand)
    by_hand.unlink()
    fails(checkpoint, SourceError, str(by_hand), "No such file", archive=by_hand)


def test_a_wrong_archive_by_hand_is_told_though_the_model_is_there(checkpoint, drive, tmp_path) -> None:
    drive.answers[ID] = [file(ARCHIVE)]
    model_folder(checkpoint)
    by_hand = tmp_path / "by-hand.zip"
    by_hand.write_bytes(ARCHIVE[:-1])
    fails(checkpoint, SourceError, str(by_hand), archive=by_hand)


def test_a_saved_page_is_recognised(drive, monkeypatch, tmp_path) -> None:
    checkpoint = catalog(monkeypatch, tmp_path, ARCHIVE, size=False)
    by_hand = tmp_path / "by-hand.zip"
    by_hand.write_text(QUOTA_PAGE)
    fails(checkpoint, SourceError, "a web page, not an archive", archive=by_hand)


@pytest.mark.parametrize("damage", ["flip", "remove", "add", "record", "no record"])
def test_a_model_in_the_cache_that_has_changed(damage, checkpoint, drive) -> None:
    drive.answers[ID] = [file(ARCHIVE)]
    folder = model_folder(checkpoint)
    member = folder / f"{NAME}.pb"
    if damage == "flip":
        member.write_bytes(b"g" + bytes([member.read_bytes()[1] ^ 1]) + member.read_bytes()[2:])
    elif damage == "remove":
        member.unlink()
    elif damage == "add":
        (member := folder / "other.pb").touch()
    else:
        member = folder / "SHA256SUMS"
        member.write_bytes(b"\xff\n") if damage == "record" else member.unlink()
    fails(checkpoint, SourceError, str(member), f"Remove the folder {folder}")


def test_the_files_are_held_to_the_catalog(drive, monkeypatch, tmp_path) -> None:
    drive.answers[ID] = [file(ARCHIVE)]
    right, wrong = sha256(FILES[f"{NAME}.pb"]), sha256(b"another graph")
    checkpoint = catalog(monkeypatch, tmp_path, ARCHIVE, files={".pb": wrong})
    fails(checkpoint, SourceError, f"{NAME}.pb", right, wrong)
    checkpoint = catalog(monkeypatch, tmp_path, ARCHIVE, files={"other.pb": right})
    fails(checkpoint, SourceError, "lack other.pb")
    checkpoint = catalog(monkeypatch, tmp_path, ARCHIVE, files={".pb": right, f"{NAME}.pb": right})
    assert is_whole(model_folder(checkpoint))
    checkpoint = catalog(monkeypatch, tmp_path, ARCHIVE, files={".pb": wrong})  # learnt later
    fails(checkpoint, SourceError, f"{NAME}.pb", right, wrong)


def test_an_archive_that_does_harm_is_not_kept(drive, monkeypatch, tmp_path) -> None:
    archive = zipped({"../outside.pb": b"graph"})
    checkpoint = catalog(monkeypatch, tmp_path, archive)
    drive.answers[ID] = [file(archive)]
    fails(checkpoint, SourceError, "leads outside the folder")
    archive = zipped({"sha256sums": b"graph"})
    checkpoint = catalog(monkeypatch, tmp_path, archive)
    drive.answers[ID] = [file(archive)]
    fails(checkpoint, SourceError, "a name that the cache needs")


def test_a_download_that_was_not_verified_yet_is_verified_and_used(checkpoint, drive) -> None:
    work = cache.incomplete_folder(checkpoint)
    (work / "model").mkdir(parents=True)  # a process was killed while it unpacked
    (work / "model" / f"{NAME}.pb").write_bytes(b"half")
    (work / f"{sha256(ARCHIVE)[:16]}.zip").write_bytes(ARCHIVE)
    assert is_whole(model_folder(checkpoint))
    assert drive.requests == []


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_an_archive_that_is_no_file_is_not_waited_for(checkpoint, tmp_path, kind) -> None:
    archive = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    if kind == "pipe":
        os.mkfifo(archive)
    with pytest.raises(SourceError, match=r"not a regular file|cannot be read"):
        model_folder(checkpoint, archive=archive)
