"""The page of an audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from checks.audit.judge import describe_tensor
from checks.audit.result import WEAKER, AuditResult, GraphRun, InputRun, Status, TensorResult
from checks.audit.table import STATUS_MEANINGS, quantiser_table, run_table
from checks.core import thresholds
from checks.core.metrics import exact_value, figure
from checks.core.network import short_name
from checks.core.render import Row, Table
from checks.report.charts import Chart, Drawer
from checks.report.content import Head
from checks.report.depth_chart import SINGLE, Depth, Limit, Mark, Series
from checks.report.histogram_chart import Counts, Panel
from checks.report.network_parts import activation_groups
from checks.report.page import write_html
from checks.report.provenance import provenance, shown_path

_MOST_TENSORS = 3000  # in the grid and the table; the network has about 700
_HALF = Limit("unit roundoff of float16", "2⁻¹¹", thresholds.HALF_ROUNDOFF)

_SIGNS: dict[Status, str] = {
    "differs": "✕", "missing": "∅", "extra": "+", "approximate": "≈", "rounded": "½", "folded": "▪",
    "quantised": "▫",
}  # fmt: skip
"""The sign in a cell, for readers who do not see its colour."""

_TENSOR_COLUMNS = (
    "differing", "max ULP", "largest\ndifference", "at", "expected", "actual",
    "status", "remark", "shape", "dtype", "layout", "PyTorch key", "TensorFlow variable",
)  # fmt: skip
_STATUS_COLUMN = _TENSOR_COLUMNS.index("status")


@dataclass(frozen=True, slots=True)
class TensorCell:
    """A tensor in the grid.

    Attributes:
        status: The CSS class of its status.
        sign: The sign in the cell.
        degree: The size of its difference, from 0, which is none, to 3.
        description: The text that the pointer brings up.
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
        command: The command as it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
    """
    drawer = Drawer()
    shown = result.tensors[:_MOST_TENSORS]
    run = result.run
    unfaithful = [tensor for tensor in result.tensors if not tensor.is_faithful]
    write_html(
        path,
        "audit/page.html",
        _head(result, unfaithful),
        provenance(command, result.files, result.environment, result.seed),
        result=result,
        stages=_grid(shown),
        legend=_legend(result.tensors),
        unshown=len(result.tensors) - len(shown),
        unfaithful=_tensor_table(unfaithful[:_MOST_TENSORS]),
        unfaithful_unshown=len(unfaithful[_MOST_TENSORS:]),
        tensors=_tensor_table(shown),
        histogram=_histogram(drawer, result.tensors),
        runs=[] if run is None else _runs(drawer, run),
        inputs=None if run is None else run_table(run),
        quantisers=None if result.quantised is None else quantiser_table(result.quantised),
    )


def _head(result: AuditResult, unfaithful: Sequence[TensorResult]) -> Head:
    place, reasons = "", []
    if unfaithful:
        place = unfaithful[0].name
        reasons += describe_tensor(unfaithful[0])[1:]  # its name is the place
    if len(unfaithful) > 1:
        reasons.append(("In all", f"{len(unfaithful)} of {len(result.tensors)} tensors are not faithful"))
    if result.run is not None and result.run.first_divergence is not None:
        place = place or short_name(result.run.first_divergence)
        reasons.append(("First divergence", f"{short_name(result.run.first_divergence)}, when run"))
    if result.not_understood:
        reasons.append(("Not understood", result.not_understood))
    if result.not_run:
        reasons.append(("Not run", result.not_run))
    if result.recognised:
        reasons.append(("Recognised", result.recognised))
    return Head(
        command="audit",
        passed=result.passed,
        word=_word(result),
        is_weaker=result.exit_code == WEAKER,
        sentence=result.verdict,
        facts=(
            ("port", shown_path(result.port)),
            ("format", result.format),
            ("against", shown_path(result.source)),
            ("network", result.network),
            *(("names", statement) for statement in result.names),
        ),
        judgements=result.judgements,
        place="" if result.passed else place,
        reasons=tuple(reasons),
    )


def _word(result: AuditResult) -> str:
    """The verdict in a word or two."""
    if result.broken is not None and not result.differs:
        return "Broken source"
    if result.passed and result.quantised is not None:
        return "Faithfully quantised"
    return {0: "Sound", WEAKER: "Weaker proof"}.get(result.exit_code, "Differs")


def _ulps(steps: int) -> str:
    return f"{steps:.0e} ULP" if steps > 99999 else f"{steps} ULP"


def _grid(tensors: Sequence[TensorResult]) -> list[tuple[str, list[TensorCell]]]:
    """Group the tensors by stage, in the order of the network."""
    stages: dict[str, list[TensorCell]] = {}
    for tensor in tensors:
        description = [tensor.name, tensor.status, *([_ulps(tensor.max_ulp)] if tensor.max_ulp else [])]
        cell = _cell(tensor.status, _degree(tensor), " · ".join(description))
        stages.setdefault(tensor.stage or "no layer", []).append(cell)
    return list(stages.items())


def _cell(status: Status, degree: int, description: str) -> TensorCell:
    return TensorCell(status.replace(" ", "-"), _SIGNS.get(status, ""), degree, description)


def _degree(tensor: TensorResult) -> int:
    """The size of a difference: 1 up to 16 units in the last place, 2 up to about a per cent, 3 beyond."""
    if tensor.is_faithful:
        return 0
    return 1 if 0 < tensor.max_ulp <= 16 else 2 if 0 < tensor.max_ulp <= 1 << 16 else 3


def _legend(tensors: Sequence[TensorResult]) -> list[tuple[TensorCell, int, str]]:
    counts = Counter(tensor.status for tensor in tensors)
    return [
        (_cell(status, 3 if status == "differs" else 0, status), counts[status], meaning)
        for status, meaning in STATUS_MEANINGS.items()
        if counts[status]
    ]


def _tensor_table(tensors: Sequence[TensorResult]) -> Table:
    rows = []
    for tensor in tensors:
        cells = (
            f"{tensor.differing} of {tensor.values}" if tensor.differing else "",
            "not finite" if tensor.not_finite else str(tensor.max_ulp) if tensor.max_ulp else "",
            "" if tensor.index is None else figure(tensor.max_abs),
            "" if tensor.index is None else ", ".join(map(str, tensor.index)),
            "" if tensor.expected is None else exact_value(tensor.expected),
            "" if tensor.actual is None else exact_value(tensor.actual),
            tensor.status,
            tensor.detail,
            ("×".join(map(str, tensor.shape)) or "scalar") if tensor.dtype else "",  # noqa: RUF001
            tensor.dtype,
            tensor.layout,
            tensor.key,
            tensor.variable,
        )
        rows.append(Row(tensor.name, cells, () if tensor.is_faithful else (_STATUS_COLUMN,)))
    return Table("tensor", _TENSOR_COLUMNS, tuple(rows), text_columns=len(_TENSOR_COLUMNS) - _STATUS_COLUMN)


def _histogram(drawer: Drawer, tensors: Sequence[TensorResult]) -> Chart | None:
    differing = [tensor for tensor in tensors if tensor.differing and tensor.ulp_histogram]
    if not differing:
        return None
    pooled = tuple(map(sum, zip_longest(*(tensor.ulp_histogram for tensor in differing), fillvalue=0)))
    title = f"{len(differing)} {'tensor' if len(differing) == 1 else 'tensors'}"
    description = f"Differences of {title} from the source, in units in the last place"
    return drawer.histograms(description, (Panel(title, (Counts("values of the port", pooled, "pytorch"),)),))


def _runs(drawer: Drawer, run: GraphRun) -> list[tuple[InputRun, Chart]]:
    """Draw error by depth on every input; the inputs on which a layer diverges come first."""
    layered = [batch for batch in run.inputs if batch.layers]
    layered.sort(key=lambda batch: not batch.diverging)
    return [(batch, drawer.depth(_depth(run, batch))) for batch in layered]


def _depth(run: GraphRun, batch: InputRun) -> Depth:
    activations = [layer.activation for layer in batch.layers]
    errors = tuple(layer.error for layer in batch.layers)
    bounds = tuple(layer.bound for layer in batch.layers)
    if batch.diverging:
        first = batch.diverging[0].activation
        name = short_name(first)
        mark = Mark(activations.index(first), "first divergence", name)
        finding = f"it diverges first at {name}"
    else:
        mark = None
        finding = f"the largest error is {figure(max(errors))}"
    return Depth(
        description=(
            f"Error of {len(activations)} layers, each on its own input, on {batch.name} inputs, log scale: "
            f"{finding}."
        ),
        series=(
            Series("the largest that rounding allows", bounds, "floor", "broad"),
            Series("the port's graph", errors, "pytorch", "circles"),
        ),
        groups=activation_groups(activations),
        limits=(SINGLE, _HALF) if "float16" in (run.weights, run.arithmetic) else (SINGLE,),
        mark=mark,
    )
