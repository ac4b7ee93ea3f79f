"""pip's settings, as pip itself reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from unearth import PackageFinder

from converter.errors import RequirementError
from converter.hub.pip_settings import PipSettings, read_pip_settings

FILES = {
    "etc/pip/pip.conf": "[global]\nindex-url = https://global.example.org/simple\ntimeout = 7\n",
    "home/.pip/pip.conf": "[global]\nindex_url = https://old.example.org/simple\nproxy = old.example.org:1\n",
    "config/pip/pip.conf": (
        "[global]\nextra-index-url =\n    https://one.example.org/simple\n    https://two.example.org/100%/simple\n"
        "[download]\nproxy = https://me:secret@proxy.example.org:8080\n[install]\nproxy = not-this\n"
    ),
    "named.conf": "[global]\nNo-Index = yes\nfind-links = /wheels\n[list]\nindex-url = https://list.example.org\n",
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Pip's files of the system and of the user, and no variable of pip."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    folders = {"HOME": "home", "XDG_CONFIG_DIRS": "etc", "XDG_CONFIG_HOME": "config"}
    for name, folder in folders.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    return tmp_path


PIP = """
import json
from pip._internal.commands import create_command
print(json.dumps(vars(create_command("download").parser.get_default_values()), default=str))
"""


def options_of_pip():
    """The options that `pip download` has without arguments, by pip's own parser."""
    output = subprocess.run([sys.executable, "-c", PIP], capture_output=True, text=True, check=True).stdout
    return json.loads(output)


VARIABLES = [
    {},
    {"PIP_CONFIG_FILE": "named.conf"},
    {"PIP_CONFIG_FILE": "missing.conf"},
    {"PIP_CONFIG_FILE": os.devnull},
    {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "https://variable.example.org/simple"},
    {"PIP_INDEX_URL": "", "PIP_EXTRA_INDEX_URL": "https://a.org  https://b.org", "PIP_DEFAULT_TIMEOUT": "3"},
    {
        "PIP_FIND_LINKS": "/a /b",
        "PIP_NO_INDEX": "0",
        "PIP_TRUSTED_HOST": "a.org b.org:8080",
        "PIP_CERT": "/c.pem",
    },
    {"PIP_NO_INDEX": "1", "PIP_CLIENT_CERT": "/d.pem", "PIP_PROXY": "c.org:3128"},
]


@pytest.mark.parametrize("variables", VARIABLES)
def test_the_settings_are_those_that_pip_reads(machine, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(machine / value) if value.endswith(".conf") else value)
    options = options_of_pip()
    settings = read_pip_settings()
    default = PackageFinder().sources[0]["url"].rstrip("/")
    assert (settings.index_url or default) == options["index_url"]
    assert list(settings.extra_index_urls) == options["extra_index_urls"]
    assert list(settings.find_links) == options["find_links"]
    assert list(settings.trusted_hosts) == options["trusted_hosts"]
    assert settings.no_index == bool(options["no_index"])
    assert (settings.cert, settings.client_cert) == (options["cert"], options["client_cert"])
    assert settings.timeout == options["timeout"]
    proxy = options["proxy"] or None
    assert settings.proxy == (f"http://{proxy}" if proxy and "://" not in proxy else proxy)


def test_without_any_setting_there_is_pips_own_index(machine, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert read_pip_settings() == PipSettings()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"index-url = x", "pip.conf: pip's configuration cannot be read"),
        (b"[global]\nindex-url = \xff", "pip.conf: pip's configuration cannot be read"),
        (b"[global]\ntimeout = soon", "pip's timeout is 'soon', not a number of seconds"),
    ],
)
def test_mistakes_in_a_file(machine, content, says):
    (machine / "config" / "pip" / "pip.conf").write_bytes(content)
    with pytest.raises(RequirementError, match=says):
        read_pip_settings()
