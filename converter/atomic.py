"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

from converter.errors import UsageError


class AtomicFiles:
    """Several files of one folder that are written to a hidden folder and appear together at the end.

    In `with AtomicFiles(folder, overwrite=False) as files:`, write to the path that `files.stage(name)`
    returns, then call `files.commit()`. The end of the block removes the files that were not committed.

    Args:
        folder: Folder of the files.
        overwrite: Whether to replace existing files.

    Raises:
        UsageError: The folder does not exist or cannot be written to.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        self._folder = folder
        self._overwrite = overwrite
        self._names: list[str] = []
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder. Create it, or give another name.")
        try:
            # Beside the files to come: a rename is atomic only within one file system.
            self._hidden = Path(tempfile.mkdtemp(prefix=".facenet-port-", dir=folder))
        except OSError as error:
            raise UsageError(
                f"{folder}: cannot be written to ({error.strerror}). Give another name."
            ) from error

    def stage(self, name: str) -> Path:
        """Return the path to write the file `name` to.

        Raises:
            UsageError: A file of that name exists and must not be replaced, or it is a folder.
        """
        if (self._folder / name).is_dir():
            raise UsageError(f"{self._folder / name} is a folder. Give the name of a file in it with -o.")
        if (self._folder / name).exists() and not self._overwrite:
            raise UsageError(
                f"{self._folder / name} exists. Give another name; the converter replaces it if --overwrite "
                "is given."
            )
        self._names.append(name)
        return self._hidden / name

    def commit(self) -> None:
        """Sync every staged file to the disk and give it its name.

        Each file is whole at any moment. A failure while existing files are replaced leaves some files new
        and some old.

        Raises:
            UsageError: A file of that name has appeared in the meantime; all new files are removed.
        """
        for name in self._names:
            sync(self._hidden / name)
        named: list[Path] = []
        try:
            for name in self._names:
                if self._overwrite:
                    (self._hidden / name).replace(self._folder / name)
                else:
                    _rename_new(self._hidden / name, self._folder / name)
                    named.append(self._folder / name)
        except BaseException:
            for path in named:
                path.unlink()
            raise
        sync(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self._hidden, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; an older one is replaced, behind a symbolic link too.

    Raises:
        UsageError: The folder does not exist or cannot be written to, or the path is a folder.
        OSError: The file cannot be written.
    """
    target = path.resolve()
    with AtomicFiles(target.parent, overwrite=True) as files:
        files.stage(target.name).write_bytes(content)
        files.commit()


def _rename_new(hidden: Path, path: Path) -> None:
    """Rename without replacing: a link fails if the name is taken, a rename does not."""
    taken = UsageError(f"{path} has appeared while it was being written. Nothing was replaced.")
    try:
        path.hardlink_to(hidden)
    except FileExistsError:
        raise taken from None
    except OSError:
        # No hard links on this file system: look once more, and rename.
        if path.exists():
            raise taken from None
        hidden.rename(path)


def sync(path: Path) -> None:
    """Sync a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
