"""A local server that plays Google Drive, reached as the real one is: through a proxy, over HTTPS.

HTTPS_PROXY leads every connection here, to whatever host, and REQUESTS_CA_BUNDLE makes this server's
certificates good, so that the code under test runs unchanged, with the addresses it always uses.
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

# Worded and marked up like Google's own pages, styles and scripts left out.
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
)  # in one line, as it comes: gdown looks for it line by line
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
    """A request that came: where to, and for which bytes."""

    host: str
    path: str
    range: str | None


@dataclass
class Drive:
    """The server: what it plays for each path or Drive id, and what it was asked.

    Attributes:
        environment: The variables that lead a process here.
        plays: Google Drive id, or path of another host, to what is played, once for each request; the last
            scene is played again.
        requests: What was asked, in order.
    """

    environment: dict[str, str]
    plays: dict[str, list[Scene]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def ranges(self, host: str = "drive.google.com") -> list[str | None]:
        return [request.range for request in self.requests if request.host == host]


class Handler(BaseHTTPRequestHandler):
    """One connection: CONNECT makes it that of the host asked for, TLS included."""

    protocol_version = "HTTP/1.1"
    drive: Drive
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
        scenes = self.drive.plays[identity]
        scene = scenes.pop(0) if len(scenes) > 1 else scenes[0]
        with suppress(ConnectionError, ssl.SSLError):  # a client that has had enough
            scene(self)

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


Scene = Callable[[Handler], None]
_ATTACHMENT = {
    "Content_Type": "application/octet-stream",
    "Content_Disposition": 'attachment; filename="model.zip"',
    "ETag": '"one"',
}


def page(text: str, status: int = 200) -> Scene:
    """A web page."""
    return lambda handler: handler.answer(text.encode(), status, Content_Type="text/html; charset=utf-8")


def scan_page(handler: Handler) -> None:
    """The page that large files have, whose form leads to the other host; the file is to be played next."""
    _scan_page(handler, "https://drive.usercontent.google.com/download")


def scan_page_that_leads_nowhere(handler: Handler) -> None:
    """The same, whose form leads to itself."""
    _scan_page(handler, "https://drive.google.com/uc")


def scan_page_without_form(handler: Handler) -> None:
    """The same, with a button that only a script answers to."""
    page(SCAN_PAGE.format(id="x", form="<button>Download anyway</button>"))(handler)


def _scan_page(handler: Handler, action: str) -> None:
    identity = parse_qs(urlsplit(handler.path).query)["id"][0]
    form = SCAN_FORM.format(id=identity, action=action)
    page(SCAN_PAGE.format(id=identity, form=form))(handler)


def sign_in(handler: Handler) -> None:
    """What a file has that is not shared: a way to Google's own sign-in page."""
    handler.answer(b"", 302, Location="https://accounts.google.com/ServiceLogin", Content_Type="text/html")


def file(data: bytes) -> Scene:
    """A file; a part of it where a part is asked for."""
    return broken_file(data, None)


def broken_file(data: bytes, until: int | None) -> Scene:
    """A file announced with its true length, whose connection closes after `until` bytes of it."""

    def scene(handler: Handler) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        start = int(wanted[1]) if wanted else 0
        headers = dict(_ATTACHMENT, Content_Length=str(len(data) - start))
        if wanted:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        handler.close_connection = until is not None
        handler.answer(data[start:until], 206 if wanted else 200, **headers)

    return scene


def whole_file_only(data: bytes) -> Scene:
    """A file of a server that knows of no parts."""
    return lambda handler: handler.answer(data, **_ATTACHMENT)


def file_without_length(data: bytes) -> Scene:
    """A file whose end is the end of the connection."""

    def scene(handler: Handler) -> None:
        _begin_without_length(handler)
        handler.wfile.write(data)

    return scene


def endless(handler: Handler) -> None:
    """Bytes, until the client hangs up."""
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


def held_file(data: bytes, until: int, release: threading.Event) -> Scene:
    """A file that stops after `until` bytes and goes on when it is released."""

    def scene(handler: Handler) -> None:
        handler.send_response(200)
        for name, value in dict(_ATTACHMENT, Content_Length=str(len(data))).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data[:until])
        release.wait(60)
        handler.wfile.write(data[until:])

    return scene


@contextmanager
def playing(folder: Path) -> Iterator[Drive]:
    """Run the server; `folder` is for its certificate."""
    authority = trustme.CA()
    bundle = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        drive = Drive({**proxy_environment(address), "REQUESTS_CA_BUNDLE": str(bundle)})
        server.RequestHandlerClass = type("PlayingHandler", (Handler,), {"drive": drive, "context": context})
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield drive
        server.shutdown()


def proxy_environment(address: str) -> dict[str, str]:
    """The variables by which requests goes through a proxy; the small ones come first, so both are set."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    return {**dict.fromkeys(names, address), "NO_PROXY": "", "no_proxy": ""}
