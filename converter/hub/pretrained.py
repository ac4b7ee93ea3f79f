"""The weights of a published model by name: a verified state_dict in the cache that torch.hub uses."""

from __future__ import annotations

import errno
import hashlib
import logging
import mmap
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from converter.errors import PortError, RequirementError, SourceError, UsageError
from converter.formats.limits import is_utf_8
from converter.formats.source import TensorInfo
from converter.formats.torch.state_dict import map_state_dict
from converter.hub.cache import explain_cache_errors, hub_checkpoints, lock
from converter.hub.catalog_entry import CatalogEntry
from converter.hub.locate import fetch, require_entry
from converter.layer_map import Variant, table
from converter.manifest import Manifest, manifest_path, read_manifest

_LOG = logging.getLogger(__name__)
_WITHOUT_WEIGHTS = (".index", ".meta")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file with the published name, and the digest that would prove it.

    Attributes:
        path: The file.
        sha256: The digest.
        embedding_size: Outputs of the bottleneck.
        num_classes: Outputs of the classifier; None if there are no logits.
        tensors: The tensors in their order if this converter wrote the file, otherwise None.
    """

    path: Path
    sha256: str
    embedding_size: int
    num_classes: int | None
    tensors: Mapping[str, TensorInfo] | None


@dataclass(frozen=True, slots=True)
class PretrainedWeights:
    """The verified weights of a checkpoint.

    Attributes:
        state_dict: Key to tensor on the CPU, whatever device the file was saved on. The tensors are mapped
            from the file, copy on write, unless a PyTorch before 1.6 wrote it: a change to them never reaches
            the file. The file must not be truncated while they are in use; it may be replaced or deleted.
        embedding_size: Outputs of the bottleneck.
        num_classes: Outputs of the classifier; None if there are no logits.
    """

    state_dict: dict[str, Tensor]
    embedding_size: int
    num_classes: int | None


def load_pretrained(
    name: str, *, offline: bool = False, build: Callable[[int, int | None], object] | None = None
) -> PretrainedWeights:
    """Load the verified weights of a checkpoint of the catalog; convert the checkpoint first if need be.

    The file has its published name, `<model>-<dataset>.pt`, and lies in the folder of `torch.hub` or in that
    of facenet-pytorch. Its SHA-256 must be the published one or the one in the manifest beside it. The
    catalog's digests must then prove the manifest's source: the archive, or the weights in it.

    Without such a file, the checkpoint is downloaded and converted. An unproven file of that name is
    kept, with its manifest, as `<name>.unverified`.

    Args:
        name: Name or alias of a checkpoint in the catalog.
        offline: Never download.
        build: Called with the embedding size and the number of classes while the file is being hashed, so
            that a network can be built in that time. Called again if that file turns out to be damaged.

    Raises:
        UsageError: The catalog has no such name.
        RequirementError: The checkpoint is needed and cannot be downloaded, or a cache cannot be used.
        SourceError: The cached files of the checkpoint are damaged.
    """
    try:
        with explain_cache_errors("TORCH_HOME or XDG_CACHE_HOME"):
            return _load(_find_checkpoint(name), offline, build or (lambda *sizes: None))
    except PortError as error:
        # The message says everything; the frames of the download would bury it.
        raise error.with_traceback(None) from None


def _find_checkpoint(name: str) -> CatalogEntry:
    entry = require_entry(name)
    if entry.networks:
        networks = ", ".join(entry.networks)
        raise UsageError(f"{name!r} is not a checkpoint of InceptionResnetV1 but other networks: {networks}.")
    return entry


def _load(
    entry: CatalogEntry, offline: bool, build: Callable[[int, int | None], object]
) -> PretrainedWeights:
    candidate = next(_candidates(entry), None) or _make(entry, offline)
    # Hashing takes as long as everything else together. One after the other takes 1.7 times as long as
    # torch.load, so `build` runs beside it.
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_sha256, candidate.path)
        build(candidate.embedding_size, candidate.num_classes)
    if digest.result() != candidate.sha256:
        candidate = _verified(entry) or _make(entry, offline)
        build(candidate.embedding_size, candidate.num_classes)
    return PretrainedWeights(_read(candidate), candidate.embedding_size, candidate.num_classes)


def _make(entry: CatalogEntry, offline: bool) -> _Candidate:
    """Convert the checkpoint into the hub's folder, unless another process has just done so."""
    # Imported here, because a file in the cache needs none of it.
    from converter.convert_file import convert_file
    from converter.progress import ProgressBar

    destination = hub_checkpoints() / entry.state_dict_name
    try:
        with ProgressBar(f"downloading {entry.name}") as progress:
            model = fetch(entry, offline=offline, progress=progress)
    except RequirementError as error:
        if not destination.exists():
            raise
        problem = "neither its SHA-256 nor a manifest beside it proves it"
        raise RequirementError(f"{destination}: {problem}. {error}") from None
    with lock(destination.name):
        candidate = _verified(entry)
        if candidate is not None:
            return candidate
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(destination.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(destination.parent))
        with _set_aside(destination), ProgressBar(f"converting {entry.name}") as progress:
            convert_file(
                model.path,
                destination,
                model=model,
                overwrite=True,
                progress=progress,
            )
        return next(_candidates(entry))


def _candidates(entry: CatalogEntry) -> Iterator[_Candidate]:
    """Yield the files whose digest is known, in the order in which they are tried; no file is read."""
    hub = hub_checkpoints()
    peer = hub.parents[1] / "checkpoints"  # torch_home()/checkpoints, where facenet-pytorch downloads to
    for path in (hub / entry.state_dict_name, peer / entry.state_dict_name):
        if path.is_file():
            candidates = (_by_manifest(path, entry), _by_published_digest(path, entry))
            yield from (candidate for candidate in candidates if candidate is not None)


def _by_manifest(path: Path, entry: CatalogEntry) -> _Candidate | None:
    try:
        manifest = read_manifest(manifest_path(path))
    except SourceError:
        return None
    size, classes = manifest.embedding_size, manifest.num_classes
    if size is None:  # a network of MTCNN
        return None
    tensors = {row.key: row.info for row in table(Variant(size, classes))}
    # The manifest deserves no more trust than the file: its tensors must be the network's, in order.
    if list(manifest.tensors.items()) != list(tensors.items()) or path.name not in manifest.output:
        return None
    if not _proves_source(entry, manifest):
        return None
    return _Candidate(path, manifest.output[path.name], size, classes, tensors)


def _by_published_digest(path: Path, entry: CatalogEntry) -> _Candidate | None:
    published = entry.state_dict
    if published is None or published.sha256 is None or entry.embedding_size is None:
        return None
    return _Candidate(path, published.sha256, entry.embedding_size, entry.num_classes, None)


def _proves_source(entry: CatalogEntry, manifest: Manifest) -> bool:
    """Return whether the catalog proves the source in a manifest, and contradicts no file of it."""
    stated = {name: entry.digests(name) for name in manifest.source_files}
    if any(stated[name] and digest not in stated[name] for name, digest in manifest.source_files.items()):
        return False
    holds_weights = any(stated[name] and not name.endswith(_WITHOUT_WEIGHTS) for name in stated)
    return holds_weights or manifest.archive in {source.sha256 for source in entry.sources}


def _verified(entry: CatalogEntry) -> _Candidate | None:
    """Return the first candidate whose file has its digest."""
    return next((file for file in _candidates(entry) if _sha256(file.path) == file.sha256), None)


def _read(verified: _Candidate) -> dict[str, Tensor]:
    if verified.tensors is not None:
        return map_state_dict(verified.path, verified.tensors)
    mapped = zipfile.is_zipfile(verified.path)  # the format before PyTorch 1.6 cannot be mapped
    path = verified.path
    if is_utf_8(path):
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
    with path.open("rb") as file:  # PyTorch takes no other name
        return dict(torch.load(file, map_location="cpu", weights_only=True))


def _sha256(path: Path) -> str:
    """Hash a file in one call, which does not wait for Python's interpreter lock in between."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return hashlib.sha256(content).hexdigest()


@contextmanager
def _set_aside(path: Path) -> Iterator[None]:
    """Keep the file that the block replaces, and its manifest, under a second name; undo this on an error."""
    aside = path.with_name(f"{path.name}.unverified")
    kept = [
        (old, new)
        for old, new in ((path, aside), (manifest_path(path), manifest_path(aside)))
        if path.exists() and old.exists()
    ]
    if kept:
        _LOG.warning("%s is damaged or unproven: it is converted anew, and kept as %s", path, aside.name)
    for old, new in kept:
        old.replace(new)
    try:
        yield
    except BaseException:
        for old, new in kept:
            new.replace(old)
        raise
