"""The cache of published models: its folders, and the verification of their files.

    models/NAME-DIGEST/    the files of a model, and their digests in SHA256SUMS; DIGEST is the start of the
                           SHA-256 of the zip or package that they are from
    incomplete/NAME/       an interrupted transfer, which the next attempt continues
    locks/NAME.lock        held by the process that fills these folders

A model's folder appears whole, by a rename.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from converter.atomic import DISK_FULL
from converter.errors import RequirementError, SourceError
from converter.home_folder import expand, home_folder, xdg_folder
from converter.hub.catalog_entry import CatalogEntry, ModelSource, file_digests
from converter.stray_files import is_stray

VARIABLE = "FACENET_PORT_CACHE"
"""The environment variable that names the folder."""

RECORD = "SHA256SUMS"
"""The file in a model folder that `sha256sum --check` reads."""

_XDG, _TORCH = "XDG_CACHE_HOME", "TORCH_HOME"
_MAX_RECORD = 1 << 16  # bytes; a file takes less than 512
_RECORD_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>.+)")


def cache_folder() -> Path:
    """$FACENET_PORT_CACHE, or facenet-port in $XDG_CACHE_HOME, in ~/.cache, or without a home in $TORCH_HOME.

    Raises:
        RequirementError: None of these variables is set to an absolute path, and there is no home folder.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return expand(named, VARIABLE)
    return (xdg_folder(_XDG) or _caches_at_home(_TORCH)) / "facenet-port"


def is_cached(path: Path) -> bool:
    """Return whether a path lies in the cache folder, if there is one."""
    try:
        return path.is_relative_to(cache_folder())
    except RequirementError:
        return False


def model_folder_path(entry: CatalogEntry, source: ModelSource) -> Path:
    """Path of the folder of a model's files from one source, which may not exist."""
    return cache_folder() / "models" / f"{entry.name}-{source.sha256[:16]}"


def cached_source(entry: CatalogEntry) -> ModelSource | None:
    """The first source whose files are in the cache, not verified; None if none are."""
    return next((source for source in entry.sources if model_folder_path(entry, source).exists()), None)


def source_of(entry: CatalogEntry, folder: Path) -> ModelSource:
    """The source whose files a model folder holds."""
    return next(source for source in entry.sources if model_folder_path(entry, source) == folder)


def incomplete_folder(entry: CatalogEntry) -> Path:
    """Path of the folder of a model's download and unpacked files until both are complete."""
    return cache_folder() / "incomplete" / entry.name


def hub_checkpoints() -> Path:
    """The folder where torch.hub keeps downloaded files, such as facenet-pytorch's state_dicts.

    hub/checkpoints in $TORCH_HOME, or in torch in $XDG_CACHE_HOME, or in ~/.cache/torch, as `torch.hub`
    documents it; without a home folder in torch in $FACENET_PORT_CACHE. It is computed here, since importing
    torch takes a second.

    Raises:
        RequirementError: None of these variables is set, and there is no home folder.
    """
    for variable, name in ((_TORCH, ""), (_XDG, "torch")):
        if variable in os.environ:
            return expand(os.environ[variable], variable) / name / "hub" / "checkpoints"
    return _caches_at_home(VARIABLE) / "torch" / "hub" / "checkpoints"


def _caches_at_home(other: str) -> Path:
    """The folder of all caches, ~/.cache; without a home folder, that of the variable of another cache."""
    home = home_folder()
    if home is not None:
        return home / ".cache"
    if os.environ.get(other):
        return expand(os.environ[other], other)
    raise RequirementError(
        "there is no folder for the cache: HOME is not set, and this user id has no home folder. Set one of "
        f"{VARIABLE}, {_XDG}, {_TORCH} and HOME to a folder that can be written to."
    )


@contextmanager
def explain_cache_errors(variables: str = VARIABLE) -> Iterator[None]:
    """Turn an OSError into a message about the cache.

    Args:
        variables: Those that name another place, for the message.

    Raises:
        RequirementError: The cache cannot be read or written.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or cache_folder()
        if error.errno in DISK_FULL:
            reason, remedy = "the disk is full", "Make room on the disk, or set"
        else:
            reason = error.strerror or str(error)
            remedy = "Change its permissions, or set" if isinstance(error, PermissionError) else "Set"
        raise RequirementError(
            f"{where}: the cache cannot be used ({reason}). {remedy} {variables} to a folder "
            "that can be written to."
        ) from None


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock of `name`, which keeps other processes from the same work.

    A wait of over a second is logged as a warning. The lock ends with its process; the lock's empty file
    stays.

    Raises:
        RequirementError: The cache folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    with explain_cache_errors():
        folder = cache_folder() / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / f"{name}.lock")
        try:
            held.acquire(timeout=1)
        except Timeout:
            logging.getLogger(__name__).warning("%s: waiting for another process that works on it", name)
            held.acquire()
    try:
        yield
    finally:
        held.release()


def write_record(folder: Path, digests: Mapping[str, str]) -> None:
    """Write the digests of a folder's files into it, in the format of sha256sum.

    Args:
        folder: The folder, which has no record yet.
        digests: File name to SHA-256; a name has neither control characters nor a backslash.
    """
    with (folder / RECORD).open("x", encoding="utf-8") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in digests.items())


def recorded_digests(folder: Path) -> dict[str, str]:
    """Read the record of a model folder: file name to SHA-256.

    Raises:
        SourceError: The record is missing or damaged.
        OSError: It cannot be read.
    """
    path = folder / RECORD
    try:
        with path.open("rb") as file:
            lines = file.read(_MAX_RECORD).decode().splitlines()
    except FileNotFoundError:
        raise SourceError(path, "the record of this folder is missing", next_step=_again(folder)) from None
    except UnicodeDecodeError as error:
        raise SourceError(path, f"not a list of digests ({error})", next_step=_again(folder)) from error
    matches = [_RECORD_LINE.fullmatch(line) for line in lines]
    recorded = {match["name"]: match["digest"] for match in matches if match}
    if len(recorded) != len(lines) or not recorded:
        raise SourceError(path, "not a list of digests, as sha256sum prints it", next_step=_again(folder))
    return recorded


def check_model_folder(folder: Path, name: str, source: ModelSource) -> None:
    """Compare every byte of a model folder with its record and with the catalog.

    A published checkpoint of 0.2 GB takes 0.2 s.

    Stray files that are not recorded, such as .DS_Store, are ignored: nothing reads them.

    Args:
        folder: The folder.
        name: The model's name, for the message.
        source: The source that the catalog has for these files.

    Raises:
        SourceError: A file is missing, is not recorded, or differs from the record or the catalog.
        OSError: A file cannot be read.
    """
    recorded = recorded_digests(folder)
    names = {path.name for path in folder.iterdir()} - {RECORD}
    present = {name for name in names if name in recorded or not is_stray(name)}
    if present != set(recorded):
        name = min(present ^ set(recorded))
        problem = "is missing" if name in recorded else "did not come with the archive"
        raise SourceError(folder / name, f"the file {problem}, says {RECORD}", next_step=_again(folder))
    for name, digest in recorded.items():
        with (folder / name).open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != digest:
            raise SourceError(
                folder / name,
                f"the file has changed: its SHA-256 is {actual}, and was {digest}",
                next_step=_again(folder),
            )
    check_digests(folder, recorded, name, source, next_step=_again(folder))


def check_digests(
    where: Path, digests: Mapping[str, str], model: str, source: ModelSource, *, next_step: str
) -> None:
    """Compare the files of a model with the digests in the catalog.

    Args:
        where: The folder or archive that holds them, for the message.
        digests: File name to SHA-256.
        model: The model's name, for the message.
        source: The source that the catalog has for these files.
        next_step: Advice for the user, for the message.

    Raises:
        SourceError: The digest of a file differs, or a file of the catalog is missing.
    """
    stated: set[str] = set()
    for name, digest in digests.items():
        for expected in file_digests(source, name):
            stated.add(expected)
            if digest != expected:
                raise SourceError(
                    where,
                    f"{name} is not the one of {model}: its SHA-256 is {digest}, not {expected}",
                    next_step=next_step,
                )
    missing = [name for name, digest in source.files.items() if digest not in stated]
    if missing:
        names = ", ".join(missing)
        raise SourceError(where, f"the files of {model} lack {names}", next_step=next_step)


def _again(folder: Path) -> str:
    return f"Remove the folder {folder} and run the command again"
