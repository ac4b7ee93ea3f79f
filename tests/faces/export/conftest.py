"""Exports of the small network, each written once in a test run; their images have 96 pixels a side."""

from __future__ import annotations

import pytest

from faces.export.run import export
from tests.support.first_images import AUDIT_TAKES_FROM, first_audited
from tests.support.shared_files import shared_folder

SIZE = 96


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """Audits in a test's process take two images, and exports take small ones."""
    make_cheap(monkeypatch)


def make_cheap(monkeypatch):
    for name in AUDIT_TAKES_FROM:
        monkeypatch.setattr(name, first_audited)
    monkeypatch.setattr("faces.export.interface.IMAGE_SIZE", SIZE)


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
