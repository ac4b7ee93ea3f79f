"""The user's own checkpoints: a TOML file with one table for each.

    ["my-model"]
    dataset = "my-faces"
    url = "https://example.org/my-model.zip"
    sha256 = "<64 hexadecimal digits: what sha256sum says of the zip>"

Required: `dataset`, `sha256`, and either `drive_id` (Google Drive) or `url`. Optional: `aliases`,
`embedding_size`, `num_classes`, `lfw_accuracy`, `standardisation` ("fixed" or "per image"), `size` (of the
zip, in bytes) and `files`, a table from the name of a file in the zip, or its ending with the dot, to its
SHA-256.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from converter.errors import SourceError
from converter.hub.catalog_entry import FIXED, PER_IMAGE, CatalogEntry

VARIABLE = "FACENET_PORT_CATALOG"
"""The environment variable that names the file."""

_MAX_SIZE = 1 << 18  # bytes; an entry takes less than 1 KiB
_MAX_DOTS = 100  # in a line; tomllib takes time with the square of a dotted key's length
# A name that is a plain file name on every system, since a folder is called so.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_COMMANDS = ("list",)  # `python -m converter list` asks for no checkpoint
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_DRIVE_ID = re.compile(r"[A-Za-z0-9_-]{10,100}")
_URL = re.compile(r"https?://[!-~]+")
_ENDING = re.compile(r"\.[A-Za-z0-9._-]{1,100}")
_STANDARDISATIONS = {"fixed": FIXED, "per image": PER_IMAGE}


def catalog_path() -> Path:
    """$FACENET_PORT_CATALOG, or facenet-port/catalog.toml in $XDG_CONFIG_HOME, or in ~/.config."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser()
    root = os.environ.get("XDG_CONFIG_HOME")
    return (Path(root) if root else Path.home() / ".config") / "facenet-port" / "catalog.toml"


def read_catalog(built_in: Iterable[CatalogEntry]) -> tuple[CatalogEntry, ...]:
    """The user's checkpoints, in the order of the file; none where there is no file and none was named.

    Args:
        built_in: The checkpoints whose names and aliases are taken.

    Raises:
        SourceError: The file that the environment names is missing; or a file is unreadable, larger than
            256 KiB, not TOML, or says what a catalog cannot say: an unknown key, a missing one, a value of
            the wrong type or form, a name or alias that is taken.
    """
    path = catalog_path()
    if not path.exists():
        if not os.environ.get(VARIABLE):
            return ()
        raise SourceError(
            path,
            f"there is no such file, and {VARIABLE} names it",
            next_step="Create the file, or unset that",
        )
    taken = {label.casefold(): checkpoint.name for checkpoint in built_in for label in checkpoint.labels}
    checkpoints = []
    for name, values in _tables(path).items():
        checkpoint = _checkpoint(path, name, values)
        for label in checkpoint.labels:
            if label.casefold() in taken:
                raise SourceError(
                    path,
                    f"[{name}]: the name {label!r} already belongs to {taken[label.casefold()]!r}",
                    next_step="Give another one (capitals make no difference)",
                )
            taken[label.casefold()] = name
        checkpoints.append(checkpoint)
    return tuple(checkpoints)


def _tables(path: Path) -> dict[str, Any]:
    import tomllib

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise SourceError(path, "not a regular file", next_step="Copy its content to a file")
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_SIZE + 1)
        if len(text) > _MAX_SIZE:
            raise SourceError(
                path, f"more than {_MAX_SIZE} bytes, too much for a catalog", next_step="Shorten it"
            )
        for number, line in enumerate(text.splitlines(), 1):
            if line.count(b".") > _MAX_DOTS:
                problem = f"line {number} has more than {_MAX_DOTS} dots, too many for a catalog"
                raise SourceError(path, problem, next_step="Correct it")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise SourceError(path, f"cannot be read ({error.strerror or error})") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # a TOMLDecodeError and a UnicodeDecodeError are ValueErrors
        raise SourceError(path, f"not TOML ({error})", next_step="Correct it") from error


def _checkpoint(path: Path, name: str, values: Any) -> CatalogEntry:
    """One table as a checkpoint."""

    def wrong(problem: str, next_step: str) -> SourceError:
        return SourceError(path, f"[{name}]{problem}", next_step=next_step)

    if not isinstance(values, dict):
        raise wrong(" is not a table", "Put it under the name of a checkpoint, in [brackets]")
    if _plain_name(name) is None:
        raise wrong(": the name cannot be that of a folder", f"Use {_RULES['dataset'].form}")
    read: dict[str, Any] = {}
    for key, value in values.items():
        rule = _RULES.get(key)
        if rule is None:
            raise wrong(f": unknown key {key!r}", f"The keys are {', '.join(_RULES)}")
        read[key] = rule.read(value)
        if read[key] is None:
            raise wrong(f" {key}: {_shown(value)} will not do", f"Give {rule.form}")
    for key in ("dataset", "sha256"):
        if key not in read:
            raise wrong(f": the key {key!r} is missing", f"Give {_RULES[key].form}")
    if ("drive_id" in read) == ("url" in read):
        which = "both 'drive_id' and 'url' are" if "url" in read else "neither 'drive_id' nor 'url' is"
        raise wrong(f": {which} given", "Give exactly one of them")
    return CatalogEntry(
        name=name,
        link=read.pop("url", None),
        archive_size=read.pop("size", None),
        archive_sha256=read.pop("sha256"),
        sha256=read.pop("files", {}),
        **read,
    )


def _shown(value: object) -> str:
    try:
        return repr(value)[:200]
    except (ValueError, RecursionError):  # Python writes out no number of over 4,300 digits
        return "what stands there"


def _plain_name(value: object) -> str | None:
    if not isinstance(value, str) or not _PLAIN_NAME.fullmatch(value):
        return None
    return None if value.casefold() in _COMMANDS else value


def _names(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list) or any(_plain_name(item) is None for item in value):
        return None
    return tuple(value)


def _count(value: object) -> int | None:
    # A bool is an int, but not of this type.
    return value if type(value) is int and 0 < value < 1 << 63 else None


def _share(value: object) -> float | None:
    return value if isinstance(value, float) and 0 < value <= 1 else None


def _standardisation(value: object) -> str | None:
    return _STANDARDISATIONS.get(value) if isinstance(value, str) else None


def _digest(value: object) -> str | None:
    return value.lower() if isinstance(value, str) and _DIGEST.fullmatch(value) else None


def _digests(value: object) -> dict[str, str] | None:
    if not isinstance(value, dict):
        return None
    digests = {name: _digest(digest) for name, digest in value.items() if _is_file_or_ending(name)}
    whole = {name: digest for name, digest in digests.items() if digest is not None}
    return whole if len(whole) == len(value) else None


def _is_file_or_ending(name: str) -> bool:
    return _plain_name(name) is not None or _ENDING.fullmatch(name) is not None


def _drive_id(value: object) -> str | None:
    return value if isinstance(value, str) and _DRIVE_ID.fullmatch(value) else None


def _link(value: object) -> str | None:
    if not isinstance(value, str) or not _URL.fullmatch(value):
        return None
    try:
        return value if urlsplit(value).hostname else None
    except ValueError:  # of an address in brackets that is none
        return None


@dataclass(frozen=True, slots=True)
class _Rule:
    """How the value of a key is read: None is a value of the wrong type or form, which `form` describes."""

    read: Callable[[object], Any]
    form: str


_RULES: Mapping[str, _Rule] = {
    "dataset": _Rule(
        _plain_name, "a plain name of at most 100 letters, digits, '.', '_' and '-', a letter or digit first"
    ),
    "aliases": _Rule(_names, "a list of plain names"),
    "embedding_size": _Rule(_count, "a whole number above zero"),
    "num_classes": _Rule(_count, "a whole number above zero"),
    "lfw_accuracy": _Rule(_share, "a number with a decimal point between 0.0 and 1.0"),
    "standardisation": _Rule(_standardisation, 'either "fixed" or "per image"'),
    "drive_id": _Rule(_drive_id, "the id out of a Google Drive link, as text"),
    "url": _Rule(_link, "an https or http address, as text"),
    "size": _Rule(_count, "the size of the zip in bytes, a whole number"),
    "sha256": _Rule(_digest, "the zip's SHA-256 as 64 hexadecimal digits (sha256sum prints it)"),
    "files": _Rule(_digests, "a table of file names, or endings with their dot, with SHA-256 digests"),
}
