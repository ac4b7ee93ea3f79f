"""The file of a package, from the indexes that pip is configured for; it is not installed, nothing of it run.

`unearth` finds and downloads it, as PDM does. `pip download` would run the setup.py of a source archive.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from converter.errors import RequirementError
from converter.home_folder import expand
from converter.hub.catalog_entry import PackageSource
from converter.hub.download_failures import explain_connection
from converter.hub.pip_settings import PipSettings, read_pip_settings, with_scheme

if TYPE_CHECKING:  # slow to import
    from unearth import Link, Package, PackageFinder

Progress = Callable[[int, int | None], None]
"""Progress callback: bytes received, and their total, or None if the server does not say."""

_NO_SUCH_PACKAGE = "it does not have this package"
_NEXT_STEP = (
    "Check the network and pip's settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS and pip.conf)"
)


class _NotServedError(Exception):
    """An index or a folder does not give the file; the message is the reason, without a full stop."""


def download_package(source: PackageSource, folder: Path, progress: Progress) -> Path:
    """Find the file of a package by its SHA-256 and download it.

    Folders and pages of `find-links` are asked first, then the indexes. A yanked file is taken as well, as
    pip takes one that is pinned; so is one for another Python or another system.

    Args:
        source: The package.
        folder: The folder for the file, created if need be. A file of a local index stays where it is.
        progress: Progress callback; what it raises ends the transfer.

    Returns:
        The path of the file, whose SHA-256 is `source.sha256`.

    Raises:
        RequirementError: No index gives it; the message has the reason of each.
        OSError: The file cannot be written.
    """
    settings = read_pip_settings()
    failures = []
    with _client(settings) as client:
        for finder in _finders(settings, client):
            try:
                return _download(finder, source, folder, progress)
            except _NotServedError as error:
                failures.append(f"{_shown(finder)}: {error}")
    reasons = "; ".join(failures) or "pip's settings name neither an index nor a folder"
    raise RequirementError(f"{source.place} cannot be downloaded ({reasons}). {_NEXT_STEP}.")


@contextmanager
def _client(settings: PipSettings) -> Iterator[Any]:
    """Open a client with pip's certificates, credentials, proxy and timeout; it never asks for a password."""
    import httpx2
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers import PyPIClient

    try:
        client = PyPIClient(
            trusted_hosts=settings.trusted_hosts,
            verify=_certificates(settings),
            proxy=settings.proxy,
            mounts=_trusted_mounts(settings),
            timeout=settings.timeout,
            follow_redirects=True,
            headers={"Accept-Encoding": "identity"},  # the bytes of the file, for its SHA-256
        )
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        problem = f"the proxy in pip's settings or in HTTPS_PROXY cannot be used ({error})"
        raise RequirementError(f"{problem}. Correct its address.") from None
    addresses = (*settings.find_links, settings.index_url or "", *settings.extra_index_urls)
    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=[url for url in addresses if "://" in url])
    with client:
        yield client


def _trusted_mounts(settings: PipSettings) -> dict[str, Any]:
    """Make the transports to trusted hosts: their certificate is not verified, but the proxy is used.

    unearth's own transport for them uses no proxy.
    """
    import httpx2

    mounts = {}
    for host in settings.trusted_hosts:
        proxies = {} if proxy_bypass(host) else getproxies()
        for scheme in ("http", "https"):
            proxy = settings.proxy or with_scheme(proxies.get(scheme) or proxies.get("all"))
            mounts[f"{scheme}://{host}"] = httpx2.HTTPTransport(verify=False, proxy=proxy)
    return mounts


def _certificates(settings: PipSettings) -> ssl.SSLContext | bool:
    """The certificates to trust: pip's, or those of the variables that pip reads as well."""
    file = settings.cert or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if file is None and settings.client_cert is None:
        return True
    try:
        folder = file if file is not None and Path(file).is_dir() else None
        context = ssl.create_default_context(cafile=None if folder else file, capath=folder)
        if settings.client_cert is not None:
            context.load_cert_chain(settings.client_cert)
    except OSError as error:  # an ssl.SSLError is one
        name = file if settings.client_cert is None else f"{file} or {settings.client_cert}"
        problem = f"{name}: pip's certificates cannot be read ({error.strerror or error})"
        raise RequirementError(f"{problem}. Correct pip's setting `cert`.") from None
    return context


def _finders(settings: PipSettings, client: Any) -> Iterator[PackageFinder]:
    """Yield a finder for each place, so that one that fails does not keep the others from being asked."""
    from unearth import PackageFinder

    for place in dict.fromkeys(settings.find_links):
        path = str(expand(place, "PIP_FIND_LINKS")) if place.startswith("~") else place
        yield PackageFinder(client, find_links=[path], ignore_compatibility=True)
    if not settings.no_index:
        first = () if settings.index_url is None else (settings.index_url,)
        yield PackageFinder(client, index_urls=first, ignore_compatibility=True)  # without one, pip's default
        for url in dict.fromkeys(settings.extra_index_urls):
            yield PackageFinder(client, index_urls=[url], ignore_compatibility=True)


def _shown(finder: PackageFinder) -> str:
    """The address of a finder's place, without a password."""
    from unearth import Link

    url = finder.sources[0]["url"]
    return Link(url).redacted if "://" in url else url


def _download(finder: PackageFinder, source: PackageSource, folder: Path, progress: Progress) -> Path:
    """Download the file from one place.

    Raises:
        _NotServedError: This place does not give it.
    """
    import httpx2
    from unearth.errors import HashMismatchError, UnpackError

    received, others = 0, []

    def report(link: Link, completed: int, total: int | None) -> None:
        nonlocal received
        received = completed
        progress(completed, total)

    for link in _links(finder, source):
        try:
            return finder.download(link, folder, {"sha256": [source.sha256]}, report)
        except HashMismatchError as error:
            _remove(link, folder)
            others.append(error.actual["sha256"])
        except UnpackError as error:
            response = getattr(error.__context__, "response", None)
            status = f" (HTTP status {response.status_code})" if response is not None else ""
            raise _NotServedError(f"it lists the file and does not give it{status}") from None
        except httpx2.HTTPError as error:
            _remove(link, folder)
            begun = not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            reason = f"the transfer broke off after {received} bytes"
            raise _NotServedError(reason if begun else _explain_network(link, error)) from None
        except BaseException:
            _remove(link, folder)
            raise
    raise _NotServedError(f"its file of {source.version} is another one, with SHA-256 {' and '.join(others)}")


def _links(finder: PackageFinder, source: PackageSource) -> list[Link]:
    """List the files of the package's version that may have the SHA-256; at least one."""
    from packaging.version import Version

    packages = _packages(finder, source.package)
    versions = [Version(package.version or "") for package in packages]
    pinned = Version(source.version)
    links = [package.link for package, version in zip(packages, versions, strict=True) if version == pinned]
    if not links:
        others = ", ".join(map(str, sorted(set(versions))))
        raise _NotServedError(f"it does not have version {pinned} of it, only {others}")
    stated = [(link.hash_option or {}).get("sha256") for link in links]
    if [source.sha256] in stated:
        return [links[stated.index([source.sha256])]]
    unstated = [link for link, digests in zip(links, stated, strict=True) if digests is None]
    if not unstated:
        others = " and ".join(digest for digests in stated for digest in digests or ())
        raise _NotServedError(f"its file of {source.version} is another one, with SHA-256 {others}")
    return unstated


def _packages(finder: PackageFinder, name: str) -> Sequence[Package]:
    """List all files of a package in one place; at least one."""
    import httpx2
    from unearth import Link
    from unearth.collector import is_secure_origin

    url = finder.sources[0]["url"]
    with _unearth_log() as problems:
        if "://" not in url and not Path(url).exists():
            raise _NotServedError("there is no such folder")
        place = Link(url) if "://" in url else Link.from_path(Path(url).absolute())
        if not is_secure_origin(finder.session, place):
            raise _NotServedError("it is not https, and not among pip's trusted hosts")
        try:
            packages = [
                package
                for package in finder.find_all_packages(name, allow_yanked=True)
                if not (package.link.is_file and package.link.file_path.is_dir())
            ]
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _NotServedError(_explain_network(place, error)) from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _NotServedError(f"its answer is not that of a package index ({error!r})") from None
    if packages:
        return packages
    problem = problems[0] if problems else ""
    if (status := re.search(r"Error\((\d{3})\)", problem)) is not None:
        raise _NotServedError(_explain_status(int(status[1])))
    raise _NotServedError(f"it is no package index: {problem}" if problem else _NO_SUCH_PACKAGE)


@contextmanager
def _unearth_log() -> Iterator[list[str]]:
    """Collect what unearth only logs, such as why a page cannot be read, and keep it off stderr."""
    problems: list[str] = []

    def collect(record: logging.LogRecord) -> None:
        if record.name == "unearth.collector" and isinstance(record.args, tuple):
            problems.append(str(record.args[-1]))

    handler = logging.Handler(logging.WARNING)
    handler.emit = collect  # type: ignore[method-assign]
    logger = logging.getLogger("unearth")
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield problems
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _explain_status(status: int) -> str:
    """Explain the HTTP status of an index's error."""
    if status in (404, 410):
        return _NO_SUCH_PACKAGE
    if status in (401, 403, 407):
        return f"it asks for credentials, or refuses those of pip's settings or netrc (HTTP status {status})"
    return f"it answers with HTTP status {status}"


def _explain_network(link: Link, error: Exception) -> str:
    host = urlsplit(link.url).hostname or "its host"
    return explain_connection(host, error)[0]


def _remove(link: Link, folder: Path) -> None:
    """Remove what was downloaded; a file of a local index stays."""
    if not link.is_file:
        (folder / link.filename).unlink(missing_ok=True)
