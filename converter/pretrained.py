"""The weights of a known checkpoint by its name: a verified state_dict in the cache that torch.hub uses."""

from __future__ import annotations

import gc
import hashlib
import mmap
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from converter import catalog
from converter.cache import hub_checkpoints, lock
from converter.catalog import Published
from converter.errors import SourceError, UsageError
from converter.formats.state_dict_file import map_state_dict
from converter.manifest import Manifest, read_manifest
from converter.tensor_source import TensorInfo


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that bears the right name, and the digests that would prove it."""

    path: Path
    accepted: frozenset[str]
    embedding_size: int
    num_classes: int | None
    tensors: Mapping[str, TensorInfo] | None = None  # in their order, where this converter wrote the file


class Pretrained:
    """A known checkpoint's state_dict, found or made, and verified while the caller does something else.

    The file is looked for under its published name, `<model>-<dataset>.pt`, in the folder of `torch.hub` and
    in that of facenet-pytorch. It counts if its SHA-256 is the published one, or is the one in the manifest
    beside it while the source in that manifest has the digests of the catalogue. Where no file counts, one is
    made from the TensorFlow archive, which is downloaded if need be, read back and compared bit for bit. A
    file that does not count and is in the way is kept, as `<name>.unverified`.

    Args:
        name: Name or alias of a checkpoint in the catalogue.
        offline: Never download.

    Raises:
        UsageError: The catalogue has no such name.
        RequirementError: The archive is needed and cannot be had.
        SourceError: The archive is damaged.
    """

    def __init__(self, name: str, *, offline: bool = False) -> None:
        checkpoint = catalog.find(name)
        if checkpoint is None:
            names = ", ".join(label for known in catalog.known() for label in known.labels)
            raise UsageError(f"{name!r} is no known checkpoint. Give one of: {names}.")
        self._checkpoint = checkpoint
        self._offline = offline
        self._candidate = _find(checkpoint) or self._make()
        pool = ThreadPoolExecutor(1)
        self._digest = pool.submit(_digest, self._candidate.path)  # hashing lets go of the interpreter
        pool.shutdown(wait=False)

    @property
    def embedding_size(self) -> int:
        """Outputs of the bottleneck."""
        return self._candidate.embedding_size

    @property
    def num_classes(self) -> int | None:
        """Outputs of the classifier; None where the file has no logits."""
        return self._candidate.num_classes

    def state_dict(self) -> dict[str, Tensor]:
        """Wait for the verification, make the file anew if it fails, and load it.

        Returns:
            Key to tensor, on the CPU whatever the file was saved on. The tensors are mapped from the file,
            copy on write, unless PyTorch wrote it before 1.6: what is done to them never reaches it. It must
            not be cut short while they are in use; replacing or deleting it does no harm.

        Raises:
            RequirementError: The file is damaged, and the archive is needed and cannot be had.
            SourceError: The archive is damaged, or the file made from it is another network than announced.
        """
        if self._digest.result() not in self._candidate.accepted:
            announced = (self.embedding_size, self.num_classes)
            self._candidate = self._make()
            if _digest(self._candidate.path) not in self._candidate.accepted:
                raise SourceError(self._candidate.path, "it changes while it is being read")
            if announced != (self.embedding_size, self.num_classes):
                raise SourceError(self._candidate.path, "its manifest was wrong; it is mended, load again")
        return _load(self._candidate)

    def _make(self) -> _Candidate:
        """Convert the archive into the hub's folder, unless another process has just done so."""
        # Here, since a file that is in the cache needs none of it.
        from converter.convert_file import convert_file
        from converter.download import model_folder
        from converter.progress import ProgressBar

        destination = hub_checkpoints() / self._checkpoint.state_dict_name
        with lock(destination.name):
            found = _find(self._checkpoint)
            if found is not None and _digest(found.path) in found.accepted:
                return found
            with ProgressBar(f"downloading {self._checkpoint.name}") as progress:
                folder = model_folder(self._checkpoint, offline=self._offline, progress=progress)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with _set_aside(destination), ProgressBar(f"converting {self._checkpoint.name}") as progress:
                convert_file(folder, destination, overwrite=True, progress=progress)
        made = _find(self._checkpoint)
        if made is None:
            raise SourceError(folder, "not the checkpoint that the catalogue describes")
        return made


def _find(checkpoint: Published) -> _Candidate | None:
    """Look for a file that says what would prove it; nothing of it is read yet."""
    hub = hub_checkpoints()
    peer = hub.parents[1] / "checkpoints"  # torch_home()/checkpoints, where facenet-pytorch downloads to
    for path in (hub / checkpoint.state_dict_name, peer / checkpoint.state_dict_name):
        if not path.is_file():
            continue
        try:
            manifest = read_manifest(path.with_name(f"{path.name}.json"))
        except SourceError:
            manifest = None
        if manifest is not None and _is_made_from(manifest, checkpoint) and path.name in manifest.output:
            accepted = frozenset({manifest.output[path.name]})
            return _Candidate(path, accepted, manifest.embedding_size, manifest.num_classes, manifest.tensors)
        published = checkpoint.state_dict
        if published is not None and published.sha256 is not None and checkpoint.embedding_size is not None:
            accepted = frozenset({published.sha256})
            return _Candidate(path, accepted, checkpoint.embedding_size, checkpoint.num_classes)
    return None


def _load(verified: _Candidate) -> dict[str, Tensor]:
    if verified.tensors is not None:
        return map_state_dict(verified.path, verified.tensors)
    mapped = zipfile.is_zipfile(verified.path)  # what PyTorch wrote before 1.6 is no zip, and is not mapped
    loaded: dict[str, Tensor] = torch.load(verified.path, map_location="cpu", weights_only=True, mmap=mapped)
    return loaded


def _is_made_from(manifest: Manifest, checkpoint: Published) -> bool:
    """Whether no file of the manifest's source has another digest than the catalogue states for it."""
    return all(
        digest in (checkpoint.digests(name) or {digest}) for name, digest in manifest.source_files.items()
    )


def _digest(path: Path) -> str:
    """SHA-256 of a file in one call, which never waits for the interpreter in between."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return hashlib.sha256(content).hexdigest()


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
    """Keep a file that is about to be replaced under a second name, unless replacing it fails."""
    kept = None
    if path.exists():
        taken = {other.name for other in path.parent.iterdir()}
        names = (f"{path.name}.unverified{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        kept = path.with_name(next(name for name in names if name not in taken))
        kept.hardlink_to(path)
    try:
        yield
    except BaseException:
        if kept is not None:
            kept.unlink()
        raise
