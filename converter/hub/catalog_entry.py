"""The entry of the catalog for a downloadable checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FIXED = "(x - 127.5) / 128"
PER_IMAGE = "per image (prewhiten)"

_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9"


@dataclass(frozen=True, slots=True)
class PublishedStateDict:
    """The PyTorch file of a checkpoint in release v2.2.9 of timesler/facenet-pytorch.

    Attributes:
        name: The file's name.
        size: In bytes; None if no source states it.
        sha256: In hexadecimal; None if no source states it.
    """

    name: str
    size: int | None = None
    sha256: str | None = None

    @property
    def url(self) -> str:
        """The address of the file."""
        return f"{_RELEASE}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """A checkpoint that can be downloaded as a zip, from either `drive_id` or `link`.

    Optional facts are None if no source states them.

    Attributes:
        name: The model's name; for a published model, the time at which its training began.
        dataset: The data set that it was trained on, as the PyTorch files spell it.
        aliases: Other names.
        embedding_size: Outputs of the bottleneck.
        num_classes: Outputs of the classifier.
        lfw_accuracy: Accuracy on Labeled Faces in the Wild that its author states, between 0 and 1.
        standardisation: The standardisation of pixels in training, `FIXED` or `PER_IMAGE`.
        drive_id: Google Drive id of the zip.
        link: Address of a zip that is not on Google Drive, https or http.
        archive_size: Size of the zip in bytes.
        archive_sha256: SHA-256 of the zip in hexadecimal.
        sha256: Name of a file in the zip, or ending of a name with its dot, to the file's SHA-256.
        state_dict: The PyTorch file that facenet-pytorch published of it, if any.
    """

    name: str
    dataset: str
    aliases: tuple[str, ...] = ()
    embedding_size: int | None = None
    num_classes: int | None = None
    lfw_accuracy: float | None = None
    standardisation: str | None = None
    drive_id: str | None = None
    link: str | None = None
    archive_size: int | None = None
    archive_sha256: str
    sha256: Mapping[str, str]
    state_dict: PublishedStateDict | None = None

    @property
    def url(self) -> str:
        """The address of the zip, for a browser."""
        return self.link or f"https://drive.google.com/file/d/{self.drive_id}"

    @property
    def state_dict_name(self) -> str:
        """The name of its state_dict, as facenet-pytorch spells it."""
        return f"{self.name}-{self.dataset}.pt"

    def digests(self, file_name: str) -> frozenset[str]:
        """The digests stated for a file of the zip; its name and its ending may both have one."""
        return frozenset(
            digest
            for name, digest in self.sha256.items()
            if file_name == name or (name.startswith(".") and file_name.endswith(name))
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The name, then the aliases."""
        return (self.name, *self.aliases)
