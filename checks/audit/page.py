"""The page of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from checks.audit.judge import judge_distance
from checks.audit.result import AuditResult, GraphRun, InputRun, Status, TensorResult
from checks.core import thresholds
from checks.core.inputs import NOISE
from checks.core.network import short_name
from checks.report.axis_groups import activation_groups
from checks.report.charts import Chart, Drawer
from checks.report.depth_chart import SINGLE, Depth, Limit, Mark, Series
from checks.report.histogram_chart import Counts, Panel
from checks.report.page import Head, Row, Table, write_html
from checks.report.provenance import provenance, shown_path

_MOST_TENSORS = 3000  # in the grid and the table; the network has about 700
_STATUS_COLUMN = 2
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
class TensorCell:
    """A tensor in the grid.

    Attributes:
        status: CSS class.
        sign: Stands in the cell besides its colour.
        degree: How far the tensor is off: 0 not at all, to 3.
        description: Shown where the pointer is.
    """

    status: str
    sign: str
    degree: int
    description: str


def write_page(path: Path, result: AuditResult, *, command: str) -> None:
    """Write the page of an audit.

    Args:
        path: The file; an older page is replaced.
        result: The result.
        command: As it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
    """
    drawer = Drawer()
    shown = result.tensors[:_MOST_TENSORS]
    run = result.run
    bad = [tensor for tensor in result.tensors if not tensor.is_faithful]
    write_html(
        path,
        "audit/page.html",
        _head(result, bad),
        provenance(command, result.files, result.environment, result.seed),
        result=result,
        stages=_grid(shown),
        legend=_legend(result.tensors),
        unshown=len(result.tensors) - len(shown),
        bad=_tensor_table(bad[:_MOST_TENSORS]),
        bad_unshown=len(bad[_MOST_TENSORS:]),
        tensors=_tensor_table(shown),
        histogram=_histogram(drawer, result.tensors),
        runs=[] if run is None else _runs(drawer, run),
        inputs=None if run is None else _inputs(run),
    )


def _head(result: AuditResult, bad: Sequence[TensorResult]) -> Head:
    reasons = [(tensor.status.capitalize(), _line(tensor)) for tensor in bad[:2]]
    if len(bad) > len(reasons):
        reasons.append(("In all", f"{len(bad)} of {len(result.tensors)} tensors differ from the source"))
    place = bad[0].name if bad else ""
    if result.run is not None and result.run.first_divergence is not None:
        place = place or short_name(result.run.first_divergence)
        reasons.append(("First divergence", f"{short_name(result.run.first_divergence)}, when run"))
    if result.recognised:
        reasons.append(("Recognised", result.recognised))
    return Head(
        command="audit",
        passed=result.passed,
        word="Sound" if result.passed else "Differs",
        sentence=result.verdict,
        facts=(
            ("port", shown_path(result.port)),
            ("format", result.format),
            ("against", shown_path(result.source)),
            ("network", result.network),
        ),
        judgements=result.judgements,
        place="" if result.passed else place,
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


def _grid(tensors: Sequence[TensorResult]) -> list[tuple[str, list[TensorCell]]]:
    """The tensors by stage, in the order in which the stages come."""
    stages: dict[str, list[TensorCell]] = {}
    for tensor in tensors:
        description = [tensor.name, tensor.status]
        if tensor.max_ulp:
            description.append(_ulps(tensor.max_ulp))
        cell = TensorCell(
            tensor.status.replace(" ", "-"),
            _SIGNS.get(tensor.status, ""),
            _degree(tensor),
            " · ".join(description),
        )
        stages.setdefault(tensor.stage or "elsewhere", []).append(cell)
    return list(stages.items())


def _degree(tensor: TensorResult) -> int:
    """How far a tensor is off: a few units in the last place, up to a per cent or so, or altogether."""
    if tensor.is_faithful:
        return 0
    return 1 if 0 < tensor.max_ulp <= 16 else 2 if 0 < tensor.max_ulp <= 1 << 16 else 3


def _legend(tensors: Sequence[TensorResult]) -> list[tuple[TensorCell, int, str]]:
    counts: dict[Status, int] = {}
    for tensor in tensors:
        counts[tensor.status] = counts.get(tensor.status, 0) + 1
    return [
        (
            TensorCell(
                status.replace(" ", "-"), _SIGNS.get(status, ""), 3 if status == "differs" else 0, status
            ),
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
        failed = () if tensor.is_faithful else (_STATUS_COLUMN,)
        rows.append(Row(tensor.name, cells, "fault" if failed else "", failed))
    headings = ("differing", "max ULP", "status", "remark", "shape", "dtype", "layout", "variable")
    return Table("tensor", headings, tuple(rows), words=6)


def _histogram(drawer: Drawer, tensors: Sequence[TensorResult]) -> Chart | None:
    differing = [tensor for tensor in tensors if tensor.differing and tensor.ulp_histogram]
    if not differing:
        return None
    pooled = tuple(map(sum, zip_longest(*(tensor.ulp_histogram for tensor in differing), fillvalue=0)))
    title = f"{len(differing)} {'tensor' if len(differing) == 1 else 'tensors'}"
    says = f"Differences of {title} from the source, in units in the last place"
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
        mark, finding = None, f"the largest error is {max(errors):.1e}"
    else:
        name = short_name(activations[diverging])
        mark, finding = Mark(diverging, "first divergence", name), f"it diverges first at {name}"
    return Depth(
        says=f"Error by depth at {len(activations)} layers on {batch.name} inputs, log scale: {finding}.",
        series=(
            Series("PyTorch float32: the rounding floor", floors, "floor", "broad"),
            Series("the port's graph", errors, "pytorch", "circles"),
        ),
        groups=activation_groups(activations),
        limits=(SINGLE, _HALF) if "float16" in (run.weights, run.arithmetic) else (SINGLE,),
        mark=mark,
        band=(floors, batch.factor),
    )


def _inputs(run: GraphRun) -> Table:
    rows = []
    for batch in run.inputs:
        failed = {
            0: not batch.error <= batch.runtime_factor * batch.floor,
            2: batch.name == NOISE and not judge_distance(run).passed,
        }
        failing = tuple(place for place, fails in failed.items() if fails)
        figures = (batch.error, batch.floor, batch.distance, batch.row_distance)
        rows.append(Row(batch.name, tuple(f"{f:.1e}" for f in figures), "fault" if failing else "", failing))
    headings = ("float64\nerror", "PyTorch's\nfloat64 error", "distance\nfrom source", "largest row,\nsource")
    explanations = (
        "the graph's embeddings from the float64 network with the graph's own weights, as relative L2",
        "PyTorch's embeddings from the same, in the graph's precision",
        "the graph's embeddings from those of the source's weights in float64 (Frobenius)",
        "the largest such distance of one image's embedding",
    )
    return Table("input", headings, tuple(rows), explanations=explanations)
