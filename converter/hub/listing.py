"""`facenet-port list`: the published models and their files in the caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.command_line import console
from converter.hub import catalog
from converter.hub.cache import archive_path, hub_checkpoints, model_folder_path
from converter.hub.catalog_entry import CatalogEntry


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A published model and its files in the caches; the path of a missing file is None.

    Attributes:
        checkpoint: The entry of the catalog.
        archive: The zip as it was downloaded.
        folder: The unpacked model.
        state_dict: The PyTorch file.
    """

    checkpoint: CatalogEntry
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
            checkpoint,
            _existing(archive_path(checkpoint)),
            _existing(model_folder_path(checkpoint)),
            _existing(hub_checkpoints() / checkpoint.state_dict_name),
        )
        for checkpoint in catalog.all_entries()
    )


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def as_json(models: Sequence[ListedModel]) -> dict[str, Any]:
    """The list in the form that `--json` writes: name to facts, hashes, addresses and paths."""
    return {
        entry.checkpoint.name: {
            "aliases": entry.checkpoint.aliases,
            "dataset": entry.checkpoint.dataset,
            "embedding_size": entry.checkpoint.embedding_size,
            "num_classes": entry.checkpoint.num_classes,
            "lfw_accuracy": entry.checkpoint.lfw_accuracy,
            "standardisation": entry.checkpoint.standardisation,
            "archive": {
                "url": entry.checkpoint.url,
                "drive_id": entry.checkpoint.drive_id,
                "size": entry.checkpoint.archive_size,
                "sha256": entry.checkpoint.archive_sha256,
                "files": dict(entry.checkpoint.sha256),
                "cached": _text(entry.archive),
                "unpacked": _text(entry.folder),
            },
            "state_dict": {"name": entry.checkpoint.state_dict_name, "cached": _text(entry.state_dict)}
            | _published_state_dict(entry.checkpoint),
        }
        for entry in models
    }


def _published_state_dict(checkpoint: CatalogEntry) -> dict[str, Any]:
    published = checkpoint.state_dict
    if published is None:
        return {}
    return {"url": published.url, "size": published.size, "sha256": published.sha256}


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
    for entry in models:
        checkpoint = entry.checkpoint
        forms = {"archive": entry.archive, "unpacked": entry.folder}
        cached = [form for form, path in forms.items() if path is not None]
        checkpoints.add_row(
            checkpoint.name,
            ", ".join(checkpoint.aliases),
            checkpoint.dataset,
            _or_dash(checkpoint.embedding_size),
            _or_dash(checkpoint.num_classes),
            _or_dash(checkpoint.lfw_accuracy),
            _or_dash(checkpoint.standardisation),
            ", ".join(cached) or "no",
        )
        published = checkpoint.state_dict
        digest = "not published" if published is None else published.sha256 or "no public hash"
        files.add_row(checkpoint.state_dict_name, digest, "no" if entry.state_dict is None else "yes")
    # All models have the same caches.
    cache, hub = model_folder_path(models[0].checkpoint).parents[1], hub_checkpoints()
    out = console(width=132)
    out.print(checkpoints)
    out.print()
    out.print(files)
    out.print(f"\nArchives are kept in {cache}, PyTorch files in {hub}.")
    out.print("`facenet-port convert NAME` downloads and converts one. By hand, with --archive FILE:")
    for entry in models:
        out.print(f"  {entry.checkpoint.name}  {entry.checkpoint.url}")


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
