"""The package indexes that pip is configured for, from its configuration files and its variables.

They are read as pip's documentation says (https://pip.pypa.io, "Configuration"), without pip, which an
environment need not have. Later files, and later sections, replace a value as a whole:

    files      global, user, environment, then the one in PIP_CONFIG_FILE
    sections   [global], [install], [download], then the variables PIP_<OPTION>
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from converter.errors import RequirementError
from converter.home_folder import home_folder

_SECTIONS = ("global", "install", "download")
_TRUE = ("y", "yes", "t", "true", "on", "1")  # as pip reads a switch
_TIMEOUT = 15.0  # seconds; pip's default


@dataclass(frozen=True, slots=True)
class PipSettings:
    """The options of pip that say where packages are and how to get there.

    Attributes:
        find_links: Folders, and addresses of pages or files.
        index_url: The index that replaces pip's default one; None if there is none.
        extra_index_urls: More indexes.
        no_index: Whether no index is asked, not even the default one.
        trusted_hosts: Hosts whose certificate is not verified, with or without a port.
        cert: File of certificates to trust.
        client_cert: File with the client's certificate and its key.
        proxy: Address of a proxy, which goes before HTTPS_PROXY.
        timeout: Seconds to connect, and between bytes.
    """

    find_links: tuple[str, ...] = ()
    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    no_index: bool = False
    trusted_hosts: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    timeout: float = _TIMEOUT


def read_pip_settings() -> PipSettings:
    """Read pip's configuration.

    Raises:
        RequirementError: A configuration file or the timeout in it cannot be read.
    """
    options = _options()
    timeout = options.get("timeout", str(_TIMEOUT))
    try:
        seconds = float(timeout)
    except ValueError:
        raise RequirementError(
            f"pip's timeout is {timeout!r}, not a number of seconds. Correct it."
        ) from None
    return PipSettings(
        find_links=tuple(options.get("find-links", "").split()),
        index_url=options.get("index-url"),
        extra_index_urls=tuple(options.get("extra-index-url", "").split()),
        no_index=options.get("no-index", "").lower() in _TRUE,
        trusted_hosts=tuple(options.get("trusted-host", "").split()),
        cert=options.get("cert"),
        client_cert=options.get("client-cert"),
        proxy=with_scheme(options.get("proxy")),
        timeout=seconds,
    )


def with_scheme(proxy: str | None) -> str | None:
    """The address of a proxy, which users also write as HOST:PORT."""
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _options() -> dict[str, str]:
    """Name of each option that is set to its text; an empty text sets nothing."""
    sections: dict[str, dict[str, str]] = {name: {} for name in _SECTIONS}
    for path in _files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")  # a file that does not exist holds nothing
        except (configparser.Error, UnicodeDecodeError) as error:
            problem = " ".join(str(error).split())
            raise RequirementError(
                f"{path}: pip's configuration cannot be read ({problem}). Correct it."
            ) from None
        for name in _SECTIONS:
            if parser.has_section(name):
                sections[name] |= {_option(key): value for key, value in parser.items(name)}
    variables = {
        _option(name.removeprefix("PIP_")): value
        for name, value in os.environ.items()
        if name.startswith("PIP_")
    }
    options: dict[str, str] = {}
    for values in (*sections.values(), variables):
        options |= {name: value.strip() for name, value in values.items() if value.strip()}
    return options


def _option(name: str) -> str:
    name = name.lower().replace("_", "-").removeprefix("--")
    return "timeout" if name == "default-timeout" else name  # two names of one option


def _files() -> Iterator[Path]:
    """Yield pip's configuration files in the order in which they replace each other."""
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    home = home_folder()
    mac = sys.platform == "darwin"
    if mac:
        yield Path("/Library/Application Support/pip/pip.conf")
    else:
        for folder in (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep):
            yield Path(folder) / "pip" / "pip.conf"
        yield Path("/etc/pip.conf")
    if home is not None and not (named and Path(named).exists()):
        yield home / ".pip" / "pip.conf"
        support = home / "Library" / "Application Support" / "pip"
        root = os.environ.get("XDG_CONFIG_HOME") if not mac else None
        yield (support if mac and support.is_dir() else Path(root or home / ".config") / "pip") / "pip.conf"
    yield Path(sys.prefix) / "pip.conf"
    if named:
        yield Path(named)
