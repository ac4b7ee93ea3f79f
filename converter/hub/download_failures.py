"""Why a download failed, in words: what the server's page, its status or the network's error means."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from converter.hub.catalog_entry import CatalogEntry

_MAX_PAGE = 1 << 16  # bytes of a page that are looked at
# How Google Drive words its pages in English; in another language the page's title is shown instead.
_QUOTA = re.compile(r"too many users have viewed or downloaded|quota exceeded", re.IGNORECASE)
_INFECTED = re.compile(r"infected (with a virus|files?)", re.IGNORECASE)
_SCAN = re.compile(r"virus scan warning|scan this file for viruses", re.IGNORECASE)

Reason = tuple[str, str]
"""What is wrong and what the user can do about it, both without a full stop."""


def _what_status(status: int) -> Reason | None:
    """What an HTTP status says, if it is that of an error (RFC 9110, section 15)."""
    answer = f"the server answers with HTTP status {status}"
    if status in (404, 410):
        return f"the link is dead: {answer}", "Look for a newer release that has another link"
    if status in (401, 403):
        return f"the file is not shared with everyone: {answer}", "Ask its owner to share it"
    if status == 429 or status >= 500:
        return f"the server cannot serve it now: {answer}", "Try again later"
    return (answer, "Look at the link with a browser") if status >= 400 else None


def explain_page(
    checkpoint: CatalogEntry, said: str, timeout: tuple[float, float], waited: float | None
) -> Reason:
    """Why a page came instead of the file.

    gdown quotes a page of Google Drive where it finds the words to quote; for all others it has one message,
    so that the page has to be looked at once more.

    Args:
        checkpoint: What was asked for.
        said: gdown's message.
        timeout: Seconds to connect, and between bytes.
        waited: Seconds after which gdown was stopped; None where it ended by itself.
    """
    import requests

    status, address, page = 200, "", ""
    if not _QUOTA.search(_words(said)):
        try:
            asked = checkpoint.link or f"https://drive.google.com/uc?id={checkpoint.drive_id}"
            with requests.get(asked, stream=True, timeout=timeout) as response:
                if response.ok and "text/html" not in response.headers.get("Content-Type", ""):
                    if waited is None:
                        return "a page came instead of the file, which does come now", "Run the command again"
                    return f"nothing of the file came within {waited:.0f} s", "Run the command again"
                status, address = response.status_code, response.url
                page = next(response.iter_content(_MAX_PAGE), b"").decode(errors="replace")
        except requests.RequestException:
            page = ""  # gdown's own words have to do
    words = _words(f"{said} {page}")
    if _QUOTA.search(words):
        return "Google Drive's quota for this file is used up, for everyone", "Try again in a day"
    if _INFECTED.search(words):
        return "Google Drive takes this file for infected and gives it to nobody", "Tell its owner"
    reason = _what_status(status)
    if reason is not None:
        return reason
    if urlsplit(address).hostname == "accounts.google.com":
        return "the file is not shared with everyone: Google asks to sign in", "Ask its owner to share it"
    if _SCAN.search(words):
        return (
            "Google Drive cannot scan this file for viruses, and its page lets only a person go on",
            "A newer gdown may understand the page",
        )
    title = re.search(r"<title>([^<]{1,100})</title>", page)
    return (
        f"a page came instead of the file{f', titled {title[1].strip()!r}' if title else ''}",
        "Look at the link with a browser",
    )


def _words(text: str) -> str:
    """The text in one line: gdown breaks the lines of what it quotes."""
    return " ".join(text.split())


def explain_transfer(checkpoint: CatalogEntry, received: int, total: int | None, error: Exception) -> Reason:
    """Why a transfer failed on its way.

    Args:
        checkpoint: What was asked for.
        received: Bytes of the file that are there.
        total: Bytes that it has; None where nobody said.
        error: What gdown or requests raised.
    """
    from requests import exceptions

    errors = list(_chain(error))
    failure = next((item for item in errors if isinstance(item, exceptions.RequestException)), None)
    if isinstance(failure, exceptions.HTTPError) and failure.response is not None:
        reason = _what_status(failure.response.status_code)
        if reason is not None:
            return reason
    if received or failure is None or isinstance(failure, exceptions.ChunkedEncodingError):
        of = "" if total is None else f" of {total}"
        where = f"after {received}{of} bytes" if received else "before its end"
        return f"the transfer broke off {where}", "Run the command again: it goes on from there"
    host = urlsplit(checkpoint.url).hostname
    causes = [item for item in errors if isinstance(item, OSError)]  # requests' own are OSErrors as well
    why = causes[-1].strerror or str(causes[-1])
    if any(isinstance(item, ssl.SSLCertVerificationError) for item in errors):
        return (
            f"the certificate of {host} is not trusted ({why})",
            "Where a proxy replaces certificates, name its own in REQUESTS_CA_BUNDLE",
        )
    return f"{host} cannot be reached ({why})", "Check the network, and HTTPS_PROXY if there is a proxy"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, down to the system's own."""
    while error is not None:
        yield error
        held = next((item for item in error.args if isinstance(item, BaseException)), None)  # by urllib3
        error = error.__cause__ or error.__context__ or held
