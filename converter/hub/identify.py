"""Published checkpoints identified by the SHA-256 of their files."""

from __future__ import annotations

from collections.abc import Mapping

from converter.hub.catalog import BUILT_IN
from converter.hub.catalog_entry import ArchiveSource, CatalogEntry, file_digests


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
