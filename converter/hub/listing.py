"""`facenet-port list`: the published models and their files in the caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.command_line import console
from converter.errors import RequirementError
from converter.hub import catalog
from converter.hub.cache import archive_path, cache_folder, hub_checkpoints, model_folder_path
from converter.hub.catalog_entry import CatalogEntry


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A published model and its files in the caches; the path of a missing file is None.

    Attributes:
        entry: The entry of the catalog.
        archive: The zip as it was downloaded.
        folder: The unpacked model.
        state_dict: The PyTorch file.
    """

    entry: CatalogEntry
    archive: Path | None
    folder: Path | None
    state_dict: Path | None


def list_models() -> tuple[ListedModel, ...]:
    """List the catalog, with the user's own entries. Cached files are not verified.

    Raises:
        SourceError: The file of the user's own entries cannot be read.
    """
    return tuple(
        ListedModel(
            entry,
            _find(archive_path, entry),
            _find(model_folder_path, entry),
            _find(lambda entry: hub_checkpoints() / entry.state_dict_name, entry),
        )
        for entry in catalog.all_entries()
    )


def _find(path_of: Callable[[CatalogEntry], Path], entry: CatalogEntry) -> Path | None:
    """Return the path of a cached file; None if it does not exist, the cache neither, or it is unreadable."""
    try:
        path = path_of(entry)
        return path if path.exists() else None
    except (RequirementError, PermissionError):
        return None


def as_json(models: Sequence[ListedModel]) -> dict[str, Any]:
    """The list in the form that `--json` writes: name to facts, hashes, addresses and paths."""
    return {model.entry.name: _model_as_json(model) for model in models}


def _model_as_json(model: ListedModel) -> dict[str, Any]:
    entry, published = model.entry, model.entry.state_dict
    state_dict: dict[str, Any] = {"name": entry.state_dict_name, "cached": _text(model.state_dict)}
    if published is not None:
        state_dict |= {"url": published.url, "size": published.size, "sha256": published.sha256}
    return {
        "aliases": entry.aliases,
        "dataset": entry.dataset,
        "embedding_size": entry.embedding_size,
        "num_classes": entry.num_classes,
        "lfw_accuracy": entry.lfw_accuracy,
        "standardisation": entry.standardisation,
        "archive": {
            "url": entry.url,
            "drive_id": entry.drive_id,
            "size": entry.archive_size,
            "sha256": entry.archive_sha256,
            "files": dict(entry.sha256),
            "cached": _text(model.archive),
            "unpacked": _text(model.folder),
        },
        "state_dict": state_dict,
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def print_models(models: Sequence[ListedModel]) -> None:
    """Print a table of checkpoints, a table of PyTorch files, and the folders of the caches."""
    from rich.table import Table

    checkpoints = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("checkpoint", "alias", "trained on"):
        checkpoints.add_column(heading, no_wrap=True)
    for heading in ("embedding", "classes", "LFW"):
        checkpoints.add_column(heading, justify="right", no_wrap=True)
    for heading in ("input", "cached"):
        checkpoints.add_column(heading, no_wrap=True)
    files = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("PyTorch file", "sha256 of the published one", "cached"):
        files.add_column(heading, no_wrap=True)
    for model in models:
        entry = model.entry
        forms = {"archive": model.archive, "unpacked": model.folder}
        cached = [form for form, path in forms.items() if path is not None]
        checkpoints.add_row(
            entry.name,
            ", ".join(entry.aliases),
            entry.dataset,
            _or_dash(entry.embedding_size),
            _or_dash(entry.num_classes),
            _or_dash(entry.lfw_accuracy),
            _or_dash(entry.standardisation),
            ", ".join(cached) or "no",
        )
        published = entry.state_dict
        digest = "not published" if published is None else published.sha256 or "no public hash"
        files.add_row(entry.state_dict_name, digest, "no" if model.state_dict is None else "yes")
    out = console(width=132)
    out.print(checkpoints)
    out.print()
    out.print(files)
    try:
        out.print(f"\nArchives are kept in {cache_folder()}, PyTorch files in {hub_checkpoints()}.")
    except RequirementError as error:
        out.print(f"\nNothing is kept: {error}")
    out.print("`facenet-port convert NAME` downloads and converts one. By hand, with --archive FILE:")
    for model in models:
        out.print(f"  {model.entry.name}  {model.entry.url}")


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
