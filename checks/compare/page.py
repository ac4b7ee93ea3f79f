"""The report of `checks.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from checks.compare.judge import ProbeMeasurement, Report, TapMeasurement
from checks.compare.table import INPUT_HEADINGS, TAP_HEADINGS, input_cells, tap_cells
from checks.core import thresholds
from checks.core.activations import EMBEDDINGS, LAYERS, STAGES, short
from checks.report.charts import Counts, Depth, Drawer, Limit, Mark, Panel, Series
from checks.report.network_parts import tap_groups
from checks.report.page import Head, Row, Table, network, write_page
from checks.report.provenance import digests, provenance, shown_path
from checks.report.reference_lines import DOUBLE, SINGLE

_MOST_PROBES = 12  # drawn; photographs can make many


def write_compare_report(path: Path, report: Report, *, command: str) -> None:
    """Write the report of a comparison.

    Args:
        path: Where it will stand; nothing there is replaced.
        report: What was found, best with every layer.
        command: As it was typed.

    Raises:
        UsageError: The file exists, or its folder does not.
    """
    foot = provenance(command, digests(report.files), report.environment, report.seed)
    drawer = Drawer()
    shown = next((probe for probe in report.probes if probe.first_divergence), None)
    shown = shown or next(iter(report.probes), None)
    content = {} if shown is None else _measured(report, shown, drawer)
    write_page(path, "compare/page.html", _head(report), foot, shown=shown, **content)


def _head(report: Report) -> Head:
    first = next((probe for probe in report.probes if probe.first_divergence), None)
    place = ""
    if first is not None and first.first_divergence is not None:
        place = short(first.first_divergence)
    elif report.diagnosis is not None and report.diagnosis.findings:
        place = short(report.diagnosis.findings[0].tap)
    if report.passed:
        sentence = "The port is exact."
    elif place:
        sentence = "The port differs, first at"
    elif not report.probes:
        sentence = "The port differs: its state_dict does not load."
    else:
        sentence = "The port differs."
    return Head(
        command="compare",
        passed=report.passed,
        word="Proven" if report.passed else "Differs",
        sentence=sentence,
        facts=_facts(report),
        judgements=report.judgements,
        place=place,
        reasons=(*_reasons(report), *_divergence(report.probes)),
    )


def _facts(report: Report) -> tuple[tuple[str, str], ...]:
    judged = "converted from the source" if report.state_dict is None else shown_path(report.state_dict)
    return (
        ("judged", judged),
        ("against", shown_path(report.source)),
        ("network", network(report.variant)),
        ("TensorFlow graph", report.own_graph or "none of its own; rebuilt from scratch"),
    )


def _reasons(report: Report) -> tuple[tuple[str, str], ...]:
    reasons: list[tuple[str, str]] = []
    if not report.probes:  # nothing has a place then
        reasons += [("Tensors", detail) for detail in report.judgements[0].details[:1]]
    if report.diagnosis is not None:
        reasons += [("Cause", line) for line in report.diagnosis.summary]
        if not report.diagnosis.findings:
            reasons.append(("No cause found", "every layer agrees on the reference's own input"))
    if report.undiagnosed:
        reasons.append(("No cause given", report.undiagnosed))
    if report.repair is not None:
        reasons.append(("Repair", report.repair.statement))
    return tuple(reasons)


def _divergence(probes: Sequence[ProbeMeasurement]) -> tuple[tuple[str, str], ...]:
    diverging = [probe for probe in probes if probe.first_divergence is not None]
    if not diverging:
        return ()
    tap = next(tap for tap in diverging[0].taps if tap.tap == diverging[0].first_divergence)
    words = (
        f"relative L2 {tap.float64.relative_l2:.1e} in float64, at most {thresholds.MAPPING:.0e}, on "
        f"{diverging[0].name} inputs; {len(diverging)} of {len(probes)} inputs diverge"
    )
    return (("Divergence", words),)


def _measured(report: Report, shown: ProbeMeasurement, drawer: Drawer) -> dict[str, object]:
    others = [probe for probe in report.probes if probe is not shown]
    # Those that diverge say more than those that do not.
    drawn = sorted(others, key=lambda probe: probe.first_divergence is None)[:_MOST_PROBES]
    return {
        "depth": drawer.depth(_depth(shown)),
        "histograms": drawer.histograms(
            f"Differences between PyTorch and TensorFlow in units in the last place, on {shown.name} inputs",
            _panels(shown),
        ),
        "others": [(probe, drawer.depth(_depth(probe, lower=True))) for probe in drawn],
        "undrawn": len(others) - len(drawn),
        "inputs": _inputs(report.probes),
        "taps": _taps(shown),
        "every_layer": len(shown.taps) > len(STAGES) + 2,
        "mapping": f"{thresholds.MAPPING:.0e}",
    }


def _depth(probe: ProbeMeasurement, *, lower: bool = False) -> Depth:
    floor = tuple(tap.tensorflow_error for tap in probe.taps)
    factor = thresholds.ROUNDING_FEW_VALUES if probe.few_values else thresholds.ROUNDING
    differing = tuple(tap.float64.relative_l2 for tap in probe.taps)
    single = tuple(tap.pytorch_error for tap in probe.taps)
    worst = max(probe.taps, key=lambda tap: tap.float64.relative_l2)
    found = (
        f"the largest float64 difference is {worst.float64.relative_l2:.1e}"
        if probe.first_divergence is None
        else f"the float64 results diverge first at {short(probe.first_divergence)}"
    )
    places = [tap.tap for tap in probe.taps]
    mark = None
    if probe.first_divergence is not None:
        mark = Mark(places.index(probe.first_divergence), "first divergence", short(probe.first_divergence))
    return Depth(
        says=f"Error by depth at {len(places)} taps on {probe.name} inputs, log scale: {found}.",
        series=(
            Series("PyTorch float32, from float64", single, "pytorch", "circles"),
            Series("TensorFlow float32, from float64: the rounding floor", floor, "floor", "broad"),
            Series(
                "PyTorch float64, from TensorFlow float64",
                differing,
                "float64",
                "squares",
                most=thresholds.MAPPING,
            ),
        ),
        groups=tap_groups(places),
        limits=(
            SINGLE,
            Limit("threshold of float64", f"{thresholds.MAPPING:.0e}", thresholds.MAPPING, "limit"),
            DOUBLE,
        ),
        mark=mark,
        band=(floor, factor),
        lower=lower,
    )


def _panels(probe: ProbeMeasurement) -> tuple[Panel, ...]:
    worst = max(probe.taps, key=lambda tap: tap.float64.relative_l2)
    if probe.first_divergence is None:
        chosen, what = worst, "worst tap"
    else:
        chosen = next(tap for tap in probe.taps if tap.tap == probe.first_divergence)
        what = "first divergence"
    embeddings = next(tap for tap in probe.taps if tap.tap == EMBEDDINGS)
    return (
        _panel(f"all {len(probe.taps)} taps", probe.taps),
        _panel(f"{what}: {short(chosen.tap).rpartition('/')[2]}", [chosen]),
        _panel("embeddings", [embeddings]),
    )


def _panel(title: str, taps: Sequence[TapMeasurement]) -> Panel:
    return Panel(
        title,
        (
            Counts("float32", _pooled([tap.float32.ulp_histogram for tap in taps]), "pytorch"),
            Counts("float64", _pooled([tap.float64.ulp_histogram for tap in taps]), "float64"),
        ),
    )


def _pooled(histograms: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip_longest(*histograms, fillvalue=0)))


def _inputs(probes: Sequence[ProbeMeasurement]) -> Table:
    rows = [
        Row(probe.name, input_cells(probe), "fault" if probe.first_divergence else "") for probe in probes
    ]
    return Table("input", INPUT_HEADINGS, tuple(rows), words=1)


def _taps(probe: ProbeMeasurement) -> Table:
    rows = []
    for tap in probe.taps:
        stage = "" if tap.tap in LAYERS and tap.tap not in STAGES else "strong"
        kind = "" if tap.float64.relative_l2 <= thresholds.MAPPING else "fault"
        rows.append(Row(short(tap.tap), tap_cells(tap), kind or stage))
    return Table("tap", TAP_HEADINGS, tuple(rows))
