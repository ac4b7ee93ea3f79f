"""Print the result of `identify` on the terminal: the person or nobody, and the nearest people."""

from __future__ import annotations

from rich.markup import escape

from checks.core.render import Row, Table, print_table
from converter import command_line
from converter.counts import counted
from converter.home_folder import from_home
from faces.detect.table import print_detector
from faces.evaluate.table import describe_network
from faces.identify.result import IdentifyResult
from faces.match.table import describe_face


def print_result(result: IdentifyResult) -> None:
    """Print the result on stdout."""
    names = (neighbour.name + from_home(str(neighbour.file)) for neighbour in result.neighbours)
    console = command_line.console(40 + max(map(len, names)))  # a line may wrap, a figure is not cut off
    console.print(_verdict(result))
    console.print(describe_face(result.face), markup=False)
    faces, people = counted(result.gallery_faces, "face"), counted(result.people, "person", "people")
    console.print(f"gallery: {faces} of {people}", markup=False)
    console.print(f"{describe_network(result.model)}; crop {result.face.crop}", markup=False)
    print_detector(console, result.detector)
    if result.threshold is not None:
        console.print(f"threshold {result.threshold.value:.4f} {result.threshold.basis}", markup=False)
    rows = tuple(
        Row(
            neighbour.name,
            (f"{neighbour.distance:.4f}", f"{neighbour.faces:,}", from_home(str(neighbour.file))),
            strong=result.threshold is not None and neighbour.distance < result.threshold.value,
        )
        for neighbour in result.neighbours
    )
    print_table(console, Table("nearest", ("distance", "faces", "nearest face"), rows, text_columns=1))


def _verdict(result: IdentifyResult) -> str:
    nearest = result.neighbours[0]
    if result.threshold is None:
        return "[bold]No decision: there is no threshold for this model.[/]"
    if result.person is not None:
        return (
            f"[bold green]{escape(result.person)}:[/] the distance {nearest.distance:.4f} is below "
            f"{result.threshold.value:.4f}."
        )
    return (
        f"[bold red]Nobody of the gallery:[/] the nearest is {escape(nearest.name)} at "
        f"{nearest.distance:.4f}, not below {result.threshold.value:.4f}."
    )
