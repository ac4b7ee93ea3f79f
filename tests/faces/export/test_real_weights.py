"""Exports of real trained weights take the pixels of photographs, in the runtimes of servers and phones."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageOps

from checks.core.inputs import IMAGE_SIZE
from faces.export.run import export
from faces.model import load_model

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def crops(photographs):
    """Central squares of three photographs, uint8."""
    files = sorted(photographs.rglob("*.jpg"))[:3]
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return np.stack([np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), size)) for file in files])


def run_onnx(path, pixels):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["embeddings"], {"pixels": pixels})[0]


def run_tflite(path, pixels):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in pixels:
        interpreter.set_tensor(taken["index"], image[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(given["index"])[0])
    return np.stack(rows)


@pytest.mark.parametrize(
    ("name", "precision", "run", "bound"),
    [("facenet.onnx", "float32", run_onnx, 5e-6), ("facenet.tflite", "float16", run_tflite, 1e-2)],
)
def test_pixels_of_photographs_get_the_embeddings_of_the_published_model(
    name, precision, run, bound, keras, crops, tmp_path, monkeypatch
):
    monkeypatch.setattr("faces.export.interface.IMAGE_SIZE", IMAGE_SIZE)
    result = export(keras, tmp_path / name, precision=precision, bake=True)
    assert result.audit.passed
    assert result.metadata["standardisation"] == "per image (prewhiten)"
    assert result.metadata["licence"].startswith("MIT")
    model = load_model(keras)
    expected = model.embed(model.standardise(crops))
    assert np.linalg.norm(run(tmp_path / name, crops) - expected, axis=1).max() < bound
