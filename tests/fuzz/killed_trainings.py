"""Trainings killed at random moments and resumed: they end with the bits of one that was not killed."""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from converter.manifest import file_digest
from faces.training.config import TrainConfig
from faces.training.run import train
from tests.faces.training.conftest import write_faces
from tests.fuzz.killed_writers import start_fork, wait_for_fork

_TIMES = ("faces_per_second", "waited_for_data")  # the figures that no two runs share


@dataclass
class Kills:
    """The outcomes of killed trainings.

    Attributes:
        moments: Number of kills `before` the first checkpoint, `during` the writing of a file, `between` the
            files, and `after` the training.
        problems: Trainings that ended with other bits or figures, or left files behind.
    """

    moments: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("before", "during", "between", "after"), 0)
    )
    problems: list[str] = field(default_factory=list)


def run_kills(
    count: int, folder: Path, *, seed: int = 0, progress: Callable[[str], None] = lambda text: None
) -> Kills:
    """Kill trainings of two epochs, four steps and random weights at drawn moments, and resume them.

    Args:
        count: Number of trainings, each killed once.
        folder: Folder to write to.
        seed: Seed of the moments.
        progress: Progress callback.
    """
    for module in ("accelerate", "pytorch_metric_learning.losses", "sklearn.metrics", "tensorboard.summary"):
        importlib.import_module(module)  # once for all trainings
    rng, kills = Random(seed), Kills()
    config = TrainConfig(
        data=str(write_faces(folder / "crops")), output=str(folder / "whole"), weights="none",
        embedding_size=128, batch_size=6, epochs=2, head_epochs=1, last_epochs=0, checkpoint_steps=1,
        device="cpu",
    )  # fmt: skip
    started = time.monotonic()
    wait_for_fork(_start(config))
    duration = time.monotonic() - started
    expected = _outcome(folder / "whole")
    config = replace(config, output=str(folder / "killed"))
    for number in range(count):
        progress(f"training {number} of {count}")
        pid = _start(config)
        time.sleep(duration * rng.uniform(number, number + 1) / count)
        os.kill(pid, signal.SIGKILL)
        killed = os.WIFSIGNALED(wait_for_fork(pid))
        kills.moments[_moment(folder / "killed") if killed else "after"] += 1
        wait_for_fork(_start(config))
        if _outcome(folder / "killed") != expected:
            kills.problems.append(f"training {number}: it ended with other bits, figures or files")
        shutil.rmtree(folder / "killed")
    return kills


def _start(config: TrainConfig) -> int:
    return start_fork(lambda: train(config, resume=True))


def _moment(run: Path) -> str:
    if any(path.name.startswith(".") for path in run.rglob("*")):
        return "during"
    return "between" if list(run.glob("checkpoints/*.pt")) else "before"


def _outcome(run: Path) -> object:
    """The names of all files, the digests of the weights, and the figures of each epoch."""
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.parent.name != "tensorboard"}
    digests = [file_digest(run / name / "weights.pt") for name in ("best", "last")]
    rows = [
        {name: value for name, value in row.items() if name not in _TIMES}
        for row in csv.DictReader((run / "metrics.csv").open())
    ]
    return names, digests, rows
