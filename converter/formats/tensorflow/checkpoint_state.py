"""The checkpoints of a training folder: finding them, their steps, and choosing one.

tf.train.Saver keeps the last few checkpoints of a training run side by side, as `PREFIX-STEP`, and a text
file called `checkpoint` that names the latest of them.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf import text_format

from converter.errors import SourceError, UsageError
from converter.formats.tensorflow.protos import CheckpointState
from converter.formats.tensorflow.v1_checkpoint import is_v1_checkpoint
from converter.stray_files import is_stray

STATE_FILE = "checkpoint"
"""Name of the file that names the latest checkpoint (tf.train.latest_checkpoint, `latest_filename`)."""

MAX_STATE_BYTES = 1 << 20
"""Limit on the size of a `checkpoint` file: some 5,000 names."""

_WITH_STEP = re.compile(r"(?P<model>.+)-(?P<step>0|[1-9][0-9]*)")  # Saver.save: "%s-%d"
_FILE_ENDING = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
_WINDOWS_PATH = re.compile(r"\\\\|[^\\]+\\")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_QUOTES = "\"'\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_WITHOUT_STATE = "Delete it to take the highest step, or name the checkpoint itself"
_MOST_NAMES = 12  # that a message lists


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint in a folder of several.

    Attributes:
        path: Its .index file; for a V1 checkpoint, which is one file, that file.
        name: TensorFlow's name for it, without the folder.
        model: The name without the step.
        step: The training step; None if the name has none.
        note: A clause on why it was chosen, if the `checkpoint` file does not name it.
    """

    path: Path
    name: str
    model: str
    step: int | None
    note: str = ""

    @classmethod
    def of(cls, path: Path) -> Snapshot:
        """Build it from the path of the .index file, the prefix or the one file."""
        name = path.name.removesuffix(".index")
        match = _WITH_STEP.fullmatch(name)
        return cls(path, name, match["model"], int(match["step"])) if match else cls(path, name, name, None)


def find_snapshots(folder: Path) -> tuple[Snapshot, ...]:
    """Find the checkpoints of a folder, sorted by model and step; stray files are left out.

    If there is no .index, it looks for V1 checkpoints, which are recognised by their contents.

    Raises:
        OSError: The folder cannot be read.
    """
    files = [entry for entry in folder.iterdir() if not is_stray(entry.name) and entry.is_file()]
    indices = [file for file in files if file.suffix == ".index"]
    matches = map(Snapshot.of, indices or filter(is_v1_checkpoint, files))
    return tuple(sorted(matches, key=_by_model_and_step))


def _by_model_and_step(snapshot: Snapshot) -> tuple[str, int]:
    return snapshot.model, -1 if snapshot.step is None else snapshot.step


def find_state(folder: Path) -> Path | None:
    """Return the `checkpoint` file of a folder, or None."""
    state = folder / STATE_FILE
    return state if state.is_file() else None


def read_latest(state: Path) -> tuple[str, ...]:
    """Read the name of the latest checkpoint from a `checkpoint` file.

    Only the base name is returned: training writes absolute paths by default, which are wrong in a folder
    that was moved or came from another machine. A file that was edited on Windows may have a byte order mark,
    UTF-16, or a path with single backslashes, which protobuf's text format takes for escapes; whoever writes
    a name by hand may add the ending of a file. A file that is not in that format counts if the checkpoint
    that it seems to name is in its folder.

    Args:
        state: The file, a CheckpointState in protobuf's text format.

    Returns:
        The ways to read the name, the literal one first: several only if backslashes or an ending leave a
        choice. Each is without the folder, which may be a POSIX or a Windows path.

    Raises:
        SourceError: The file is too large, is not a CheckpointState, or does not name a checkpoint.
        OSError: It cannot be read.
    """
    with state.open("rb") as file:
        content = file.read(MAX_STATE_BYTES + 1)
    if len(content) > MAX_STATE_BYTES:
        problem = f"it has over {MAX_STATE_BYTES >> 20} MB, more than any list of checkpoints"
        raise SourceError(state, problem, next_step=_WITHOUT_STATE)
    paths = _read_paths(content)
    names = _names_of(paths)
    if not paths:
        by_hand = _names_of(_read_by_hand(content))
        names = [name for name in by_hand if name in {each.name for each in find_snapshots(state.parent)}]
        if not names:
            problem = "this is not a readable list of checkpoints"
            if by_hand:
                problem += f"; it seems to name {by_hand[-1][:200]!r}, which is not in that folder"
            raise SourceError(state, problem, next_step=_WITHOUT_STATE)
    if not names:
        raise SourceError(state, "it does not name a checkpoint", next_step=_WITHOUT_STATE)
    return tuple(dict.fromkeys(names))


def _names_of(paths: Sequence[str]) -> list[str]:
    """Give the base names of POSIX or Windows paths, each also without the ending of a file."""
    bases = [re.split(r"[/\\]", path)[-1].strip() for path in paths]
    return [name for base in bases for name in (base, _FILE_ENDING.sub("", base)) if name]


def _read_paths(content: bytes) -> list[str]:
    """Parse a `checkpoint` file; a second reading takes each backslash for part of a Windows path."""
    utf16 = content.startswith(_UTF_16)
    paths = []
    for doubled in (False, True):
        with suppress(text_format.ParseError, ValueError, RecursionError):
            text = content.decode("utf-16" if utf16 else "utf-8-sig")
            text = text.replace("\\", "\\\\") if doubled else text
            path = text_format.Parse(text, CheckpointState()).model_checkpoint_path
            if not doubled or _WINDOWS_PATH.match(path):
                paths.append(path)
    return paths


def _read_by_hand(content: bytes) -> list[str]:
    """Read the path of a `checkpoint` file that is not in protobuf's text format; empty without one path.

    Editors leave other quotes or none, NULs, the letters of a Windows code page, UTF-16 without its mark.
    """
    encoding = "utf-8-sig"
    if content.startswith(_UTF_16):
        encoding = "utf-16"
    elif b"\0" in content[:2]:
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
    items = (re.split("[:=]", line, maxsplit=1) for line in text.splitlines())
    paths = [
        item[-1].strip(f" \t\0{_QUOTES}") for item in items if item[0].strip() == "model_checkpoint_path"
    ]
    return paths if len(paths) == 1 else []


def choose(
    candidates: Sequence[Snapshot], where: Path, *, step: int | None = None, state: Path | None = None
) -> Snapshot:
    """Choose among the checkpoints of a folder: the one of a step, or the latest.

    The latest is the one that the `checkpoint` file names, as for tf.train.latest_checkpoint. Without that
    file it is the one of the highest step. If the checkpoint that it names is gone, it is that one too, and a
    warning says so.

    Args:
        candidates: At least one checkpoint, in the order of `find_snapshots`.
        where: The path that the user gave, for messages.
        step: The training step to choose; None for the latest.
        state: The `checkpoint` file, if there is one. A damaged one matters only if there is a choice to
            make.

    Raises:
        UsageError: No checkpoint is of that step, or it is unknown which of several models is meant.
        SourceError: The `checkpoint` file is damaged.
        OSError: It cannot be read.
    """
    if step is not None:
        return _choose_step(candidates, where, step, state)
    try:
        named = _find_named(candidates, state)
    except SourceError as error:
        if len(candidates) > 1:
            raise
        logging.getLogger(__name__).warning(
            "%s %s is the only checkpoint there and is taken.", error, candidates[0].name
        )
        note = f"the file {STATE_FILE} cannot be read; {candidates[0].name} is the only checkpoint there"
        return replace(candidates[0], note=note)
    if named is not None:
        return named
    models = {snapshot.model for snapshot in candidates}
    if len(models) > 1 or (len(candidates) > 1 and candidates[0].step is None):
        raise _ambiguous(candidates, where)
    if state is not None:
        return replace(candidates[-1], note=_warn_of_another(candidates[-1], state))
    return candidates[-1]


def choose_model(
    candidates: Sequence[Snapshot], where: Path, *, state: Path | None = None
) -> tuple[Snapshot, ...]:
    """Choose the checkpoints of one model: the only model, or the model of the latest checkpoint.

    Args:
        candidates: As for `choose`.
        where: As for `choose`.
        state: As for `choose`; read only if there are several models.

    Raises:
        UsageError: It is unknown which of several models is meant.
        SourceError: The `checkpoint` file is damaged.
        OSError: It cannot be read.
    """
    if len({snapshot.model for snapshot in candidates}) == 1:
        return tuple(candidates)
    named = _find_named(candidates, state)
    if named is None:
        raise _ambiguous(candidates, where)
    return tuple(snapshot for snapshot in candidates if snapshot.model == named.model)


def _find_named(candidates: Sequence[Snapshot], state: Path | None) -> Snapshot | None:
    """Return the candidate that the `checkpoint` file names, or None."""
    if state is None:
        return None
    by_name = {snapshot.name: snapshot for snapshot in candidates}
    return next((by_name[name] for name in read_latest(state) if name in by_name), None)


def _warn_of_another(chosen: Snapshot, state: Path) -> str:
    """Warn that the checkpoint that a `checkpoint` file names is gone, and which one is taken; return a note.

    Nothing is amiss if it is there and of another model: the user gave a .meta then.
    """
    names = read_latest(state)
    if {snapshot.name for snapshot in find_snapshots(state.parent)} & set(names):
        return ""
    logging.getLogger(__name__).warning(
        "%s names %r, which is not in that folder; %s is taken instead. To choose another one, "
        "name its .index file.",
        state,
        names[-1],
        chosen.name,
    )
    gone = f"the file {STATE_FILE} names {names[-1]!r}, which is not in its folder"
    return f"{gone}; {chosen.name} is taken instead"


def _ambiguous(candidates: Sequence[Snapshot], where: Path) -> UsageError:
    return UsageError(
        f"{where}: {len(candidates)} checkpoints in one folder ({_list_names(candidates)}). Name one of "
        "these files."
    )


def _choose_step(candidates: Sequence[Snapshot], where: Path, step: int, state: Path | None) -> Snapshot:
    matches = [snapshot for snapshot in candidates if snapshot.step == step]
    named = _find_named(candidates, state) if len(matches) > 1 else None
    if named is not None:
        matches = [snapshot for snapshot in matches if snapshot.model == named.model] or matches
    if len(matches) > 1:
        raise UsageError(
            f"{where}: {len(matches)} checkpoints are of step {step} ({_list_names(matches)}). Name one of "
            "these files."
        )
    if not matches:
        raise UsageError(
            f"{where}: there is no checkpoint of step {step} ({_list_names(candidates)}). Give the step of "
            "one of these."
        )
    return matches[0]


def _list_names(candidates: Sequence[Snapshot]) -> str:
    names = [snapshot.path.name for snapshot in candidates[:_MOST_NAMES]]
    if len(candidates) > _MOST_NAMES:
        names += [f"... and {len(candidates) - _MOST_NAMES} more"]
    return ", ".join(names)
