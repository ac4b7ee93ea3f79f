"""The checkpoints that davidsandberg/facenet published, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """One published checkpoint.

    Attributes:
        name: The model's name, which is the time at which its training began.
        dataset: What it was trained on, as in the names of the PyTorch files.
        embedding_size: Outputs of the bottleneck.
        num_classes: Outputs of the classifier; None where no source states it.
        lfw_accuracy: Accuracy on Labeled Faces in the Wild that its author measured.
        standardisation: What training did to the pixels.
        drive_id: Google Drive id of the zip.
        sha256: Ending of a file's name to its SHA-256, as the package keras-facenet lists them.
    """

    name: str
    dataset: str
    embedding_size: int
    num_classes: int | None
    lfw_accuracy: float
    standardisation: str
    drive_id: str
    sha256: Mapping[str, str]

    @property
    def url(self) -> str:
        """Where the zip is, for a browser."""
        return f"https://drive.google.com/file/d/{self.drive_id}"


_FIXED = "(x - 127.5) / 128"
_PER_IMAGE = "per image (prewhiten)"

CHECKPOINTS = (
    Published(
        "20180402-114759",
        "vggface2",
        512,
        8631,
        0.9965,
        _FIXED,
        "1EXPBSXwTaqrSC0OhUdXNmKSh9qJUQ55-",
        {
            ".pb": "bf2c12f31880aaa865fa5a9c168dcbd619f7a40b1633f6446d416fac2421ab99",
            ".data-00000-of-00001": "5ccfbec36aa87074e96507d1b2957c739ddd1ce928cdc8f31b70fd3f7091f25a",
            ".index": "2f84bad893bc250af5a19dca9cf4690c13d0eb394ab09eb39a9f3480fedf3dce",
            ".meta": "b711e501998754794959573f0fbaa45da89cad3457b31c6de48ad53c87fce00c",
        },
    ),
    Published(
        "20180408-102900",
        "casia-webface",
        512,
        10575,
        0.9905,
        _FIXED,
        "1R77HmFADxe87GmoLwzfgMu_HY0IhcyBz",
        {
            ".pb": "272568219fa6505371ceed76dca6b3925ef69b54962709cf76f763e9d8bf4cfb",
            ".data-00000-of-00001": "15d3109b99a6ca0d49843c183d4b417f7952f2948a1c246e2059813157b9d385",
            ".index": "548d743099cf13f598db8a660e9a8ad7f12148cb4206ab9cc480f0550edc17e9",
            ".meta": "238c98fc44fd0db79f61e719646b55c22b6a79944f806f8ee23e2d9f36c9ae7d",
        },
    ),
    Published(
        "20170512-110547",
        "ms-celeb-1m",
        128,
        None,
        0.992,
        _PER_IMAGE,
        "0B5MzpY9kBtDVZ2RpVDYwWmxoSUk",
        {
            ".pb": "8bdc3aed34e577113a656b8e5d0274346f8967fa7f0f9d6f3fdcd9608a29b9e4",
            ".data-00000-of-00001": "08bb31fc541d7cd2fcd2c499a1d90de45140828f0d08d23c34b65fab2d172ebb",
        },
    ),
    Published(
        "20170511-185253",
        "casia-webface",
        128,
        None,
        0.987,
        _PER_IMAGE,
        "0B5MzpY9kBtDVOTVnU3NIaUdySFE",
        {".data-00000-of-00001": "8776a47ef7fd0a5848946295a763c2c10580c621f84f591d731f8c2b6d8eabf5"},
    ),
)

# A data set alone means the checkpoint of 2018, as it does for the published PyTorch files.
PUBLISHED: Mapping[str, Published] = {
    **{checkpoint.name: checkpoint for checkpoint in CHECKPOINTS},
    "vggface2": CHECKPOINTS[0],
    "casia-webface": CHECKPOINTS[1],
}
