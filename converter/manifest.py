"""The JSON manifest beside each output: what came from where, in which layout, with which digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from converter import __version__
from converter.convert import LeftOut, Plan
from converter.layer_map import Converted, Row


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_digest(array: NDArray[Any]) -> str:
    """SHA-256 of a tensor's elements in C order and little-endian, in hexadecimal.

    dtype and shape are not part of it; the manifest states them beside the digest.
    """
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return hashlib.sha256(little.reshape(-1).view("u1").data).hexdigest()


def describe_source(
    path: Path, source_format: str, digests: Mapping[str, str], published: str | None
) -> dict[str, Any]:
    """The source of a conversion.

    Args:
        path: What was opened; only its name is kept, so that the same input gives the same manifest anywhere.
        source_format: The format in words.
        digests: File name to SHA-256.
        published: Name of the published checkpoint whose files have these digests, or None.
    """
    return {"name": path.name, "format": source_format, "files": dict(digests), "published": published}


def build_manifest(
    source: Mapping[str, Any],
    plan: Plan,
    files: Mapping[str, str],
    rows: Sequence[Row],
    digests: Mapping[str, str],
    left_out: Sequence[LeftOut],
) -> bytes:
    """Lay out the manifest of one output.

    Args:
        source: As `describe_source` gives it.
        plan: The plan that was carried out.
        files: Name of each file written to its SHA-256.
        rows: The rows of the layer map that are in the output.
        digests: Key to the digest of the PyTorch tensor.
        left_out: Tensors of the source that are not in the output.

    Returns:
        UTF-8 JSON with a final newline; the same arguments give the same bytes.
    """
    tensors = []
    for row in rows:
        entry: dict[str, Any] = {"key": row.key}
        if isinstance(row, Converted):
            entry["variable"] = row.variable
            if plan.sources[row.variable] != row.variable:
                entry["source"] = plan.sources[row.variable]
            entry["layout"] = row.layout.name
            entry["dtype"], entry["shape"] = "float32", row.layout.shape(row.shape)
        else:
            entry["synthesised"], entry["value"] = row.reason, row.fill
            entry["dtype"], entry["shape"] = row.dtype, row.shape
        entry["sha256"] = digests[row.key]
        tensors.append(entry)
    sections = {
        "tool": {"name": "facenet-port", "version": __version__},
        "source": source,
        "network": {
            "architecture": "InceptionResnetV1",
            "embedding_size": plan.variant.embedding_size,
            "num_classes": plan.variant.num_classes,
            "gamma": plan.variant.gamma,
            "bottleneck_scope": plan.variant.bottleneck_scope,
            "weights": plan.weights,
        },
        "output": dict(files),
        "tensors": tensors,
        "left_out": [{"name": item.name, "reason": item.reason} for item in left_out],
    }
    return _lay_out(sections).encode()


def _lay_out(sections: Mapping[str, Any]) -> str:
    """JSON with a line for each entry of a section, so that a person and diff can read it."""
    blocks = []
    for name, section in sections.items():
        if isinstance(section, list):
            lines = [json.dumps(entry) for entry in section]
            opening, closing = "[", "]"
        else:
            lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in section.items()]
            opening, closing = "{", "}"
        body = "\n  " + ",\n  ".join(lines) + "\n " if lines else ""
        blocks.append(f" {json.dumps(name)}: {opening}{body}{closing}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"
