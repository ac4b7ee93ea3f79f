"""Print the result of `match` on the terminal: the decision, and what it rests on."""

from __future__ import annotations

from checks.core.render import Row, Table, print_table
from converter import command_line
from converter.counts import counted
from converter.home_folder import from_home
from faces.detect.table import print_detector
from faces.embedder import EmbeddedFace
from faces.evaluate.table import describe_network
from faces.match.result import MatchResult

_WIDTH = 80  # columns; a line may wrap, a figure is not cut off


def print_result(result: MatchResult) -> None:
    """Print the result on stdout."""
    console = command_line.console(_WIDTH)
    console.print(_verdict(result))
    for face in result.faces:
        console.print(describe_face(face), markup=False)
    console.print(describe_network(result.model), markup=False)
    print_detector(console, result.detector)
    rows: tuple[Row, ...] = (
        Row("cosine similarity", (f"{result.cosine:.4f}", "1 for the same image, 0 for unrelated ones")),
        Row("Euclidean distance", (f"{result.euclidean:.4f}", "0 to 2")),
        Row("squared Euclidean distance", (f"{result.squared_euclidean:.4f}", "0 to 4")),
    )
    if result.threshold is not None and result.distance is not None:
        if result.threshold.distance == "arc-cosine":
            rows += (Row("arc cosine", (f"{result.distance:.4f}", "the angle over pi, 0 to 1")),)
        console.print(f"threshold {result.threshold.value:.4f} {result.threshold.basis}", markup=False)
    print_table(console, Table("measure", ("value", ""), rows, text_columns=1))


def _verdict(result: MatchResult) -> str:
    if result.threshold is None or result.distance is None:
        return "[bold]No decision: there is no threshold for this model.[/]"
    name = {"squared-euclidean": "squared Euclidean distance", "arc-cosine": "arc cosine"}
    measured = f"the {name[result.threshold.distance]} {result.distance:.4f} is"
    if result.same:
        return f"[bold green]The same person:[/] {measured} below {result.threshold.value:.4f}."
    return f"[bold red]Different people:[/] {measured} not below {result.threshold.value:.4f}."


def describe_face(face: EmbeddedFace) -> str:
    """The image of a face, and which of its faces it is."""
    file = from_home(str(face.file))
    if face.box is None:
        return f"{file}: a crop"
    if face.faces == 1:
        return f"{file}: one face"
    choice = "largest" if face.crop == "scaled" else "largest near the centre"
    return f"{file}: {counted(face.faces, 'face')}, of which the {choice} is taken"
