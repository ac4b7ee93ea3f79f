"""The detector with the published weights, and what the original finds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from faces.backends import detector_networks
from faces.detect.detector import FaceDetector
from tests.support.original_detector import VARIANTS, read_results, run_original, vary

pytest.importorskip("cv2")


@pytest.fixture(scope="session")
def detector(networks):
    return FaceDetector(networks)


@pytest.fixture(scope="session")
def onnxruntime_detector(networks, mtcnn_files, tmp_path_factory):
    """The detector in ONNX Runtime, whose files are made in a cache of their own."""
    files = {npy.name: npy for npy, _ in mtcnn_files.values()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACENET_PORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(detector_networks, "find_model", lambda *_, **__: SimpleNamespace(files=files))
        patch.setattr(detector_networks, "load_mtcnn", lambda offline: networks)
        return FaceDetector(backend="onnxruntime")


@pytest.fixture(scope="session")
def original(detector_code, tmp_path_factory):
    """A function from jobs, pairs of a photograph and a variant, to what the original finds in each.

    The original searches a photograph once.
    """
    known = {}

    def results(jobs):
        new = [job for job in jobs if job not in known]
        if new:
            file = tmp_path_factory.mktemp("original") / "faces.json"
            run_original(new, detector_code, file)
            known.update(zip(new, read_results(file), strict=True))
        return [known[job] for job in jobs]

    return results


@pytest.fixture(scope="session")
def some_jobs(people):
    """Twelve photographs, a third of them in each of three variants, and two in each of the others."""
    files = sorted(people.glob("*/*.jpg"))[::10]
    parts = (slice(1, None, 3), slice(0, None, 3), slice(2, None, 3), slice(5, None, 6), slice(5, None, 6))
    return [(file, "as it is") for file in files] + [
        (file, variant) for variant, part in zip(VARIANTS[1:], parts, strict=True) for file in files[part]
    ]


@pytest.fixture(scope="session")
def some_images(some_jobs):
    return [vary(*job) for job in some_jobs]


@pytest.fixture(scope="session")
def some_faces(detector, some_images):
    """What the detector finds in each."""
    return detector.detect(some_images)
