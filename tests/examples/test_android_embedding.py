"""examples/android_embedding.py: LiteRT gives PyTorch's embeddings, and the distance decides."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tensorflow")

from checks.core import thresholds
from faces.export.weights import read_weights
from faces.threshold import DEFAULT_THRESHOLD
from reference import load
from tests.examples.conftest import EXAMPLES, import_example
from tests.support.shared_files import shared_folder

pytestmark = pytest.mark.slow

SIZE = 96  # of a crop, for speed


@pytest.fixture(scope="session")
def exports(single_files, tmp_path_factory):
    """The small network as export writes it: with a standardisation in the file, and without."""

    def write(folder):
        from facenet_tf.lite import write_tflite

        variables = read_weights(single_files / "weights.pt").variables
        for name, baked in (("baked", "per-image"), ("float", None)):
            write_tflite(
                folder / f"{name}.tflite", variables, images=(1, SIZE, SIZE), baked=baked, metadata={}
            )
        write_tflite(
            folder / "logits.tflite",
            variables,
            images=(1, SIZE, SIZE),
            baked="fixed",
            classify=True,
            metadata={},
        )

    return shared_folder(tmp_path_factory, "android-exports", write)


@pytest.fixture(scope="session")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("android-crops")
    for number in range(2):
        colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(colours.repeat(SIZE // 4, axis=0).repeat(SIZE // 4, axis=1)).save(
            folder / f"{number}.png"
        )
    return [folder / "0.png", folder / "1.png"]


@pytest.fixture(scope="session")
def expected(single_files, crops):
    """Standardisation to the embeddings by PyTorch in float64, of pixels that are standardised here."""
    images = {"fixed": [], "per-image": []}
    for crop in crops:
        pixels = torch.from_numpy(np.array(Image.open(crop))).permute(2, 0, 1).double()
        images["fixed"].append((pixels - 127.5) / 128)
        images["per-image"].append((pixels - pixels.mean()) / pixels.std(unbiased=False))
    network = load(single_files / "weights.pt").double()
    with torch.inference_mode():
        return {name: network(torch.stack(each)).numpy() for name, each in images.items()}


@pytest.mark.parametrize(
    ("name", "options", "standardisation"),
    [
        ("baked", (), "per-image"),
        ("float", ("--standardise", "per-image"), "per-image"),
        ("float", ("--standardise", "fixed"), "fixed"),
    ],
)
def test_the_embeddings_are_pytorchs(exports, crops, expected, name, options, standardisation, capsys):
    example = import_example("android_embedding")
    interpreter = example.Interpreter(model_path=str(exports / f"{name}.tflite"))
    interpreter.allocate_tensors()
    actual = [example.embed(interpreter, crop, options[1] if options else None) for crop in crops]
    right, other = (expected[each] for each in sorted(expected, key=lambda each: each != standardisation))
    assert np.linalg.norm(actual - right) < thresholds.GRAPH_DISTANCE["float32"] / 2
    assert np.linalg.norm(actual - other) > 2 * thresholds.GRAPH_DISTANCE["float32"]

    distance = float(np.sum((right[0] - right[1]) ** 2))
    command = [str(exports / f"{name}.tflite"), *map(str, crops), *options, "--threshold"]
    for threshold, exit_code, decision in (
        (distance * 1.01, 0, "same person"),
        (distance * 0.99, 1, "different"),
    ):
        assert example.main([*command, str(threshold)]) == exit_code
        printed = capsys.readouterr().out
        assert decision in printed
        assert float(re.search(r"distance (\S+),", printed)[1]) == pytest.approx(distance, abs=1e-4)


def test_what_the_network_does_not_take_is_refused(exports, crops, tmp_path, capsys):
    example = import_example("android_embedding")
    Image.new("RGB", (160, 182)).save(tmp_path / "large.png")
    baked, missing = exports / "baked.tflite", tmp_path / "none.png"
    for model, first, message in (
        (baked, tmp_path / "large.png", "large.png: 160x182 pixels; the network takes 96x96. Crop it with"),
        (baked, missing, "none.png"),
        (missing, crops[0], "none.png"),
        (exports / "float.tflite", crops[0], "give --standardise, or export with --bake"),
        (exports / "logits.tflite", crops[0], "the file gives no embeddings"),
    ):
        assert example.main([str(model), str(first), str(crops[1]), "--threshold", "1"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_file_with_several_outputs_is_refused(crops, tmp_path, capsys):
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, SIZE, SIZE, 3), tf.uint8)])
    def boxes_and_scores(pixels):
        return tf.reduce_mean(tf.cast(pixels, tf.float32), (1, 2)), tf.constant([[1.0]])

    file = tmp_path / "detector.tflite"
    file.write_bytes(
        tf.lite.TFLiteConverter.from_concrete_functions([boxes_and_scores.get_concrete_function()]).convert()
    )
    assert import_example("android_embedding").main([str(file), *map(str, crops), "--threshold", "1"]) == 2
    assert "the file gives no embeddings" in capsys.readouterr().err


def test_the_page_has_the_measured_threshold():
    page = (EXAMPLES / "android.md").read_text(encoding="utf-8")
    stated = [float(text) for text in re.findall(r"(?:THRESHOLD = |--threshold |\n)(1\.\d+)", page)]
    assert stated
    assert all(value == pytest.approx(DEFAULT_THRESHOLD.value, abs=5e-5) for value in stated)
