"""The foot of a page: command, files, date, machine, versions, threads and seed."""

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
    """The foot of a page.

    Attributes:
        command: As it was typed.
        files: Name and SHA-256 of every file that was read.
        versions: Package to version.
        date: When the check ran, ISO 8601, UTC.
        machine: Processor, cores and operating system.
        threads: A sentence on the threads of PyTorch and TensorFlow.
        seed: Seed of the inputs; None without inputs.
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
        command: As it was typed.
        digests: Path to SHA-256 of every file that was read.
        environment: As `checks.core.environment.environment` gives it.
        seed: Seed of the inputs; None without inputs.
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
    """Path to SHA-256 of each file."""
    return {path: file_digest(Path(path)) for path in files}


def shown_path(path: str) -> str:
    """A path as it was given; only the name of one in the cache, which nobody typed."""
    return Path(path).name if Path(path).is_relative_to(cache_folder()) else path
