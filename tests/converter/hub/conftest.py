"""Fixtures of tests with a package index."""

from __future__ import annotations

import os

import pytest

from tests.support.local_index import FORMS, LocalIndex, running_index


@pytest.fixture(scope="session")
def index_server():
    """An index for all tests of a process."""
    with running_index() as index:
        yield index


@pytest.fixture
def no_settings(tmp_path, monkeypatch):
    """Empty home, cache and current folder, no proxy, and no settings of pip."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("XDG_CACHE_HOME", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, folder in (("HOME", "home"), ("FACENET_PORT_CACHE", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def index(index_server, no_settings, monkeypatch) -> LocalIndex:
    """The index without the state of other tests, as the only one that pip is configured for."""
    index_server.__init__(index_server.address, files=dict(FORMS["wheel"]))
    monkeypatch.setenv("PIP_INDEX_URL", index_server.url)
    return index_server
