"""Print the faces of photographs on the terminal: a line for each face, and the total."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from converter import command_line
from converter.counts import counted
from converter.free_names import printable_name
from faces.backends.facts import BackendFacts
from faces.detect.result import DetectionResult, Face

_HEADINGS = (
    "photograph",
    "size",
    "score",
    "left",
    "top",
    "right",
    "bottom",
    "eyes, nose, corners of the mouth",
)
_FIGURES = 110  # columns of a terminal that the figures and landmarks need
_SHORT_NAME = 20  # columns that a name needs beside them; longer ones are folded


def print_result(result: DetectionResult) -> None:
    """Print the result on stdout."""
    longest = max((len(str(photograph.path)) for photograph in result.photographs), default=0)
    console = command_line.console()
    if not console.is_terminal:
        console.width = max(console.width, _FIGURES + longest)
    headings = _HEADINGS if console.width >= _FIGURES + min(longest, _SHORT_NAME) else _HEADINGS[:-1]
    if result.photographs:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(headings[0], overflow="fold")
        for heading in headings[1:]:
            left = heading == _HEADINGS[-1]
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
        for photograph in result.photographs:
            place = (escape(printable_name(photograph.path)), f"{photograph.width}x{photograph.height}")
            if not photograph.faces:
                table.add_row(*place, "[red]no face[/]")
            for face in photograph.faces:
                table.add_row(*(*place, *_cells(face))[: len(headings)])
                place = ("", "")
        console.print(table)
    console.print(_total(result))
    print_detector(console, result.backend)


def print_detector(console: Console, detector: BackendFacts | None) -> None:
    """Print what ran the detector, if it was needed and is not PyTorch, or why another is not used."""
    if detector and detector.statement:
        console.print(f"detector   {detector.statement}", markup=False)


def _cells(face: Face) -> tuple[str, ...]:
    landmarks = "  ".join(f"{x:.0f},{y:.0f}" for x, y in face.landmarks)
    return (f"{face.score:.4f}", *(f"{side:.1f}" for side in face.box), landmarks)


def _total(result: DetectionResult) -> str:
    photographs, without = len(result.photographs), result.without_face
    total = f"{counted(result.faces, 'face')} in {counted(photographs, 'photograph')}"
    if without:
        total += f"; {without} without a face"
    if result.problems:
        total += f"; {len(result.problems)} could not be read"
    return total
