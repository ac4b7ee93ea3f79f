"""The foot of a report: command, files, date, machine, versions, threads and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checks.core.environment import DATE, MACHINE
from converter import __version__
from converter.hub.cache import cache_folder
from converter.manifest import file_digest


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the foot of a report says.

    Attributes:
        command: As it was typed.
        files: Name and SHA-256 of every file that was read.
        versions: Package to version.
        date: When the check ran, ISO 8601, UTC.
        machine: Processor, cores and operating system.
        threads: What computed on how many, in words.
        seed: Of the inputs.
    """

    command: str
    files: tuple[tuple[str, str], ...]
    versions: Mapping[str, str]
    date: str
    machine: str
    threads: str
    seed: int


def provenance(
    command: str, digests: Mapping[str, str], environment: Mapping[str, Any], seed: int, workers: int = 1
) -> Provenance:
    """Gather what the foot of a report says.

    Args:
        command: As it was typed.
        digests: Path to SHA-256 of every file that was read.
        environment: As `checks.core.environment.environment` gives it.
        seed: Of the inputs.
        workers: How many threads run a network each.
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
    """Path to SHA-256 of some files."""
    return {path: file_digest(Path(path)) for path in files}


def shown_path(path: str) -> str:
    """A path as it was given; of one in the cache, which nobody typed, the name."""
    return Path(path).name if Path(path).is_relative_to(cache_folder()) else path
