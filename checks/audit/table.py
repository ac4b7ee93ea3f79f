"""Print the result of an audit on the terminal: the verdict, the judgements, and the first difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from checks.audit.judge import describe_largest, describe_tensor, judge_distance
from checks.audit.result import (
    FAITHFUL,
    WEAKER,
    AuditResult,
    GraphRun,
    QuantisedRun,
    Status,
    TensorResult,
)
from checks.core import thresholds
from checks.core.inputs import NOISE
from checks.core.metrics import figure
from checks.core.network import short_name
from checks.core.render import Row, Table, print_judgements, print_table
from checks.core.rounding import describe_share
from converter import command_line
from converter.home_folder import from_home

_WIDTH = 110  # columns; a line may wrap, a figure is not cut off
STATUS_MEANINGS: Mapping[Status, str] = {
    "equal": "every bit is the source's",
    "folded": "a BatchNorm or another factor is folded in, by a formula that gives every bit",
    "rounded": "in half precision, every bit is that of the nearest value",
    "quantised": "integers, each the nearest to the source's value in the steps of its scale",
    "approximate": "within rounding of the exact value; no known formula gives every last bit",
    "differs": "not the source's",
    "missing": "not in the port",
    "extra": "not of this network",
    "not judged": "not in the source",
}
_STEPS = "largest difference from the expected value, in steps from one value of the dtype to the next"
_RUN_COLUMNS = (
    ("float64\nerror", "distance of the embeddings from float64 with the graph's own weights (relative L2)"),
    ("PyTorch's\nfloat64 error", "distance of PyTorch's embeddings, in the graph's precision, from the same"),
    ("distance\nfrom source", "of the normalised embeddings from the source's in float64 (Frobenius)"),
    ("largest\ndistance", "the largest such distance of a single embedding"),
    ("worst\nlayer", "the largest error of a layer on its own input, as a share of what rounding allows"),
    ("its name", "that layer"),
)

_QUANTISER_COLUMNS = (
    ("integers", "on the first image of every input"),
    ("ties", "integers that are the second nearest to the float64 result of the integers before them"),
    (
        "beyond\nhalf a step",
        "largest distance of an integer from the float64 result beyond half a step, in steps",
    ),
    (
        "clipped",
        "values beyond the integers, but for those that a ReLU makes zero: of faces if any are given",
    ),
)


def print_result(result: AuditResult, *, verbose: bool = False) -> None:
    """Print a result on stdout, in at most 15 lines.

    Args:
        result: The result.
        verbose: Whether to print the tables and every detail as well.
    """
    console = command_line.console(_WIDTH)
    style = {0: "bold green", WEAKER: "bold yellow"}.get(result.exit_code, "bold red")
    console.print(result.verdict, style=style, markup=False)
    console.print(f"  port     {from_home(result.port)} ({result.format})", markup=False)
    console.print(f"  against  {from_home(result.source)} ({result.network})", markup=False)
    for statement in result.names:
        console.print(f"  {statement}", markup=False)
    if result.run is not None and result.run.is_prepared_exactly:
        console.print(f"  takes    {result.run.feed}", markup=False)
    if result.recognised:
        console.print(f"  {result.recognised}", markup=False)
    if result.not_understood:
        console.print(f"  not understood: {result.not_understood}", markup=False)
    if result.not_run:
        console.print(f"  its graph was not run: {result.not_run}", markup=False)
    print_judgements(console, result.judgements, most_details=0)
    if not result.passed:
        for line in _first_difference(result):
            console.print(line, markup=False)
    if verbose:
        _print_details(console, result)


def _first_difference(result: AuditResult) -> Iterator[str]:
    """Describe the first difference, and count the others."""
    faults = [tensor for tensor in result.tensors if not tensor.is_faithful]
    if faults:
        yield from (f"  {label:<11} {text}" for label, text in describe_tensor(faults[0]))
        largest = max(faults, key=lambda tensor: tensor.max_abs)
        if largest.max_abs > faults[0].max_abs:
            names = [name for name in (largest.key, largest.variable) if name not in ("", largest.name)]
            also = f" ({', '.join(names)})" if names else ""
            yield f"  overall     {describe_largest(largest)}; in {largest.name}{also}"
        if len(faults) > 1:
            yield f"{len(faults) - 1} more of {len(result.tensors)} tensors: --verbose lists them."
        return
    details = [(judgement.name, detail) for judgement in result.judgements for detail in judgement.details]
    for name, detail in details[:2]:
        yield f"  {name}: {detail}"
    if len(details) > 2:
        yield f"{len(details) - 2} more: --verbose lists them."


def _print_details(console: Console, result: AuditResult) -> None:
    """Print the files, every detail, and the tables, with a line that explains each column."""
    console.print()
    for path, digest in result.files.items():
        console.print(f"  sha256 {digest}  {Path(path).name}", markup=False)
    for judgement in result.judgements:
        if judgement.details:
            console.print(f"\n{judgement.name}:", markup=False)
        for detail in judgement.details:
            console.print(f"  {detail}", markup=False)
    if result.tensors:
        console.print("\nTensors by stage of the network:")
        print_table(console, _stage_table(result.tensors))
    if result.run is not None:
        run = result.run
        console.print(f"\nRun by {run.runtime} in {run.arithmetic}:", markup=False)
        quantised = result.quantised
        print_table(console, run_table(run) if quantised is None else quantiser_table(quantised))


def _stage_table(tensors: Sequence[TensorResult]) -> Table:
    statuses = [status for status in STATUS_MEANINGS if any(tensor.status == status for tensor in tensors)]
    columns = {
        "tensors": "number of tensors of the stage, with those that the port lacks",
        **{str(status): STATUS_MEANINGS[status] for status in statuses},
        "most steps": _STEPS,
        "layout": "order of axes, TensorFlow's to the port's",
    }
    stages: dict[str, list[TensorResult]] = {}
    for tensor in tensors:
        stages.setdefault(tensor.stage.partition("/")[0] or "no layer", []).append(tensor)
    rows = []
    for stage, group in stages.items():
        counts = [sum(tensor.status == status for tensor in group) for status in statuses]
        layouts = dict.fromkeys(tensor.layout for tensor in group if len(tensor.shape) > 1 and tensor.layout)
        cells = (len(group), *(count or "-" for count in counts), f"{max(t.max_ulp for t in group):,}")
        failed = [
            1 + place for place, status in enumerate(statuses) if counts[place] and status not in FAITHFUL
        ]
        rows.append(Row(stage, (*map(str, cells), ", ".join(layouts)), tuple(failed)))
    return Table("stage", tuple(columns), tuple(rows), 1, tuple(columns.values()))


def quantiser_table(run: QuantisedRun) -> Table:
    """Tabulate the tensors that a graph of integers quantises as it runs."""
    rows = []
    for each in run.quantisers:
        cells = f"{each.values:,}", f"{each.other:,}", figure(max(each.excess, 0.0)), f"{each.clipped:.2%}"
        failed = (2,) if not each.excess <= thresholds.INTEGER_STEP else ()
        rows.append(Row(short_name(each.layer) or each.tensor, cells, failed))
    headings, explanations = zip(*_QUANTISER_COLUMNS, strict=True)
    return Table("tensor", headings, tuple(rows), 1, explanations)


def run_table(run: GraphRun) -> Table:
    """Tabulate the errors and distances of a graph on every input."""
    rows = []
    for batch in run.inputs:
        worst = max(batch.layers, key=lambda layer: layer.share, default=None)
        distances = map(figure, (batch.distance, batch.row_distance))
        cells = (
            *map(figure, (batch.error, batch.floor)),
            *(distances if run.sizes is None else ("-", "-")),
            "-" if worst is None else describe_share(worst.share),
            "" if worst is None else short_name(worst.activation),
        )
        failed = {
            0: bool(batch.layers) and not batch.error <= batch.runtime_factor * batch.floor,
            2: batch.name == NOISE and not judge_distance(run).passed,
            4: bool(batch.diverging),
        }
        rows.append(Row(batch.name, cells, tuple(index for index, fails in failed.items() if fails)))
    headings, explanations = zip(*_RUN_COLUMNS, strict=True)
    return Table("input", headings, tuple(rows), 1, explanations)
