"""The files of a published model on this machine, or the path that the user gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from converter.errors import SourceError, UsageError
from converter.hub import catalog
from converter.hub.cache import recorded_digests, source_of
from converter.hub.catalog_entry import CatalogEntry, ModelSource

Progress = Callable[[int, int | None], None]
"""Progress callback of a download: bytes done, and the total or None."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A published model whose verified files are in the cache.

    Attributes:
        entry: Its entry in the catalog.
        source: The source that the files are from.
        files: Name of each file to its path.
    """

    entry: CatalogEntry
    source: ModelSource
    files: dict[str, Path]

    @property
    def path(self) -> Path:
        """The path for `open_source`: the only file, or the folder of several."""
        first = next(iter(self.files.values()))
        return first if len(self.files) == 1 else first.parent

    def as_json(self) -> dict[str, str | None]:
        """The model in the form that `--json` of `convert` writes."""
        return {
            "name": self.entry.name,
            "from": self.source.place,
            "sha256": self.source.sha256,
            "note": self.source.note,
            "standardisation": self.entry.standardisation,
        }


def local_files(name: str, *, offline: bool = False, progress: Progress | None = None) -> dict[str, Path]:
    """Return the verified files of a published model, downloaded first if need be.

    For example, `local_files("mtcnn")` has det1.npy, det2.npy and det3.npy.

    Args:
        name: A name or alias of the catalog.
        offline: Never download.
        progress: Progress callback of the download.

    Returns:
        Name of each file to its path in the cache, in the order of names.

    Raises:
        UsageError: The catalog has no such name.
        RequirementError: The model is not in the cache and cannot be downloaded.
        SourceError: The cached files or the user's catalog are damaged.
    """
    return fetch(require_entry(name), offline=offline, progress=progress).files


def require_entry(name: str) -> CatalogEntry:
    """Find the model of this name or alias.

    Raises:
        UsageError: There is none; the message has the names.
        SourceError: The user's catalog is unreadable or wrong.
    """
    entry = catalog.find_entry(name)
    if entry is None:
        close = catalog.closest_name(name)
        names = ", ".join(label for entry in catalog.all_entries() for label in entry.labels)
        hint = f"Did you mean {close}?" if close else f"Give one of: {names}."
        raise UsageError(f"{name!r} is not in the catalog. {hint}")
    return entry


def find_model(
    source: Path | str,
    *,
    offline: bool = False,
    archive: Path | None = None,
    progress: Progress | None = None,
) -> LocalModel | None:
    """Find the published model that a user names, and download it if need be.

    Args:
        source: A path, or a name or alias of the catalog; also one network of several, as in
            `mtcnn/det1.npy`. If both exist, the path wins.
        offline: Never download.
        archive: The zip or package of the named model, which the user has downloaded.
        progress: Progress callback of the download.

    Returns:
        The model; None if `source` is a path, which need not exist.

    Raises:
        UsageError: `archive` is given, and `source` is not a name.
        RequirementError: The model is not in the cache and cannot be downloaded.
        SourceError: The archive, the cached files or the user's catalog are damaged, or `source` is a
            misspelt name.
    """
    if _exists(Path(source)):
        entry, network, close = None, "", None
    else:
        entry, network = _find_network(str(source))
        close = catalog.closest_name(str(source)) if entry is None else None
    if entry is not None:
        model = fetch(entry, offline=offline, archive=archive, progress=progress)
        return replace(model, files={network: model.files[network]}) if network else model
    if archive is not None:
        raise UsageError(
            f"--archive goes with a name, such as {close or 'vggface2'}; {source} is a path or an unknown "
            "name. `facenet-port list` shows the names."
        )
    if close is not None:
        raise SourceError(
            source,
            "no such file, folder, checkpoint prefix or published model",
            next_step=f"Did you mean {close}? `facenet-port list` shows the names",
        )
    return None


def locate(
    source: Path | str,
    *,
    offline: bool = False,
    archive: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Turn the name of a published model into the path of its verified files.

    The arguments are those of `find_model`.

    Returns:
        A path for `open_source`, which checks that it exists; a path is returned unchanged.

    Raises:
        UsageError: As for `find_model`, or the model has several networks, and none is named.
        RequirementError, SourceError: As for `find_model`.
    """
    model = find_model(source, offline=offline, archive=archive, progress=progress)
    if model is None:
        return Path(source)
    if model.entry.networks and len(model.files) > 1:
        names = " or ".join(f"{model.entry.name}/{network}" for network in model.entry.networks)
        raise UsageError(f"{source} is {len(model.files)} networks. Give one of them: {names}.")
    return model.path


def _find_network(name: str) -> tuple[CatalogEntry | None, str]:
    """Find a model by its name, or by its name and the file of one of its networks."""
    entry = catalog.find_entry(name)
    if entry is not None:
        return entry, ""
    model, _, network = name.rpartition("/")
    entry = catalog.find_entry(model)
    return (entry, network) if entry is not None and network in entry.networks else (None, "")


def fetch(
    entry: CatalogEntry,
    *,
    offline: bool = False,
    archive: Path | None = None,
    progress: Progress | None = None,
) -> LocalModel:
    """Return the verified files of a model of the catalog; the arguments are those of `find_model`.

    Raises:
        RequirementError: The model is not in the cache and cannot be downloaded.
        SourceError: The archive or the cached files are damaged.
    """
    from converter.hub.download import model_folder

    folder = model_folder(entry, offline=offline, archive=archive, progress=progress)
    files = {name: folder / name for name in sorted(recorded_digests(folder))}
    return LocalModel(entry, source_of(entry, folder), files)


def _exists(path: Path) -> bool:
    """Return whether this is a file, a folder or the prefix of a checkpoint."""
    try:
        return path.exists() or path.with_name(f"{path.name}.index").exists()
    except (OSError, ValueError):  # such as a name with a null byte, or an empty one
        return False
