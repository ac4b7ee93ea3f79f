"""`facenet-port compare` without SOURCE, run once in a test run, as a new user does: with an empty cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = ["facenet-port", "compare"]


@dataclass(frozen=True)
class MainJob:
    """What the command left behind.

    Attributes:
        screen: What it wrote to its standard output, with ~ for the user's home.
        report: The content of `--json`.
        activations: The file of `--save-activations`.
        checkpoint: The built-in checkpoint in the user's cache.
        environment: The user's environment, with a home of its own.
    """

    screen: str
    report: Mapping[str, Any]
    activations: Path
    checkpoint: Path
    environment: Mapping[str, str]


def user_environment(home: Path) -> dict[str, str]:
    """The environment of a user with this home, and `facenet-port` to call."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "FACENET_PORT_"))
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return kept | {"HOME": str(home), "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


def run_main_job(folder: Path) -> None:
    """Run the command in a home of its own, and keep its output beside the files that it writes."""
    options = ["--save-activations", str(folder / "activations.h5"), "--json", str(folder / "report.json")]
    result = subprocess.run(
        [*COMMAND, *options], env=user_environment(folder), cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "screen.txt").write_text(result.stdout.replace(str(folder), "~"))


def read_main_job(folder: Path) -> MainJob:
    """Read what `run_main_job` left in a folder, which has another name since."""
    return MainJob(
        (folder / "screen.txt").read_text(),
        json.loads((folder / "report.json").read_text()),
        folder / "activations.h5",
        folder / ".cache" / "facenet-port" / "built-in-512d-8631",
        user_environment(folder),
    )
