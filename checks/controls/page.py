"""The page of the controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from checks.controls.plant_faults import WORKERS
from checks.controls.result import ControlsResult, SiteResult
from checks.controls.table import false_alarms, margin_table, remarks, summary
from checks.core.environment import environment
from checks.core.network import short_name
from checks.report.content import Head
from checks.report.page import write_html
from checks.report.provenance import digests, provenance, shown_path
from converter.counts import counted

_ORDER = ("tensors", "mapping", "rounding", "headline", "run", "gradients", "SGD", "Adam")
"""The order of the judgements: of the state_dict, of inference, then of training."""


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """A count of sites, and its share of all sites in quarters; `lacking` marks a miss of the checks."""

    count: int
    quarters: int
    lacking: bool = False


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class of faults in the matrix.

    Attributes:
        name: The name of the class.
        sites: The number of its sites in this checkpoint.
        cells: The number of sites that each judgement found; then of those killed, placed and named, where
            None stands for a cause that the diagnosis has no name for.
        survived: Whether a site was not killed.
        outcomes: Each site and its outcome.
    """

    name: str
    sites: int
    cells: tuple[MatrixCell | None, ...]
    survived: bool
    outcomes: tuple[str, ...]


def write_page(path: Path, result: ControlsResult, *, command: str) -> None:
    """Write the page of the controls.

    Args:
        path: The file; an older page is replaced.
        result: The result.
        command: The command as it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
    """
    raised = {judgement for site in result.sites for judgement in site.judgements}
    columns = (*(name for name in _ORDER if name in raised), *sorted(raised.difference(_ORDER)))
    kinds = []
    for kind, of_kind in groupby(result.sites, lambda site: site.kind):
        by_fault = groupby(of_kind, lambda site: site.fault)
        kinds.append((kind, [_row(name, list(sites), columns) for name, sites in by_fault]))
    write_html(
        path,
        "controls/page.html",
        _head(result),
        provenance(command, digests(result.files), environment(), result.seed, WORKERS),
        columns=columns,
        kinds=kinds,
        remarks=[remark for site in result.applicable for remark in remarks(site)],
        alarms=false_alarms(result),
        clean=len(result.clean) + len(result.graphs),
        margins=margin_table(result.margins),
    )


def _head(result: ControlsResult) -> Head:
    survivors = result.surviving
    place = f"{survivors[0].fault} at {short_name(survivors[0].site)}" if survivors else ""
    reasons = [("Survived" if not site.killed else "Place", remarks(site)[0]) for site in survivors]
    reasons += [("False alarm", alarm) for alarm in false_alarms(result)]
    if result.passed:
        sentence = "The checks find every fault that was planted."
    elif place:
        sentence = "The checks miss a planted fault:"
    else:
        sentence = "The checks do not keep a promise."
    classes = len({site.fault for site in result.sites})
    planted = f"{counted(len(result.applicable), 'fault')} in {counted(classes, 'class', 'classes')}"
    averages = "the checkpoint's own" if result.own_averages else "none; its weights moved by about 1e-3"
    return Head(
        command="controls",
        passed=result.passed,
        word="Proven" if result.passed else "Fails",
        sentence=sentence,
        facts=(
            ("source", shown_path(result.source)),
            ("planted", planted),
            ("clean runs", str(len(result.clean)) if result.clean else "none"),
            ("moving averages", averages),
        ),
        judgements=tuple(summary(result)),
        place=place,
        reasons=tuple(reasons),
    )


def _row(name: str, sites: Sequence[SiteResult], columns: Sequence[str]) -> ClassRow:
    planted = [site for site in sites if site.status != "does not apply"]
    count = len(planted)

    def cell(count_found: int, *, must_be_all: bool = False) -> MatrixCell:
        quarters = -(-4 * count_found // count) if count else 0  # rounded up
        return MatrixCell(count_found, quarters, lacking=must_be_all and count_found < count)

    killed = cell(sum(site.killed for site in planted), must_be_all=True)
    cells = (
        *(cell(sum(judgement in site.judgements for site in planted)) for judgement in columns),
        killed,
        cell(sum(site.exact for site in planted), must_be_all=True),
        cell(sum(site.explained for site in planted)) if any(site.cause for site in planted) else None,
    )
    return ClassRow(name, count, cells, killed.lacking, tuple(map(_describe, sites)))


def _describe(site: SiteResult) -> str:
    by = f" by {', '.join(site.judgements)}" if site.judgements else ""
    setting = "" if site.setting == "inference" else f" ({site.setting})"
    return f"{short_name(site.site)}: {site.status}{by}{setting}"
