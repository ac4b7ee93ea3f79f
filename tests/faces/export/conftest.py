"""Exports of the small network, each written once in a test run."""

from __future__ import annotations

import pytest

from tests.support.first_images import AUDIT_TAKES_FROM, first_audited


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """Audits in a test's process take two images."""
    for name in AUDIT_TAKES_FROM:
        monkeypatch.setattr(name, first_audited)


@pytest.fixture(scope="session")
def weights(single_files):
    """A state_dict with a classifier, of which no catalog and no manifest knows anything."""
    return single_files / "weights.pt"
