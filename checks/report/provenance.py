"""The foot of a page: command, files, date, machine, versions, threads and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checks.core.environment import DATE, MACHINE
from converter import __version__
from converter.home_folder import from_home
from converter.hub.cache import is_cached
from converter.manifest import file_digest


@dataclass(frozen=True, slots=True)
class Provenance:
    """The foot of a page.

    Attributes:
        command: The command as it was typed.
        files: The name and the SHA-256 of every file that was read.
        versions: Package to version.
        date: The date and time of the check, ISO 8601, UTC.
        machine: The processor, its cores and the operating system.
        threads: A clause on the threads of PyTorch and TensorFlow.
        seed: The seed of the inputs; None without inputs.
    """

    command: str
    files: tuple[tuple[str, str], ...]
    versions: Mapping[str, str]
    date: str
    machine: str
    threads: str
    seed: int | None


def provenance(
    command: str,
    digests: Mapping[str, str],
    environment: Mapping[str, Any],
    seed: int | None,
    workers: int = 1,
) -> Provenance:
    """Gather the foot of a page.

    Args:
        command: The command as it was typed.
        digests: Path to SHA-256 of every file that was read.
        environment: The result of `checks.core.environment.environment`.
        seed: The seed of the inputs; None without inputs.
        workers: The number of threads that each run a network.
    """
    versions = {name: str(version) for name, version in environment.items() if name not in (DATE, *MACHINE)}
    each = "1 thread" if workers == 1 else f"1 thread in each of {workers} workers"
    threads = f"PyTorch on {each} (set to {environment['threads']})"
    if "tensorflow" in versions:
        threads += f", TensorFlow on up to {environment['cores']}"
    return Provenance(
        command=command,
        files=tuple((Path(path).name, digest) for path, digest in digests.items()),
        versions={"facenet-port": __version__, **versions},
        date=str(environment[DATE]),
        machine=f"{environment['processor']}, {environment['cores']} cores, {environment['platform']}",
        threads=threads,
        seed=seed,
    )


def digests(files: Iterable[str]) -> dict[str, str]:
    """Map the path of each file to its SHA-256."""
    return {path: file_digest(Path(path)) for path in files}


def shown_path(path: str) -> str:
    """Return a path as on the terminal; of a path in the cache, which nobody typed, only the name."""
    return Path(path).name if is_cached(Path(path)) else from_home(path)
