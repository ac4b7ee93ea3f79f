"""Files that appear whole or not at all, and hidden folders that do not stay behind."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from converter.errors import UsageError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The error numbers of a disk without room."""

_PREFIX = ".facenet-port-"
_LOCK = ".lock"


class HiddenFolder:
    """A new hidden folder that is removed at the end. A context manager, which gives its path.

    The process locks a file in it. If the process is killed, the system takes the lock away, and the next
    process that makes a hidden folder beside this one removes it. The locks of flock(2) hold for other hosts
    too, on NFS with its default options. On a file system without locks nothing is removed.

    Args:
        parent: The folder to make it in.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._path: Path | None = None
        self._lock: int | None = None

    def __enter__(self) -> Path:
        """Make it, and remove those of processes that were killed.

        Raises:
            OSError: The parent cannot be written to.
        """
        try:
            _remove_abandoned(self._parent)
            while self._lock is None:
                self._path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
                self._lock = _lock_new(self._path)
        except BaseException:
            self.__exit__()
            raise
        assert self._path is not None
        return self._path

    def __exit__(self, *exception: object) -> None:
        try:
            self._remove()
        except KeyboardInterrupt:
            self._remove()  # `StopSignals` interrupts once
            raise

    def _remove(self) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._path is not None:
            _remove_empty(self._path)


def _lock_new(hidden: Path) -> int | None:
    """Lock a new hidden folder; return the descriptor, or None if another process has just removed it."""
    try:
        lock = os.open(hidden / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # the other process is about to remove it
        os.close(lock)
        return None
    except OSError:  # a file system without locks
        return lock
    if (hidden / _LOCK).exists():
        return lock
    os.close(lock)
    return None


def _remove_abandoned(parent: Path) -> None:
    """Remove the hidden folders of a folder that no process holds the lock of."""
    try:
        with os.scandir(parent) as entries:
            hidden = [
                Path(entry)
                for entry in entries
                if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return
    for path in hidden:
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            _remove_empty(path)  # its process was killed before it made the lock
            continue
        except OSError:  # of another user
            continue
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
        _remove_empty(path)


def _remove_empty(path: Path) -> None:
    """Remove a folder if it is there and empty; NFS keeps a file that is open in it until it is closed."""
    with suppress(OSError):
        path.rmdir()


def check_folder(folder: Path) -> None:
    """Check that files can be written to a folder, before work that would be in vain.

    Raises:
        UsageError: The folder does not exist or cannot be written to.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder. Create it, or give another name.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _cannot_write(folder, os.strerror(errno.EACCES))


def _cannot_write(folder: Path, problem: str | None) -> UsageError:
    return UsageError(f"{folder}: cannot be written to ({problem}). Give another name.")


class AtomicFiles:
    """Several files of one folder that are written to a hidden folder and appear together at the end.

    In `with AtomicFiles(folder, overwrite=False) as files:`, write to the path that `files.stage(name)`
    returns, then call `files.commit()`. The end of the block removes the files that were not committed.

    Args:
        folder: Folder of the files.
        overwrite: Whether to replace existing files.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        self._folder = folder
        self._overwrite = overwrite
        self._names: list[str] = []
        self._hidden_folder = HiddenFolder(folder)  # beside the files: a rename works in one file system only

    def __enter__(self) -> Self:
        """Make the hidden folder.

        Raises:
            UsageError: The folder does not exist or cannot be written to.
        """
        check_folder(self._folder)
        try:
            self._hidden = self._hidden_folder.__enter__()
        except OSError as error:
            raise _cannot_write(self._folder, error.strerror) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._hidden_folder.__exit__()

    def stage(self, name: str) -> Path:
        """Return the path to write the file `name` to.

        Raises:
            UsageError: A file or link of that name exists and must not be replaced, it is a folder, or the
                name is too long.
        """
        if len(os.fsencode(name)) > os.pathconf(self._folder, "PC_NAME_MAX"):
            raise UsageError(f"{self._folder / name}: the name is too long. Give a shorter one with -o.")
        if (self._folder / name).is_dir():
            raise UsageError(f"{self._folder / name} is a folder. Give the name of a file in it with -o.")
        if os.path.lexists(self._folder / name) and not self._overwrite:
            raise UsageError(
                f"{self._folder / name} exists. Give another name, or let the converter replace it with "
                "--overwrite (in Python overwrite=True)."
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
        own = {name: (self._hidden / name).stat() for name in self._names}
        try:
            for name in self._names:
                if self._overwrite:
                    (self._hidden / name).replace(self._folder / name)
                else:
                    _rename_new(self._hidden / name, self._folder / name)
        except BaseException:
            if not self._overwrite:
                for name, status in own.items():
                    _remove_own(self._folder / name, status)
            raise
        sync(self._folder)


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


def _remove_own(path: Path, status: os.stat_result) -> None:
    """Remove a file if it is the one with this status, and not another process's of the same name."""
    with suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), status):
            path.unlink()


def sync(path: Path) -> None:
    """Sync a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
