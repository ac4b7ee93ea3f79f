"""The result of `align` for each photograph, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from faces.backends.facts import TORCH, BackendFacts, BackendName
from faces.crops import CROP_SIZES, CropMethod
from faces.detect.result import Face
from faces.options import FACTOR, SMALLEST_FACE, THRESHOLDS

LOW_SCORE = 0.95
"""The score below which a face is doubtful: facenet's detector gives most faces over 0.99."""
SMALL_FACE = 40
"""The width or height in pixels below which a face is doubtful: a crop magnifies it four times."""


COPY, SEVERAL, SCORE = "a copy in another person's folder", "several faces", "a low score"
SMALL, CUT = "a small face", "a face that is cut off"
DOUBTS = (COPY, SEVERAL, SCORE, SMALL, CUT)
"""The kinds of doubts, the gravest first."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A reason to look at a crop.

    Attributes:
        kind: One of `DOUBTS`.
        text: The reason in figures.
    """

    kind: str
    text: str


SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The names of folders, in lower case, that are splits: the same person may have a folder in each."""


def person_of(name: str) -> str:
    """Return the person that a photograph shows: the path of its folder without splits; empty at the top.

    The whole path, so that no two people become one: bo/2020 and cy/2020 differ.

    Args:
        name: The path of the photograph in the folder that was given, with `/` between its parts.
    """
    *above, own = ("", *PurePosixPath(name).parent.parts)
    return "/".join([*(folder for folder in above if folder and folder.lower() not in SPLITS), own])


@dataclass(frozen=True, slots=True)
class AlignOptions:
    """The options that decide what the crops are.

    Attributes:
        crop: "scaled": the largest face, a margin of 0.2 of its box, 160x160 pixels. "facenet": the crop of
            davidsandberg/facenet's `align_dataset_mtcnn.py`, pixel by pixel: 182x182.
        all_faces: Whether every face is cropped, and not one of each photograph.
        smallest_face: Side of the smallest face that is looked for, in pixels.
        thresholds: Probability of a face that P-Net, R-Net and O-Net ask for.
        factor: Ratio of two scales of the pyramid that follow each other.
        backend: What runs the detector's networks, as for `FaceDetector`; None for what the folder of crops
            was begun with, and for a new one ONNX Runtime if it is ready, otherwise PyTorch.
    """

    crop: CropMethod = "scaled"
    all_faces: bool = False
    smallest_face: float = SMALLEST_FACE
    thresholds: tuple[float, float, float] = THRESHOLDS
    factor: float = FACTOR
    backend: BackendName | None = None


@dataclass(frozen=True, slots=True)
class CroppedFace:
    """A face, and its crop.

    Attributes:
        face: The face.
        crop: The path of its crop in the output folder, with `/` between its parts; empty without a crop.
    """

    face: Face
    crop: str


@dataclass(frozen=True, slots=True)
class AlignedPhotograph:
    """A photograph that was searched for faces, or could not be read.

    Attributes:
        name: Its path in the folder, with `/` between its parts.
        width: In pixels, upright; 0 if it could not be read.
        height: Likewise.
        faces: Its faces, by falling score.
        problem: The reason why it could not be read, with the next step; empty if it could.
        copy: The name of a photograph of another person with the same content; empty if there is none.
    """

    name: str
    width: int = 0
    height: int = 0
    faces: tuple[CroppedFace, ...] = ()
    problem: str = ""
    copy: str = ""

    @property
    def person(self) -> str:
        """The person that it shows, as `person_of` says."""
        return person_of(self.name)

    @property
    def cropped(self) -> tuple[CroppedFace, ...]:
        """The faces that have a crop."""
        return tuple(face for face in self.faces if face.crop)

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """The reasons to look at its crops, in the order of `DOUBTS`; none without a face."""
        doubts = [Doubt(COPY, f"the same as {self.copy}")] if self.copy and self.cropped else []
        if len(self.faces) > 1:
            doubts.append(Doubt(SEVERAL, f"{len(self.faces)} faces"))
        for cropped in self.cropped:
            doubts += _face_doubts(cropped.face, self.width, self.height)
        return tuple(sorted(dict.fromkeys(doubts), key=lambda doubt: DOUBTS.index(doubt.kind)))


def _face_doubts(face: Face, width: int, height: int) -> list[Doubt]:
    left, top, right, bottom = face.box
    doubts = []
    if face.score < LOW_SCORE:
        doubts.append(Doubt(SCORE, f"score {face.score:.2f}"))
    smaller_side = min(right - left, bottom - top)
    if smaller_side < SMALL_FACE:
        doubts.append(Doubt(SMALL, f"a face of {smaller_side:.0f} pixels"))
    if left < 0 or top < 0 or right > width or bottom > height:
        doubts.append(Doubt(CUT, "cut off at the edge"))
    return doubts


@dataclass(frozen=True, slots=True)
class AlignResult:
    """The result of `align`.

    Attributes:
        folder: The folder of photographs.
        out: The folder of crops.
        table: The table of faces in it.
        options: What the crops are.
        photographs: The photographs by path.
        others: The files that no search takes for photographs, such as notes.txt.
        earlier: The number of photographs that an earlier run has aligned.
        detector: What ran the detector's networks.
    """

    folder: Path
    out: Path
    table: Path
    options: AlignOptions
    photographs: tuple[AlignedPhotograph, ...]
    others: tuple[str, ...]
    earlier: int
    detector: BackendFacts = TORCH

    @property
    def crops(self) -> int:
        """The number of crops."""
        return sum(len(photograph.cropped) for photograph in self.photographs)

    @property
    def unreadable(self) -> tuple[AlignedPhotograph, ...]:
        """The files that could not be read as photographs."""
        return tuple(photograph for photograph in self.photographs if photograph.problem)

    @property
    def without_face(self) -> tuple[AlignedPhotograph, ...]:
        """The photographs that were read and have no face."""
        return tuple(item for item in self.photographs if not item.problem and not item.faces)

    @property
    def exit_code(self) -> int:
        """0 if every photograph has a face; 1 if one has none; 3 if a file could not be read."""
        return 3 if self.unreadable else 1 if self.without_face else 0

    def as_json(self) -> Mapping[str, Any]:
        """The result in the form that `--json` writes."""
        return {
            "folder": str(self.folder),
            "out": str(self.out),
            "table": str(self.table),
            "options": asdict(self.options),
            "detector": asdict(self.detector),
            "size": CROP_SIZES[self.options.crop],
            "crops": self.crops,
            "without_face": [photograph.name for photograph in self.without_face],
            "unreadable": {photograph.name: photograph.problem for photograph in self.unreadable},
            "others": list(self.others),
            "photographs": [
                {
                    "path": str(self.folder / photograph.name),
                    "width": photograph.width,
                    "height": photograph.height,
                    "faces": [
                        {**asdict(cropped.face), "crop": cropped.crop or None} for cropped in photograph.faces
                    ],
                    "doubts": [doubt.text for doubt in photograph.doubts],
                }
                for photograph in self.photographs
            ],
        }
