"""The pages of the commands, in a real browser; each fault that the tests look for is planted once."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from checks.audit import __main__ as audit
from checks.audit.result import AuditResult, GraphRun, InputRun, TensorResult
from checks.benchmark import __main__ as benchmark
from checks.benchmark.result import BenchmarkResult, Figure
from checks.compare import __main__ as compare
from checks.controls import __main__ as controls
from checks.core.activations import STAGES
from checks.core.inputs import InputBatch
from checks.core.judgement import Judgement
from checks.core.rounding import LayerRounding
from checks.diagnosis.causes import Cause
from checks.gradients import __main__ as gradients
from checks.gradients.judge import judge_gradients, judge_steps
from checks.gradients.result import (
    INPUT,
    GradientMeasurement,
    GradientsResult,
    StepsMeasurement,
    TensorDistance,
)
from converter.convert_file import convert_file
from converter.layer_map import ConvertedRow, Variant, table
from tests.support.first_images import AUDIT_TAKES_FROM, TAKEN_FROM, first_audited, first_images
from tests.support.graph_exports import export_onnx, network

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from checks.audit.page import write_page
from checks.report.charts import Drawer
from checks.report.depth_chart import Depth, Limit, Series
from checks.report.distance_chart import Distances
from checks.report.page import breakable
from checks.report.provenance import shown_path

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)> $x_1$ \"quoted\" & 'so'"
SIZES = ((390, 844), (1440, 900))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip
MOST_BYTES = 2_000_000
SMALLEST_LETTERS = 11  # CSS pixels

# The faults of a page: wider than the window, text that is cut off, text in a chart that is too small.
FAULTS = """
smallest => {
  const faults = [];
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) faults.push(`page of ${root.scrollWidth} in ${innerWidth}`);
  const known = new Map();
  const scrolls = element => {
    if (!element) return false;
    if (!known.has(element))
      known.set(element, ["auto", "scroll"].includes(getComputedStyle(element).overflowX)
        || scrolls(element.parentElement));
    return known.get(element);
  };
  for (const element of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(element);
    if (["hidden", "clip"].includes(style.overflowX) && !(element instanceof SVGElement)
        && (element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1))
      faults.push(`cut off: ${element.tagName} ${element.className}`);
    const texts = [...element.childNodes].filter(node => node.nodeType === 3 && node.data.trim());
    if (!texts.length || !element.getClientRects().length || scrolls(element)) continue;
    const range = document.createRange();
    range.selectNodeContents(element);
    const box = range.getBoundingClientRect();
    const frame = (element.closest(".card, .inside") ?? root).getBoundingClientRect();
    if (box.left < Math.max(0, frame.left) - 1 || box.right > Math.min(innerWidth, frame.right) + 1)
      faults.push(`beyond its frame: ${element.textContent.trim().slice(0, 60)}`);
    if (element.tagName === "text") {
      const svg = element.ownerSVGElement;
      const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      if (parseFloat(style.fontSize) * scale < smallest)
        faults.push(`too small: ${element.textContent}`);
    }
  }
  return faults;
}
"""


# The browser


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=program, args=list(QUIET))
        yield launched
        launched.close()


@dataclass
class Opened:
    """An open page, with the faults that it has."""

    page: object
    faults: list[str]

    def collect_faults(self) -> None:
        """Collect the faults of the page as it is, first as it opens and then with its details unfolded."""
        unfold = "document.querySelectorAll('details').forEach(details => details.open = {})"
        self.faults += self.page.evaluate(FAULTS, SMALLEST_LETTERS)
        self.page.evaluate(unfold.format("true"))
        self.faults += self.page.evaluate(FAULTS, SMALLEST_LETTERS)
        self.page.evaluate(unfold.format("false"))

    def in_view(self, selector: str) -> bool:
        """Return True if an element is wholly in the window, without scrolling."""
        box = self.page.locator(selector).first.bounding_box()
        size = self.page.viewport_size
        return (
            box is not None
            and min(box["x"], box["y"]) >= 0
            and box["x"] + box["width"] <= size["width"]
            and box["y"] + box["height"] <= size["height"]
        )


def open_page(browser, path: Path, size: tuple[int, int] = SIZES[0]) -> Opened:
    """Open a page in light colours and collect its faults."""
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
    faults: list[str] = []
    page.on(
        "console",
        lambda entry: faults.append(f"console: {entry.text}") if entry.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: faults.append(f"page error: {error}"))
    address = path.resolve().as_uri()
    page.on("request", lambda sent: faults.append(f"request: {sent.url}") if sent.url != address else None)
    page.goto(address)
    opened = Opened(page, faults)
    opened.collect_faults()
    return opened


def look(browser, path: Path, *, place: str | None, holds: bool) -> None:
    """Check a page at both widths, light and dark: it has no fault, and its verdict and place are in view."""
    assert path.stat().st_size < MOST_BYTES
    backgrounds = set()
    for size in SIZES:
        opened = open_page(browser, path, size)
        page = opened.page
        for scheme in ("light", "dark"):
            if scheme == "dark":
                page.emulate_media(color_scheme="dark")
                opened.collect_faults()
            assert opened.faults == [], (size, scheme)
            assert opened.in_view("#verdict")
            badge = page.locator(".verdict .badge")
            assert badge.inner_text().strip() in (("Proven", "Sound") if holds else ("Differs", "Fails"))
            if place is not None:
                assert page.locator("#place").inner_text() == place
                assert opened.in_view("#place")
                assert opened.in_view("#reasons p")
            backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert len(backgrounds) == 2


GOOD_PAGE = "<!DOCTYPE html><meta name=viewport content='width=device-width'><h1 id=place>Here</h1>"


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ("", None),
        ("<script>console.error('oh')</script>", "console: oh"),
        ("<script>console.warn('oh')</script>", "console: oh"),
        ("<script>throw new Error('oh')</script>", "page error: oh"),
        ("<link rel=stylesheet href=missing.css>", "request: file:"),
        ("<img src='http://127.0.0.1:9/x.png'>", "request: http:"),
        ("<div style='width: 2000px'>wide</div>", "page of 2"),
        ("<p style='width: 3em; overflow: hidden; white-space: nowrap'>cut off here</p>", "cut off: P"),
        ("<p style='position: relative; left: -2em'>left</p>", "beyond its frame: left"),
        ("<svg viewBox='0 0 999 99' width=300><text y=50 font-size=12>a</text></svg>", "too small: a"),
        (
            "<p class=card style='width: 99px'><svg viewBox='0 0 99 99'><text x=90 y=50>beyond</text></svg>",
            "beyond its frame: beyond",
        ),
        ("<details><summary>more</summary><div style='width: 2000px'>wide</div></details>", "page of 2"),
    ],
)  # fmt: skip
def test_each_fault_of_a_page_is_found(browser, tmp_path: Path, bad: str, fault: str | None) -> None:
    (tmp_path / "page.html").write_text(GOOD_PAGE + bad)
    opened = open_page(browser, tmp_path / "page.html")
    assert opened.in_view("#place")
    if fault is None:
        assert opened.faults == []
    else:
        assert any(line.startswith(fault) for line in opened.faults), opened.faults
    opened.page.close()


def test_an_element_below_the_window_is_not_in_view(browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(GOOD_PAGE.replace("<h1", "<div style='height: 800px'></div><h1"))
    opened = open_page(browser, tmp_path / "page.html")
    assert not opened.in_view("#place")
    opened.page.close()


# compare, audit and controls, from the command line


@dataclass(frozen=True)
class Pages:
    """The pages that the commands wrote, each with the exit code."""

    folder: Path
    exit_codes: dict[str, int]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.html"


def small_images(network, seed: int) -> list[InputBatch]:
    """One image of each built-in input; all but noise are smaller than the checkpoint's own graph takes."""
    noise, *others = first_images(network, seed)
    return [noise, *(InputBatch(batch.name, batch.images[:, :107, :107]) for batch in others)]


@pytest.fixture(scope="module")
def pages(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Pages:
    folder = tmp_path_factory.mktemp("reports")
    source = checkpoint.prefix.parent
    convert_file(source, folder / "clean.pt")
    state_dict = torch.load(folder / "clean.pt", weights_only=True)
    key = "mixed_7a.branch2.1.conv.weight"
    faulty = folder / f"{HOSTILE}.pt"
    torch.save({**state_dict, key: state_dict[key].flip(2, 3)}, faulty)
    turned = {**state_dict, key: state_dict[key].flip(2)}  # upside down only
    arrays = {name: tensor.contiguous().numpy() for name, tensor in turned.items()}
    graph = export_onnx(network(arrays), folder / "faulty.onnx", fold=False)
    stored = folder / "activations.h5"
    commands = {
        "clean": (compare, [source, "--save-activations", stored, "--seed", "3"]),
        "faulty": (compare, [source, "--state-dict", faulty, "--activations", stored]),
        "audit": (audit, [graph, "--against", source]),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TAKEN_FROM, small_images)
        for name in AUDIT_TAKES_FROM:
            patch.setattr(name, first_audited)
        exit_codes = {
            name: command.main([*map(str, options), "--report", str(folder / f"{name}.html"), "--quiet"])
            for name, (command, options) in commands.items()
        }
    return Pages(folder, exit_codes)


def test_a_clean_comparison_is_reported_as_proven(browser, pages: Pages) -> None:
    assert pages.exit_codes["clean"] == 0
    look(browser, pages.path("clean"), place=None, holds=True)


def test_a_planted_fault_is_seen_without_scrolling(browser, pages: Pages) -> None:
    assert pages.exit_codes["faulty"] == 1
    look(browser, pages.path("faulty"), place="Mixed_7a/Branch_2/Conv2d_0b_3x3", holds=False)
    page = open_page(browser, pages.path("faulty")).page
    assert "Cause: kernel flipped at Mixed_7a/" in page.locator("#reasons").inner_text()
    assert page.locator("svg text", has_text="first divergence").count() >= 2
    page.close()


def test_a_graph_with_a_fault_is_reported_by_the_command(browser, pages: Pages) -> None:
    assert pages.exit_codes["audit"] == 1
    look(browser, pages.path("audit"), place="mixed_7a.branch2.1.conv.weight", holds=False)
    page = open_page(browser, pages.path("audit"), SIZES[1]).page
    assert page.locator(".grid .cell.differs").count() == 1
    text = page.locator("body").inner_text()
    for line in ("height", "onnxruntime", "none baked in", "faulty.onnx", "standard normal"):
        assert line in text
    page.close()


def test_a_page_shows_every_layer_every_input_and_its_provenance(browser, pages: Pages, checkpoint) -> None:
    page = open_page(browser, pages.path("clean"), SIZES[1]).page
    assert page.locator("table").nth(1).locator("tbody tr").count() == 132 + len(STAGES) - 6 + 2
    assert page.locator("table").nth(0).locator("tbody tr").count() == 5
    # Error by depth on each of five inputs, and the histograms.
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.locator(".chart svg:visible").count() == 6
    foot = page.locator("footer").inner_text()
    digest = subprocess.run(
        ["sha256sum", f"{checkpoint.prefix}.index"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert digest in foot
    assert "--seed 3 --report" in foot
    assert "tensorflow" in foot
    assert re.search(r"seed\s+3", foot)
    page.close()


def test_names_of_files_come_out_as_text(browser, pages: Pages) -> None:
    opened = open_page(browser, pages.path("faulty"))
    assert HOSTILE in opened.page.locator(".facts").inner_text()
    assert HOSTILE in opened.page.title()
    assert opened.page.locator("img, script").count() == 0
    opened.page.close()


def test_the_controls_are_reported_as_a_matrix(browser, monkeypatch, tmp_path: Path) -> None:
    from checks.controls.result import ControlsResult, SiteResult

    activation, judgements = "InceptionResnetV1/Mixed_6a", ("tensors", "mapping")
    site = SiteResult("kernel-flipped", "weights", "a", "inference", "killed", judgements, activation)
    site = replace(site, place=activation, cause=Cause.FLIPPED, named=Cause.FLIPPED, shares={"mapping": 9.0})
    sites = tuple(replace(site, site=label) for label in ("a", "b", "c"))
    result = ControlsResult("here", Variant(), True, sites, (), 1.0)
    monkeypatch.setattr("checks.controls.run.run_controls", lambda *_, **__: result)
    path = tmp_path / "controls.html"
    assert controls.main(["--only", "kernel-flipped", "--report", str(path), "--quiet"]) == 0
    look(browser, path, place=None, holds=True)
    page = open_page(browser, path).page
    row = page.locator("tr", has=page.locator("th", has_text="kernel-flipped"))
    heads = page.locator("thead th").all_inner_texts()
    cells = dict(zip(heads[1:], row.locator("td").all_inner_texts(), strict=True))
    assert cells == {"tensors": "3", "mapping": "3", "killed": "3", "place exact": "3", "cause named": "3"}
    page.close()


def test_a_fault_that_survives_is_marked(browser, monkeypatch, tmp_path: Path) -> None:
    from checks.controls.result import ControlsResult, SiteResult

    sites = [
        SiteResult("kernel-flipped", "weights", site, "inference", status, judgements, activation, activation)
        for site, status, judgements, activation in (
            ("a", "killed", ("tensors", "mapping"), "InceptionResnetV1/Mixed_6a"),
            ("b", "survived", (), ""),
            ("c", "does not apply", (), ""),
        )
    ]
    result = ControlsResult("here", Variant(), True, tuple(sites), (), 1.0)
    monkeypatch.setattr("checks.controls.run.run_controls", lambda *_, **__: result)
    path = tmp_path / "controls.html"
    assert controls.main(["--only", "kernel-flipped", "--report", str(path), "--quiet"]) == 1
    look(browser, path, place="kernel-flipped at b", holds=False)
    page = open_page(browser, path).page
    row = page.locator("tr.fault")
    assert row.locator("th").inner_text() == "kernel-flipped SURVIVED"
    assert "1/2" in row.locator("td.lacking").all_inner_texts()
    page.close()


# gradients


KEYS = [row.key for row in table(Variant(num_classes=7)) if isinstance(row, ConvertedRow)]


def gradients_result(worst: float = 5e-14) -> GradientsResult:
    """A result with one gradient at a distance of `worst`, and with weights that the steps do not change."""

    def distances(least: float) -> list[TensorDistance]:
        return [
            TensorDistance(key, least * (1 + n % 7) * (n % 9 > 0), 1.0, 1.0) for n, key in enumerate(KEYS)
        ]

    taken = [TensorDistance(INPUT, 1e-15, 1.0, 1.0), *distances(2e-15)]
    taken[200] = replace(taken[200], distance=worst)
    measured = [GradientMeasurement(mode, 0.0, tuple(taken)) for mode in ("inference", "training")]
    steps = [
        StepsMeasurement(name, 10, (3.0, 0.04), 0.0, tuple(distances(1e-16)), tuple(distances(3e-13)))
        for name in ("sgd", "adam", "triplet")
    ]
    judgements = (
        Judgement("statistics", True, "as PyTorch's do"),
        *map(judge_gradients, measured),
        *map(judge_steps, steps),
    )
    return GradientsResult(
        "here",
        Variant(num_classes=7),
        "loss",
        (4, 107, 115, 3),
        judgements,
        tuple(measured),
        tuple(steps),
        ENVIRONMENT,
    )


@pytest.mark.parametrize("worst", [5e-14, 3e-4, math.inf])
def test_gradients_are_reported(browser, monkeypatch, tmp_path: Path, worst: float) -> None:
    result = gradients_result(worst)
    monkeypatch.setattr("checks.gradients.run.compare_gradients", lambda *_, **__: result)
    path = tmp_path / "gradients.html"
    assert gradients.main(["--report", str(path), "--quiet"]) == (0 if result.passed else 1)
    look(browser, path, place=None if result.passed else KEYS[199], holds=result.passed)
    assert f"worst, inference: {worst:.1e}" in path.read_text()


# audit


ENVIRONMENT = {"date": "2026-01-31T12:00:00Z", "platform": "p", "processor": "c", "cores": 2, "threads": 2}


def audit_result(*, sound: bool) -> AuditResult:
    """A result with faithful tensors only, or with tensors of every status and a graph that diverges."""
    tensors = [
        TensorResult(key, "variable", "Repeat/block35_1", "HWIO->OIHW", "float32", (3, 3), "equal", 9)
        for key in KEYS
    ]
    activations = tuple(STAGES)
    if not sound:
        for number, status in enumerate(("folded", "rounded", "approximate", "not judged")):
            tensors[number] = replace(tensors[number], status=status)
        tensors[7] = replace(
            tensors[7], status="differs", differing=3, max_ulp=4, ulp_histogram=(6, 1, 1, 1), detail=HOSTILE,
            key="module.key", index=(1, 2), actual=1.5, expected=-0.25, max_abs=1.75,
        )  # fmt: skip
        tensors[8] = replace(tensors[8], status="missing")
        tensors.append(TensorResult(HOSTILE, "", "", "", "float32", (2,), "extra", 2))
    layers = tuple(
        LayerRounding(activation, 1e-3 if not sound and n >= 9 else 6e-7, 6e-6)
        for n, activation in enumerate(activations)
    )
    run = GraphRun(
        "a runtime 1.0", "float16", "float32", "divides by 255", None, sound, "NHWC",
        (InputRun("standard normal", False, 1e-6, 1e-6, 1e-6, 1e-6, layers),),
    )  # fmt: skip
    return AuditResult(
        port=f"{HOSTILE}.onnx", format="ONNX", source="here", network="the network", recognised="", names=(),
        tensors=tuple(tensors), run=run, judgements=(Judgement("tensors", sound, HOSTILE),),
        verdict="The port is the source." if sound else "The port is not the source.",
        files={HOSTILE: "00" * 32}, seed=0, environment=ENVIRONMENT,
    )  # fmt: skip


@pytest.mark.parametrize("sound", [True, False])
def test_an_audit_is_reported_as_a_grid(browser, tmp_path: Path, sound: bool) -> None:
    path = tmp_path / "audit.html"
    write_page(path, audit_result(sound=sound), command=f"audit '{HOSTILE}'")
    look(browser, path, place=None if sound else KEYS[7], holds=sound)
    page = open_page(browser, path, SIZES[1]).page
    cells = page.locator(".grid .cell")
    assert cells.count() == len(KEYS) + (0 if sound else 1)
    titles = page.locator(".grid .cell:not(.equal)").evaluate_all("all => all.map(cell => cell.title)")
    if sound:
        assert titles == []
    else:
        assert f"{KEYS[7]} · differs · 4 ULP" in titles
        assert f"{HOSTILE} · extra" in titles
        assert len(titles) == 7
        reasons = page.locator("#reasons").inner_text()
        assert "in all: 3 of 9 values differ, by up to 4 steps" in page.locator("#reasons").text_content()
        assert "largest: 1.8e+00 at [1, 2]: expected -0.25, actual 1.5" in reasons
        assert "TensorFlow: variable" in reasons
        texts = page.locator("tr.fault", has_text=KEYS[7]).first.locator("td").all_text_contents()
        assert {"1, 2", "1.5", "-0.25", "1.8e+00", "module.key", "variable"} <= set(texts)
    assert page.locator("img, script").count() == 0
    page.close()


def test_the_same_report_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_page(tmp_path / name, audit_result(sound=False), command="audit")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_no_two_elements_of_a_page_share_an_id(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("checks.gradients.run.compare_gradients", lambda *_, **__: gradients_result())
    assert gradients.main(["--report", str(tmp_path / "page.html"), "--quiet"]) == 0
    page = (tmp_path / "page.html").read_text()
    identities = re.findall(r'\bid="([^"]+)"', page)
    assert len(identities) == len(set(identities)) > 8
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(identities)


# benchmark


def test_a_figure_over_its_bound_is_marked(browser, monkeypatch, tmp_path: Path) -> None:
    figures = (
        Figure("convert / import torch, time", 1.3, 1.2, 1.4, 1.5),
        Figure("compare --every-layer on a .pb", 50.0, 40.0, 60.0, 40.0, "s"),
    )
    result = BenchmarkResult(5, figures, ENVIRONMENT)
    monkeypatch.setattr("checks.benchmark.run.run_benchmark", lambda *_: result)
    path = tmp_path / "benchmark.html"
    assert benchmark.main(["--report", str(path), "--quiet"]) == 1
    page = open_page(browser, path).page
    assert page.locator("#place").inner_text() == figures[1].name
    assert page.locator("td.failed").all_inner_texts() == ["50.00 s"]
    assert open_page(browser, path).faults == []
    page.close()


# The charts


def test_zero_and_infinity_have_places_of_their_own() -> None:
    series = Series("error", (0.0, 1e-15, math.inf, math.nan, 1e-3), "pytorch", "circles", most=1e-13)
    depth = Depth("says", (series,), (("stem", 0), ("head", 3)), (Limit("threshold", "1e-13", 1e-13),))
    chart = Drawer().depth(depth)
    assert {">0<", ">∞<"} <= set(re.findall(r">[^<\s]+<", chart.svg))
    assert "nan" not in chart.svg
    assert [entry.label for entry in chart.legend] == ["error", "beyond the limit", "1e-13 threshold"]
    proper = Drawer().depth(replace(depth, series=(replace(series, values=(1e-15,) * 5),)))
    assert not {">0<", ">∞<"} & set(re.findall(r">[^<\s]+<", proper.svg))
    assert [entry.label for entry in proper.legend] == ["error", "1e-13 threshold"]


def test_shares_are_labelled_with_their_value() -> None:
    """No label is rounded: 2.5 % would read 2 %."""
    same, different = np.linspace(0.2, 1.4, 300), np.linspace(1.0, 2.8, 400)
    chart = Drawer().distances(Distances("says", same, different, (("best", 1.2),)))
    labels = [float(label) for label in re.findall(r">([\d.]+)%<", chart.svg)]
    assert len(labels) > 3
    assert len(set(np.diff(labels).round(9))) == 1


def test_a_name_may_be_broken_and_a_number_may_not() -> None:
    assert breakable("a/b.weight") == "a/<wbr>b.<wbr>weight"
    assert breakable("mixed_7a.branch1.1.conv.weight") == "mixed_7a.<wbr>branch1.1.<wbr>conv.<wbr>weight"
    assert breakable("at most 1.5e-13") == 'at most <span class="number">1.5e-13</span>'
    assert breakable("<b>/c & 0.95") == "&lt;b&gt;/<wbr>c &amp; 0.95"


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(text: str, ground: str) -> float:
    """Compute the contrast ratio of WCAG 2."""
    low, high = sorted((_luminance(text), _luminance(ground)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_in_light_and_dark() -> None:
    assert round(contrast("#000000", "#ffffff"), 1) == 21
    assert contrast("#999999", "#ffffff") < 4.5
    light, dark = re.findall(
        r":root \{(.*?)\}",
        (Path(__file__).parents[3] / "checks" / "report" / "style.css").read_text(),
        re.DOTALL,
    )[:2]
    for block in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        on = {
            "card": ("ink", "muted", "fault", "holds", "pytorch", "float64", "limit"),
            "page": ("ink", "muted", "fault"),
            "stripe": ("muted", "fault"),
            "fault-soft": ("fault",),
            "holds-soft": ("holds",),
            "fault": ("card",),
            "tint-some": ("ink",),
            "tint-all": ("ink",),
        }
        for ground, texts in on.items():
            for text in texts:
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_an_older_report_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("older")
    write_page(path, audit_result(sound=True), command="audit")
    assert path.read_text() != "older"
    assert list(tmp_path.iterdir()) == [path]


def test_only_paths_that_were_typed_are_shown(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path))
    assert shown_path(str(tmp_path / "built-in-512d-8631")) == "built-in-512d-8631"
    assert shown_path("models/20180402-114759") == "models/20180402-114759"
