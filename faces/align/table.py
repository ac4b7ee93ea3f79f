"""Print what `align` made on the terminal: the crops, the photographs without one, and what to look at."""

from __future__ import annotations

from collections import Counter

from rich.markup import escape

from converter import command_line
from converter.counts import counted
from converter.free_names import printable_name
from converter.home_folder import from_home
from faces.align.result import DOUBTS, AlignResult
from faces.crops import CROP_SIZES
from faces.detect.table import print_detector

_MOST_OTHERS = 3  # files that are no photographs, in a line


def print_result(result: AlignResult) -> None:
    """Print the result on stdout."""
    console = command_line.console()
    console.print(_headline(result), markup=False)
    console.print(f"table  {from_home(str(result.table))}", markup=False)
    print_detector(console, result.detector)
    for photograph in result.without_face:
        console.print(f"[red]none[/]   {escape(printable_name(photograph.name))}: no face")
    doubts = Counter(doubt.kind for photograph in result.photographs for doubt in photograph.doubts)
    counts = [f"{doubts[kind]} with {kind}" for kind in DOUBTS if doubts[kind]]
    if counts:
        listed = ", ".join(counts)
        console.print(f"doubt  {listed}: --report FILE.html shows them first", markup=False)
    if result.others:
        named = ", ".join(map(printable_name, result.others[:_MOST_OTHERS])) + (
            ", ..." if len(result.others) > _MOST_OTHERS else ""
        )
        console.print(f"other  {counted(len(result.others), 'file')} not searched: {named}", markup=False)


def _headline(result: AlignResult) -> str:
    size = CROP_SIZES[result.options.crop]
    people = len({photograph.person for photograph in result.photographs} - {""})
    shown = f" of {counted(people, 'person', 'people')}" if people else ""
    line = (
        f"{counted(result.crops, 'crop')} of {size}x{size} from "
        f"{counted(len(result.photographs), 'photograph')}{shown} in {from_home(str(result.out))}"
    )
    if result.earlier:
        line += f"; {result.earlier} of the photographs were done before"
    return line
