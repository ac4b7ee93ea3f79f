"""Exports of the small network, each written once in a test run; their images have 96 pixels a side."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from checks.audit.compare_tensors import compare_tensors
from checks.audit.graphs.find_layers import find_layers
from checks.audit.run import _read_source
from converter.formats.detect import open_source
from converter.network_names import NetworkTensors
from faces.export.run import export
from tests.support.first_images import AUDIT_TAKES_FROM, first_audited
from tests.support.shared_files import shared_folder

SIZE = 96


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """Audits in a test's process take one image, and exports take small ones."""
    make_cheap(monkeypatch)


def make_cheap(monkeypatch):
    for name in AUDIT_TAKES_FROM:
        monkeypatch.setattr(name, first_audited)
    monkeypatch.setattr("faces.export.interface.IMAGE_SIZE", SIZE)


def compared(graph, weights):
    """The results of an audit for each tensor, without running the graph."""
    with open_source(weights) as opened:
        source = _read_source(NetworkTensors(opened), "variable")
        return compare_tensors(find_layers(graph).weights, source)


@pytest.fixture(scope="session")
def weights(single_files):
    """A state_dict with a classifier, of which no catalog and no manifest knows anything."""
    return single_files / "weights.pt"


def _exported(factory, weights, name, **options):
    def write(folder):
        with pytest.MonkeyPatch.context() as patch:
            make_cheap(patch)
            export(weights, folder / name, **options)

    return shared_folder(factory, f"exported-{name}", write) / name


@pytest.fixture(scope="session")
def baked(weights, tmp_path_factory):
    """ONNX that takes pixels and standardises them by (x - 127.5) / 128."""
    return _exported(tmp_path_factory, weights, "baked.onnx", bake=True, standardisation="fixed")


@pytest.fixture(scope="session")
def crops(tmp_path_factory):
    """Twelve crops of two people: patches of grey and colours with noise."""

    def write(folder):
        random = np.random.default_rng(1)
        for number in range(12):
            patches = random.normal(120, 50, (8, 8, 3)).repeat(20, axis=0).repeat(20, axis=1)
            pixels = np.clip(patches + random.normal(0, 12, patches.shape), 0, 255)
            person = folder / "ab"[number // 6]
            person.mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(person / f"{number}.png")

    return shared_folder(tmp_path_factory, "crops-of-two-people", write)
