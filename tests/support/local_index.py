"""A package index on this machine, with wheels and source archives that a test makes."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import ssl
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from converter.hub.catalog_entry import CatalogEntry, PackageSource


def wheel(
    members: Mapping[str, bytes], *, name: str = "my_weights", version: str = "1.0"
) -> dict[str, bytes]:
    """A wheel with these members, by its file name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in members.items():
            archive.writestr(path, content)
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        )
    return {f"{name}-{version}-py3-none-any.whl": buffer.getvalue()}


def sdist(
    members: Mapping[str, bytes],
    *,
    name: str = "my_weights",
    version: str = "1.0",
    links: Mapping[str, str] = {},
) -> dict[str, bytes]:
    """A source archive with these members, and with links from a path to another."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, content in members.items():
            info = tarfile.TarInfo(f"{name}-{version}/{path}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for path, target in links.items():
            info = tarfile.TarInfo(f"{name}-{version}/{path}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return {f"{name}-{version}.tar.gz": buffer.getvalue()}


CONTENT = b"weights" * 20_000
MEMBERS = {"my_weights/model/faces.h5": CONTENT, "my_weights/__init__.py": b""}
# setup.py would leave a file behind in the folder of the one who runs it.
SOURCE = {
    "model/faces.h5": CONTENT,
    "setup.py": b"import pathlib; pathlib.Path('ran').touch(); import setuptools; setuptools.setup()",
}
FORMS = {"wheel": wheel(MEMBERS), "sdist": sdist(SOURCE)}
MEMBER = {"wheel": "my_weights/model/faces.h5", "sdist": "my_weights-1.0/model/faces.h5"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(
    files: dict[str, bytes], *members: str, content: bytes = CONTENT, version: str = "1.0"
) -> CatalogEntry:
    """An entry whose source is the only one of these files, which is the file of the package."""
    (packed,) = files.values()
    source = PackageSource(
        package="My-Weights",
        version=version,
        sha256=sha256(packed),
        members={member: sha256(content) for member in members},
    )
    return CatalogEntry(name="mine", dataset="faces", sources=(source,))


WHEEL = entry(FORMS["wheel"], MEMBER["wheel"])


@dataclass
class LocalIndex:
    """The index and what it has seen.

    Attributes:
        address: Address of the server.
        files: File name to content; all are of the package my-weights.
        form: Whether the package's page is "html" or "json".
        digests: Whether the page states SHA-256; or file name to the SHA-256 that it states.
        yanked: Whether all files are yanked.
        password: Name and password that it asks for, as "name:password".
        cut: Bytes of a file after which the connection is closed.
        page: Another answer than the package's page: status, type and body.
        requests: The path of every request.
        hosts: The host of every request that came as to a proxy.
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    form: str = "html"
    digests: bool | dict[str, str] = True
    yanked: bool = False
    password: str = ""
    cut: int | None = None
    page: tuple[int, str, bytes] | None = None
    requests: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.address}/simple"

    def listing(self) -> tuple[int, str, bytes]:
        if self.page is not None:
            return self.page
        stated = (
            {} if self.digests is False else {n: hashlib.sha256(c).hexdigest() for n, c in self.files.items()}
        )
        stated |= self.digests if isinstance(self.digests, dict) else {}
        if self.form == "json":
            files = [
                {
                    "filename": name,
                    "url": f"/files/{name}",
                    "hashes": {"sha256": stated[name]} if name in stated else {},
                    "yanked": self.yanked,
                }
                for name in self.files
            ]
            body = json.dumps({"meta": {"api-version": "1.0"}, "name": "my-weights", "files": files})
            return 200, "application/vnd.pypi.simple.v1+json", body.encode()
        yanked = ' data-yanked="bad"' if self.yanked else ""
        lines = [
            f'<a href="../../files/{html.escape(name)}{f"#sha256={stated[name]}" if name in stated else ""}"'
            f"{yanked}>{name}</a>"
            for name in self.files
        ]
        return 200, "text/html; charset=utf-8", "\n".join(["<!DOCTYPE html>", *lines]).encode()


class Handler(BaseHTTPRequestHandler):
    """Serves a `LocalIndex`, also as a proxy for http addresses of any host."""

    index: LocalIndex

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.hostname:
            self.index.hosts.append(url.hostname)
        self.index.requests.append(url.path)
        expected = f"Basic {base64.b64encode(self.index.password.encode()).decode()}"
        name = url.path.rpartition("/")[2]
        if self.index.password and self.headers["Authorization"] != expected:
            self.answer(401, "text/plain", b"no")
        elif url.path == "/moved/my-weights/":
            self.send_response(301)
            self.send_header("Location", "/simple/my-weights/")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif url.path == "/simple/my-weights/":
            self.answer(*self.index.listing())
        elif url.path == f"/files/{name}" and name in self.index.files:
            self.answer(200, "application/octet-stream", self.index.files[name], self.index.cut)
        else:
            self.answer(404, "text/plain", b"not found")

    def answer(self, status: int, content_type: str, body: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def running_index(context: ssl.SSLContext | None = None) -> Iterator[LocalIndex]:
    """Run an index; with a context it speaks TLS."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "http" if context is None else "https"
        index = LocalIndex(f"{scheme}://localhost:{server.server_port}")
        server.RequestHandlerClass = type("IndexHandler", (Handler,), {"index": index})
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield index
        server.shutdown()
