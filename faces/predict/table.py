"""Print the result of `predict` on the terminal: each face, and the people whom it may be."""

from __future__ import annotations

from rich.markup import escape

from converter import command_line
from converter.counts import counted
from faces.detect.table import print_detector
from faces.embed.table import print_faceless
from faces.evaluate.table import describe_network
from faces.match.table import describe_face
from faces.predict.result import PredictResult


def print_result(result: PredictResult) -> None:
    """Print the result on stdout."""
    console = command_line.console()
    for predicted in result.faces:
        console.print(describe_face(predicted.face), markup=False)
        for number, candidate in enumerate(predicted.candidates):
            line = f"  {candidate.probability:.4f}  {escape(candidate.person)}"
            console.print(line if number else f"[bold]{line}[/]")
    print_faceless(console, result.without_face)
    named, people = counted(len(result.faces), "face"), counted(len(result.people), "person", "people")
    console.print(f"{named}, {people} to choose from; {describe_network(result.model)}", markup=False)
    print_detector(console, result.detector)
