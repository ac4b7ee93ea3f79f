"""The journal of a folder of crops, `align.jsonl`: the options, and a line for each photograph that is done.

A run that was interrupted goes on behind the last whole line. The table is made from the journal. Of several
processes the others write `align-1.jsonl` and so on; the journal of the folder is all of these together.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any, Self, cast, get_args

from converter.atomic import replace_file
from converter.counts import counted
from converter.errors import SourceError, UsageError
from converter.formats.limits import read_whole
from converter.manifest import file_digest
from converter.stray_files import is_stray
from faces.align.result import AlignedPhotograph, AlignOptions, CroppedFace, person_of
from faces.backends.facts import BackendName
from faces.detect.result import Face
from faces.processes import ALONE, Processes

NAME = "align.jsonl"
_MOST_BYTES = 4 << 30  # some 10 million photographs
_MOST_NAMED = 3  # photographs in a message
_ANOTHER = "Give a new folder"
_RUNTIME_BEFORE = {"backend": "torch"}  # of journals that name none


def recorded_backend(out: Path) -> BackendName | None:
    """Read which runtime of the detector a folder of crops was begun with; None for a new folder.

    Raises:
        UsageError: The folder holds something else.
    """
    journals = _find_journals(out)
    for _, path in sorted(journals.items()):
        with suppress(OSError, ValueError, LookupError, TypeError), path.open("rb") as file:
            name = {**_RUNTIME_BEFORE, **json.loads(file.readline())["options"]}["backend"]
            if name in get_args(BackendName):
                return cast(BackendName, name)
    return "torch" if journals else None  # no line is whole, or the journal names the damage later


def _find_journals(out: Path) -> dict[int, Path]:
    """Find the files of the journal: the number of the process of each, and its path.

    Raises:
        UsageError: The folder holds something else.
    """
    found = {}
    for path in out.glob("align*.jsonl"):
        if match := re.fullmatch(r"align(?:-([1-9][0-9]*))?\.jsonl", path.name):
            found[int(match[1] or 0)] = path
    if not found and out.exists() and not _is_empty(out):
        raise UsageError(f"{out}: it exists and holds no crops of `facenet-port align`. {_ANOTHER}.")
    return found


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as it was when it was read.

    Attributes:
        size: In bytes.
        modified: Its time of modification, in nanoseconds.
        sha256: The digest of its content.
    """

    size: int
    modified: int
    sha256: str

    @classmethod
    def of(cls, file: Path) -> Self:
        """Take the state of a file."""
        status = file.stat()
        return cls(status.st_size, status.st_mtime_ns, file_digest(file))

    def still_holds(self, file: Path) -> bool:
        """Return whether a file has the same content; without reading it if its size and time tell."""
        status = file.stat()
        if status.st_size != self.size:
            return False
        return status.st_mtime_ns == self.modified or file_digest(file) == self.sha256


class Journal:
    """A context manager that holds the journal open for a process, or for those that share the work.

    Attributes:
        done: The name of each photograph that is done to what was made of it.
        owners: The path of each crop that this folder's runs have made to the name of its photograph.

    Args:
        out: The folder of crops.
        options: The options of this run.
        processes: The processes that share the work. This one writes to the file of its number.

    Raises:
        UsageError: The folder holds something else, was made with other options, or another process is
            writing to it.
        SourceError: The journal is damaged.
    """

    def __init__(self, out: Path, options: AlignOptions, processes: Processes = ALONE) -> None:
        self.done: dict[str, AlignedPhotograph] = {}
        self.owners: dict[str, str] = {}
        self._states: dict[str, FileState] = {}
        self._tables: set[str] = set()
        self._ends: dict[Path, int] = {}  # of what has been read of each file
        self._out, self._options, self._processes = out, options, processes
        self._path = out / (NAME if processes.is_first else f"align-{processes.number}.jsonl")
        self._file: BufferedRandom | None = None
        self._files = ExitStack()
        journals = _find_journals(out)
        with ExitStack() as files:
            for number, path in sorted(journals.items(), reverse=True):  # what is done again is at the end
                self._open(path, files, is_own=number % processes.count == processes.number)
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    def begin(self) -> None:
        """Make the folder and its journal, unless there is one.

        Raises:
            UsageError: Another process has begun to write to the folder.
        """
        if self._file is None:
            self._out.mkdir(parents=True, exist_ok=True)
            self._open(self._path, self._files, is_own=True)

    def read_all(self) -> None:
        """Read what the other processes have written in the meantime."""
        for path in _find_journals(self._out).values():
            if path != self._path:
                self._read(path, None)

    def add(self, photographs: Iterable[tuple[AlignedPhotograph, FileState | None]]) -> None:
        """Write what was made of photographs, before their crops appear."""
        lines: list[Mapping[str, Any]] = []
        for photograph, state in photographs:
            lines.append({"photograph": asdict(photograph), "file": state and asdict(state)})
            self._take(photograph, state)
        self._append(lines)

    def write_table(self, table: Path, content: bytes) -> None:
        """Write a table whose digest the journal holds; an older one is replaced.

        Raises:
            UsageError: The folder cannot be written to.
        """
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._tables:
            self._append([{"table": digest}])
        replace_file(table, content)

    def check_table(self, table: Path) -> None:
        """Refuse to replace a table that a run has not written.

        Raises:
            UsageError: It is another one, or was changed since.
        """
        if table.exists() and file_digest(table) not in self._tables:
            raise UsageError(f"{table}: it was changed since align wrote it. Rename it to keep it.")

    def find_copies(self) -> dict[str, str]:
        """Find photographs with the content of another person's: each name to that of the other."""
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(self.done):
            if name in self._states:
                groups[self._states[name].sha256].append(name)
        return {
            name: other
            for group in groups.values()
            for name in group
            for other in group
            if person_of(other) != person_of(name)
        }

    def forget_undone(self, folder: Path, names: Iterable[str]) -> None:
        """Leave in `done` the photographs that are done and have not changed.

        What has no crop, or lost it, is done again if its file has changed or the crop is gone.

        Args:
            folder: The folder of photographs.
            names: The photographs in it now.

        Raises:
            UsageError: Photographs that have crops are gone or have changed.
        """
        present = set(names)
        changed = []
        for name, photograph in list(self.done.items()):
            state = self._states.get(name)
            same = name in present and state is not None and state.still_holds(folder / name)
            if not same and photograph.cropped:
                changed.append(name)
            if not same or any(not (self._out / face.crop).is_file() for face in photograph.cropped):
                del self.done[name]
        if changed:
            named = ", ".join(changed[:_MOST_NAMED]) + (", ..." if len(changed) > _MOST_NAMED else "")
            raise UsageError(
                f"{self._out}: it has crops of {counted(len(changed), 'photograph')} that changed since or "
                f"cannot be found in {folder}: {named}. {_ANOTHER}."
            )

    def _open(self, path: Path, files: ExitStack, *, is_own: bool) -> None:
        """Read a file; hold it if no other process of this run does."""
        if not is_own:
            self._read(path, None)
            return
        file = files.enter_context(path.open("a+b"))
        self._lock(file)
        if path == self._path:
            self._file = file
        self._read(path, file)

    def _lock(self, file: BufferedRandom) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self._out}: another run is writing to it. Wait for its end.") from None
        except OSError:  # a file system without locks
            pass

    def _append(self, lines: list[Mapping[str, Any]]) -> None:
        assert self._file is not None, "begin() opens it"
        _write_lines(self._file, lines)

    def _read(self, path: Path, file: BufferedRandom | None) -> None:
        """Read what is new in a file; one that this process holds is cut behind its last whole line."""
        content = read_whole(path, _MOST_BYTES, "it is larger than any journal")
        start, end = self._ends.get(path, 0), content.rfind(b"\n") + 1  # a killed process cuts off a line
        begins = {"options": asdict(self._options)}
        others = [{"options": {**asdict(self._options), "backend": name}} for name in get_args(BackendName)]
        # A first line that was cut off decides nothing, not even the runtime.
        if not end and any(json.dumps(line).encode().startswith(content) for line in (begins, *others)):
            if file is not None:
                file.truncate(0)
                _write_lines(file, [begins])
            return
        try:
            lines = list(map(json.loads, content[start:end].decode("ascii").splitlines()))
            made_with = self._options if start else _parse_options(lines.pop(0)["options"])
            for line in lines:
                if "table" in line:
                    self._tables.add(line["table"])
                else:
                    state = line["file"]
                    self._take(_parse_photograph(line["photograph"]), FileState(**state) if state else None)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise SourceError(path, "it is damaged", next_step=_ANOTHER) from error
        if made_with != self._options:
            raise UsageError(f"{self._out}: {_describe_difference(made_with, self._options)}. {_ANOTHER}.")
        self._ends[path] = end
        if file is not None:
            file.truncate(end)

    def _take(self, photograph: AlignedPhotograph, state: FileState | None) -> None:
        self.done[photograph.name] = photograph
        self.owners |= {face.crop: photograph.name for face in photograph.cropped}
        if state is not None:
            self._states[photograph.name] = state


def _write_lines(file: BufferedRandom, lines: list[Mapping[str, Any]]) -> None:
    file.write("".join(f"{json.dumps(line)}\n" for line in lines).encode())
    file.flush()
    os.fsync(file.fileno())


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and all(is_stray(path.name) for path in folder.iterdir())


def _parse_options(content: dict[str, Any]) -> AlignOptions:
    return AlignOptions(**{**_RUNTIME_BEFORE, **content, "thresholds": tuple(content["thresholds"])})


def _parse_photograph(content: dict[str, Any]) -> AlignedPhotograph:
    faces = tuple(
        CroppedFace(
            Face(
                tuple(item["face"]["box"]),
                item["face"]["score"],
                tuple(map(tuple, item["face"]["landmarks"])),
            ),
            item["crop"],
        )
        for item in content["faces"]
    )
    return AlignedPhotograph(**{**content, "faces": faces})


def _describe_difference(made_with: AlignOptions, options: AlignOptions) -> str:
    before, now = asdict(made_with), asdict(options)
    pairs = [(name, before[name], now[name]) for name in now if before[name] != now[name]]
    return "it was made with " + ", ".join(
        f"{name.replace('_', '-')} {_describe(old)}, not {_describe(new)}" for name, old, new in pairs
    )


def _describe(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
