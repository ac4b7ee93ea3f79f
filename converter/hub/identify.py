"""Published checkpoints identified by the SHA-256 of their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from converter.hub.catalog import BUILT_IN, all_entries
from converter.hub.catalog_entry import ArchiveSource, CatalogEntry, file_digests
from converter.manifest import find_manifest


def identify(digests: Mapping[str, str]) -> str | None:
    """Name the published checkpoint whose files have these digests.

    Args:
        digests: File name to SHA-256.

    Returns:
        The checkpoint's name; None if the catalog states no digest for these files, or one differs.
    """
    return next((entry.name for entry in BUILT_IN if _is_published(entry, digests)), None)


def find_namesake(name: str, digests: Mapping[str, str]) -> str | None:
    """Name the published checkpoint that has the same name as a source but other files.

    Args:
        name: The source's name, as `output_names.model_name` gives it.
        digests: File name to SHA-256.

    Returns:
        The checkpoint's name; None if no checkpoint has this name, or no published digest contradicts it.
    """
    entry = next((entry for entry in BUILT_IN if entry.name == name), None)
    return None if entry is None or _is_published(entry, digests) is not False else entry.name


def _is_published(entry: CatalogEntry, digests: Mapping[str, str]) -> bool | None:
    """Return whether files are those of a published checkpoint; None if no digest is published for them."""
    matches = [
        digest in published
        for source in entry.sources
        if isinstance(source, ArchiveSource)  # a package may hold a conversion of the checkpoint
        for name, digest in digests.items()
        if (published := file_digests(source, name))
    ]
    return all(matches) if matches else None


def find_published(path: Path, digests: Mapping[str, str]) -> CatalogEntry | None:
    """Find the model of the catalog that a file is, or was converted from, by SHA-256; never by a name.

    Args:
        path: The file, or a checkpoint's prefix. A manifest beside it tells what it was converted from.
        digests: Name of each of its files to its SHA-256.
    """
    manifest = find_manifest(path, digests)
    if manifest is not None:
        digests = manifest.source_files
    return next(
        (entry for entry in all_entries() if _is_port(entry, digests) or _has_files(entry, digests)), None
    )


def _is_port(entry: CatalogEntry, digests: Mapping[str, str]) -> bool:
    return entry.state_dict is not None and set(digests.values()) == {entry.state_dict.sha256}


def _has_files(entry: CatalogEntry, digests: Mapping[str, str]) -> bool:
    """Return whether an entry has one of these files, under any name, and contradicts none by its name.

    A conversion in a package will do.
    """
    published = {digest for source in entry.sources for digest in source.files.values()}
    return not published.isdisjoint(digests.values()) and all(
        digest in stated for name, digest in digests.items() if (stated := entry.digests(name))
    )
