"""Models got into the cache, and models that are not got."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.errors import RequirementError
from converter.hub import cache
from converter.hub.catalog_entry import CatalogEntry
from converter.hub.download import model_folder
from tests.support.local_index import sha256


def get_model(model: CatalogEntry, **options) -> dict[str, bytes]:
    """Get the files of a model, and check its record and that nothing else is left behind."""
    folder = model_folder(model, **options)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    record = contents.pop("SHA256SUMS").decode()
    assert record == "".join(f"{sha256(contents[name])}  {name}\n" for name in sorted(contents))
    assert {path.name for path in cache.cache_folder().iterdir()} <= {"models", "locks"}
    assert list(Path.cwd().iterdir()) == []
    return contents


def assert_fails(
    model: CatalogEntry, *says: str, error: type[Exception] = RequirementError, **options
) -> str:
    """Check that nothing is got, for these reasons, and that nothing is left behind."""
    with pytest.raises(error) as caught:
        model_folder(model, **options)
    message = str(caught.value)
    for part in says:
        assert part in message, message
    assert ".. " not in message
    assert {path.name for path in cache.cache_folder().glob("*")} <= {"locks"}
    assert list(Path.cwd().iterdir()) == []
    return message
