"""A checkpoint by its name, as a verified folder: from the cache, from a zip at hand, or over the network."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from converter.atomic import sync
from converter.errors import RequirementError, SourceError
from converter.formats.limits import open_regular
from converter.hub import cache
from converter.hub.archive import unpack
from converter.hub.catalog_entry import CatalogEntry
from converter.hub.download_failures import explain_page, explain_transfer

Progress = Callable[[int, int | None], None]
"""Told how many bytes of the archive are there, of how many; None where the server does not say."""

MAX_ARCHIVE_SIZE = 2 << 30  # bytes, where the catalog states none; the published ones have 0.2 GiB
_RETRIES = 2  # gdown waits at most 1 s, then 2 s
_TIMEOUT = (20.0, 60.0)  # seconds: to connect, and between bytes
_PATIENCE = 120.0  # seconds until the file begins; gdown follows the pages before it without end
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def model_folder(
    checkpoint: CatalogEntry,
    *,
    offline: bool = False,
    archive: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The folder of a checkpoint's files, in the cache, with every byte verified.

    What is not there yet is downloaded, verified and unpacked, once however many processes ask at the same
    time: the others wait. A transfer that the user or the network interrupts stays in `incomplete` and goes
    on next time. After any other failure the cache holds what it held before.

    Args:
        checkpoint: The catalog's entry.
        offline: Whether to do without the network.
        archive: The checkpoint's zip, got by other means; verified like a downloaded one, and not copied.
        progress: Told of the transfer.

    Raises:
        SourceError: An archive or a file in it is not the one that the catalog describes, or an archive is
            one that `archive.unpack` refuses, or the cached folder has changed.
        RequirementError: The checkpoint is not in the cache and cannot be had, or the cache cannot be
            written to.
    """
    folder = cache.model_folder_path(checkpoint)
    with _cache_errors():
        if archive is not None:
            check_archive(
                archive, checkpoint, next_step=f"Get the zip of {checkpoint.name} from {checkpoint.url}"
            )
        if not folder.exists():
            with cache.lock(checkpoint.name):
                if not folder.exists():  # another process may have been faster
                    _fill(folder, checkpoint, offline, archive, progress)
        cache.check_model_folder(folder, checkpoint)
    return folder


def check_archive(
    archive: Path, checkpoint: CatalogEntry, *, next_step: str, called: Path | str | None = None
) -> None:
    """Compare a zip's size and then its SHA-256 with the catalog's, as has to happen before it is opened.

    Args:
        archive: The zip.
        checkpoint: Whose it is to be.
        next_step: What the user can do about a difference.
        called: What to call it in the message instead of `archive`.

    Raises:
        SourceError: It differs, or cannot be read.
    """
    where = called or archive
    try:
        with open_regular(archive) as file:
            size = os.fstat(file.fileno()).st_size
        expected = checkpoint.archive_size
        if expected is not None and size != expected:
            problem = "it is cut short" if size < expected else "it is another file"
            raise SourceError(where, f"{size} bytes, not {expected}: {problem}", next_step=next_step)
        _check_limit(where, size, checkpoint)
        with archive.open("rb") as file:
            head = file.read(512)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(where, f"cannot be read ({error.strerror or error})") from error
    if digest != checkpoint.archive_sha256:
        page = head.lstrip().lower().startswith((b"<!doctype", b"<html"))
        problem = "a web page, not an archive: its" if page else "not the archive, or a damaged one: the"
        raise SourceError(
            where, f"{problem} SHA-256 is {digest}, not {checkpoint.archive_sha256}", next_step=next_step
        )


def _check_limit(where: Path | str, size: int, checkpoint: CatalogEntry) -> None:
    limit = checkpoint.archive_size or MAX_ARCHIVE_SIZE
    if size > limit:
        raise SourceError(
            where, f"more than {limit} bytes: not the archive", next_step=f"Look what {checkpoint.url} holds"
        )


def _by_hand(checkpoint: CatalogEntry) -> str:
    return (
        f"By hand: download {checkpoint.url} with a browser, then run facenet-port convert {checkpoint.name} "
        "--archive FILE"
    )


@contextmanager
def _cache_errors() -> Iterator[None]:
    """Say what it means that a file of the cache cannot be read or written."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in _FULL else error.strerror or str(error)
        raise RequirementError(
            f"{cache.cache_folder()}: the cache cannot be used ({reason}). Make room on the disk, or set "
            f"{cache.VARIABLE} to a folder on another one."
        ) from None


def _fill(
    folder: Path, checkpoint: CatalogEntry, offline: bool, archive: Path | None, progress: Progress | None
) -> None:
    """Bring the model folder into the cache, and the archive as well where it is downloaded."""
    kept = cache.archive_path(checkpoint)
    if archive is None and kept.exists():
        check_archive(kept, checkpoint, next_step="Remove this file and run the command again")
        archive = kept
    if archive is None and offline:
        raise RequirementError(
            f"{checkpoint.name} is not in the cache, and the network is not to be used. "
            f"{_by_hand(checkpoint)}."
        )
    work = _work_folder(checkpoint)
    try:
        if archive is not None:
            _appear(_unpacked(archive, work, checkpoint), folder)
            return
        received = _received(work, checkpoint, progress)
        try:
            again = f"Nothing of it was kept; run the command again. {_by_hand(checkpoint)}"
            check_archive(received, checkpoint, next_step=again, called=checkpoint.url)
            model = _unpacked(received, work, checkpoint)
        except (SourceError, OSError):
            received.unlink()
            raise
        _appear(received, kept)
        _appear(model, folder)
    finally:
        _tidy(work)


def _work_folder(checkpoint: CatalogEntry) -> Path:
    work = cache.incomplete_folder(checkpoint)
    for _ in range(3):
        try:
            work.mkdir(parents=True, exist_ok=True)
            break
        except FileNotFoundError:  # another process has just removed the parent, which was empty
            work.parent.mkdir(parents=True, exist_ok=True)
    return work


def _unpacked(archive: Path, work: Path, checkpoint: CatalogEntry) -> Path:
    """Unpack a verified archive and verify its files; returns the folder, which has its record."""
    model = _model(work)
    shutil.rmtree(model, ignore_errors=True)  # of a process that was killed
    digests = unpack(archive, model)
    foreign = f"Look what {checkpoint.url} holds"
    if cache.RECORD.casefold() in map(str.casefold, digests):
        raise SourceError(
            archive, f"a file in it is called {cache.RECORD}, a name that is taken", next_step=foreign
        )
    cache.check_digests(archive, digests, checkpoint, next_step=foreign)
    cache.write_record(model, digests)
    sync(model / cache.RECORD)
    sync(model)
    return model


def _model(work: Path) -> Path:
    return work / "model"


def _appear(path: Path, final: Path) -> None:
    """Give what is whole and on the disk its final name."""
    final.parent.mkdir(parents=True, exist_ok=True)
    path.rename(final)
    sync(final.parent)


def _tidy(work: Path) -> None:
    """Leave nothing behind but a transfer that can go on."""
    shutil.rmtree(_model(work), ignore_errors=True)
    for part in work.iterdir():
        if part.stat().st_size == 0:
            part.unlink()
    with suppress(OSError):  # something is in it
        work.rmdir()
        work.parent.rmdir()


def _received(work: Path, checkpoint: CatalogEntry, progress: Progress | None) -> Path:
    """The whole transfer, unverified: a file in the work folder that nothing but the verification may open.

    Raises:
        SourceError: What comes has another size than the catalog states, or no end; nothing of it stays.
        RequirementError: It does not come, or not whole; what has come stays.
        OSError: It cannot be written; nothing of it stays.
    """
    whole = work / "archive.zip"
    if whole.exists():  # the process was stopped between the transfer and its verification
        return whole
    try:
        _transfer(whole, checkpoint, _Meter(checkpoint, progress))
        sync(whole)
    except (SourceError, OSError):
        for part in _parts(whole):
            part.unlink()
        whole.unlink(missing_ok=True)
        raise
    return whole


def _parts(whole: Path) -> list[Path]:
    """What gdown has left of an interrupted transfer."""
    return list(whole.parent.glob(f"{whole.name}*.part"))


class _Meter:
    """Told by gdown of every chunk that is written: stops a transfer that never begins, or goes too far.

    Attributes:
        received: Bytes that are there, those of an earlier transfer included.
        total: Bytes that the server announced.
        stop: Set after `_PATIENCE` without a byte of the file.
    """

    def __init__(self, checkpoint: CatalogEntry, progress: Progress | None) -> None:
        self._checkpoint, self._progress = checkpoint, progress
        self.received = 0
        self.total = checkpoint.archive_size
        self.stop = threading.Event()
        self._timer = threading.Timer(_PATIENCE, self.stop.set)
        self._timer.daemon = True

    def __enter__(self) -> _Meter:
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()

    def __call__(self, received: int, total: int | None) -> None:
        self._timer.cancel()
        url, expected = self._checkpoint.url, self._checkpoint.archive_size
        if expected is not None and total is not None and total != expected:
            raise SourceError(
                url,
                f"the server announces {total} bytes, not {expected}: another file",
                next_step=f"Nothing of it was kept. {_by_hand(self._checkpoint)}",
            )
        _check_limit(url, max(received, total or 0), self._checkpoint)
        self.received, self.total = received, total or expected
        if self._progress is not None:
            self._progress(received, self.total)


def _transfer(whole: Path, checkpoint: CatalogEntry, meter: _Meter) -> None:
    """Have gdown write the file, going on where an earlier transfer ended.

    Raises:
        RequirementError: The file does not come, or not whole; the reason is the message.
        SourceError: The meter has stopped it.
        OSError: The file cannot be written.
    """
    import gdown
    import requests
    from gdown.exceptions import DownloadCancelled, DownloadError, FileURLRetrievalError

    def download() -> None:
        gdown.download(
            checkpoint.link,
            str(whole),
            id=checkpoint.drive_id,
            quiet=True,
            use_cookies=False,  # gdown would write them into the home folder
            resume=True,
            retries=_RETRIES,
            timeout=_TIMEOUT,
            progress=meter,
            cancel=meter.stop,
        )

    earlier = _parts(whole)
    with meter:
        try:
            try:
                download()
            except DownloadError as error:
                page_or_network = isinstance(error, FileURLRetrievalError) or error.__cause__ is not None
                if not earlier or meter.received or page_or_network:
                    raise
                # The server does not go on where the earlier transfer ended, or has another file by now.
                for part in earlier:
                    part.unlink()
                download()
        except (FileURLRetrievalError, DownloadCancelled) as error:
            waited = _PATIENCE if meter.stop.is_set() else None
            raise _failure(checkpoint, *explain_page(checkpoint, str(error), _TIMEOUT, waited)) from None
        except (DownloadError, requests.RequestException) as error:
            raise _failure(
                checkpoint, *explain_transfer(checkpoint, meter.received, meter.total, error)
            ) from None
        except (AssertionError, KeyError, ValueError) as error:
            problem = f"the server answers in a way that gdown does not understand ({error!r})"
            raise _failure(checkpoint, problem, "Try a newer gdown") from None


def _failure(checkpoint: CatalogEntry, problem: str, next_step: str) -> RequirementError:
    return RequirementError(f"{checkpoint.name}: {problem}. {next_step}. {_by_hand(checkpoint)}.")
