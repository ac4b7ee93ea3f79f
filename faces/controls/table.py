"""Prints the result of the face controls: verdict, judgements, stages; with `verbose` the faults as well."""

from __future__ import annotations

import math

from checks.controls.table import times
from checks.core import thresholds
from checks.core.judgement import Judgement
from checks.core.render import Row, Table, print_judgements, print_table
from converter import command_line
from converter.counts import counted
from faces.controls.result import FaceControlsResult, PlantedFault

_WIDTH = 190  # columns; a line may wrap, a figure is not cut off
_EQUAL = "equal or not"


def print_result(result: FaceControlsResult, *, verbose: bool = False) -> None:
    """Print a result on stdout.

    Args:
        result: The result.
        verbose: Whether to print the table of faults.
    """
    console = command_line.console(_WIDTH)
    sentence = "The checks hold" if result.passed else "The checks do not hold"
    style = "bold green" if result.passed else "bold red"
    console.print(f"[{style}]{sentence}[/] from a photograph to a decision ({result.seconds:.0f} s)")
    print_judgements(console, summary(result))
    print_table(console, stage_table(result))
    if verbose:
        print_table(console, fault_table(result))


def summary(result: FaceControlsResult) -> list[Judgement]:
    """The judgements of the checks: killed, place, cause, clean, margins."""
    faults, alarms = result.faults, result.false_alarms
    count = len(faults)
    killed, placed, named = (
        [fault for fault in faults if getattr(fault, name)] for name in ("killed", "placed", "named")
    )
    judgements = [
        Judgement(
            "killed",
            not result.surviving,
            f"{len(killed)} of {counted(count, 'fault')}",
            tuple(f"{fault.fault}: survived: {fault.statement}" for fault in result.surviving),
        ),
        Judgement(
            "place",
            len(placed) == count,
            f"the judgement of its stage fails, and none before it, for {len(placed)} of {count}",
            tuple(_misplaced(fault) for fault in killed if not fault.placed),
        ),
        Judgement(
            "cause",
            len(named) == count,
            f"named for {len(named)} of {count}: no other fault of the stage gives the same result",
            tuple(_unnamed(fault) for fault in placed if not fault.named),
        ),
        Judgement(
            "clean",
            not alarms,
            f"{counted(len(alarms), 'false alarm')} in {len(result.stages)} judgements without a fault",
            tuple(
                f"{stage.stage}: {stage.judgement.statement}{_as_with(stage.explained_by)}"
                for stage in alarms
            ),
        ),
    ]
    if result.margins:
        judgements.append(_judge_margins(result))
    return judgements


def _misplaced(fault: PlantedFault) -> str:
    return f"{fault.fault}: found at {', '.join(fault.failed)}, but is at {fault.stage}"


def _unnamed(fault: PlantedFault) -> str:
    return f"{fault.fault}: its result is also that of {', '.join(set(fault.explained_by) - {fault.fault})}"


def _as_with(faults: tuple[str, ...]) -> str:
    return f", as with {' or '.join(faults)}" if faults else ""


def _judge_margins(result: FaceControlsResult) -> Judgement:
    clean, fault = (min(getattr(margin, side) for margin in result.margins) for side in ("clean", "fault"))
    statement = f"smallest of limit over clean {times(clean)}, of fault over limit {times(fault)}"
    statement += f" (both at least {thresholds.MARGIN:g})"
    return Judgement("margins", all(margin.holds for margin in result.margins), statement)


def stage_table(result: FaceControlsResult) -> Table:
    """Tabulate the stages: without a fault, and the margins of their judgements."""
    margins = {margin.judgement: margin for margin in result.margins}
    rows = []
    for stage in result.stages:
        faults = [fault for fault in result.faults if fault.stage == stage.stage]
        margin = margins.get(stage.stage)
        sides = (times(margin.clean), times(margin.fault), margin.nearest) if margin else ("", "", "")
        cells = (
            f"{stage.value:.1e}" if stage.value % 1 else f"{stage.value:g}",
            f"{stage.bound:g} {stage.unit}".rstrip() if stage.bound else _EQUAL,
            f"{sum(fault.named for fault in faults)} of {len(faults)}" if faults else "",
            *sides,
            stage.judge,
        )
        rows.append(Row(stage.stage, cells, () if stage.judgement.passed else (0,)))
    headings = (
        "without\na fault",
        "limit",
        "named\nfaults",
        "limit over\nclean",
        "fault over\nlimit",
        "nearest fault",
        "judged by",
    )
    return Table("stage", headings, tuple(rows), text_columns=2)


def fault_table(result: FaceControlsResult) -> Table:
    """Tabulate the faults: the difference from the original, and what is wrong."""
    stages = {stage.stage: stage for stage in result.stages}
    rows = []
    for fault in result.faults:
        bound = stages[fault.stage].bound
        cells = (
            "other faces" if math.isinf(fault.value) else f"{fault.value:.2g}",
            times(fault.value / bound) if bound else _EQUAL,
            "yes" if fault.named else "at its stage" if fault.placed else "no",
            fault.stage,
            fault.description,
        )
        rows.append(Row(fault.fault, cells, () if fault.named else (2,)))
    headings = ("difference", "over\nlimit", "named", "stage", "what is wrong")
    explanations = (
        "from the original, without a unit or in pixels; of photographs and crops the number of unequal ones",
        "the difference over the limit of its stage",
        "whether no other fault of the stage gives the same result",
        "the stage whose judgement fails, and none before it",
        "one function or constant that is replaced",
    )
    return Table("fault", headings, tuple(rows), 3, explanations)
