"""The report of `checks.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from checks.compare.result import ActivationMeasurement, CompareResult, InputMeasurement
from checks.compare.table import ACTIVATION_HEADINGS, INPUT_HEADINGS, activation_cells, input_cells
from checks.core import thresholds
from checks.core.activations import EMBEDDINGS, LAYERS, STAGES, short_name
from checks.report.charts import Counts, Depth, Drawer, Limit, Mark, Panel, Series
from checks.report.network_parts import activation_groups
from checks.report.page import Head, Row, Table, network, write_html
from checks.report.provenance import digests, provenance, shown_path
from checks.report.reference_lines import DOUBLE, SINGLE

_MOST_INPUTS = 12  # drawn; photographs can make many


def write_page(path: Path, result: CompareResult, *, command: str) -> None:
    """Write the report of a comparison.

    Args:
        path: Where it will stand; nothing there is replaced.
        result: Best with every layer.
        command: As it was typed.

    Raises:
        UsageError: The file exists, or its folder does not.
    """
    foot = provenance(command, digests(result.files), result.environment, result.seed)
    drawer = Drawer()
    shown = next((batch for batch in result.inputs if batch.first_divergence), None)
    shown = shown or next(iter(result.inputs), None)
    content = {} if shown is None else _measured(result, shown, drawer)
    write_html(path, "compare/page.html", _head(result), foot, shown=shown, **content)


def _head(result: CompareResult) -> Head:
    first = next((batch for batch in result.inputs if batch.first_divergence), None)
    place = ""
    if first is not None and first.first_divergence is not None:
        place = short_name(first.first_divergence)
    elif result.diagnosis is not None and result.diagnosis.findings:
        place = short_name(result.diagnosis.findings[0].activation)
    if result.passed:
        sentence = "The port is exact."
    elif place:
        sentence = "The port differs, first at"
    elif not result.inputs:
        sentence = "The port differs: its state_dict does not load."
    else:
        sentence = "The port differs."
    return Head(
        command="compare",
        passed=result.passed,
        word="Proven" if result.passed else "Differs",
        sentence=sentence,
        facts=_facts(result),
        judgements=result.judgements,
        place=place,
        reasons=(*_reasons(result), *_divergence(result.inputs)),
    )


def _facts(result: CompareResult) -> tuple[tuple[str, str], ...]:
    judged = "converted from the source" if result.state_dict is None else shown_path(result.state_dict)
    return (
        ("judged", judged),
        ("against", shown_path(result.source)),
        ("network", network(result.variant)),
        ("TensorFlow graph", result.own_graph or "none of its own; rebuilt from scratch"),
    )


def _reasons(result: CompareResult) -> tuple[tuple[str, str], ...]:
    reasons: list[tuple[str, str]] = []
    if not result.inputs:  # nothing has a place then
        reasons += [("Tensors", detail) for detail in result.judgements[0].details[:1]]
    if result.diagnosis is not None:
        reasons += [("Cause", line) for line in result.diagnosis.summary]
        if not result.diagnosis.findings:
            reasons.append(("No cause found", "every layer agrees on the reference's own input"))
    if result.undiagnosed:
        reasons.append(("No cause given", result.undiagnosed))
    if result.repair is not None:
        reasons.append(("Repair", result.repair.statement))
    return tuple(reasons)


def _divergence(inputs: Sequence[InputMeasurement]) -> tuple[tuple[str, str], ...]:
    diverging = [batch for batch in inputs if batch.first_divergence is not None]
    if not diverging:
        return ()
    activation = next(
        activation
        for activation in diverging[0].activations
        if activation.activation == diverging[0].first_divergence
    )
    words = (
        f"relative L2 {activation.float64.relative_l2:.1e} in float64, at most {thresholds.MAPPING:.0e}, on "
        f"{diverging[0].name} inputs; {len(diverging)} of {len(inputs)} inputs diverge"
    )
    return (("Divergence", words),)


def _measured(result: CompareResult, shown: InputMeasurement, drawer: Drawer) -> dict[str, object]:
    others = [batch for batch in result.inputs if batch is not shown]
    # Those that diverge say more than those that do not.
    drawn = sorted(others, key=lambda batch: batch.first_divergence is None)[:_MOST_INPUTS]
    return {
        "depth": drawer.depth(_depth(shown)),
        "histograms": drawer.histograms(
            f"Differences between PyTorch and TensorFlow in units in the last place, on {shown.name} inputs",
            _panels(shown),
        ),
        "others": [(batch, drawer.depth(_depth(batch, lower=True))) for batch in drawn],
        "undrawn": len(others) - len(drawn),
        "inputs": _inputs(result.inputs),
        "activations": _activations(shown),
        "every_layer": len(shown.activations) > len(STAGES) + 2,
        "mapping": f"{thresholds.MAPPING:.0e}",
    }


def _depth(batch: InputMeasurement, *, lower: bool = False) -> Depth:
    floor = tuple(activation.tensorflow_error for activation in batch.activations)
    factor = thresholds.ROUNDING_FEW_VALUES if batch.few_values else thresholds.ROUNDING
    differing = tuple(activation.float64.relative_l2 for activation in batch.activations)
    single = tuple(activation.pytorch_error for activation in batch.activations)
    worst = max(batch.activations, key=lambda activation: activation.float64.relative_l2)
    found = (
        f"the largest float64 difference is {worst.float64.relative_l2:.1e}"
        if batch.first_divergence is None
        else f"the float64 results diverge first at {short_name(batch.first_divergence)}"
    )
    places = [activation.activation for activation in batch.activations]
    mark = None
    if batch.first_divergence is not None:
        mark = Mark(
            places.index(batch.first_divergence), "first divergence", short_name(batch.first_divergence)
        )
    return Depth(
        says=f"Error by depth at {len(places)} activations on {batch.name} inputs, log scale: {found}.",
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
        groups=activation_groups(places),
        limits=(
            SINGLE,
            Limit("threshold of float64", f"{thresholds.MAPPING:.0e}", thresholds.MAPPING, "limit"),
            DOUBLE,
        ),
        mark=mark,
        band=(floor, factor),
        lower=lower,
    )


def _panels(batch: InputMeasurement) -> tuple[Panel, ...]:
    worst = max(batch.activations, key=lambda activation: activation.float64.relative_l2)
    if batch.first_divergence is None:
        chosen, what = worst, "worst activation"
    else:
        chosen = next(
            activation for activation in batch.activations if activation.activation == batch.first_divergence
        )
        what = "first divergence"
    embeddings = next(activation for activation in batch.activations if activation.activation == EMBEDDINGS)
    return (
        _panel(f"all {len(batch.activations)} activations", batch.activations),
        _panel(f"{what}: {short_name(chosen.activation).rpartition('/')[2]}", [chosen]),
        _panel("embeddings", [embeddings]),
    )


def _panel(title: str, activations: Sequence[ActivationMeasurement]) -> Panel:
    return Panel(
        title,
        (
            Counts(
                "float32",
                _pooled([activation.float32.ulp_histogram for activation in activations]),
                "pytorch",
            ),
            Counts(
                "float64",
                _pooled([activation.float64.ulp_histogram for activation in activations]),
                "float64",
            ),
        ),
    )


def _pooled(histograms: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip_longest(*histograms, fillvalue=0)))


def _inputs(inputs: Sequence[InputMeasurement]) -> Table:
    rows = [
        Row(batch.name, input_cells(batch), "fault" if batch.first_divergence else "") for batch in inputs
    ]
    return Table("input", INPUT_HEADINGS, tuple(rows), words=1)


def _activations(batch: InputMeasurement) -> Table:
    rows = []
    for activation in batch.activations:
        stage = "" if activation.activation in LAYERS and activation.activation not in STAGES else "strong"
        kind = "" if activation.float64.relative_l2 <= thresholds.MAPPING else "fault"
        rows.append(Row(short_name(activation.activation), activation_cells(activation), kind or stage))
    return Table("activation", ACTIVATION_HEADINGS, tuple(rows))
