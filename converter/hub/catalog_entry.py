"""What is known of one checkpoint that can be downloaded: the entry of a catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FIXED = "(x - 127.5) / 128"
PER_IMAGE = "per image (prewhiten)"

_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9"


@dataclass(frozen=True, slots=True)
class PublishedStateDict:
    """A PyTorch file that timesler/facenet-pytorch made of a checkpoint and published as its release v2.2.9.

    Attributes:
        name: The file's name.
        size: In bytes; None where no source states it.
        sha256: In hexadecimal; None where no source states it.
    """

    name: str
    size: int | None = None
    sha256: str | None = None

    @property
    def url(self) -> str:
        """Where the file is."""
        return f"{_RELEASE}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One checkpoint that can be downloaded as a zip. Of `drive_id` and `link` exactly one is given.

    Attributes:
        name: The model's name; for a published one the time at which its training began.
        dataset: What it was trained on, as in the names of the PyTorch files.
        aliases: Other names to ask for it by.
        embedding_size: Outputs of the bottleneck; None where no source states it, as for all that follow.
        num_classes: Outputs of the classifier.
        lfw_accuracy: Accuracy on Labeled Faces in the Wild that its author measured, between 0 and 1.
        standardisation: What training did to the pixels, `FIXED` or `PER_IMAGE`.
        drive_id: Google Drive id of the zip.
        link: Address of the zip where it is not on Google Drive, https or http.
        archive_size: Size of the zip in bytes.
        archive_sha256: SHA-256 of the zip in hexadecimal.
        sha256: Ending of a file's name (it begins with a dot), or the whole name, to the SHA-256 of that file
            in the zip.
        state_dict: The PyTorch file that was published of it, if one was.
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
        """Where the zip is, for a browser."""
        return self.link or f"https://drive.google.com/file/d/{self.drive_id}"

    @property
    def state_dict_name(self) -> str:
        """What facenet-pytorch calls the state_dict of this checkpoint."""
        return f"{self.name}-{self.dataset}.pt"

    def digests(self, file_name: str) -> frozenset[str]:
        """Every SHA-256 that is stated for a file of the zip, by its name or its ending: one, if any."""
        return frozenset(
            digest
            for name, digest in self.sha256.items()
            if file_name == name or (name.startswith(".") and file_name.endswith(name))
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Everything it can be asked for by: the name, then the aliases."""
        return (self.name, *self.aliases)
