"""The small network as an ONNX file that any number of crops fits, and the cache that holds it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from converter.hub.catalog_entry import FIXED
from converter.manifest import file_digest
from faces.backends import choose
from faces.model import weights_digest
from reference import load
from tests.support.shared_files import shared_folder


@pytest.fixture(scope="session")
def network_sha256(network):
    """The digest of the weights of `network`."""
    return weights_digest(load(network))


@pytest.fixture(scope="session")
def exported(network, network_sha256, tmp_path_factory):
    """The ONNX file of `network`, not audited, with the metadata of an export."""

    def write(folder):
        path = folder / "facenet.onnx"
        torch.onnx.export(
            load(network), (torch.zeros(1, 3, 160, 160),), path, dynamo=False,
            input_names=["images"], output_names=["embeddings"], dynamic_axes={"images": {0: "N"}},
        )  # fmt: skip
        model = onnx.load(path)
        metadata = {"standardisation": FIXED, "weights_sha256": network_sha256}
        onnx.helper.set_model_props(model, metadata)
        path.write_bytes(model.SerializeToString())

    return shared_folder(tmp_path_factory, "backend-onnx", write) / "facenet.onnx"


@pytest.fixture(scope="session")
def changed(exported, network, tmp_path_factory):
    """The same with noise on a kernel, which is stored in float16, and other weights in its metadata."""

    def write(folder):
        model = onnx.load(exported)
        kernel = next(each for each in model.graph.initializer if list(each.dims)[:2] == [192, 80])
        values = onnx.numpy_helper.to_array(kernel)
        noise = np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
        halves = (values + values.std() * noise).astype(np.float16)
        cast = onnx.helper.make_node("Cast", ["halves"], [kernel.name], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, cast)
        kernel.CopyFrom(onnx.numpy_helper.from_array(halves, "halves"))
        (stated,) = (entry for entry in model.metadata_props if entry.key == "weights_sha256")
        stated.value = "0" * 64
        (folder / "changed.onnx").write_bytes(model.SerializeToString())

    return shared_folder(tmp_path_factory, "backend-changed-onnx", write) / "changed.onnx"


@pytest.fixture
def cache(tmp_path, monkeypatch, network, network_sha256):
    """An empty cache. Its `made` counts the exports, each of which is a copy of its `file`."""
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path / "cache"))
    state = SimpleNamespace(file=None, made=0, checks=0)

    def export(source, output):
        assert source == str(network)
        state.made += 1
        output.write_bytes(state.file.read_bytes())
        return SimpleNamespace(sha256=file_digest(output), metadata={"weights_sha256": network_sha256})

    measure = choose.measure_distance

    def count(*arguments):
        state.checks += 1
        return measure(*arguments)

    monkeypatch.setattr("faces.export.run.export", export)
    monkeypatch.setattr(choose, "measure_distance", count)
    return state


@pytest.fixture
def crops(tmp_path):
    """A folder with two crops of each of two people."""
    pixels = np.random.default_rng(3).integers(0, 256, (4, 160, 160, 3), np.uint8)
    for number, crop in enumerate(pixels):
        person = tmp_path / "crops" / ("Ana" if number < 2 else "Bo")
        person.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(person / f"{number}.png")
    return tmp_path / "crops"
