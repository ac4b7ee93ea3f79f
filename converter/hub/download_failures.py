"""Explanations of failed downloads, from the server's page, its status or the network's error."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

from converter.hub.catalog_entry import ArchiveSource

_MAX_PAGE = 1 << 16  # bytes of a page that are read
# Phrases of Google Drive's English pages. For other languages the message quotes the page's title.
_QUOTA = re.compile(r"too many users have viewed or downloaded|quota exceeded", re.IGNORECASE)
_INFECTED = re.compile(r"infected (with a virus|files?)", re.IGNORECASE)
_SCAN = re.compile(r"virus scan warning|scan this file for viruses", re.IGNORECASE)

Reason = tuple[str, str]
"""The problem and what to do next, both without a full stop."""


def _explain_status(status: int) -> Reason | None:
    """Explain the HTTP status of an error (RFC 9110, section 15); None for any other status."""
    answer = f"the server answers with HTTP status {status}"
    if status in (404, 410):
        return f"the link is dead: {answer}", "Look for a newer release that has another link"
    if status in (401, 403):
        return f"the file is not shared with everyone: {answer}", "Ask its owner to share it"
    if status == 429 or status >= 500:
        return f"the server cannot serve it now: {answer}", "Try again later"
    return (answer, "Open the link in a browser") if status >= 400 else None


def explain_page(
    source: ArchiveSource, message: str, timeout: tuple[float, float], waited: float | None
) -> Reason:
    """Explain why the server sent a page instead of the file.

    gdown quotes only some pages of Google Drive; this function requests the others once more.

    Args:
        source: The zip.
        message: gdown's message.
        timeout: Seconds to connect, and between bytes.
        waited: Seconds after which the download was stopped; None if gdown gave up by itself.
    """
    import requests

    status, address, page = 200, "", ""
    if not _QUOTA.search(_one_line(message)):
        link = source.link or f"https://drive.google.com/uc?id={source.drive_id}"
        # If this fails as well, only gdown's message is left to explain.
        with (
            suppress(requests.RequestException),
            requests.get(link, stream=True, timeout=timeout) as response,
        ):
            if response.ok and "text/html" not in response.headers.get("Content-Type", ""):
                problem = "a page came instead of the file, but the file is available now"
                if waited is not None:
                    problem = f"nothing of the file came within {waited:.0f} s"
                return problem, "Run the command again"
            status, address = response.status_code, response.url
            page = next(response.iter_content(_MAX_PAGE), b"").decode(errors="replace")
    text = _one_line(f"{message} {page}")
    if _QUOTA.search(text):
        return "Google Drive's quota for this file is used up, for everyone", "Try again in a day"
    if _INFECTED.search(text):
        return "Google Drive considers this file infected and does not serve it", "Tell its owner"
    reason = _explain_status(status)
    if reason is not None:
        return reason
    if urlsplit(address).hostname == "accounts.google.com":
        return "the file is not shared with everyone: Google asks to sign in", "Ask its owner to share it"
    if _SCAN.search(text):
        return (
            "Google Drive cannot scan this file for viruses, and its page needs a person to confirm",
            "A newer gdown may understand the page",
        )
    title = re.search(r"<title>([^<]{1,100})</title>", page)
    return (
        f"a page came instead of the file{f', titled {title[1].strip()!r}' if title else ''}",
        "Open the link in a browser",
    )


def _one_line(text: str) -> str:
    """Join the text into one line, since gdown breaks the lines of its quotations."""
    return " ".join(text.split())


def explain_transfer(source: ArchiveSource, received: int, total: int | None, error: Exception) -> Reason:
    """Explain why a transfer failed.

    Args:
        source: The zip.
        received: Bytes of the file received.
        total: Its size in bytes; None if unknown.
        error: The exception of gdown or requests.
    """
    from requests import exceptions

    errors = list(_chain(error))
    failure = next((item for item in errors if isinstance(item, exceptions.RequestException)), None)
    if isinstance(failure, exceptions.HTTPError) and failure.response is not None:
        reason = _explain_status(failure.response.status_code)
        if reason is not None:
            return reason
    if received or failure is None or isinstance(failure, exceptions.ChunkedEncodingError):
        count = f"{received}" if total is None else f"{received} of {total}"
        where = f"after {count} bytes" if received else "before its end"
        return f"the transfer broke off {where}", "Run the command again: it continues from there"
    return explain_connection(urlsplit(source.place).hostname or "its host", error)


def explain_connection(host: str, error: Exception) -> Reason:
    """Explain why a host cannot be reached, from the exception of any HTTP library."""
    errors = list(_chain(error))
    causes = [item for item in errors if isinstance(item, OSError)]  # requests' own are OSErrors as well
    why = (causes[-1].strerror or str(causes[-1])) if causes else str(error)
    if any(isinstance(item, ssl.SSLCertVerificationError) for item in errors):
        return (
            f"the certificate of {host} is not trusted ({why})",
            "If a proxy replaces certificates, name its own in REQUESTS_CA_BUNDLE",
        )
    why = why or type(error).__name__
    return f"{host} cannot be reached ({why})", "Check the network, and HTTPS_PROXY if there is a proxy"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes, down to the system's own."""
    while error is not None:
        yield error
        argument = next((item for item in error.args if isinstance(item, BaseException)), None)  # of urllib3
        error = error.__cause__ or error.__context__ or argument
