"""The controls: they find faults, take them out again, and can fail themselves."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checks.compare.judge import judge_mapping, judge_rounding
from checks.compare.measure import measure, measure_activation
from checks.controls import __main__ as controls
from checks.controls import run
from checks.controls.faults import all_faults
from checks.controls.faults.all_faults import ALL_FAULTS
from checks.controls.faults.fault import Fault, Site
from checks.controls.judge_inference import InferenceJudge, judge_whole, tensors_hold
from checks.controls.plant_faults import FaultPlanter
from checks.controls.port_pipeline import Pipeline
from checks.controls.result import CleanRun, ControlsResult, SiteResult
from checks.controls.run import choose, run_controls
from checks.controls.table import print_result, problems
from checks.controls.tensorflow_reference import ControlReference, ControlSource
from checks.core import thresholds
from checks.core.activations import one_thread, run_pytorch
from checks.core.inputs import seeded_inputs
from checks.gradients.training_setup import draw_batch
from converter.errors import UsageError
from converter.formats.detect import open_source
from converter.layer_map import LOGITS_SCOPE, Variant
from tests.checks.audit.conftest import folded
from tests.conftest import write_keras
from tests.support.first_images import (
    CONTROLS_AUDIT_TAKES_FROM,
    CONTROLS_TAKE_FROM,
    small_audited,
    small_images,
)
from tests.support.main_job import MainJob
from tests.support.port_snapshot import Snapshot

pytestmark = pytest.mark.slow

__all__ = ["folded"]  # a fixture
ACTIVATION = "InceptionResnetV1/Conv2d_2a_3x3"
CLASSES = {fault.name: fault for fault in ALL_FAULTS}


@pytest.fixture(scope="module", autouse=True)
def smaller_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CONTROLS_TAKE_FROM, small_images)
        patch.setattr(CONTROLS_AUDIT_TAKES_FROM, small_audited)
        yield


@pytest.fixture(scope="module")
def checkpoint(main_job: MainJob) -> Iterator[ControlSource]:
    with open_source(main_job.checkpoint) as opened, ControlSource(opened) as source:
        yield source


@pytest.fixture(scope="module")
def reference(checkpoint: ControlSource) -> ControlReference:
    with pytest.MonkeyPatch.context() as patch:
        small = partial(draw_batch, image_size=(107, 77))
        patch.setattr("checks.controls.tensorflow_reference.draw_batch", small)
        return checkpoint.reference(0, training=True, say=lambda _: None)


@pytest.fixture(scope="module")
def planting(checkpoint: ControlSource, reference: ControlReference) -> Iterator[FaultPlanter]:
    with one_thread():
        yield FaultPlanter(checkpoint, reference)


@pytest.fixture
def opened(
    main_job: MainJob,
    checkpoint: ControlSource,
    reference: ControlReference,
    planting: FaultPlanter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Let the command take the checkpoint that these tests have open, with its reference and ports."""
    monkeypatch.setattr(run, "built_in_checkpoint", lambda: main_job.checkpoint)
    monkeypatch.setattr(checkpoint, "reference", lambda seed, **_: reference)
    monkeypatch.setattr(run, "ControlSource", lambda _: nullcontext(checkpoint))
    monkeypatch.setattr(run, "FaultPlanter", lambda *_: planting)


@pytest.fixture(scope="module")
def port(checkpoint: ControlSource) -> Pipeline:
    return checkpoint.port()


def _site(fault: str, number: int = 0) -> Site:
    return CLASSES[fault].sites[number]


def _fault(site: Site) -> Fault:
    return Fault("made-for-a-test", "weights", "Nowhere.", None, (site,))


def _report(results, **changes) -> ControlsResult:
    report = ControlsResult("made for a test", Variant(), False, tuple(results), (), 0.0)
    return replace(report, **changes)


# The catalog


def test_the_catalog_has_forty_classes_of_three_sites_each_in_every_part_of_a_port():
    assert len(CLASSES) == len(ALL_FAULTS) >= 40
    assert {fault.kind for fault in ALL_FAULTS} == {
        "weights", "layer map", "hyperparameters", "preprocessing", "training",
    }  # fmt: skip
    for fault in ALL_FAULTS:
        labels = {site.label for site in fault.sites}
        assert len(labels) == len(fault.sites) >= 3, fault.name
        assert fault.shipped.endswith("."), fault.name


def test_every_fault_leaves_no_trace(checkpoint, port):
    clean = checkpoint.port()
    snapshot = Snapshot(port, clean)
    with _site("one-ulp").apply(port):
        assert snapshot.differences(port) == ["repeat_2.4.branch1.1.conv.weight"] * 2  # in both networks
    for kind, faults in itertools.groupby(ALL_FAULTS, lambda fault: fault.kind):
        for site in itertools.chain.from_iterable(fault.sites for fault in faults):
            with site.apply(port):
                pass
        assert snapshot.differences(port) == [], kind


@pytest.mark.parametrize(
    "fault", ["one-ulp", "not-a-number", "row-height-width", "rows-read-averages", "scale-filled-otherwise"]
)
def test_judging_the_tensors_that_changed_gives_the_judgement_on_all(checkpoint, port, fault):
    clean = checkpoint.port()
    with _site(fault).apply(port):
        holds = CLASSES[fault].kind == "layer map"  # a wrong row is followed faithfully
        assert tensors_hold(port) is tensors_hold(port, clean) is holds
    assert tensors_hold(port, clean)


# Faults that the controls find


def test_one_site_of_every_class_is_killed_at_its_place(planting):
    seeded = np.random.default_rng(1)
    chosen = [
        replace(fault, sites=(fault.sites[seeded.integers(len(fault.sites))],))
        for fault in ALL_FAULTS
        if fault.kind != "training" or seeded.random() < 0.4  # a training fault takes four times as long
    ]
    # The window of 2x2 is the whole map at the size of these images.
    chosen = [CLASSES[f.name] if f.name == "global-pool" else f for f in chosen]
    chosen = [replace(f, sites=tuple(s for s in f.sites if s.label != "window of 2x2")) for f in chosen]
    results, _ = planting.run(chosen, (), lambda done, total: None)
    report = _report(results)
    assert [f"{site.fault} at {site.site}" for site in report.surviving] == []
    assert [f"{site.fault} at {site.site}: {site.place}" for site in results if not site.exact] == []
    assert report.causes >= thresholds.CAUSES
    assert {site.setting for site in results} >= {"inference", "training"}


def test_a_clean_port_raises_no_alarm_and_one_ulp_does(checkpoint, port, monkeypatch):
    monkeypatch.setattr(CONTROLS_TAKE_FROM, seeded_inputs)
    inputs = checkpoint.inputs(3)
    alarms, shares = judge_whole(port, inputs)
    assert alarms == []
    assert 0 < max(shares.values()) <= 1 / thresholds.MARGIN
    with _site("one-ulp").apply(port):
        alarms, _ = judge_whole(port, inputs[:1])
    assert [alarm.partition(":")[0] for alarm in alarms[:2]] == ["tensors", "mapping"]
    with _site("tf32-products").apply(port):
        alarms, _ = judge_whole(port, inputs[:1])
    assert {alarm.partition(":")[0] for alarm in alarms} <= {"rounding", "headline"}
    assert alarms


def test_the_figures_of_the_judgements_are_those_of_a_whole_measurement(port, reference):
    batch = reference.inference[0]
    activations = tuple(batch.activations.float64)
    with _site("tf32-products").apply(port):
        outputs = [run_pytorch(model, batch.given(port), activations) for model in port.models]
    whole = measure(batch.activations, *outputs)
    quick = measure(batch.activations, *outputs, judged_only=True)
    for judge in (judge_mapping, judge_rounding):
        assert judge([quick]) == judge([whole])
    assert quick.first_divergence == whole.first_divergence
    assert (quick.distance32, quick.row_distance32) == (whole.distance32, whole.row_distance32)
    assert measure(batch.activations, *outputs, measured=quick.activations) == quick


def test_a_run_that_stops_at_the_divergence_has_the_place_of_a_whole_run(port, reference):
    batch = reference.inference[0]
    expected = batch.activations
    names = tuple(expected.float64)
    with _site("epsilon-of-pytorch").apply(port):
        float32, float64 = (run_pytorch(model, batch.given(port), names) for model in port.models)
        whole = measure(expected, float32, float64, judged_only=True)

        def diverges(name, array):
            return measure_activation(name, expected, float32[name], array, judged_only=True).diverges

        stopped = run_pytorch(port.float64, batch.given(port), names, stop=diverges)
    assert list(stopped) == list(names[: names.index(whole.first_divergence) + 1])
    first = measure(expected, float32, stopped, measured=whole.activations[: len(stopped)])
    assert first.first_divergence == whole.first_divergence
    assert not judge_mapping([first]).passed


def test_an_activation_with_the_bits_of_a_clean_port_does_not_diverge(port, reference):
    judge = InferenceJudge(port, reference.inference[:1])
    assert not judge.judge(port).killed
    with _site("epsilon-of-pytorch", 1).apply(port):
        assert judge.judge(port).place == "InceptionResnetV1/Bottleneck"


# Faults that must make the controls fail


def test_a_fault_that_changes_nothing_survives(planting):
    nothing = _fault(Site("nowhere", ACTIVATION, lambda port: nullcontext()))
    result = planting.plant(nothing, nothing.sites[0])
    assert (result.status, result.judgements, result.place, result.named) == ("survived", (), None, None)
    assert result.inputs == 6
    assert not _report([result]).passed


def test_a_fault_that_shows_in_inference_but_must_not_is_reported(planting):
    declared = _fault(replace(_site("epsilon-of-pytorch"), setting="odd size"))
    result = planting.plant(declared, declared.sites[0])
    assert result.status == "not equivalent"
    report = _report([result])
    assert report.surviving == (result,)
    assert not report.passed


def test_a_fault_at_another_place_than_its_own_is_not_exact(planting):
    misplaced = _fault(replace(_site("epsilon-of-pytorch"), activation=ACTIVATION))
    result = planting.plant(misplaced, misplaced.sites[0])
    assert result.killed
    assert not result.exact
    assert not _report([result]).passed


def test_an_alarm_in_a_clean_run_fails_the_controls(planting):
    result = planting.plant(CLASSES["bgr-for-rgb"], _site("bgr-for-rgb"))
    assert _report([result]).passed
    assert not _report([result], clean=(CleanRun(1, ("mapping: ...",)),)).passed


# Margins


def _with_shares(clean: float, planted: float, judgement: str = "mapping") -> ControlsResult:
    site = SiteResult("f", "weights", "a", "inference", "killed", (judgement,), "p", "p", "c", "c")
    run = CleanRun(0, (), {judgement: clean})
    return _report([replace(site, shares={judgement: planted})], clean=(run,), classes=2)


@pytest.mark.parametrize(
    ("clean", "planted", "holds"), [(0.5, 2.0, True), (0.51, 5.0, False), (0.2, 1.99, False)]
)
def test_a_margin_below_two_on_either_side_fails_the_controls(clean, planted, holds, capsys):
    result = _with_shares(clean, planted)
    (margin,) = result.margins
    assert (margin.command, margin.judgement, margin.nearest) == ("compare", "mapping", "f at a")
    assert (margin.clean, margin.fault) == pytest.approx((1 / clean, planted))
    assert margin.holds is result.passed is holds
    print_result(result)
    shown = capsys.readouterr().out
    assert f"compare    mapping {1 / clean:.2f} and {planted:.2f}{'' if holds else ' (!)'}" in shown
    assert ("FAILS  margins" in shown) is not holds


def test_a_file_of_a_graph_counts_for_the_margins_and_raises_alarms():
    result = _with_shares(0.1, 10.0, "arithmetic")
    assert result.margins[0].clean == pytest.approx(10)
    graph = CleanRun(3, ("arithmetic: ...",), {"arithmetic": 0.4}, "/there/port.onnx")
    result = replace(result, graphs=(graph,))
    assert result.margins[0].clean == pytest.approx(2.5)
    assert not result.passed
    assert problems(result)[0] == "false alarm, seed 3: port.onnx: arithmetic: ..."


def test_arithmetic_in_lower_precision_counts_for_rounding_headline_and_distance():
    reached = {"rounding": 9.0, "headline": 8.0, "distance": 7.0, "arithmetic": 6.0, "mapping": 0.0}
    site = SiteResult("tf32-products", "hyperparameters", "a", "inference", "killed", shares=reached)
    run = CleanRun(0, (), dict.fromkeys(reached, 0.1))
    margins = {margin.judgement: margin.fault for margin in _report([site], clean=(run,)).margins}
    assert margins == {name: share for name, share in reached.items() if name != "mapping"}


@dataclass(frozen=True)
class Judged:
    """`controls` on a source without logits, with an export of it: exit code, screen and JSON."""

    port: Path
    exit_code: int
    screen: str
    report: Mapping[str, Any]


@pytest.fixture(scope="module")
def features(tensors, tmp_path_factory):
    """A source without logits."""
    arrays = {name: array for name, array in tensors.items() if not name.startswith(f"{LOGITS_SCOPE}/")}
    return write_keras(tmp_path_factory.mktemp("features") / "features.h5", arrays)


@pytest.fixture(scope="module")
def judged(folded, features):
    """The export gives embeddings, to which logits are nothing."""
    pytest.importorskip("tensorflow")
    port = folded
    report = features.with_name("controls.json")
    classes = ("bias-dropped", "tf32-products", "logits-of-another-input")
    only = [word for name in classes for word in ("--only", name)]
    options = [*only, "--clean", "1", "--graph", str(port), "--json", str(report)]
    faults = [
        replace(fault, sites=fault.sites[:1]) if fault.name == "tf32-products" else fault
        for fault in ALL_FAULTS
    ]
    inputs = ControlSource.inputs
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as screen:
        patch.setattr(all_faults, "ALL_FAULTS", tuple(faults))  # a site of TF32 takes as long as ten others
        # Two show these faults; the other tests judge ports on all of them.
        patch.setattr(ControlSource, "inputs", lambda source, seed: inputs(source, seed)[:2])
        exit_code = controls.main([str(features), *options])
    return Judged(port, exit_code, screen.getvalue(), json.loads(report.read_text()))


def test_an_exporters_file_is_judged_as_in_an_audit(judged):
    assert judged.exit_code == 0
    assert "0 false alarms in 2 clean runs" in judged.screen
    assert re.search(r"audit      arithmetic \S+ and \S.*, distance \S+ and ", judged.screen)
    (graph,) = judged.report["graphs"]
    assert (graph["path"], graph["seed"], graph["alarms"]) == (str(judged.port), 0, [])
    assert 0 < graph["shares"]["arithmetic"] <= 0.5


def test_a_file_that_is_no_graph_is_wrong_usage(features, capsys):
    pytest.importorskip("tensorflow")
    options = ["--only", "tf32-products", "--clean", "1", "--graph", str(features)]
    assert controls.main([str(features), *options]) == 2
    assert "features.h5: not an ONNX or a TFLite file" in capsys.readouterr().err


# The command


def test_layers_that_a_checkpoint_does_not_have_are_counted_apart(judged):
    left_out = [site["site"] for site in judged.report["sites"] if site["status"] == "does not apply"]
    assert left_out == ["Logits/biases", *(site.label for site in CLASSES["logits-of-another-input"].sites)]
    assert judged.report["passed"]


def test_the_command_writes_what_it_prints(opened, tmp_path, capsys):
    path, page = tmp_path / "controls.json", tmp_path / "controls.html"
    files = ["--json", str(path), "--report", str(page)]
    assert controls.main(["--only", "one-ulp", "--clean", "1", *files]) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 faults, in 1 class" in printed
    assert "0 false alarms in 1 clean run" in printed
    written = json.loads(path.read_text())
    assert written["passed"]
    assert [site["status"] for site in written["sites"]] == ["killed"] * 4
    assert written["sites"][0]["place"] == written["sites"][0]["true_place"]
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page.read_text())
    row = cells[cells.index("one-ulp") :]
    assert row[1:6] == ["4", "4", "4", "4", "4"], row[:9]


def test_a_surviving_fault_ends_with_exit_code_1_and_is_spelled_out(opened, monkeypatch, capsys):
    nothing = _fault(Site("nowhere", ACTIVATION, lambda port: nullcontext()))
    monkeypatch.setattr(all_faults, "ALL_FAULTS", (nothing,))
    assert controls.main(["--only", nothing.name, "--clean", "0"]) == 1
    assert "made-for-a-test at nowhere: survived (inference)" in capsys.readouterr().out


def test_the_screen_has_at_most_15_lines_with_the_verdict_first(planting, capsys):
    nothing = _fault(Site("nowhere", ACTIVATION, lambda port: nullcontext()))
    survived = planting.plant(nothing, nothing.sites[0])
    sites = [replace(survived, site=f"nowhere {number}") for number in range(20)]
    print_result(_report(sites, clean=(CleanRun(1, ("mapping: ...",)),)))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 15
    assert lines[0].startswith("The checks do not hold")
    assert "made-for-a-test at nowhere 0: survived (inference)" in lines
    assert lines[-1] == "... and 15 more; --verbose lists them"
    print_result(_report(sites), verbose=True)
    shown = capsys.readouterr().out
    assert "made-for-a-test at nowhere 19: survived (inference)" in shown
    assert "class of faults" in shown


def test_an_unknown_class_is_wrong_usage_and_near_ones_are_named(capsys):
    assert controls.main(["--only", "kernel-fliped"]) == 2
    assert "kernel-flipped" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no such fault"):
        choose(["nothing-like-it"], ALL_FAULTS)


@pytest.mark.real
def test_real_weights_hide_no_fault(keras):
    pytest.importorskip("tensorflow")
    faults = [replace(fault, sites=fault.sites[:1]) for fault in ALL_FAULTS[::3] if fault.kind != "training"]
    report = run_controls(keras, faults=faults, clean=1)
    assert [f"{site.fault} at {site.site}" for site in report.surviving] == []
    assert report.passed
