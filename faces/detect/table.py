"""Print the faces of photographs on the terminal: a line for each face, and the total."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from converter import command_line
from converter.counts import counted
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


def print_result(result: DetectionResult) -> None:
    """Print the result on stdout."""
    names = [str(photograph.path) for photograph in result.photographs]
    console = command_line.console(width=110 + max(map(len, names), default=0))
    if result.photographs:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in _HEADINGS:
            left = heading in (_HEADINGS[0], _HEADINGS[-1])
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
        for photograph in result.photographs:
            place = (escape(str(photograph.path)), f"{photograph.width}x{photograph.height}")
            if not photograph.faces:
                table.add_row(*place, "[red]no face[/]")
            for face in photograph.faces:
                table.add_row(*place, *_cells(face))
                place = ("", "")
        console.print(table)
    console.print(_total(result))


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
