"""The result of `export`, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from checks.audit.result import AuditResult

Format = Literal["onnx", "tflite"]
Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A file that was exported and audited.

    Attributes:
        output: The file.
        format: Its format.
        precision: The precision of its weights.
        sha256: Its SHA-256.
        size: Its size in bytes.
        metadata: The metadata in it.
        audit: The audit that it passed, against the source.
    """

    output: Path
    format: Format
    precision: Precision
    sha256: str
    size: int
    metadata: Mapping[str, str]
    audit: AuditResult

    def as_json(self) -> dict[str, Any]:
        """The result in the form that `--json` writes."""
        audit = self.audit
        return {
            "output": str(self.output),
            "format": self.format,
            "precision": self.precision,
            "sha256": self.sha256,
            "bytes": self.size,
            "metadata": dict(self.metadata),
            "verdict": audit.verdict,
            "judgements": [asdict(judgement) for judgement in audit.judgements],
            "environment": dict(audit.environment),
        }
