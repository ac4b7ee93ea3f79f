"""The weights of a known checkpoint by its name: a verified state_dict in the cache that torch.hub uses."""

from __future__ import annotations

import gc
import hashlib
import logging
import mmap
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from converter.errors import RequirementError, SourceError, UsageError
from converter.formats.source import TensorInfo
from converter.formats.torch.state_dict import map_state_dict
from converter.hub import catalog
from converter.hub.cache import VARIABLE as CACHE_VARIABLE
from converter.hub.cache import hub_checkpoints, lock
from converter.hub.catalog_entry import CatalogEntry
from converter.layer_map import Variant, table
from converter.manifest import Manifest, manifest_path, read_manifest

_LOG = logging.getLogger(__name__)
_WITHOUT_WEIGHTS = (".index", ".meta")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that bears the right name, and the digest that would prove it to be the right one.

    Attributes:
        path: The file.
        sha256: What its SHA-256 has to be.
        embedding_size: Outputs of the bottleneck.
        num_classes: Outputs of the classifier; None where it has no logits.
        tensors: Its tensors in their order, where this converter wrote the file; otherwise None.
    """

    path: Path
    sha256: str
    embedding_size: int
    num_classes: int | None
    tensors: Mapping[str, TensorInfo] | None


class Pretrained:
    """A known checkpoint's state_dict, found or made, and verified while the caller does something else.

    The file is looked for under its published name, `<model>-<dataset>.pt`, in the folder of `torch.hub` and
    in that of facenet-pytorch. It counts if its SHA-256 is the published one, or the one in the manifest
    beside it where that manifest proves its source by digests of the catalog: that of the archive, or that
    of the weights in it. Where no file counts, one is made from the TensorFlow archive, which is downloaded
    if need be, read back and compared bit for bit. A file that does not count and is in the way is kept, with
    its manifest, as `<name>.unverified`.

    Args:
        name: Name or alias of a checkpoint in the catalog.
        offline: Never download.

    Raises:
        UsageError: The catalog has no such name.
        RequirementError: The archive is needed and cannot be had, or a cache cannot be used.
        SourceError: The archive is damaged.
    """

    def __init__(self, name: str, *, offline: bool = False) -> None:
        checkpoint = catalog.find_entry(name)
        if checkpoint is None:
            names = ", ".join(label for known in catalog.all_entries() for label in known.labels)
            raise UsageError(f"{name!r} is no known checkpoint. Give one of: {names}.")
        self._checkpoint = checkpoint
        self._offline = offline
        with _cache_errors():
            # Hashing takes longest and lets go of the interpreter: it begins before anything else is read.
            paths = _paths(checkpoint)
            hashing = _start_digest(paths[0]) if paths else None
            found = _candidates(checkpoint)
            self._candidate = found[0] if found else self._make()
            if hashing is None or not found or found[0].path != paths[0]:
                hashing = _start_digest(self._candidate.path)
        self._digest = hashing

    @property
    def embedding_size(self) -> int:
        """Outputs of the bottleneck; `state_dict` may come to another file and change it."""
        return self._candidate.embedding_size

    @property
    def num_classes(self) -> int | None:
        """Outputs of the classifier, None where there are no logits; `state_dict` may change it as well."""
        return self._candidate.num_classes

    def state_dict(self) -> dict[str, Tensor]:
        """Wait for the verification and load; where it fails, look further, and at last make the file anew.

        Returns:
            Key to tensor, on the CPU whatever the file was saved on. The tensors are mapped from the file,
            copy on write, unless PyTorch wrote it before 1.6: what is done to them never reaches it. It must
            not be cut short while they are in use; replacing or deleting it does no harm.

        Raises:
            RequirementError, SourceError: As for the class.
        """
        with _cache_errors():
            # Mapping takes no value from the file and goes on beside the hashing, which decides.
            mapped = _map(self._candidate)
            if self._digest.result() != self._candidate.sha256:
                self._candidate = _verified(self._checkpoint) or self._make()
                mapped = None
            return mapped or _load(self._candidate)

    def _make(self) -> _Candidate:
        """Convert the archive into the hub's folder, unless another process has just done so."""
        # Here, since a file that is in the cache needs none of it.
        from converter.convert_file import convert_file
        from converter.hub.download import model_folder
        from converter.progress import ProgressBar

        checkpoint = self._checkpoint
        destination = hub_checkpoints() / checkpoint.state_dict_name
        with lock(destination.name):
            found = _verified(checkpoint)
            if found is not None:
                return found
            try:
                with ProgressBar(f"downloading {checkpoint.name}") as progress:
                    folder = model_folder(checkpoint, offline=self._offline, progress=progress)
            except RequirementError as error:
                if not destination.exists():
                    raise
                unproven = f"{destination}: neither its SHA-256 nor a manifest beside it proves it. {error}"
                raise RequirementError(unproven) from error
            destination.parent.mkdir(parents=True, exist_ok=True)
            with _set_aside(destination), ProgressBar(f"converting {checkpoint.name}") as progress:
                convert_file(
                    folder,
                    destination,
                    archive_sha256=checkpoint.archive_sha256,
                    overwrite=True,
                    progress=progress,
                )
            made = _verified(checkpoint)
        if made is None:
            raise SourceError(destination, "it does not stay as it was written")
        return made


def _paths(checkpoint: CatalogEntry) -> list[Path]:
    """The files that bear the name, in the order in which they are looked at."""
    hub = hub_checkpoints()
    peer = hub.parents[1] / "checkpoints"  # torch_home()/checkpoints, where facenet-pytorch downloads to
    paths = (folder / checkpoint.state_dict_name for folder in (hub, peer))
    return [path for path in paths if path.is_file()]


def _candidates(checkpoint: CatalogEntry) -> list[_Candidate]:
    """The files that say what would prove them; nothing of them is read yet."""
    ways = (_by_manifest, _by_digest)
    found = (way(path, checkpoint) for path in _paths(checkpoint) for way in ways)
    return [candidate for candidate in found if candidate is not None]


def _by_manifest(path: Path, checkpoint: CatalogEntry) -> _Candidate | None:
    try:
        manifest = read_manifest(manifest_path(path))
    except SourceError:
        return None
    size, classes = manifest.embedding_size, manifest.num_classes
    tensors = {row.key: row.entry for row in table(Variant(size, classes))}
    # A manifest is no more to be trusted than the file: the names have to be the network's, in its order.
    if list(manifest.tensors.items()) != list(tensors.items()) or path.name not in manifest.output:
        return None
    if not _is_made_from(manifest, checkpoint):
        return None
    return _Candidate(path, manifest.output[path.name], size, classes, tensors)


def _by_digest(path: Path, checkpoint: CatalogEntry) -> _Candidate | None:
    published = checkpoint.state_dict
    if published is None or published.sha256 is None or checkpoint.embedding_size is None:
        return None
    return _Candidate(path, published.sha256, checkpoint.embedding_size, checkpoint.num_classes, None)


def _is_made_from(manifest: Manifest, checkpoint: CatalogEntry) -> bool:
    """Whether the source in a manifest is proven by the catalog, and contradicted nowhere."""
    stated = {name: checkpoint.digests(name) for name in manifest.source_files}
    if any(stated[name] and digest not in stated[name] for name, digest in manifest.source_files.items()):
        return False
    holds_weights = any(stated[name] and not name.endswith(_WITHOUT_WEIGHTS) for name in stated)
    return holds_weights or manifest.archive == checkpoint.archive_sha256


def _verified(checkpoint: CatalogEntry) -> _Candidate | None:
    """The first candidate that is what it should be."""
    return next((found for found in _candidates(checkpoint) if _digest(found.path) == found.sha256), None)


def _map(candidate: _Candidate) -> dict[str, Tensor] | None:
    """The tensors of a file whose SHA-256 is not known yet; None where it cannot be the right one."""
    if candidate.tensors is None:
        return None
    try:
        return map_state_dict(candidate.path, candidate.tensors)
    except SourceError:
        return None


def _load(verified: _Candidate) -> dict[str, Tensor]:
    if verified.tensors is not None:
        return map_state_dict(verified.path, verified.tensors)
    mapped = zipfile.is_zipfile(verified.path)  # what PyTorch wrote before 1.6 is no zip, and is not mapped
    loaded: dict[str, Tensor] = torch.load(verified.path, map_location="cpu", weights_only=True, mmap=mapped)
    return loaded


def _start_digest(path: Path) -> Future[str]:
    pool = ThreadPoolExecutor(1)
    digest = pool.submit(_digest, path)
    pool.shutdown(wait=False)
    return digest


def _digest(path: Path) -> str:
    """SHA-256 of a file in one call, which never waits for the interpreter in between."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return hashlib.sha256(content).hexdigest()


@contextmanager
def _cache_errors() -> Iterator[None]:
    """Say what it means that a file of the caches cannot be read or written."""
    try:
        yield
    except OSError as error:
        raise RequirementError(
            f"the cache cannot be used ({error}). Set TORCH_HOME and {CACHE_VARIABLE} to folders that can be "
            "written to, on a disk with room."
        ) from error


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from running.

    Building a network makes enough objects to set it off several times, and each time it looks through all of
    torch: that takes as long as reading the weights.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _set_aside(path: Path) -> Iterator[None]:
    """Keep a file that is about to be replaced, and its manifest, under a second name, unless that fails."""
    kept: list[Path] = []
    if path.exists():
        taken = {other.name for other in path.parent.iterdir()}
        names = (f"{path.name}.unverified{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        aside = path.with_name(next(name for name in names if name not in taken))
        _LOG.warning("%s is damaged or unproven: it is made anew, and kept as %s", path, aside.name)
        for old, new in ((path, aside), (manifest_path(path), manifest_path(aside))):
            if old.exists():
                kept.append(new)
                _link_or_copy(old, new)
    try:
        yield
    except BaseException:
        for new in kept:
            new.unlink()
        raise


def _link_or_copy(old: Path, new: Path) -> None:
    try:
        new.hardlink_to(old)
    except OSError:  # no hard links on this file system
        shutil.copy2(old, new)
