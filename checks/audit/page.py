"""The report of `checks.audit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from checks.audit.result import AuditResult, GraphRun, InputRun, Status, TensorResult
from checks.core import thresholds
from checks.core.activations import short_name
from checks.report.charts import Chart, Counts, Depth, Drawer, Limit, Mark, Panel, Series
from checks.report.network_parts import activation_groups
from checks.report.page import Head, Row, Table, write_html
from checks.report.provenance import provenance, shown_path
from checks.report.reference_lines import SINGLE

_MOST_TENSORS = 3000  # in the grid and the table; the network has about 700
_HALF = Limit("unit roundoff of float16", "2⁻¹¹", thresholds.HALF_ROUNDOFF)

_SIGNS: dict[Status, str] = {
    "differs": "✕", "missing": "∅", "extra": "+", "approximate": "≈", "rounded": "½", "folded": "▪",
}  # fmt: skip
"""What stands in a cell besides its colour."""

_MEANINGS: dict[Status, str] = {
    "equal": "every bit is the source's",
    "folded": "BatchNorm folded into it, to the bit",
    "rounded": "the source's nearest half",
    "approximate": "folded, within rounding",
    "differs": "not the source's",
    "missing": "the port lacks it",
    "extra": "not of this network",
    "not judged": "the source does not say",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A tensor in the grid: its status, a sign, how far it is off (1 to 3; 0 not at all), and its words."""

    status: str
    sign: str
    degree: int
    words: str


def write_page(path: Path, report: AuditResult, *, command: str) -> None:
    """Write the report of an audit.

    Args:
        path: Where it will stand; nothing there is replaced.
        report: What was found.
        command: As it was typed.

    Raises:
        UsageError: The file exists, or its folder does not.
    """
    drawer = Drawer()
    shown = report.tensors[:_MOST_TENSORS]
    run = report.run
    bad = [tensor for tensor in report.tensors if not tensor.is_faithful]
    write_html(
        path,
        "audit/page.html",
        _head(report, bad),
        provenance(command, report.files, report.environment, report.seed),
        report=report,
        stages=_grid(shown),
        legend=_legend(report.tensors),
        unshown=len(report.tensors) - len(shown),
        bad=_tensor_table(bad[:_MOST_TENSORS]),
        bad_unshown=len(bad[_MOST_TENSORS:]),
        tensors=_tensor_table(shown),
        histogram=_histogram(drawer, report.tensors),
        runs=[] if run is None else _runs(drawer, run),
        inputs=None if run is None else _inputs(run.inputs),
    )


def _head(report: AuditResult, bad: Sequence[TensorResult]) -> Head:
    reasons = [(tensor.status.capitalize(), _line(tensor)) for tensor in bad[:2]]
    if len(bad) > len(reasons):
        reasons.append(("In all", f"{len(bad)} of {len(report.tensors)} tensors are not what they should be"))
    place = bad[0].name if bad else ""
    if report.run is not None and report.run.first_divergence is not None:
        place = place or short_name(report.run.first_divergence)
        reasons.append(("First divergence", f"{short_name(report.run.first_divergence)}, when run"))
    if report.recognised:
        reasons.append(("Recognised", report.recognised))
    return Head(
        command="audit",
        passed=report.passed,
        word="Sound" if report.passed else "Differs",
        sentence=report.verdict,
        facts=(
            ("port", shown_path(report.port)),
            ("format", report.format),
            ("against", shown_path(report.source)),
            ("network", report.network),
        ),
        judgements=report.judgements,
        place="" if report.passed else place,
        reasons=tuple(reasons),
    )


def _line(tensor: TensorResult) -> str:
    if tensor.detail:
        return f"{tensor.name}: {tensor.detail}"
    if tensor.status != "differs":
        return tensor.name
    values = f"{tensor.differing} of {tensor.values} values differ, by up to {_ulps(tensor.max_ulp)}"
    return f"{tensor.name}: {values}"


def _ulps(steps: int) -> str:
    return f"{steps:.0e} ULP" if steps > 99999 else f"{steps} ULP"


def _grid(tensors: Sequence[TensorResult]) -> list[tuple[str, list[Cell]]]:
    """The tensors by stage, in the order in which the stages come."""
    stages: dict[str, list[Cell]] = {}
    for tensor in tensors:
        words = [tensor.name, tensor.status]
        if tensor.max_ulp:
            words.append(_ulps(tensor.max_ulp))
        cell = Cell(
            tensor.status.replace(" ", "-"), _SIGNS.get(tensor.status, ""), _degree(tensor), " · ".join(words)
        )
        stages.setdefault(tensor.stage or "elsewhere", []).append(cell)
    return list(stages.items())


def _degree(tensor: TensorResult) -> int:
    """How far a tensor is off: a few units in the last place, up to a per cent or so, or altogether."""
    if tensor.is_faithful:
        return 0
    return 1 if 0 < tensor.max_ulp <= 16 else 2 if 0 < tensor.max_ulp <= 1 << 16 else 3


def _legend(tensors: Sequence[TensorResult]) -> list[tuple[Cell, int, str]]:
    counts: dict[Status, int] = {}
    for tensor in tensors:
        counts[tensor.status] = counts.get(tensor.status, 0) + 1
    return [
        (
            Cell(status.replace(" ", "-"), _SIGNS.get(status, ""), 3 if status == "differs" else 0, status),
            counts[status],
            meaning,
        )
        for status, meaning in _MEANINGS.items()
        if status in counts
    ]


def _tensor_table(tensors: Sequence[TensorResult]) -> Table:
    rows = []
    for tensor in tensors:
        cells = (
            f"{tensor.differing} of {tensor.values}" if tensor.differing else "",
            str(tensor.max_ulp) if tensor.max_ulp else "",
            tensor.status,
            tensor.detail,
            "×".join(map(str, tensor.shape)) or "scalar",  # noqa: RUF001
            tensor.dtype,
            tensor.layout,
            tensor.variable,
        )
        rows.append(Row(tensor.name, cells, "" if tensor.is_faithful else "fault"))
    headings = ("differing", "max ULP", "status", "remark", "shape", "dtype", "layout", "variable")
    return Table("tensor", headings, tuple(rows), words=6)


def _histogram(drawer: Drawer, tensors: Sequence[TensorResult]) -> Chart | None:
    found = [tensor for tensor in tensors if tensor.differing and tensor.ulp_histogram]
    if not found:
        return None
    pooled = tuple(map(sum, zip_longest(*(tensor.ulp_histogram for tensor in found), fillvalue=0)))
    title = f"{len(found)} {'tensor' if len(found) == 1 else 'tensors'}"
    says = f"Differences of {title} from what they should be, in units in the last place"
    return drawer.histograms(says, (Panel(title, (Counts("values of the port", pooled, "pytorch"),)),))


def _runs(drawer: Drawer, run: GraphRun) -> list[tuple[InputRun, Chart]]:
    """Error by depth on every input; those on which a layer diverges come first."""
    layered = [batch for batch in run.inputs if batch.layers]
    layered.sort(key=lambda batch: _diverging(batch) is None)
    return [(batch, drawer.depth(_depth(run, batch))) for batch in layered]


def _diverging(batch: InputRun) -> int | None:
    """The place of the first layer that is further from float64 than it may be."""
    return next(
        (place for place, layer in enumerate(batch.layers) if not layer.error <= batch.factor * layer.floor),
        None,
    )


def _depth(run: GraphRun, batch: InputRun) -> Depth:
    activations = [layer.activation for layer in batch.layers]
    errors = tuple(layer.error for layer in batch.layers)
    floors = tuple(layer.floor for layer in batch.layers)
    diverging = _diverging(batch)
    if diverging is None:
        mark, found = None, f"the largest error is {max(errors):.1e}"
    else:
        name = short_name(activations[diverging])
        mark, found = Mark(diverging, "first divergence", name), f"it diverges first at {name}"
    return Depth(
        says=f"Error by depth at {len(activations)} layers on {batch.name} inputs, log scale: {found}.",
        series=(
            Series("PyTorch float32: the rounding floor", floors, "floor", "broad"),
            Series("the port's graph", errors, "pytorch", "circles"),
        ),
        groups=activation_groups(activations),
        limits=(SINGLE, _HALF) if "float16" in (run.weights, run.arithmetic) else (SINGLE,),
        mark=mark,
        band=(floors, batch.factor),
    )


def _inputs(inputs: Sequence[InputRun]) -> Table:
    rows = tuple(
        Row(
            batch.name,
            (
                f"{batch.error:.1e}",
                f"{batch.floor:.1e}",
                f"{batch.distance:.2e}",
                f"{batch.row_distance:.1e}",
            ),
        )
        for batch in inputs
    )
    headings = ("error,\nfloat64", "floor,\nfloat32", "embeddings,\nsource", "largest row,\nsource")
    return Table("input", headings, rows)
