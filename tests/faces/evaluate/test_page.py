"""The page of evaluate in a real browser: nothing is cut off, too small or loaded from elsewhere."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from faces.evaluate.__main__ import main
from tests.checks.report.test_report import SIZES, browser, open_page
from tests.faces.evaluate.conftest import write_csv

pytestmark = pytest.mark.slow
__all__ = ["browser"]  # a fixture


def test_pairs_at_both_widths_light_and_dark(browser, crops, network, pairs, tmp_path):
    page, figures = tmp_path / "r.html", tmp_path / "r.json"
    arguments = [crops / "lfw", "--pairs", pairs, "--model", network, "--standardise", "fixed"]
    assert main([*map(str, arguments), "--report", str(page), "--json", str(figures)]) == 0
    result = json.loads(figures.read_text())
    text = page.read_text(encoding="utf-8")
    assert len(set(re.findall(r'\bid="([^"]+)"', text))) == len(re.findall(r'\bid="', text))
    for size in SIZES:
        opened = open_page(browser, page, size)
        for scheme in ("light", "dark"):
            opened.page.emulate_media(color_scheme=scheme)
            opened.collect_faults()
            assert opened.faults == [], (size, scheme)
            assert opened.in_view("#verdict")
            accuracy = f"{result['accuracy']:.4f} ± {result['accuracy_std']:.4f}"
            assert accuracy in opened.page.locator("#verdict").inner_text()
            pictures = opened.page.locator(".pictures img")
            assert pictures.count() == 2 * result["pairs"]
            assert pictures.first.evaluate("image => image.naturalWidth") == 160
        opened.page.close()


def test_a_classifier_at_both_widths(browser, tmp_path):
    labels = [f"a person with a name of some length, number {number}" for number in range(12)]
    rows = [{"label": label, "predicted_label": other} for label in labels for other in labels[:3]]
    page = tmp_path / "r.html"
    assert main([str(write_csv(tmp_path / "t.csv", rows)), "--classify", "--report", str(page)]) == 0
    for size in SIZES:
        opened = open_page(browser, page, size)
        assert opened.faults == [], size
        assert opened.page.locator("tbody tr").count() == 3 + 12
        opened.page.close()
