"""The report of `checks.controls`."""

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
class Cell:
    """How many sites of a class, and the share of them in quarters; `lacking` marks a fault of the checks."""

    count: int
    quarters: int
    lacking: bool = False


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class of faults: which judgements killed how many of its sites.

    Attributes:
        name: Of the class.
        sites: How many this checkpoint has.
        killed: How many were found.
        place: How many were found where they are.
        cause: For how many the cause was named; None where the diagnosis has no name for it.
        by: For each judgement of the matrix.
        where: Each site with what became of it, in words.
    """

    name: str
    sites: int
    killed: Cell
    place: Cell
    cause: Cell | None
    by: tuple[Cell, ...]
    where: tuple[str, ...]

    @property
    def survived(self) -> bool:
        """Whether any site was not found as it should be."""
        return self.killed.lacking


def write_page(path: Path, report: ControlsResult, *, command: str) -> None:
    """Write the report of the controls.

    Args:
        path: Where it will stand; nothing there is replaced.
        report: What was found.
        command: As it was typed.

    Raises:
        UsageError: The file exists, or its folder does not.
    """
    found = {judgement for site in report.sites for judgement in site.judgements}
    columns = (*(name for name in _ORDER if name in found), *sorted(found.difference(_ORDER)))
    kinds = [
        (
            kind,
            [_row(name, list(sites), columns) for name, sites in groupby(of_kind, lambda site: site.fault)],
        )
        for kind, of_kind in groupby(report.sites, lambda site: site.kind)
    ]
    write_html(
        path,
        "controls/page.html",
        _head(report),
        provenance(command, digests(report.files), environment(), report.seed, WORKERS),
        columns=columns,
        kinds=kinds,
        remarks=[remark for site in report.applicable for remark in remarks(site)],
        alarms=_alarms(report),
        clean=len(report.clean),
    )


def _alarms(report: ControlsResult) -> list[str]:
    return [f"seed {run.seed}: {alarm}" for run in report.false_alarms for alarm in run.alarms]


def _head(report: ControlsResult) -> Head:
    survivors = report.surviving
    place = f"{survivors[0].fault} at {short_name(survivors[0].site)}" if survivors else ""
    reasons = [("Survived" if not site.killed else "Place", remarks(site)[0]) for site in survivors]
    reasons += [("False alarm", alarm) for alarm in _alarms(report)]
    if report.passed:
        sentence = "The checks find every fault that was planted."
    elif place:
        sentence = "The checks miss a planted fault:"
    else:
        sentence = "The checks are not worth what they say."
    averages = "the checkpoint's own" if report.own_averages else "its weights moved by about 1e-3"
    return Head(
        command="controls",
        passed=report.passed,
        word="Proven" if report.passed else "Fails",
        sentence=sentence,
        facts=(
            ("source", shown_path(report.source)),
            ("planted", f"{len(report.applicable)} faults in {len({s.fault for s in report.sites})} classes"),
            ("clean runs", str(len(report.clean)) if report.clean else "none"),
            ("moving averages", averages),
        ),
        judgements=tuple(summary(report)),
        place=place,
        reasons=tuple(reasons),
    )


def _row(name: str, sites: Sequence[SiteResult], columns: Sequence[str]) -> ClassRow:
    found = [site for site in sites if site.status != "does not apply"]
    count = len(found)

    def cell(number: int, *, lacking: bool = False) -> Cell:
        return Cell(number, -(-4 * number // count) if count else 0, lacking)

    killed = sum(site.killed for site in found)
    exact = sum(site.exact for site in found)
    explained = sum(site.explained for site in found)
    return ClassRow(
        name=name,
        sites=count,
        killed=cell(killed, lacking=killed < count),
        place=cell(exact, lacking=exact < count),
        cause=cell(explained) if any(site.cause for site in found) else None,
        by=tuple(cell(sum(judgement in site.judgements for site in found)) for judgement in columns),
        where=tuple(_words(site) for site in sites),
    )


def _words(site: SiteResult) -> str:
    by = f" by {', '.join(site.judgements)}" if site.judgements else ""
    setting = "" if site.setting == "inference" else f" ({site.setting})"
    return f"{short_name(site.site)}: {site.status}{by}{setting}"
