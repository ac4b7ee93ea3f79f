"""The JSON manifest beside each output: the source, and the layout and SHA-256 of every tensor."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter import __version__
from converter.errors import SourceError
from converter.formats.source import TensorInfo
from converter.layer_map import ConvertedRow, Row
from converter.mtcnn_layer_map import MtcnnNetwork, Network

if TYPE_CHECKING:  # slow to import, and not needed to read a manifest
    from converter.convert_file import Conversion

MAX_MANIFEST_BYTES = 16 << 20
"""Largest manifest that is read; one of 716 tensors has 0.2 MB."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_digest(array: NDArray[Any]) -> str:
    """SHA-256 of a tensor's elements in C order and little-endian, in hexadecimal.

    The digest does not cover dtype and shape, which the manifest states beside it.
    """
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return hashlib.sha256(little.reshape(-1).view("u1").data).hexdigest()


def manifest_path(output: Path) -> Path:
    """The path of an output's manifest, beside it."""
    return output.with_name(f"{output.name}.json")


def build_manifest(conversion: Conversion, rows: Sequence[Row], files: Mapping[str, str]) -> bytes:
    """Build the manifest of one output.

    Args:
        conversion: The conversion, whose `outputs` are not used.
        rows: The rows of the layer map that are in the output.
        files: Name of each file written to its SHA-256.

    Returns:
        UTF-8 JSON with a final newline; the same arguments give the same bytes.
    """
    plan, casts, names = conversion.plan, conversion.casts, conversion.names_in_file
    source: dict[str, Any] = {
        "name": conversion.source.name,  # without the folder, which must not change the manifest
        "format": conversion.source_format,
        "files": dict(conversion.source_digests),
        "published": conversion.published,
    }
    if conversion.source_key:
        source["key"] = conversion.source_key
    if conversion.prefix:
        source["prefix"] = conversion.prefix
    if conversion.notes:
        source["notes"] = list(conversion.notes)
    if conversion.model is not None:
        source["model"] = conversion.model.entry.name
        source["archive"] = conversion.model.source.sha256
        source["standardisation"] = conversion.model.entry.standardisation
    if conversion.standardisation is not None:
        source["standardisation"] = conversion.standardisation
    tensors, broken = [], []
    for row in rows:
        entry: dict[str, Any] = {"key": row.key}
        if isinstance(row, ConvertedRow):
            entry["variable"] = row.variable
            if plan.sources[row.variable] != row.variable:
                entry["source"] = plan.sources[row.variable]
            entry["layout"] = row.layout.name
        else:
            entry["synthesised"], entry["value"] = row.reason, row.fill
        entry["dtype"], entry["shape"] = row.info.dtype.name, row.info.shape
        if isinstance(row, ConvertedRow) and names[row.variable] in casts:
            entry["cast_from"] = asdict(casts[names[row.variable]])
        entry["sha256"] = conversion.digests[row.key]
        tensors.append(entry)
        if isinstance(row, ConvertedRow) and (name := names[row.variable]) in conversion.broken:
            broken.append({"name": name, "key": row.key, **asdict(conversion.broken[name])})
    sections = {
        "tool": {"name": "facenet-port", "version": __version__},
        "source": source,
        "network": {**describe_network(plan.network), "weights": plan.weights},
        "output": dict(files),
        "tensors": tensors,
        "broken_values": broken,
        "left_out": [{"name": item.name, "reason": item.reason} for item in conversion.left_out],
    }
    return _format(sections).encode()


def describe_network(network: Network) -> dict[str, Any]:
    """Describe a network as JSON values: the class in `reference` that computes it, and its variant."""
    if isinstance(network, MtcnnNetwork):
        return {"architecture": network.class_name}
    return {
        "architecture": "InceptionResnetV1",
        "embedding_size": network.embedding_size,
        "num_classes": network.num_classes,
        "gamma": network.gamma,
        "bottleneck_scope": network.bottleneck_scope,
    }


def _format(sections: Mapping[str, Any]) -> str:
    """Format JSON with a line for each entry of a section, for people and for diff."""
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


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        source_files: Name of each file of the source to its SHA-256.
        archive: SHA-256 of the zip or package that they were unpacked from, or None.
        standardisation: The standardisation of images that is stated for the source, or None.
        embedding_size: Outputs of the bottleneck; None for a network of MTCNN.
        num_classes: Outputs of the classifier; None if the output has no logits.
        output: Name of each file of the output to its SHA-256.
        tensors: Key of each tensor to its dtype and shape, in their order.
    """

    source_files: Mapping[str, str]
    archive: str | None
    standardisation: str | None
    embedding_size: int | None
    num_classes: int | None
    output: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        SourceError: The file does not exist, is too large, or is not a manifest of `build_manifest`.
    """
    remedy = "Convert the source again; a manifest is written beside the output"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise SourceError(path, f"cannot be read ({error.strerror or error})", next_step=remedy) from error
    if len(text) > MAX_MANIFEST_BYTES:
        problem = f"more than {MAX_MANIFEST_BYTES >> 20} MB, larger than any manifest"
        raise SourceError(path, problem, next_step=remedy)
    try:
        content = json.loads(text)
        network = content["network"]
        is_inception = network["architecture"] == "InceptionResnetV1"
        return Manifest(
            _digests(content["source"]["files"]),
            content["source"].get("archive"),
            content["source"].get("standardisation"),
            _count(network["embedding_size"]) if is_inception else None,
            _count(network["num_classes"]) if is_inception and network["num_classes"] is not None else None,
            _digests(content["output"]),
            {entry["key"]: _tensor_info(entry) for entry in content["tensors"]},
        )
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise SourceError(path, "not a manifest of this converter, or damaged", next_step=remedy) from error


def find_manifest(path: Path, digests: Mapping[str, str]) -> Manifest | None:
    """Return the manifest beside a file, if it is of these very bytes; a stale one is of other weights.

    Args:
        path: The file, or a checkpoint's prefix.
        digests: Name of each of its files to its SHA-256.
    """
    try:
        manifest = read_manifest(manifest_path(path))
    except SourceError:  # there is none, or the file beside it is something else
        return None
    return manifest if set(manifest.output.values()) == set(digests.values()) else None


def stated_standardisation(path: Path, digests: Mapping[str, str]) -> str | None:
    """Return the standardisation in the manifest of a file; the arguments are those of `find_manifest`."""
    manifest = find_manifest(path, digests)
    return None if manifest is None else manifest.standardisation


def _digests(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in value.values()
    ):
        raise TypeError("not a mapping of SHA-256 digests")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise TypeError("not a count")
    return value


def _tensor_info(entry: Any) -> TensorInfo:
    if entry["dtype"] not in ("float32", "int64"):
        raise TypeError("a dtype that no output has")
    return TensorInfo(np.dtype(entry["dtype"]), tuple(_extent(extent) for extent in entry["shape"]))


def _extent(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise TypeError("not an extent")
    return value
