"""`facenet-port export`: what appears is faithful and runs elsewhere; what is not, does not appear."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch

from facenet_port import main
from reference import load

STATED = ["network", "source", "source_sha256", "weights_sha256", "standardisation", "input", "output",
          "precision", "licence", "made_by"]  # fmt: skip


def export(*arguments):
    return main(["export", *map(str, arguments)])


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images})
    return session, output


def test_onnx_computes_the_embeddings_for_any_number_of_images(weights, tmp_path, capsys):
    out = tmp_path / "facenet.onnx"
    assert export(weights, "-o", out, "--json", tmp_path / "e.json") == 0
    assert capsys.readouterr().out.startswith("The port is exact: every tensor is the source's, bit for bit")
    result = json.loads((tmp_path / "e.json").read_text())
    assert [judgement["passed"] for judgement in result["judgements"]] == [True] * 6
    images = np.random.default_rng(1).standard_normal((3, 3, 96, 96), np.float32)
    session, embeddings = run_onnx(out, images)
    with torch.inference_mode():
        expected = load(weights).double()(torch.from_numpy(images).double()).numpy()
    assert np.linalg.norm(embeddings - expected) < 5e-6
    stated = session.get_modelmeta().custom_metadata_map
    assert sorted(stated) == sorted(STATED)
    assert stated == result["metadata"]
    assert stated["input"].startswith("float32 (N, 3, 96, 96): RGB images")
    assert {path.name for path in tmp_path.iterdir()} == {"facenet.onnx", "e.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "taken.onnx"), "taken.onnx exists, and an export never replaces a file. Give another name."),
        (("-o", "net.pt"), "net.pt: give a name that ends in .onnx or .tflite, or the format with --to."),
        (("-o", "net.onnx", "--to", "tflite"), "net.onnx: the ending says onnx, but --to says tflite."),
        (("-o", "no/net.onnx"), "no: there is no such folder."),
        (("-o", "net.onnx", "--bake"), "neither the catalog nor a manifest beside it tells how its images"),
    ],
)
def test_bad_input_gets_one_message(weights, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.onnx").write_bytes(b"precious")
    assert export(weights, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken.onnx"]
    assert (tmp_path / "taken.onnx").read_bytes() == b"precious"
