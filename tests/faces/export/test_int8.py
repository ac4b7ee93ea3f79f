"""`facenet-port export --precision int8`: quantised, calibrated on faces, and audited before it appears."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import faces.export.run
from checks.core.inputs import IMAGE_SIZE, prewhiten, standardise
from facenet_port import main
from reference import load
from tests.faces.export.conftest import SIZE


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """A folder of eight crops: patches of grey and colours with noise."""
    random = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("crops")
    for number in range(8):
        patches = random.normal(120, 50, (8, 8, 3)).repeat(20, axis=0).repeat(20, axis=1)
        pixels = np.clip(patches + random.normal(0, 12, patches.shape), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def export(*arguments):
    return main(["export", *map(str, arguments)])


@pytest.mark.slow
def test_int8_appears_faithfully_quantised_and_embeds_as_the_weights_do(weights, crops, tmp_path, capsys):
    out, data = tmp_path / "int8.onnx", tmp_path / "e.json"
    options = ("--precision", "int8", "--standardise", "fixed", "--calibrate", crops)
    assert export(weights, "-o", out, *options, "--json", data) == 0
    assert capsys.readouterr().out.startswith("The port is faithfully quantised: ")
    result = json.loads(data.read_text())
    assert result["metadata"]["precision"] == "weights int8, computed in int8"
    assert result["metadata"]["calibrated_on"] == "8 faces of images that were given"
    assert result["bytes"] < 0.27 * weights.stat().st_size
    pixels = np.stack([np.asarray(Image.open(file))[:SIZE, :SIZE] for file in sorted(crops.iterdir())])
    images = np.ascontiguousarray(standardise(pixels).transpose(0, 3, 1, 2))
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(None, {"images": images})
    with torch.inference_mode():
        expected = load(weights)(torch.from_numpy(images)).numpy()
    assert (embeddings * expected).sum(axis=1).min() > 0.98
    assert {path.name for path in tmp_path.iterdir()} == {"int8.onnx", "e.json"}


@pytest.mark.slow
def test_a_calibration_by_the_other_standardisation_is_refused(weights, crops, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("faces.export.calibration.standardise", prewhiten)
    options = ("--precision", "int8", "--standardise", "fixed", "--calibrate", crops)
    assert export(weights, "-o", tmp_path / "int8.onnx", *options) == 1
    assert "it was calibrated on images of another standardisation" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("-o", "net.onnx", "--precision", "int8"),
            "nothing tells how those of these weights are standardised",
        ),
        (("-o", "net.onnx", "--calibrate", "."), "--calibrate is for --precision int8. Leave it out."),
        (("-o", "net.tflite", "--precision", "int8"), "--precision int8 is for ONNX."),
        (
            ("-o", "net.onnx", "--precision", "int8", "--standardise", "fixed", "--calibrate", "no"),
            "no: there is no such folder",
        ),
    ],
)
def test_bad_input_gets_one_message(weights, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert export(weights, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.real
def test_real_weights_that_take_pixels_embed_as_in_float32(keras, tmp_path, monkeypatch):
    """Calibrated by default, on 40 photographs from the package index; the audit embeds them."""
    monkeypatch.setattr("faces.export.interface.IMAGE_SIZE", IMAGE_SIZE)
    out = tmp_path / "int8.onnx"
    result = faces.export.run.export(keras, out, precision="int8", bake=True)
    assert out.stat().st_size < 24e6
    assert result.audit.quantised.faces.cosine > 0.995
    assert max(judgement.share or 0 for judgement in result.audit.judgements) < 0.5
    assert "40 faces of photographs of five people" in json.dumps(
        onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    )
