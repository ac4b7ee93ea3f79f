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
"""Progress callback: bytes of the archive received, and their total, or None if the server does not say."""

MAX_ARCHIVE_SIZE = 2 << 30  # bytes, if the catalog states no size; the published ones have 0.2 GiB
_RETRIES = 2  # gdown waits at most 1 s, then 2 s
_TIMEOUT = (20.0, 60.0)  # seconds: to connect, and between bytes
_PATIENCE = 120.0  # seconds until the file begins; gdown would follow pages without end
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def model_folder(
    checkpoint: CatalogEntry,
    *,
    offline: bool = False,
    archive: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the cached folder of a checkpoint's files, with every byte verified.

    A missing checkpoint is downloaded, verified and unpacked, by one process while others wait. An interrupted
    transfer stays in `incomplete`, and the next call continues it. Any other failure leaves the cache as it
    was.

    Args:
        checkpoint: The entry of the catalog.
        offline: Never use the network.
        archive: The checkpoint's zip, if the user has it; it is verified like a downloaded one, and not copied.
        progress: Progress callback of the transfer.

    Raises:
        SourceError: An archive or a file in it has another digest than in the catalog, or `archive.unpack`
            refuses it, or the cached folder has changed.
        RequirementError: The checkpoint is not in the cache and cannot be downloaded, or the cache cannot
            be written to.
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
    """Compare a zip's size and SHA-256 with the catalog's, before it is opened.

    Args:
        archive: The zip.
        checkpoint: The entry of the catalog.
        next_step: Advice for the user, for the message.
        called: Its name in the message, if not `archive`.

    Raises:
        SourceError: The zip differs, or cannot be read.
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
            where,
            f"more than {limit} bytes: not the archive",
            next_step=f"Check the file at {checkpoint.url}",
        )


def _by_hand(checkpoint: CatalogEntry) -> str:
    return (
        f"By hand: download {checkpoint.url} with a browser, then run facenet-port convert {checkpoint.name} "
        "--archive FILE"
    )


@contextmanager
def _cache_errors() -> Iterator[None]:
    """Turn an OSError into a message that names the cache."""
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
    """Put the model folder into the cache, and the archive too if it is downloaded."""
    kept = cache.archive_path(checkpoint)
    if archive is None and kept.exists():
        check_archive(kept, checkpoint, next_step="Remove this file and run the command again")
        archive = kept
    if archive is None and offline:
        raise RequirementError(
            f"{checkpoint.name} is not in the cache, and offline mode is on. {_by_hand(checkpoint)}."
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
    """Unpack a verified archive, verify its files and return the folder with its record."""
    model = _model(work)
    shutil.rmtree(model, ignore_errors=True)  # of a process that was killed
    digests = unpack(archive, model)
    foreign = f"Check the file at {checkpoint.url}"
    if cache.RECORD.casefold() in map(str.casefold, digests):
        raise SourceError(
            archive, f"it holds a file called {cache.RECORD}, a name that the cache needs", next_step=foreign
        )
    cache.check_digests(archive, digests, checkpoint, next_step=foreign)
    cache.write_record(model, digests)
    sync(model / cache.RECORD)
    sync(model)
    return model


def _model(work: Path) -> Path:
    return work / "model"


def _appear(path: Path, final: Path) -> None:
    """Move a complete file or folder to its final name."""
    final.parent.mkdir(parents=True, exist_ok=True)
    path.rename(final)
    sync(final.parent)


def _tidy(work: Path) -> None:
    """Remove everything but a transfer that can be continued."""
    shutil.rmtree(_model(work), ignore_errors=True)
    for part in work.iterdir():
        if part.stat().st_size == 0:
            part.unlink()
    with suppress(OSError):  # something is in it
        work.rmdir()
        work.parent.rmdir()


def _received(work: Path, checkpoint: CatalogEntry, progress: Progress | None) -> Path:
    """Download the archive into the work folder; it is not verified yet.

    Raises:
        SourceError: The size differs from the catalog's, or has no end; nothing is kept.
        RequirementError: The transfer fails; the bytes received are kept.
        OSError: The file cannot be written; nothing is kept.
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
    """The files that gdown has left of an interrupted transfer."""
    return list(whole.parent.glob(f"{whole.name}*.part"))


class _Meter:
    """gdown's progress callback, which stops a transfer that never begins or is too large.

    Attributes:
        received: Bytes received, with those of an earlier transfer.
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
    """Download with gdown, continuing an earlier transfer.

    Raises:
        RequirementError: The transfer fails, for the reason in the message.
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
                # The server cannot continue the earlier transfer, or has another file by now.
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
