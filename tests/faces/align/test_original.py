"""On photographs, from file to crop: `--crop facenet` writes the pixels that the original's script writes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from facenet_port import main
from faces.align import run
from faces.detect.detector import FaceDetector
from tests.conftest import fetch
from tests.support.original_align import align_as_original
from tests.support.package_index import FACENET


def test_crops_of_photographs_are_the_originals(photographs, networks, tmp_path, monkeypatch):
    detector = FaceDetector(networks)
    monkeypatch.setattr(run, "FaceDetector", lambda **options: detector)
    people = tmp_path / "people"
    for person in sorted((photographs).rglob("*.jpg")):
        target = people / person.parent.name / person.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(person)

    def boxes(image):
        (faces,) = detector.detect([image])
        return np.array([(*face.box, face.score) for face in faces]).reshape(-1, 5)

    for name, options, ours in (("one", (), ()), ("all", ("--detect_multiple_faces", "x"), ("--all-faces",))):
        out, original = tmp_path / f"{name}-crops", tmp_path / f"{name}-original"
        assert main(["align", str(people), str(out), "--crop", "facenet", "--quiet", *ours]) == 0
        align_as_original(fetch(FACENET), people, original, boxes, *options)
        expected = sorted(file.relative_to(original) for file in original.rglob("*.png"))
        assert expected == sorted(file.relative_to(out) for file in out.rglob("*.png"))
        assert len(expected) >= 10
        for file in expected:
            assert np.array_equal(np.asarray(Image.open(out / file)), np.asarray(Image.open(original / file)))
