"""A local server that stands in for Google Drive.

The code under test runs unchanged, with its usual addresses: HTTPS_PROXY sends every connection to this
server, and REQUESTS_CA_BUNDLE makes requests trust its certificates.
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import trustme

HOSTS = ("drive.google.com", "drive.usercontent.google.com", "accounts.google.com", "example.org")

# The text and markup of Google's own pages, without styles and scripts.
SCAN_PAGE = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<div class="uc-main"><div id="uc-text">
<p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<p class="uc-warning-subcaption"><span><a href="/open?id={id}">model.zip</a> (186M)</span> is too
large for Google to scan for viruses. Would you still like to download this file?</p>{form}
</div></div></body></html>
"""
SCAN_FORM = (
    '<form id="download-form" action="{action}" method="get">'
    '<input type="submit" id="uc-download-link" class="goog-inline-block" value="Download anyway"/>'
    '<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" value="download">'
    '<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="8f2a"></form>'
)  # one line, because gdown searches line by line
ERROR_PAGE = """<!DOCTYPE html><html><head><title>Google Drive - {title}</title></head><body>
<div class="uc-main"><div id="uc-text"><p class="uc-error-caption">{caption}</p>
<p class="uc-error-subcaption">{subcaption}</p></div></div></body></html>
"""
QUOTA_PAGE = ERROR_PAGE.format(
    title="Quota exceeded",
    caption="Sorry, you can't view or download this file at this time.",
    subcaption="Too many users have viewed or downloaded this file recently. Please try accessing the file "
    "again later. If the file you are trying to access is particularly large or is shared with many people, "
    "it may take up to 24 hours to be able to view or download the file.",
)
INFECTED_PAGE = ERROR_PAGE.format(
    title="Infected file",
    caption="Sorry, this file is infected with a virus.",
    subcaption="Only the owner is allowed to download infected files.",
)
NOT_FOUND_PAGE = """<!DOCTYPE html><html><title>Error 404 (Not Found)!!1</title>
<p>The requested URL was not found on this server. <ins>That's all we know.</ins></html>
"""


@dataclass(frozen=True)
class Request:
    """A request that the server received: host, path and range of bytes."""

    host: str
    path: str
    range: str | None


@dataclass
class FakeDrive:
    """The server's answers by path or Drive id, and the requests that it received.

    Attributes:
        environment: The variables that send a process's connections to the server.
        answers: Google Drive id, or path on another host, to the answers in order; the last answer repeats.
        requests: The requests, in order.
    """

    environment: dict[str, str]
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def ranges(self, host: str = "drive.google.com") -> list[str | None]:
        return [request.range for request in self.requests if request.host == host]


class Handler(BaseHTTPRequestHandler):
    """The handler of a connection; CONNECT turns it into a TLS connection to the host that it names."""

    protocol_version = "HTTP/1.1"
    drive: FakeDrive
    context: ssl.SSLContext
    host = ""

    def do_CONNECT(self) -> None:
        self.host = self.path.partition(":")[0]
        self.send_response(200)
        self.end_headers()
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.request = self.connection
        self.setup()
        self.close_connection = False

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        identity = parse_qs(url.query).get("id", [url.path])[0]
        host = self.host or url.hostname or ""
        self.drive.requests.append(Request(host, url.path, self.headers["Range"]))
        answers = self.drive.answers[identity]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        with suppress(ConnectionError, ssl.SSLError):  # the client has hung up
            answer(self)

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


Answer = Callable[[Handler], None]
_ATTACHMENT = {
    "Content_Type": "application/octet-stream",
    "Content_Disposition": 'attachment; filename="model.zip"',
    "ETag": '"one"',
}


def page(text: str, status: int = 200) -> Answer:
    """A web page."""
    return lambda handler: handler.answer(text.encode(), status, Content_Type="text/html; charset=utf-8")


def scan_page(handler: Handler) -> None:
    """The virus scan page of a large file; its form leads to the other host, whose answer is the file."""
    _scan_page(handler, "https://drive.usercontent.google.com/download")


def scan_page_that_leads_nowhere(handler: Handler) -> None:
    """A virus scan page whose form leads to itself."""
    _scan_page(handler, "https://drive.google.com/uc")


def scan_page_without_form(handler: Handler) -> None:
    """A virus scan page whose button works only by a script."""
    page(SCAN_PAGE.format(id="x", form="<button>Download anyway</button>"))(handler)


def _scan_page(handler: Handler, action: str) -> None:
    identity = parse_qs(urlsplit(handler.path).query)["id"][0]
    form = SCAN_FORM.format(id=identity, action=action)
    page(SCAN_PAGE.format(id=identity, form=form))(handler)


def sign_in(handler: Handler) -> None:
    """The answer for a file that is not shared: a redirection to Google's sign-in page."""
    handler.answer(b"", 302, Location="https://accounts.google.com/ServiceLogin", Content_Type="text/html")


def file(data: bytes) -> Answer:
    """A file, or the part of it that the request asks for."""
    return broken_file(data, None)


def broken_file(data: bytes, until: int | None) -> Answer:
    """A file with its true length in the header; the connection closes after `until` bytes."""

    def send(handler: Handler) -> None:
        requested = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        start = int(requested[1]) if requested else 0
        headers = dict(_ATTACHMENT, Content_Length=str(len(data) - start))
        if requested:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        handler.close_connection = until is not None
        handler.answer(data[start:until], 206 if requested else 200, **headers)

    return send


def whole_file_only(data: bytes) -> Answer:
    """A file from a server that does not serve parts."""
    return lambda handler: handler.answer(data, **_ATTACHMENT)


def file_without_length(data: bytes) -> Answer:
    """A file without a length in the header; it ends with the connection."""

    def send(handler: Handler) -> None:
        _begin_without_length(handler)
        handler.wfile.write(data)

    return send


def endless(handler: Handler) -> None:
    """Bytes without end, until the client hangs up."""
    _begin_without_length(handler)
    while True:
        handler.wfile.write(bytes(1 << 16))


def _begin_without_length(handler: Handler) -> None:
    handler.close_connection = True
    handler.send_response(200)
    for name, value in _ATTACHMENT.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Connection", "close")
    handler.end_headers()


def held_file(data: bytes, until: int, release: threading.Event) -> Answer:
    """A file that stops after `until` bytes and continues when `release` is set."""

    def send(handler: Handler) -> None:
        handler.send_response(200)
        for name, value in dict(_ATTACHMENT, Content_Length=str(len(data))).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data[:until])
        release.wait(60)
        handler.wfile.write(data[until:])

    return send


@contextmanager
def running_server(folder: Path) -> Iterator[FakeDrive]:
    """Run the server, with its certificate in `folder`."""
    authority = trustme.CA()
    bundle = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        drive = FakeDrive({**proxy_environment(address), "REQUESTS_CA_BUNDLE": str(bundle)})
        server.RequestHandlerClass = type("ServerHandler", (Handler,), {"drive": drive, "context": context})
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield drive
        server.shutdown()


def proxy_environment(address: str) -> dict[str, str]:
    """The variables that send the package requests through a proxy; it reads both spellings."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    return {**dict.fromkeys(names, address), "NO_PROXY": "", "no_proxy": ""}
