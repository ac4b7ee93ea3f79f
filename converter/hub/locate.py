"""The folder of a published model, or the path that the user gave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from converter.errors import SourceError, UsageError
from converter.hub import catalog


def locate(
    source: Path | str,
    *,
    offline: bool = False,
    archive: Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Turn the name of a published model into the folder of its verified files.

    Args:
        source: A path, which is returned unchanged, or a name or alias of the catalog. If both exist, the
            path wins.
        offline: Never download.
        archive: The zip of the named model, which the user has downloaded.
        progress: Progress callback of the download: bytes done, and the total or None.

    Returns:
        A path for `open_source`, which checks that it exists.

    Raises:
        UsageError: `archive` is given, and `source` is not a name.
        RequirementError: The model is not in the cache and cannot be downloaded.
        SourceError: The archive, the cached files or the user's catalog are damaged, or `source` is a
            misspelt name.
    """
    path = Path(source)
    is_path = _exists(path)
    entry = None if is_path else catalog.find_entry(str(source))
    if entry is not None:
        from converter.hub.download import model_folder

        return model_folder(entry, offline=offline, archive=archive, progress=progress)
    close = None if is_path else catalog.closest_name(str(source))
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
    return path


def _exists(path: Path) -> bool:
    """Return whether this is a file, a folder or the prefix of a checkpoint."""
    try:
        return path.exists() or path.with_name(f"{path.name}.index").exists()
    except (OSError, ValueError):  # such as a name with a null byte, or an empty one
        return False
