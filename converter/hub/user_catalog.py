"""The user's own models: a TOML file with one table for each.

    ["my-model"]
    dataset = "my-faces"
    url = "https://example.org/my-model.zip"
    sha256 = "<64 hexadecimal digits, as sha256sum prints them for the zip>"

Required: `dataset`, and a source. A source is a zip or a package:

    zip       `sha256`, and either `drive_id` (Google Drive) or `url`. Optional: `size` (in bytes) and
              `files`, a table from the name of a file in the zip, or its ending with the dot, to its SHA-256
    package   `package`, `version`, `sha256` (of the wheel or source archive) and `members`, a table from the
              full path of a file in it to its SHA-256

Several sources stand in a list of tables, `[["my-model".sources]]`, in the order in which they are tried.

Optional: `aliases`, `embedding_size`, `num_classes`, `lfw_accuracy` and `standardisation` ("fixed" or
"per image").
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from converter.errors import SourceError
from converter.home_folder import expand, home_folder, xdg_folder
from converter.hub.catalog_entry import (
    FIXED,
    PER_IMAGE,
    ArchiveSource,
    CatalogEntry,
    ModelSource,
    PackageSource,
)

VARIABLE = "FACENET_PORT_CATALOG"
"""The environment variable that names the file."""

_Key = tuple[type, str]
"""The type of a value, and what it is, for messages."""

_KEYS: dict[str, _Key] = {
    "dataset": (str, "text"),
    "aliases": (list, "a list of names"),
    "embedding_size": (int, "a whole number above zero"),
    "num_classes": (int, "a whole number above zero"),
    "lfw_accuracy": (float, "a number between 0.0 and 1.0"),
    "standardisation": (str, 'either "fixed" or "per image"'),
    "sources": (list, "a list of tables, [[NAME.sources]], each a zip or a package"),
}
_ZIP_KEYS: dict[str, _Key] = {
    "drive_id": (str, "the id from a Google Drive link, as text"),
    "url": (str, "an https or http address, as text"),
    "size": (int, "the size of the zip in bytes, a whole number"),
    "sha256": (str, "the zip's SHA-256 as 64 hexadecimal digits (sha256sum prints it)"),
    "files": (dict, "a table of file names, or endings with their dot, with SHA-256 digests"),
}
_PACKAGE_KEYS: dict[str, _Key] = {
    "package": (str, "the name of a package"),
    "version": (str, "the version of a package, as text"),
    "sha256": (str, "the SHA-256 of the package's file as 64 hexadecimal digits (sha256sum prints it)"),
    "members": (dict, "a table of full paths in the package's file with SHA-256 digests"),
}
# Folders and files are named after a checkpoint and its data set.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
_STANDARDISATIONS = {"fixed": FIXED, "per image": PER_IMAGE}


def catalog_path() -> Path | None:
    """$FACENET_PORT_CATALOG, or facenet-port/catalog.toml in $XDG_CONFIG_HOME, or in ~/.config.

    None if no variable is set and there is no home folder.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return expand(named, VARIABLE)
    root = xdg_folder("XDG_CONFIG_HOME")
    if root is None:
        home = home_folder()
        if home is None:
            return None
        root = home / ".config"
    return root / "facenet-port" / "catalog.toml"


def read_catalog(built_in: Iterable[CatalogEntry]) -> tuple[CatalogEntry, ...]:
    """Read the user's models in the order of the file; without a file there are none.

    Args:
        built_in: The entries whose names and aliases are taken.

    Raises:
        SourceError: The file that the environment names is missing; or a file is unreadable, not TOML, or has
            an unknown key, a missing one, a value of the wrong type or form, or a name that is taken.
    """
    path = catalog_path()
    if path is None or not _exists(path):
        if path is None or not os.environ.get(VARIABLE):
            return ()
        raise SourceError(
            path,
            f"the file does not exist, and {VARIABLE} names it",
            next_step=f"Create the file, or unset {VARIABLE}",
        )
    taken = {label.casefold(): entry.name for entry in built_in for label in entry.labels}
    entries = []
    for name, values in _tables(path).items():
        entry = _entry(path, name, values)
        for label in entry.labels:
            if label.casefold() in taken:
                raise SourceError(
                    path,
                    f"[{name}]: the name {label!r} already belongs to {taken[label.casefold()]!r}",
                    next_step="Give another one (capitals make no difference)",
                )
            taken[label.casefold()] = name
        entries.append(entry)
    return tuple(entries)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # the home folder of another user, as in a container that runs as any user
        return False


def _tables(path: Path) -> dict[str, Any]:
    import tomllib

    if not path.is_file():
        raise SourceError(path, "not a regular file", next_step="Copy its content to a file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(path, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # undecodable bytes and wrong TOML are ValueErrors
        raise SourceError(path, f"not TOML ({error})", next_step="Correct it") from error


def _entry(path: Path, name: str, values: Any) -> CatalogEntry:
    """Turn one table into an entry, or explain its error."""
    if not isinstance(values, dict):
        raise _wrong(path, name, " is not a table", "Put it under the name of a model, in [brackets]")
    listed = "sources" in values
    _check_keys(path, name, values, _KEYS if listed else {**_KEYS, **_PACKAGE_KEYS, **_ZIP_KEYS}, ["dataset"])
    aliases = values.get("aliases", [])
    for label in (name, values["dataset"], *aliases):
        if not isinstance(label, str) or not _NAME.fullmatch(label):
            allowed = "at most 100 letters, digits, '.', '_' and '-', a letter or digit first"
            raise _wrong(path, name, f": {label!r} cannot name a file", f"Use {allowed}")
    wrong = [key for key in ("embedding_size", "num_classes") if values.get(key, 1) < 1]
    if values.get("standardisation", "fixed") not in _STANDARDISATIONS:
        wrong.append("standardisation")
    if not 0 <= values.get("lfw_accuracy", 0.0) <= 1:
        wrong.append("lfw_accuracy")
    tables = values.get("sources", [])
    if listed and not (tables and all(isinstance(table, dict) for table in tables)):
        wrong.append("sources")
    if wrong:
        raise _wrong_value(path, name, wrong[0], _KEYS)
    own = {key: value for key, value in values.items() if key not in _KEYS}
    return CatalogEntry(
        name=name,
        dataset=values["dataset"],
        aliases=tuple(aliases),
        embedding_size=values.get("embedding_size"),
        num_classes=values.get("num_classes"),
        lfw_accuracy=values.get("lfw_accuracy"),
        standardisation=_STANDARDISATIONS.get(values.get("standardisation", "")),
        sources=tuple(
            _source(path, f"{name}.sources {number}" if listed else name, table)
            for number, table in enumerate(tables if listed else [own], 1)
        ),
    )


def _source(path: Path, where: str, values: dict[str, Any]) -> ModelSource:
    """Turn the keys of a source into it, or explain their error."""
    package = bool({"package", "version", "members"} & values.keys())
    known, required = (_PACKAGE_KEYS, [*_PACKAGE_KEYS]) if package else (_ZIP_KEYS, ["sha256"])
    if package and {"drive_id", "url"} & values.keys():
        raise _wrong(
            path,
            where,
            ": both a zip and a package are given",
            "Put each into a table of its own, [[NAME.sources]]",
        )
    _check_keys(path, where, values, known, required)
    digests = values.get("members" if package else "files", {})
    if not _DIGEST.fullmatch(values["sha256"]):
        raise _wrong_value(path, where, "sha256", known)
    if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests.values()):
        raise _wrong_value(path, where, "members" if package else "files", known)
    lower = {file: digest.lower() for file, digest in digests.items()}
    if package:
        return _package(path, where, values, lower)
    if ("drive_id" in values) == ("url" in values):
        which = "both 'drive_id' and 'url' are" if "url" in values else "neither 'drive_id' nor 'url' is"
        raise _wrong(path, where, f": {which} given", "Give exactly one of them")
    if "url" in values and not values["url"].startswith(("https://", "http://")):
        raise _wrong_value(path, where, "url", known)
    if values.get("size", 1) < 1:
        raise _wrong_value(path, where, "size", known)
    return ArchiveSource(
        sha256=values["sha256"].lower(),
        files=lower,
        drive_id=values.get("drive_id"),
        link=values.get("url"),
        size=values.get("size"),
    )


def _package(path: Path, where: str, values: dict[str, Any], members: dict[str, str]) -> PackageSource:
    from packaging.version import InvalidVersion, Version

    if not _NAME.fullmatch(values["package"]):
        raise _wrong_value(path, where, "package", _PACKAGE_KEYS)
    try:
        Version(values["version"])
    except InvalidVersion:
        raise _wrong_value(path, where, "version", _PACKAGE_KEYS) from None
    names = [member.rpartition("/")[2] for member in members]
    if not members or not all(_NAME.fullmatch(name) for name in names):
        raise _wrong_value(path, where, "members", _PACKAGE_KEYS)
    if len({name.casefold() for name in names}) < len(names):
        raise _wrong(path, where, " members: two of them have the same name", "They have to differ in it")
    return PackageSource(
        package=values["package"],
        version=values["version"],
        sha256=values["sha256"].lower(),
        members=members,
    )


def _check_keys(
    path: Path, where: str, values: dict[str, Any], known: dict[str, _Key], required: Iterable[str]
) -> None:
    for key, value in values.items():
        if key not in known:
            raise _wrong(path, where, f": unknown key {key!r}", f"The keys are {', '.join(known)}")
        if type(value) is not known[key][0]:
            raise _wrong_value(path, where, key, known)
    for key in required:
        if key not in values:
            raise _wrong(path, where, f": the key {key!r} is missing", f"Give {known[key][1]}")


def _wrong_value(path: Path, where: str, key: str, known: dict[str, _Key]) -> SourceError:
    return _wrong(path, where, f" {key}: this is not {known[key][1]}", "Correct the value")


def _wrong(path: Path, where: str, problem: str, next_step: str) -> SourceError:
    return SourceError(path, f"[{where}]{problem}", next_step=next_step)
