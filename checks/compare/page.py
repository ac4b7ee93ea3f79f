"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from checks.compare.explanation import explain, verdict
from checks.compare.result import ActivationMeasurement, CompareResult, InputMeasurement
from checks.compare.table import activation_table, input_table
from checks.core import thresholds
from checks.core.activations import STAGES
from checks.core.metrics import figure
from checks.core.mtcnn_network import outputs_among
from checks.core.network import describe_network, short_name
from checks.report.charts import Drawer
from checks.report.content import Head
from checks.report.depth_chart import DOUBLE, SINGLE, Depth, Limit, Mark, Series
from checks.report.histogram_chart import Counts, Panel
from checks.report.network_parts import activation_groups
from checks.report.page import write_html
from checks.report.provenance import digests, provenance, shown_path

_MOST_INPUTS = 12  # with a chart; photographs can make many inputs


def write_page(path: Path, result: CompareResult, *, command: str) -> None:
    """Write the page of a comparison.

    Args:
        path: The file; an older page is replaced.
        result: The result; with every layer the charts show most.
        command: The command as it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
    """
    foot = provenance(command, digests(result.files), result.environment, result.seed)
    drawer = Drawer()
    shown = result.diverging or next(iter(result.inputs), None)
    content = {} if shown is None else _measured(result, shown, drawer)
    write_html(
        path,
        "compare/page.html",
        _head(result),
        foot,
        shown=shown,
        repair=result.repair,
        broken=result.broken,
        **content,
    )


def _head(result: CompareResult) -> Head:
    place = ""
    if result.diverging is not None:
        place = short_name(result.diverging.first_divergence or "")
    elif result.diagnosis is not None and result.diagnosis.findings:
        place = short_name(result.diagnosis.findings[0].activation)
    if result.passed or result.broken is not None:
        sentence = f"{verdict(result)}."
    elif place:
        sentence = "The port differs, first at"
    elif not result.inputs:
        sentence = "The port differs: its state_dict does not load."
    else:
        sentence = "The port differs."
    reasons = explain(result)
    if place:
        reasons = [reason for reason in reasons if reason[0] != "Where"]  # the place stands above them
    return Head(
        command="compare",
        passed=result.passed,
        word="Proven" if result.passed else "Differs" if result.differs else "Broken source",
        sentence=sentence,
        facts=_facts(result),
        judgements=result.judgements,
        place=place,
        reasons=tuple(reasons),
    )


def _facts(result: CompareResult) -> tuple[tuple[str, str], ...]:
    judged = "converted from the source" if result.state_dict is None else shown_path(result.state_dict)
    return (
        ("judged", judged),
        ("against", shown_path(result.source)),
        ("network", describe_network(result.variant)),
        (
            "TensorFlow graph",
            "not run" if result.broken else result.own_graph or "none in the source; rebuilt from scratch",
        ),
        ("PyTorch's float32", result.device),
        *(("names", statement) for statement in result.names),
    )


def _measured(result: CompareResult, shown: InputMeasurement, drawer: Drawer) -> dict[str, object]:
    others = [batch for batch in result.inputs if batch is not shown]
    # The inputs that diverge come first.
    drawn = sorted(others, key=lambda batch: batch.first_divergence is None)[:_MOST_INPUTS]
    return {
        "depth": drawer.depth(_depth(shown)),
        "histograms": drawer.histograms(
            f"Differences between PyTorch and TensorFlow in units in the last place, on {shown.name} inputs",
            _panels(shown),
        ),
        "others": [(batch, drawer.depth(_depth(batch, lower=True))) for batch in drawn],
        "undrawn": len(others) - len(drawn),
        "inputs": input_table(result.inputs),
        "activations": activation_table(shown),
        "every_layer": shown.outputs == "outputs" or len(shown.activations) > len(STAGES) + 2,
        "mapping": f"{thresholds.MAPPING:.0e}",
    }


def _depth(batch: InputMeasurement, *, lower: bool = False) -> Depth:
    names = [measured.activation for measured in batch.activations]
    floor = tuple(measured.tensorflow_error for measured in batch.activations)
    if batch.first_divergence is None:
        worst = _worst(batch)
        finding = f"the largest float64 error is {figure(worst.float64.relative_l2)}"
        mark = None
    else:
        place = short_name(batch.first_divergence)
        finding = f"the float64 results diverge first at {place}"
        mark = Mark(names.index(batch.first_divergence), "first divergence", place)
    return Depth(
        description=f"Error at {len(names)} activations on {batch.name} inputs, log scale: {finding}.",
        series=(
            Series(
                "PyTorch float32, from float64",
                tuple(measured.pytorch_error for measured in batch.activations),
                "pytorch",
                "circles",
            ),
            Series("TensorFlow float32, from float64", floor, "floor", "broad"),
            Series(
                "PyTorch float64, from TensorFlow float64",
                tuple(measured.float64.relative_l2 for measured in batch.activations),
                "float64",
                "squares",
                most=thresholds.MAPPING,
            ),
        ),
        groups=activation_groups(names),
        limits=(
            SINGLE,
            Limit("threshold of float64", f"{thresholds.MAPPING:.0e}", thresholds.MAPPING, "limit"),
            DOUBLE,
        ),
        mark=mark,
        lower=lower,
    )


def _worst(batch: InputMeasurement) -> ActivationMeasurement:
    return max(batch.activations, key=lambda measured: measured.float64.relative_l2)


def _panels(batch: InputMeasurement) -> tuple[Panel, ...]:
    first = next((measured for measured in batch.activations if measured.diverges), None)
    chosen = first or _worst(batch)
    name = short_name(chosen.activation).rpartition("/")[2]
    names = outputs_among([measured.activation for measured in batch.activations])
    outputs = [measured for measured in batch.activations if measured.activation in names]
    return (
        _panel(f"all {len(batch.activations)} activations", batch.activations),
        _panel(f"{'worst activation' if first is None else 'first divergence'}: {name}", [chosen]),
        _panel(batch.outputs, outputs),
    )


def _panel(title: str, activations: Sequence[ActivationMeasurement]) -> Panel:
    float32 = _pooled([measured.float32.ulp_histogram for measured in activations])
    float64 = _pooled([measured.float64.ulp_histogram for measured in activations])
    return Panel(title, (Counts("float32", float32, "pytorch"), Counts("float64", float64, "float64")))


def _pooled(histograms: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip_longest(*histograms, fillvalue=0)))
