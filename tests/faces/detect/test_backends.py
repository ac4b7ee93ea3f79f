"""`--backend` of the detector: boxes are torch's but for rounding, and a network that differs is refused."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import facenet_port
from converter.errors import DifferenceError, UsageError
from converter.manifest import file_digest
from faces.backends import detector_networks
from faces.backends.choose import describe_machine
from faces.backends.facts import TORCH
from faces.backends.onnxruntime_backend import open_onnxruntime
from faces.backends.rewrite_detector import rewrite_detector
from faces.detect import detector as detector_module
from faces.detect.detector import FaceDetector
from tests.faces.detect.comparison import LEAST_EQUAL, as_arrays, compare_faces

pytestmark = pytest.mark.real

ROUNDING = 5e-6  # of an output, most of which lie between -1 and 1


@pytest.fixture
def cache(networks, mtcnn_files, tmp_path, monkeypatch):
    """An empty cache, the published weights, and the number of checks."""
    state = SimpleNamespace(folder=tmp_path / "cache", checks=0)
    files = {npy.name: npy for npy, _ in mtcnn_files.values()}
    measure = detector_networks.measure_difference

    def count(*arguments):
        state.checks += 1
        return measure(*arguments)

    monkeypatch.setenv("FACENET_PORT_CACHE", str(state.folder))
    monkeypatch.setattr(detector_networks, "find_model", lambda *_, **__: SimpleNamespace(files=files))
    monkeypatch.setattr(detector_networks, "measure_difference", count)
    for module in (detector_module, detector_networks):
        monkeypatch.setattr(module, "load_mtcnn", lambda offline: networks)
    return state


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("litert", marks=pytest.mark.slow)])
def test_boxes_are_those_of_torch_but_for_rounding(backend, cache, some_images, some_faces, tmp_path, capfd):
    expected, images = [as_arrays(faces) for faces in some_faces[:8]], some_images[:8]
    other = FaceDetector(backend=backend)
    comparison = compare_faces(expected, [as_arrays(faces) for faces in other.detect(images)])
    assert (comparison.missed, comparison.extra) == (0, 0)
    assert len(comparison.box) >= 8
    assert comparison.equal >= LEAST_EQUAL
    assert other.detect(images) == [other.detect([image])[0] for image in images]
    assert cache.checks == 3
    names = {path.name for path in cache.folder.glob("exports/*/*")}
    assert {name.partition(".")[0] for name in names} == {"pnet", "rnet", "onet"}

    photograph, crops, report = tmp_path / "people/1.png", tmp_path / "crops", tmp_path / "faces.json"
    photograph.parent.mkdir()
    Image.fromarray(images[0]).save(photograph)
    options = ("--backend", backend, "--quiet")
    assert facenet_port.main(["detect", str(photograph), *options, "--json", str(report)]) == 0
    (face,) = json.loads(report.read_text())[0]["faces"]
    np.testing.assert_allclose(face["box"], expected[0][0][0, :4], atol=0.01)
    assert facenet_port.main(["align", str(photograph.parent), str(crops), *options]) == 0
    assert (crops / "1.png").exists()
    assert cache.checks == 3  # the result is kept
    assert facenet_port.main(["align", str(photograph.parent), str(crops), "--quiet"]) == 0  # as it was begun
    torch = ("--backend", "torch", "--quiet")
    assert facenet_port.main(["align", str(photograph.parent), str(crops), *torch]) == 2
    told = capfd.readouterr().err
    assert f"it was made with backend {backend}, not torch" in told
    assert "XNNPACK" not in told


def test_the_default_is_onnxruntime_once_its_files_are_there(
    cache, some_images, tmp_path, monkeypatch, capsys
):
    photograph, crops, report = tmp_path / "people/1.png", tmp_path / "crops", tmp_path / "r.json"
    photograph.parent.mkdir()
    Image.fromarray(some_images[0]).save(photograph)

    def detect():
        assert facenet_port.main(["detect", str(photograph)]) == 0
        return capsys.readouterr().out

    assert "onnxruntime" not in detect()
    assert cache.checks == 0
    FaceDetector(backend="onnxruntime")
    monkeypatch.setattr(detector_networks, "load_mtcnn", None)  # the networks are loaded once
    stated = r"^detector   run by onnxruntime, \d\.\de-\d\d from torch on this machine$"
    assert re.search(stated, detect(), re.MULTILINE)
    assert cache.checks == 3
    assert facenet_port.main(["align", str(photograph.parent), str(crops), "--json", str(report)]) == 0
    assert "detector   run by onnxruntime, " in capsys.readouterr().out
    assert json.loads(report.read_text())["options"]["backend"] == "onnxruntime"
    for record in cache.folder.glob("exports/*/*.json"):
        content = json.loads(record.read_text())
        record.write_text(json.dumps({**content, "checks": dict.fromkeys(content["checks"], 1.0)}))
    assert "onnxruntime is not used for the detector: P-Net in onnxruntime gives" in detect()
    monkeypatch.setattr(detector_networks, "is_installed", lambda module: module != "onnxruntime")
    assert "onnxruntime" not in detect()


def test_many_photographs_make_the_files_on_the_cpu(cache, networks):
    assert detector_networks.choose_networks(networks, "cuda", images=500) == (networks, TORCH)
    assert FaceDetector(backend=None, images=499).backend.name == "torch"
    assert FaceDetector(backend=None, images=500).backend.name == "onnxruntime"


def test_onnxruntime_gives_what_the_file_gives_as_it_was_written(cache):
    """It opens another graph, with operations that it is faster at."""
    FaceDetector(backend="onnxruntime")
    shapes = {"pnet": (1, 3, 61, 90), "rnet": (5, 3, 24, 24), "onet": (5, 3, 48, 48)}
    paths = {path.stem: path for path in cache.folder.glob("exports/*/*.onnx")}
    assert paths.keys() == shapes.keys()
    for stem, path in paths.items():
        graphs = onnx.load(path).graph, onnx.load_from_string(rewrite_detector(path)).graph
        before, after = (sum(node.op_type == "PRelu" for node in graph.node) for graph in graphs)
        assert before > after == 0
        softmax = [node.op_type for node in graphs[1].node].count("Softmax")
        assert softmax == (0 if stem == "pnet" else 1)
        images = np.random.default_rng(0).uniform(-1, 1, shapes[stem]).astype(np.float32)
        rewritten, written = (open_onnxruntime(path, 1, is_detector=flag)(images) for flag in (True, False))
        assert len(written) == len(rewritten) > 1
        for name, output in written.items():
            np.testing.assert_allclose(rewritten[name], output, rtol=0, atol=ROUNDING)


def test_a_check_of_a_graph_that_kept_its_prelus_is_done_again(cache):
    FaceDetector(backend="onnxruntime")
    for record in cache.folder.glob("exports/*/*.json"):
        content = json.loads(record.read_text())
        record.write_text(json.dumps({**content, "checks": {describe_machine("onnxruntime"): 0.0}}))
    FaceDetector(backend="onnxruntime")
    assert cache.checks == 6


def test_a_network_that_differs_is_refused(cache):
    FaceDetector(backend="onnxruntime")
    (path,) = cache.folder.glob("exports/*/pnet.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path.write_bytes(model.SerializeToString())
    record = {"sha256": file_digest(path), "checks": {}}
    path.with_name("pnet.onnx.json").write_text(json.dumps(record))
    with pytest.raises(DifferenceError, match=r"P-Net in onnxruntime gives results .* Take --backend torch"):
        FaceDetector(backend="onnxruntime")


def test_what_a_backend_does_not_run_is_refused(cache, networks):
    with pytest.raises(ValueError, match="backend onnx: give one of torch, onnxruntime, litert"):
        FaceDetector(networks, backend="onnx")
    with pytest.raises(ValueError, match="backend litert: it runs facenet's own networks"):
        FaceDetector(networks, backend="litert")
    with pytest.raises(UsageError, match="--backend onnxruntime: it runs on the CPU"):
        FaceDetector(device="meta", backend="onnxruntime")
