"""Prints the result of the controls: verdict, judgements, problems; with `verbose` the classes as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from checks.controls.margins import FAR, Margin
from checks.controls.result import ControlsResult, SiteResult
from checks.core import thresholds
from checks.core.judgement import Judgement
from checks.core.network import short_name
from checks.core.render import Row, Table, print_judgements, print_table
from converter import command_line
from converter.counts import counted
from converter.home_folder import from_home

_WIDTH = 110  # columns; a line may wrap, a figure is not cut off
_LINES = 15
_MOST_PROBLEMS = 6  # so that verdict, judgements and problems fit in these lines
_CLASS_COLUMNS = (
    ("killed", "sites whose fault was found, in its own setting only"),
    ("place\nexact", "sites where the first divergence is at the fault"),
    ("cause\nnamed", "sites whose cause the diagnosis names"),
    ("inputs\nrun", "the number of inputs that it took to find the fault"),
    ("setting", "the setting that shows the fault"),
    ("judgements", "the judgements that fail"),
)


def print_result(result: ControlsResult, *, verbose: bool = False) -> None:
    """Print a result on stdout.

    Args:
        result: The result.
        verbose: Whether to print the table of classes, and every problem instead of the first few.
    """
    console = command_line.console(_WIDTH)
    sentence = "The checks hold" if result.passed else "The checks do not hold"
    style = "bold green" if result.passed else "bold red"
    console.print(f"[{style}]{sentence}[/] on {escape(from_home(result.source))} ({result.seconds:.0f} s)")
    judgements = summary(result)
    print_judgements(console, judgements)
    margins = margin_lines(result.margins)
    for line in margins:
        console.print(line, markup=False)
    lines = problems(result)
    room = _LINES - len(judgements) - len(margins) - 2  # the verdict, and the count of the others
    shown = lines if verbose else lines[: min(_MOST_PROBLEMS, room)]
    for line in shown:
        console.print(line, markup=False, overflow="ignore", crop=False, no_wrap=True)
    if len(shown) < len(lines):
        console.print(f"... and {len(lines) - len(shown)} more; --verbose lists them")
    if verbose:
        _print_classes(console, result)


def problems(result: ControlsResult) -> list[str]:
    """A line for each fault not found, not placed or not named, and each false alarm; the worst first."""
    sites = sorted(result.applicable, key=lambda site: (site.killed, site.exact))
    lines = [line for site in sites if not site.exact for line in remarks(site)]
    lines += [f"false alarm, {alarm}" for alarm in false_alarms(result)]
    return lines + [line for site in sites if site.exact for line in remarks(site)]


def false_alarms(result: ControlsResult) -> list[str]:
    """A line for each false alarm: the seed, the file of a graph, and the judgement."""
    return [
        f"seed {run.seed}: {f'{Path(run.path).name}: ' if run.path else ''}{alarm}"
        for run in result.false_alarms
        for alarm in run.alarms
    ]


def remarks(site: SiteResult) -> list[str]:
    """The lines about a site whose fault was not found, placed or named."""
    where = f"{site.fault} at {short_name(site.site)}"
    place = short_name(site.place or "no activation")
    if site.status == "not equivalent":
        return [f"{where}: must not show in inference, but shows at {place}"]
    if not site.killed:
        return [f"{where}: survived ({site.setting})"]
    lines = []
    if not site.exact:
        lines.append(f"{where}: placed at {place}, but is at {short_name(site.true_place)}")
    if site.cause is not None and not site.explained:
        named = f'named "{site.named}"' if site.named else "cause not named"
        lines.append(f'{where}: {named}, but is "{site.cause}"')
    return lines


def summary(result: ControlsResult) -> list[Judgement]:
    """The judgements of the checks: killed, equivalent, place, cause, clean."""
    sites = result.applicable
    count = len(sites)
    classes = len({site.fault for site in result.sites})
    killed = sum(site.killed for site in sites)
    left_out = len(result.sites) - count
    statement = f"{killed} of {count} faults, in {counted(classes, 'class', 'classes')}"
    if left_out:
        statement += f"; {left_out} more are in layers that this checkpoint does not have"
    judgements = [Judgement("killed", not result.surviving, statement)]
    elsewhere: Counter[str] = Counter(site.setting for site in sites if site.setting != "inference")
    if elsewhere:
        judgements.append(_equivalent(sites, elsewhere))
    exact, explained = (sum(getattr(site, name) for site in sites) for name in ("exact", "explained"))
    place = f"exact for {exact} of {count} ({result.places:.1%}; at least {thresholds.PLACES:.0%})"
    judgements.append(Judgement("place", result.places >= thresholds.PLACES, place))
    of_all = "" if result.whole else " of all classes"
    cause = (
        f"named for {explained} of {count} ({result.causes:.1%}; at least {thresholds.CAUSES:.0%}{of_all})"
    )
    judgements.append(Judgement("cause", result.enough_causes, cause))
    if result.clean:
        alarms = counted(len(result.false_alarms), "false alarm")
        alarms += f" in {counted(len(result.clean) + len(result.graphs), 'clean run')}"
        judgements.append(Judgement("clean", not result.false_alarms, alarms))
    if result.margins:
        judgements.append(_margins(result.margins))
    return judgements


def _margins(margins: Sequence[Margin]) -> Judgement:
    """The judgement on the margins."""
    clean, fault = (min(getattr(margin, side) for margin in margins) for side in ("clean", "fault"))
    statement = (
        f"bound over clean ports at least {times(clean)}, planted faults over bound at least {times(fault)} "
        f"(both at least {thresholds.MARGIN:g})"
    )
    return Judgement("margins", all(margin.holds for margin in margins), statement)


def margin_lines(margins: Sequence[Margin]) -> list[str]:
    """A line for each command, with the two margins of each of its judgements; none without margins."""
    if not margins:
        return []
    lines = []
    for command, of_command in groupby(margins, key=lambda margin: margin.command):
        parts = (
            f"{each.judgement} {times(each.clean)} and {times(each.fault)}{'' if each.holds else ' (!)'}"
            for each in of_command
        )
        lines.append(f"       {command:<10} {', '.join(parts)}")
    return [*lines, "       tensors, structure and statistics count bits and places, which have no margin"]


def margin_table(margins: Sequence[Margin]) -> Table:
    """Tabulate the margins of every judgement, with the fault that is nearest to its bound."""
    rows = []
    for margin in margins:
        sides = (margin.clean, margin.fault)
        failed = tuple(index for index, side in enumerate(sides) if side < thresholds.MARGIN)
        rows.append(Row(margin.judgement, (*map(times, sides), margin.command, margin.nearest), failed))
    headings = ("bound over\nclean", "fault over\nbound", "command", "nearest fault")
    return Table("judgement", headings, tuple(rows), text_columns=2)


def times(factor: float) -> str:
    """Format a margin; beyond `FAR` it is not measured."""
    return f"{factor:.2f}" if factor < 10 else f"{factor:.0f}" if factor < FAR else f"over {FAR:g}"


def _equivalent(sites: Sequence[SiteResult], elsewhere: Counter[str]) -> Judgement:
    """The judgement on the faults that must not show in inference."""
    settings = ", ".join(f"{setting} {count}" for setting, count in elsewhere.items())
    wrong = sum(site.status == "not equivalent" for site in sites)
    statement = (
        f"{elsewhere.total() - wrong} do not show in inference, as declared, and are looked for elsewhere: "
    )
    return Judgement("equivalent", not wrong, statement + settings)


def _print_classes(console: Console, result: ControlsResult) -> None:
    if not result.own_averages:
        console.print(
            "\nThe checkpoint has no moving averages; its weights moved by about 1e-3 take their place."
        )
    if not result.sites:
        return
    rows = []
    for kind, of_kind in groupby(result.sites, key=lambda site: site.kind):
        rows.append(Row(kind, ("",) * len(_CLASS_COLUMNS), strong=True))
        rows += [_row(name, list(sites)) for name, sites in groupby(of_kind, key=lambda site: site.fault)]
    headings, explanations = zip(*_CLASS_COLUMNS, strict=True)
    print_table(console, Table("class of faults", headings, tuple(rows), 2, explanations))


def _row(name: str, sites: Sequence[SiteResult]) -> Row:
    applicable = [site for site in sites if site.status != "does not apply"]
    if not applicable:
        return Row(f"  {name}", ("-", "-", "-", "-", "not in this checkpoint", ""))
    count = len(applicable)
    killed, exact, explained = (
        sum(getattr(site, figure) for site in applicable) for figure in ("killed", "exact", "explained")
    )
    causes = f"{explained}/{count}" if any(site.cause for site in applicable) else "-"
    cells = (
        f"{killed}/{count}",
        f"{exact}/{count}",
        causes,
        _span(site.inputs for site in applicable),
        _listed(site.setting for site in applicable),
        _listed(judgement for site in applicable for judgement in site.judgements),
    )
    failed = tuple(index for index, number in enumerate((killed, exact)) if number < count)
    return Row(f"  {name}", cells, failed)


def _span(numbers: Iterable[int]) -> str:
    distinct = sorted(set(numbers))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]}-{distinct[-1]}"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))
