"""The page of the controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from checks.controls.plant_faults import WORKERS
from checks.controls.result import ControlsResult, SiteResult
from checks.controls.table import remarks, summary
from checks.core.environment import environment
from checks.core.network import short_name
from checks.report.page import Head, write_html
from checks.report.provenance import digests, provenance, shown_path

_ORDER = ("tensors", "mapping", "rounding", "headline", "run", "gradients", "SGD", "Adam")
"""The judgements as the settings come: what a state_dict is, what inference gives, what training does."""


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """A count of sites and its share in quarters; `lacking` marks a fault of the checks."""

    count: int
    quarters: int
    lacking: bool = False


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class of faults: which judgements killed how many of its sites.

    Attributes:
        name: The name of the class.
        sites: The number of its sites in this checkpoint.
        killed: How many were found.
        place: How many were found at their place.
        cause: For how many the cause was named; None where the diagnosis has no name for it.
        by: The same for each judgement of the matrix.
        where: Each site and its outcome.
    """

    name: str
    sites: int
    killed: MatrixCell
    place: MatrixCell
    cause: MatrixCell | None
    by: tuple[MatrixCell, ...]
    where: tuple[str, ...]

    @property
    def survived(self) -> bool:
        """Tell whether any site was not found as it should be."""
        return self.killed.lacking


def write_page(path: Path, result: ControlsResult, *, command: str) -> None:
    """Write the page of the controls.

    Args:
        path: The file; an older page is replaced.
        result: The result.
        command: As it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
    """
    raised = {judgement for site in result.sites for judgement in site.judgements}
    columns = (*(name for name in _ORDER if name in raised), *sorted(raised.difference(_ORDER)))
    kinds = [
        (
            kind,
            [_row(name, list(sites), columns) for name, sites in groupby(of_kind, lambda site: site.fault)],
        )
        for kind, of_kind in groupby(result.sites, lambda site: site.kind)
    ]
    write_html(
        path,
        "controls/page.html",
        _head(result),
        provenance(command, digests(result.files), environment(), result.seed, WORKERS),
        columns=columns,
        kinds=kinds,
        remarks=[remark for site in result.applicable for remark in remarks(site)],
        alarms=_alarms(result),
        clean=len(result.clean),
    )


def _alarms(result: ControlsResult) -> list[str]:
    return [f"seed {run.seed}: {alarm}" for run in result.false_alarms for alarm in run.alarms]


def _head(result: ControlsResult) -> Head:
    survivors = result.surviving
    place = f"{survivors[0].fault} at {short_name(survivors[0].site)}" if survivors else ""
    reasons = [("Survived" if not site.killed else "Place", remarks(site)[0]) for site in survivors]
    reasons += [("False alarm", alarm) for alarm in _alarms(result)]
    if result.passed:
        sentence = "The checks find every fault that was planted."
    elif place:
        sentence = "The checks miss a planted fault:"
    else:
        sentence = "The checks miss what they promise."
    averages = "the checkpoint's own" if result.own_averages else "its weights moved by about 1e-3"
    return Head(
        command="controls",
        passed=result.passed,
        word="Proven" if result.passed else "Fails",
        sentence=sentence,
        facts=(
            ("source", shown_path(result.source)),
            ("planted", f"{len(result.applicable)} faults in {len({s.fault for s in result.sites})} classes"),
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

    def cell(number: int, *, lacking: bool = False) -> MatrixCell:
        return MatrixCell(number, -(-4 * number // count) if count else 0, lacking)

    killed = sum(site.killed for site in planted)
    exact = sum(site.exact for site in planted)
    explained = sum(site.explained for site in planted)
    return ClassRow(
        name=name,
        sites=count,
        killed=cell(killed, lacking=killed < count),
        place=cell(exact, lacking=exact < count),
        cause=cell(explained) if any(site.cause for site in planted) else None,
        by=tuple(cell(sum(judgement in site.judgements for site in planted)) for judgement in columns),
        where=tuple(_describe(site) for site in sites),
    )


def _describe(site: SiteResult) -> str:
    by = f" by {', '.join(site.judgements)}" if site.judgements else ""
    setting = "" if site.setting == "inference" else f" ({site.setting})"
    return f"{short_name(site.site)}: {site.status}{by}{setting}"
