"""The verified folder of a checkpoint: from the cache, from a zip of the user, or over the network."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
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


def model_folder(
    entry: CatalogEntry,
    *,
    offline: bool = False,
    archive: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the cached folder of a checkpoint's files, with every byte verified.

    If the checkpoint is missing, one process downloads, verifies and unpacks it, and others wait. An
    interrupted transfer stays in `incomplete`, and the next call continues it. Any other failure leaves the
    cache as it was.

    Args:
        entry: The entry of the catalog.
        offline: Never use the network.
        archive: The checkpoint's zip, if the user has it. It is verified like a downloaded one, but not
            copied.
        progress: Progress callback of the transfer.

    Raises:
        SourceError: An archive or a file in it has another digest than in the catalog, or `archive.unpack`
            refuses it, or the cached folder has changed.
        RequirementError: The checkpoint is not in the cache and cannot be downloaded, or the cache cannot
            be written to.
    """
    folder = cache.model_folder_path(entry)
    with cache.explain_cache_errors():
        if archive is not None:
            check_archive(archive, entry, next_step=f"Get the zip of {entry.name} from {entry.url}")
        if not folder.exists():
            with cache.lock(entry.name):
                if not folder.exists():  # another process may have been faster
                    _fill(folder, entry, offline, archive, progress)
        cache.check_model_folder(folder, entry)
    return folder


def check_archive(
    archive: Path, entry: CatalogEntry, *, next_step: str, shown: Path | str | None = None
) -> None:
    """Compare a zip's size and SHA-256 with the catalog's, before it is opened.

    Args:
        archive: The zip.
        entry: The entry of the catalog.
        next_step: Advice for the user, for the message.
        shown: Its name in the message, if not `archive`.

    Raises:
        SourceError: The zip differs, or cannot be read.
    """
    where = shown or archive
    try:
        with open_regular(archive) as file:
            size = os.fstat(file.fileno()).st_size
        expected = entry.archive_size
        if expected is not None and size != expected:
            problem = "it is cut short" if size < expected else "it is another file"
            raise SourceError(where, f"{size} bytes, not {expected}: {problem}", next_step=next_step)
        _check_limit(where, size, entry)
        with archive.open("rb") as file:
            head = file.read(512)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(where, f"cannot be read ({error.strerror or error})") from error
    if digest != entry.archive_sha256:
        page = head.lstrip().lower().startswith((b"<!doctype", b"<html"))
        problem = "a web page, not an archive: its" if page else "not the archive, or a damaged one: the"
        raise SourceError(
            where, f"{problem} SHA-256 is {digest}, not {entry.archive_sha256}", next_step=next_step
        )


def _check_limit(where: Path | str, size: int, entry: CatalogEntry) -> None:
    limit = entry.archive_size or MAX_ARCHIVE_SIZE
    if size > limit:
        raise SourceError(
            where,
            f"more than {limit} bytes: not the archive",
            next_step=f"Check the file at {entry.url}",
        )


def _by_hand(entry: CatalogEntry) -> str:
    return (
        f"By hand: download {entry.url} with a browser, then run facenet-port convert {entry.name} "
        "--archive FILE"
    )


def _fill(
    folder: Path, entry: CatalogEntry, offline: bool, archive: Path | None, progress: Progress | None
) -> None:
    """Put the model folder into the cache, and the archive too if it is downloaded."""
    cached = cache.archive_path(entry)
    if archive is None and cached.exists():
        check_archive(cached, entry, next_step="Remove this file and run the command again")
        archive = cached
    if archive is None and offline:
        raise RequirementError(
            f"{entry.name} is not in the cache, and offline mode is on. {_by_hand(entry)}."
        )
    work = cache.incomplete_folder(entry)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # another process has just removed the parent, which was empty
        work.mkdir(parents=True, exist_ok=True)
    try:
        if archive is None:
            downloaded, model = _download(work, entry, progress)
            _move(downloaded, cached)
        else:
            model = _unpack(archive, work, entry)
        _move(model, folder)
    finally:
        _clean(work)


def _download(work: Path, entry: CatalogEntry, progress: Progress | None) -> tuple[Path, Path]:
    """Download and verify the archive and unpack it into the work folder; returns both paths.

    Raises:
        SourceError: The archive or a file in it is not the catalog's; nothing is kept.
        RequirementError: The transfer fails; the bytes received are kept.
        OSError: A file cannot be written; nothing is kept.
    """
    archive = work / "archive.zip"
    try:
        if not archive.exists():  # an earlier process may have been stopped just before the verification
            _transfer(archive, entry, _Meter(entry, progress))
            sync(archive)
        next_step = f"The download was removed; run the command again. {_by_hand(entry)}"
        check_archive(archive, entry, next_step=next_step, shown=entry.url)
        return archive, _unpack(archive, work, entry)
    except (SourceError, OSError):
        for path in (archive, *_parts(archive)):
            path.unlink(missing_ok=True)
        raise


def _unpack(archive: Path, work: Path, entry: CatalogEntry) -> Path:
    """Unpack a verified archive, verify its files and return the folder with its record."""
    model = work / "model"
    shutil.rmtree(model, ignore_errors=True)  # left by a process that was killed
    digests = unpack(archive, model)
    next_step = f"Check the file at {entry.url}"
    if cache.RECORD.casefold() in map(str.casefold, digests):
        problem = f"it holds a file called {cache.RECORD}, a name that the cache needs"
        raise SourceError(archive, problem, next_step=next_step)
    cache.check_digests(archive, digests, entry, next_step=next_step)
    cache.write_record(model, digests)
    sync(model / cache.RECORD)
    sync(model)
    return model


def _move(path: Path, final: Path) -> None:
    """Move a complete file or folder to its final name."""
    final.parent.mkdir(parents=True, exist_ok=True)
    path.rename(final)
    sync(final.parent)


def _clean(work: Path) -> None:
    """Remove everything but a transfer that can be continued."""
    shutil.rmtree(work / "model", ignore_errors=True)
    for part in work.iterdir():
        if part.stat().st_size == 0:
            part.unlink()
    with suppress(OSError):  # a folder is not empty
        work.rmdir()
        work.parent.rmdir()


def _parts(archive: Path) -> list[Path]:
    """List the files of an interrupted transfer, as gdown names them."""
    return list(archive.parent.glob(f"{archive.name}*.part"))


class _Meter:
    """gdown's progress callback, which stops a transfer that never begins or is too large.

    Attributes:
        received: Bytes received, with those of an earlier transfer.
        total: Bytes that the server announced.
        stop: Set after `_PATIENCE` without a byte of the file.
    """

    def __init__(self, entry: CatalogEntry, progress: Progress | None) -> None:
        self._entry, self._progress = entry, progress
        self.received = 0
        self.total = entry.archive_size
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
        url, expected = self._entry.url, self._entry.archive_size
        if expected is not None and total is not None and total != expected:
            raise SourceError(
                url,
                f"the server announces {total} bytes, not {expected}: another file",
                next_step=f"The download was removed. {_by_hand(self._entry)}",
            )
        _check_limit(url, max(received, total or 0), self._entry)
        self.received, self.total = received, total or expected
        if self._progress is not None:
            self._progress(received, self.total)


def _transfer(archive: Path, entry: CatalogEntry, meter: _Meter) -> None:
    """Download with gdown, and explain a failure.

    Raises:
        RequirementError: The transfer fails, for the reason in the message.
        SourceError: The meter has stopped it.
        OSError: The file cannot be written.
    """
    import requests
    from gdown.exceptions import DownloadCancelled, DownloadError, FileURLRetrievalError

    try:
        with meter:
            _run_gdown(archive, entry, meter)
    except (FileURLRetrievalError, DownloadCancelled) as error:
        waited = _PATIENCE if meter.stop.is_set() else None
        raise _failure(entry, *explain_page(entry, str(error), _TIMEOUT, waited)) from None
    except (DownloadError, requests.RequestException) as error:
        raise _failure(entry, *explain_transfer(entry, meter.received, meter.total, error)) from None
    except (AssertionError, KeyError, ValueError) as error:
        problem = f"the server answers in a way that gdown does not understand ({error!r})"
        raise _failure(entry, problem, "Try a newer gdown") from None


def _run_gdown(archive: Path, entry: CatalogEntry, meter: _Meter) -> None:
    """Continue an earlier transfer; if the server cannot, download the whole file."""
    import gdown
    from gdown.exceptions import DownloadError, FileURLRetrievalError

    def download() -> None:
        gdown.download(
            entry.link,
            str(archive),
            id=entry.drive_id,
            quiet=True,
            use_cookies=False,  # gdown would write them into the home folder
            resume=True,
            retries=_RETRIES,
            timeout=_TIMEOUT,
            progress=meter,
            cancel=meter.stop,
        )

    earlier = _parts(archive)
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


def _failure(entry: CatalogEntry, problem: str, next_step: str) -> RequirementError:
    return RequirementError(f"{entry.name}: {problem}. {next_step}. {_by_hand(entry)}.")
