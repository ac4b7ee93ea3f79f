"""The exported files in the cache: made once for weights, audited, and checked once on each machine.

exports/DIGEST/embeddings.onnx        DIGEST is the start of the SHA-256 of the weights
exports/DIGEST/embeddings.onnx.json   the SHA-256 of the file, and the checks of it

The networks of the detector are pnet.onnx and so on, each in the folder of its own weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checks.core import thresholds
from converter.atomic import replace_file
from converter.errors import DifferenceError, UsageError
from converter.hub.cache import cache_folder, explain_cache_errors, lock
from converter.manifest import file_digest

EMBEDDINGS = "embeddings"
"""The name of the file that embeds faces."""
TAKE_TORCH = "Take --backend torch."
"""The end of the message on a runtime that differs from PyTorch."""


@dataclass(frozen=True, slots=True)
class CachedExport:
    """An exported file in the cache.

    Attributes:
        path: The file.
        sha256: Its SHA-256, with which it was verified.
        checks: Machine and versions to the distance from PyTorch's results.
    """

    path: Path
    sha256: str
    checks: dict[str, float]

    def check(self, conditions: str, gives: str, measure: Callable[[], float]) -> float:
        """Return the distance of the file's results from PyTorch's, which is measured once and kept.

        In a cache that cannot be written to it is measured each time.

        Args:
            conditions: What the result depends on beside the file: the machine and the versions.
            gives: What is compared, for the message: "onnxruntime gives embeddings".
            measure: Function that measures the distance.

        Raises:
            DifferenceError: The distance is larger than `thresholds.BACKEND_DISTANCE`.
        """
        distance = self.checks.get(conditions)
        if distance is None:
            distance = self.checks[conditions] = measure()
            with suppress(OSError, UsageError):  # of a folder that is read-only
                _write_record(self)
        if not distance <= thresholds.BACKEND_DISTANCE:
            raise DifferenceError(
                f"{gives} {distance:.1e} from PyTorch's on this machine, more than "
                f"{thresholds.BACKEND_DISTANCE:.0e} ({self.path}). {TAKE_TORCH}"
            )
        return distance


def find_export(weights_sha256: str, ending: str, name: str = EMBEDDINGS) -> CachedExport | None:
    """Find the exported file of weights in the cache and verify it; None if there is none or it has changed.

    Args:
        weights_sha256: The `weights_digest` of the weights.
        ending: `.onnx` or `.tflite`.
        name: The name of the file without its ending.

    Raises:
        RequirementError: The cache cannot be read.
    """
    path = _path(weights_sha256, ending, name)
    with explain_cache_errors():
        try:
            record: Any = json.loads(_record(path).read_bytes())
            digest, checks = record["sha256"], dict(record["checks"])
            if not all(isinstance(distance, float) for distance in checks.values()):
                return None
            return CachedExport(path, digest, checks) if file_digest(path) == digest else None
        except (FileNotFoundError, ValueError, TypeError, LookupError):  # a damaged record is none
            return None


def make_export(source: str, weights_sha256: str, ending: str, name: str = EMBEDDINGS) -> CachedExport:
    """Export weights into the cache, or find what another process has made meanwhile.

    Args:
        source: The weights, as `facenet-port export` takes them.
        weights_sha256: Their `weights_digest`.
        ending: `.onnx` or `.tflite`.
        name: The name of the file without its ending.

    Raises:
        DifferenceError: The audit refuses the file, or the source has changed since.
        RequirementError: The cache cannot be written to, or a package is missing.
    """
    from faces.export.run import export

    path = _path(weights_sha256, ending, name)
    with lock(f"export-{path.parent.name}{ending}"):
        found = find_export(weights_sha256, ending, name)
        if found is not None:
            return found
        logging.getLogger(__name__).warning("%s: exporting and auditing it, once: %s", source, path)
        with explain_cache_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in (path, _record(path)):
                with suppress(FileNotFoundError):
                    old.unlink()
        result = export(source, path)
        stated = result.metadata["weights_sha256"]
        if stated != weights_sha256:
            path.unlink()
            raise DifferenceError(f"{source}: it has changed meanwhile (SHA-256 of the weights {stated}).")
        made = CachedExport(path, result.sha256, {})
        with explain_cache_errors():
            _write_record(made)
    return made


def _path(weights_sha256: str, ending: str, name: str) -> Path:
    return cache_folder() / "exports" / weights_sha256[:16] / f"{name}{ending}"


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_record(export: CachedExport) -> None:
    record = {"sha256": export.sha256, "checks": export.checks}
    replace_file(_record(export.path), json.dumps(record, indent=2).encode())
