"""The user's own checkpoints: a TOML file with one table for each.

    ["my-model"]
    dataset = "my-faces"
    url = "https://example.org/my-model.zip"
    sha256 = "<64 hexadecimal digits, as sha256sum prints them for the zip>"

Required: `dataset`, `sha256`, and either `drive_id` (Google Drive) or `url`. Optional: `aliases`,
`embedding_size`, `num_classes`, `lfw_accuracy`, `standardisation` ("fixed" or "per image"), `size` (of the
zip, in bytes) and `files`, a table from the name of a file in the zip, or its ending with the dot, to its
SHA-256.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from converter.errors import SourceError
from converter.home_folder import expand, home_folder
from converter.hub.catalog_entry import FIXED, PER_IMAGE, CatalogEntry

VARIABLE = "FACENET_PORT_CATALOG"
"""The environment variable that names the file."""

_KEYS = {
    "dataset": (str, "text"),
    "aliases": (list, "a list of names"),
    "embedding_size": (int, "a whole number above zero"),
    "num_classes": (int, "a whole number above zero"),
    "lfw_accuracy": (float, "a number between 0.0 and 1.0"),
    "standardisation": (str, 'either "fixed" or "per image"'),
    "drive_id": (str, "the id from a Google Drive link, as text"),
    "url": (str, "an https or http address, as text"),
    "size": (int, "the size of the zip in bytes, a whole number"),
    "sha256": (str, "the zip's SHA-256 as 64 hexadecimal digits (sha256sum prints it)"),
    "files": (dict, "a table of file names, or endings with their dot, with SHA-256 digests"),
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
    root = os.environ.get("XDG_CONFIG_HOME")
    if not root:
        home = home_folder()
        if home is None:
            return None
        root = str(home / ".config")
    return Path(root) / "facenet-port" / "catalog.toml"


def read_catalog(built_in: Iterable[CatalogEntry]) -> tuple[CatalogEntry, ...]:
    """Read the user's checkpoints in the order of the file; without a file there are none.

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

    def wrong(problem: str, next_step: str) -> SourceError:
        return SourceError(path, f"[{name}]{problem}", next_step=next_step)

    def wrong_value(key: str) -> SourceError:
        return wrong(f" {key}: this is not {_KEYS[key][1]}", "Correct the value")

    if not isinstance(values, dict):
        raise wrong(" is not a table", "Put it under the name of a checkpoint, in [brackets]")
    for key, value in values.items():
        if key not in _KEYS:
            raise wrong(f": unknown key {key!r}", f"The keys are {', '.join(_KEYS)}")
        if type(value) is not _KEYS[key][0]:
            raise wrong_value(key)
    for key in ("dataset", "sha256"):
        if key not in values:
            raise wrong(f": the key {key!r} is missing", f"Give {_KEYS[key][1]}")
    if ("drive_id" in values) == ("url" in values):
        which = "both 'drive_id' and 'url' are" if "url" in values else "neither 'drive_id' nor 'url' is"
        raise wrong(f": {which} given", "Give exactly one of them")
    aliases, files = values.get("aliases", []), values.get("files", {})
    for label in (name, values["dataset"], *aliases):
        if not isinstance(label, str) or not _NAME.fullmatch(label):
            allowed = "at most 100 letters, digits, '.', '_' and '-', a letter or digit first"
            raise wrong(f": {label!r} cannot name a file", f"Use {allowed}")
    for key, digests in (("sha256", [values["sha256"]]), ("files", files.values())):
        if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests):
            raise wrong_value(key)
    if "url" in values and not values["url"].startswith(("https://", "http://")):
        raise wrong_value("url")
    for key in ("embedding_size", "num_classes", "size"):
        if values.get(key, 1) < 1:
            raise wrong_value(key)
    if values.get("standardisation", "fixed") not in _STANDARDISATIONS:
        raise wrong_value("standardisation")
    if not 0 <= values.get("lfw_accuracy", 0.0) <= 1:
        raise wrong_value("lfw_accuracy")
    return CatalogEntry(
        name=name,
        dataset=values["dataset"],
        aliases=tuple(aliases),
        embedding_size=values.get("embedding_size"),
        num_classes=values.get("num_classes"),
        lfw_accuracy=values.get("lfw_accuracy"),
        standardisation=_STANDARDISATIONS.get(values.get("standardisation", "")),
        drive_id=values.get("drive_id"),
        link=values.get("url"),
        archive_size=values.get("size"),
        archive_sha256=values["sha256"].lower(),
        sha256={file: digest.lower() for file, digest in files.items()},
    )
