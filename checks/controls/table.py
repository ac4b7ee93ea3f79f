"""The controls on the screen: a line for each class of faults, what went wrong, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.table import Table

from checks.controls.run import ControlReport, SiteResult
from checks.core import thresholds
from checks.core.activations import short_name
from checks.core.judgement import Judgement
from checks.core.render import print_judgements
from converter import command_line

_WIDTH = 110  # columns; rather a wrapped line than a figure cut off


def show(report: ControlReport) -> None:
    """Print a report on stdout."""
    console = command_line.console(_WIDTH)
    console.print(f"[bold]{report.source}[/]")
    if not report.own_averages:
        console.print("No moving averages of its own; its weights moved by about 1e-3 stand in.")
    console.print()
    if report.sites:
        console.print(_classes(report.sites))
        console.print()
    for site in report.applicable:
        for line in remarks(site):
            console.print(line, markup=False)
    for run in report.false_alarms:
        for alarm in run.alarms:
            console.print(f"false alarm, seed {run.seed}: {alarm}", markup=False)
    print_judgements(console, summary(report))
    verdict = "The checks hold." if report.passed else "The checks are not worth what they say."
    style = "bold green" if report.passed else "bold red"
    console.print(f"\n[{style}]{verdict}[/] {report.seconds:.0f} s")


def _classes(sites: Sequence[SiteResult]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class of faults", no_wrap=True)
    for heading in ("killed", "place\nexact", "cause\nnamed", "inputs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("setting", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for kind, of_kind in groupby(sites, key=lambda site: site.kind):
        table.add_row(f"[bold]{kind}[/]")
        for name, of_class in groupby(of_kind, key=lambda site: site.fault):
            table.add_row(*_row(name, list(of_class)))
    return table


def _row(name: str, sites: Sequence[SiteResult]) -> tuple[str, ...]:
    found = [site for site in sites if site.status != "does not apply"]
    if not found:
        return (f"  {name}", "-", "-", "-", "-", "not in this checkpoint", "")
    count = len(found)
    killed = sum(site.killed for site in found)
    exact = sum(site.exact for site in found)
    explained = sum(site.explained for site in found)
    good = killed == exact == count
    shown = f"  {name}" if good else f"  [bold red]{name}[/]"
    causes = f"{explained}/{count}" if any(site.cause for site in found) else "-"
    return (
        shown,
        f"{killed}/{count}",
        f"{exact}/{count}",
        causes,
        _span(site.inputs for site in found),
        _listed(site.setting for site in found),
        _listed(judgement for site in found for judgement in site.judgements),
    )


def _span(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def remarks(site: SiteResult) -> list[str]:
    """What is to be said of a site that was not found as it should be."""
    where = f"{site.fault} at {short_name(site.site)}"
    if site.status == "not equivalent":
        return [
            f"{where}: declared not to show in inference, but shows at {short_name(site.place or 'no activation')}"
        ]
    if not site.killed:
        return [f"{where}: survived ({site.setting})"]
    lines = []
    if not site.exact:
        lines.append(
            f"{where}: placed at {short_name(site.place or 'no activation')}, is at {short_name(site.true_place)}"
        )
    if site.cause is not None and not site.explained:
        named = f"called {site.named}" if site.named else "cause not named"
        lines.append(f"{where}: {named}, is {site.cause}")
    return lines


def summary(report: ControlReport) -> list[Judgement]:
    """What the controls came to, in the form of judgements."""
    sites = report.applicable
    count = len(sites)
    classes = len({site.fault for site in report.sites})
    killed = sum(site.killed for site in sites)
    left_out = len(report.sites) - count
    statement = f"{killed} of {count} faults, in {classes} {'class' if classes == 1 else 'classes'}"
    if left_out:
        statement += f"; {left_out} more are in layers that this checkpoint does not have"
    lines = [Judgement("killed", not report.surviving, statement)]
    elsewhere = Counter(site.setting for site in sites if site.setting != "inference")
    if elsewhere:
        settings = ", ".join(f"{setting} {number}" for setting, number in elsewhere.items())
        wrong = sum(site.status == "not equivalent" for site in sites)
        statement = (
            f"{elsewhere.total() - wrong} show nothing on two inputs of 160x160 in inference, as declared, "
            f"and are to be killed elsewhere: {settings}"
        )
        lines.append(Judgement("equivalent", not wrong, statement))
    exact, explained = (sum(getattr(site, name) for site in sites) for name in ("exact", "explained"))
    place = f"exact for {exact} of {count} ({report.places:.1%}; at least {thresholds.PLACES:.0%})"
    lines.append(Judgement("place", report.places >= thresholds.PLACES, place))
    cause = f"named for {explained} of {count} ({report.causes:.1%}; "
    cause += f"at least {thresholds.CAUSES:.0%}{'' if report.whole else ' of the whole catalog'})"
    lines.append(Judgement("cause", report.enough_causes, cause))
    if report.clean:
        alarms = f"{len(report.false_alarms)} false alarms in {len(report.clean)} clean runs"
        lines.append(Judgement("clean", not report.false_alarms, alarms))
    return lines
