"""The small network as a checkpoint and as graphs of the exporters; a test run writes each file once."""

from __future__ import annotations

import numpy as np
import pytest

from checks.core.inputs import standardise
from converter.convert import to_numpy_state_dict
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from tests.support.first_images import AUDIT_TAKES_FROM, OVERFLOW_TAKES_FROM, first_audited, small_noise
from tests.support.graph_exports import SIZE, export_int8, export_onnx, export_tflite, network
from tests.support.shared_files import shared_folder


@pytest.fixture(autouse=True)
def few_images(request, monkeypatch):
    """Audits in a test's process take one image, unless it is marked with `whole_inputs`."""
    if request.node.get_closest_marker("whole_inputs") is None:
        for name in AUDIT_TAKES_FROM:
            monkeypatch.setattr(name, first_audited)
        monkeypatch.setattr(OVERFLOW_TAKES_FROM, small_noise)


@pytest.fixture(scope="session")
def source(tensors, tmp_path_factory):
    """The prefix of a checkpoint without a graph."""
    name = "model.ckpt-1"
    folder = shared_folder(
        tmp_path_factory, "audit-source", lambda folder: write_tensor_bundle(folder / name, tensors)
    )
    return folder / name


@pytest.fixture(scope="session")
def folded(tensors, tmp_path_factory):
    """An ONNX graph by PyTorch with its BatchNorms folded in."""

    def write(folder):
        export_onnx(network(to_numpy_state_dict(tensors)), folder / "folded.onnx")

    return shared_folder(tmp_path_factory, "folded-onnx", write) / "folded.onnx"


@pytest.fixture(scope="session")
def plain(tensors, tmp_path_factory):
    """An ONNX graph by PyTorch with its BatchNorms as they are."""

    def write(folder):
        export_onnx(network(to_numpy_state_dict(tensors)), folder / "plain.onnx", fold=False)

    return shared_folder(tmp_path_factory, "plain-onnx", write) / "plain.onnx"


@pytest.fixture(scope="session")
def tflite(tensors, pixels, tmp_path_factory):
    """A TFLite graph by TensorFlow; beside it those in `half`, `dynamic`, `int8` and from `bytes`."""

    def write(folder):
        export_tflite(
            tensors,
            folder / "single.tflite",
            halved=folder / "half.tflite",
            dynamic=folder / "dynamic.tflite",
            int8=(folder / "int8.tflite", standardise(pixels)),
            from_bytes=folder / "bytes.tflite",
        )

    return shared_folder(tmp_path_factory, "tflite", write) / "single.tflite"


@pytest.fixture(scope="session")
def pixels():
    """Eight images of patches with noise: whole pixels, most of them grey and a few of 0 and 255."""
    random = np.random.default_rng(1)
    coarse = random.normal(120, 50, (8, 6, 6, 3))
    images = coarse.repeat(-(-SIZE // 6), axis=1).repeat(-(-SIZE // 6), axis=2)[:, :SIZE, :SIZE]
    return np.clip(np.round(images + random.normal(0, 12, images.shape)), 0, 255)


@pytest.fixture(scope="session")
def int8(folded, pixels, tmp_path_factory):
    """The folded graph in int8, calibrated on images standardised as in 2018."""

    def write(folder):
        export_int8(folded, folder / "int8.onnx", standardise(pixels))

    return shared_folder(tmp_path_factory, "int8-onnx", write) / "int8.onnx"


@pytest.fixture(scope="session")
def dynamic(folded, tmp_path_factory):
    """The folded graph with weights of integers, and activations that onnxruntime quantises as it runs."""

    def write(folder):
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(folded, folder / "dynamic.onnx")

    return shared_folder(tmp_path_factory, "dynamic-onnx", write) / "dynamic.onnx"
