"""The folder of a run: configuration, facts, metrics, checkpoints, and the best and the last weights."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from converter.atomic import AtomicFiles, HiddenFolder, replace_file
from converter.convert_file import convert_file
from converter.errors import RequirementError, SourceError, UsageError
from converter.hub.catalog_entry import FIXED, PER_IMAGE
from converter.stray_files import is_stray
from faces.crops import CROP_SIZES, CropMethod
from faces.model import Standardisation
from faces.training.config import TrainConfig, format_config, read_config, with_option
from faces.training.objectives import ArcFaceClassifier, Objective

CONFIG, FACTS, METRICS, PEOPLE, WEIGHTS = (
    "config.toml",
    "run.json",
    "metrics.csv",
    "people.json",
    "weights.pt",
)
_CHECKPOINTS = "checkpoints"
_KEPT = 2  # checkpoints
# What may differ when a run goes on: where it runs and its data lie, and how often it saves.
_FREE = {"data", "output", "workers", "device", "checkpoint_steps"}

_OTHER_VERSION = (
    "If another version began this run, go on with that one, or start another run in a new folder"
)


class RunFolder:
    """The folder of a run, each of whose files is written whole or not at all; a context that locks it.

    Attributes:
        path: The folder.

    Args:
        path: The folder.
        writes: Whether this process writes: of several only the first does.
    """

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self._writes = writes
        self._locked = ExitStack()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._locked.close()

    def begin(self, config: TrainConfig, facts: Mapping[str, Any], *, resume: bool) -> None:
        """Make the folder of a new run, or check that of one that goes on; only the process that writes does.

        Args:
            config: The configuration.
            facts: Versions, seeds and the digest of the data, for run.json.
            resume: Whether a run goes on.

        Raises:
            UsageError: A new run's folder exists and holds files, a run is to go on with another
                configuration or other data, or another training runs in the folder.
            SourceError: The folder of a run that goes on is damaged.
        """
        if not self._writes:
            return
        is_run = (self.path / CONFIG).is_file()
        if self.path.exists() and (not self.path.is_dir() or self._holds_more()):
            if resume and is_run:
                self._check(config, facts)
                self._lock()
                return
            step = "Give --resume to go on" if is_run else "Give a new folder"
            raise UsageError(f"{self.path}: it exists and is not empty. {step}.")
        if (self.path / FACTS).is_file():  # of a training that has ended, or that has just begun
            self._lock()
        self.path.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / FACTS, (json.dumps(facts, indent=1) + "\n").encode())
        replace_file(self.path / CONFIG, format_config(config).encode())
        self._lock()

    def _lock(self) -> None:
        """Keep other processes from training in the folder, until the end of the context.

        The system releases such a lock whenever this process closes the file, so it must not be read later.
        """
        file = self._locked.enter_context((self.path / FACTS).open("r+b"))
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UsageError(
                f"{self.path}: another training runs in it. Wait for its end, or give a new folder."
            ) from error
        except OSError:  # a file system without locks
            pass

    def _holds_more(self) -> bool:
        """Return True if the folder holds more than a run that ended before its first checkpoint leaves."""
        begun = {FACTS, CONFIG, "tensorboard"}
        return any(path.name not in begun and not is_stray(path) for path in self.path.iterdir())

    def _check(self, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        try:
            before = read_config(self.path / CONFIG, complete=True)
        except UsageError as error:
            raise UsageError(f"{error} {_OTHER_VERSION}.") from error
        for name in config.__dataclass_fields__:
            old, new = getattr(before, name), getattr(config, name)
            if name not in _FREE and old != new:
                raise UsageError(
                    f"{self.path}: the run has {with_option(name)} = {old!r}, not {new!r}. Go on with the "
                    "same configuration, or start another run in a new folder."
                )
        try:
            begun = json.loads((self.path / FACTS).read_bytes())
            data, weights = begun["data_sha256"], begun["weights_sha256"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise SourceError(self.path / FACTS, "cannot be read", next_step="Start another run") from error
        for source, changed, what in (
            (config.data, data != facts["data_sha256"], "faces"),
            (config.weights, weights != facts["weights_sha256"], "weights"),
        ):
            if changed:
                raise UsageError(
                    f"{source}: the {what} have changed since the run began. Restore them, or start another "
                    "run in a new folder."
                )

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, and remove all but the latest two.

        Args:
            step: Steps taken.
            state: Tensors, numbers, texts, lists and dictionaries.

        Raises:
            RequirementError: The disk is full; older checkpoints are left.
        """
        if not self._writes:
            return
        folder = self.path / _CHECKPOINTS
        folder.mkdir(exist_ok=True)
        with self._explain_errors(), AtomicFiles(folder, overwrite=True) as files:
            torch.save(dict(state), files.stage(f"step-{step:08d}.pt"))
            files.commit()
        for path in self._checkpoints()[:-_KEPT]:
            path.unlink()

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / _CHECKPOINTS).glob("step-*.pt"))

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Turn the errors of a full disk, of which PyTorch's is a RuntimeError, into one message."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise RequirementError(
                f"{self.path}: cannot be written to ({str(error).splitlines()[0]}). Make room on the disk, "
                "then give --resume."
            ) from error

    def remove_checkpoint(self, step: int) -> Path | None:
        """Remove the checkpoint of a step, if there is one; return the latest that is left."""
        checkpoints = self._checkpoints()
        if self._writes and checkpoints and checkpoints[-1].name == f"step-{step:08d}.pt":
            checkpoints.pop().unlink()
        return checkpoints[-1] if checkpoints else None

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Read the latest checkpoint; None if there is none yet.

        Raises:
            SourceError: It is damaged.
        """
        checkpoints = self._checkpoints()
        if not checkpoints:
            return None
        try:
            return dict(torch.load(checkpoints[-1], map_location="cpu", weights_only=True))
        except Exception as error:  # of the zip reader, the unpickler and more
            step = "Remove this file to go on from the checkpoint before it"
            raise SourceError(checkpoints[-1], "this checkpoint is damaged", next_step=step) from error

    @contextmanager
    def explain_other_state(self) -> Iterator[None]:
        """Turn the errors of going on from a checkpoint that holds another state into one message.

        Raises:
            SourceError: There was one.
        """
        try:
            yield
        except torch.OutOfMemoryError:  # a RuntimeError
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise SourceError(
                self._checkpoints()[-1],
                "its contents are not those of a checkpoint of this training",
                next_step=_OTHER_VERSION,
            ) from error

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.csv: a row for each epoch."""
        if not self._writes or not rows:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self.path / METRICS, text.getvalue().encode())

    def write_weights(
        self,
        names: Sequence[str],
        objective: Objective,
        people: Sequence[str],
        standardisation: Standardisation,
        crop: CropMethod,
    ) -> None:
        """Write `best`, `last` or both: the state_dict, its manifest, and the people of its classifier.

        Args:
            names: Of the folders, or empty to write nothing; the weights of all but the first are copies.
            objective: The objective, whose network is written with its classifier.
            people: The people that the classifier tells apart.
            standardisation: Of the images, for the manifest.
            crop: Of the faces.

        Raises:
            RequirementError: The disk is full. Each folder holds its older weights or the new ones, whole.
        """
        if not self._writes or not names:
            return
        if isinstance(objective, ArcFaceClassifier):
            objective.write_logits()
        state_dict = {
            key: tensor.cpu().contiguous() for key, tensor in objective.network.state_dict().items()
        }
        first, *others = folders = [self.path / name for name in names]
        people = people if objective.network.logits is not None else ()
        content = {"crop": crop, "people": list(people)}
        with self._explain_errors(), HiddenFolder(self.path) as hidden:
            for folder in folders:
                folder.mkdir(exist_ok=True)
                replace_file(folder / PEOPLE, (json.dumps(content, indent=1) + "\n").encode())
            raw = hidden / "trained.pt"
            torch.save(state_dict, raw)
            stated = FIXED if standardisation == "fixed" else PER_IMAGE
            written = convert_file(raw, first / WEIGHTS, standardisation=stated, overwrite=True).outputs
            for folder in others:
                with AtomicFiles(folder, overwrite=True) as files:
                    for path in written:  # the manifest last
                        shutil.copyfile(path, files.stage(path.name))
                    files.commit()


def read_people(weights: Path) -> tuple[tuple[str, ...], CropMethod]:
    """Read the people that the classifier of a training tells apart, and the crop of their faces.

    Args:
        weights: The folder `best` or `last` of a run, or the weights in it.

    Returns:
        The people in the order of the classifier's outputs, none without a classifier; and the crop.

    Raises:
        SourceError: The file is not there, or damaged.
    """
    path = (weights.parent if weights.is_file() else weights) / PEOPLE
    try:
        content = json.loads(path.read_bytes())
        people, crop = content["people"], content["crop"]
        if crop not in CROP_SIZES:
            raise ValueError("no crop of this name")
        if not isinstance(people, list) or not all(isinstance(person, str) for person in people):
            raise TypeError("a list of texts")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        step = "Give the folder best or last of a run of `facenet-port train`"
        raise SourceError(path, "it does not name the people of a classifier", next_step=step) from error
    return tuple(people), crop
