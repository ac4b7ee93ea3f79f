"""Print what `embed` made on the terminal: the embeddings, their model and threshold, what has none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from converter import command_line
from converter.counts import counted
from converter.home_folder import from_home
from faces.detect.table import print_detector
from faces.embed.result import EmbedResult
from faces.evaluate.table import describe_network


def print_result(result: EmbedResult) -> None:
    """Print the result on stdout."""
    console = command_line.console()
    embeddings, threshold = result.embeddings, result.embeddings.origin.threshold
    faces, dimensions = embeddings.values.shape
    people = len(set(embeddings.people) - {""})
    shown = f" of {counted(people, 'person', 'people')}" if people else ""
    place = "" if result.output is None else f" in {from_home(str(result.output))}"
    console.print(f"{counted(faces, 'face')}{shown}, {dimensions} numbers each{place}", markup=False)
    console.print(f"model      {describe_network(result.model)}; crop {embeddings.origin.crop}", markup=False)
    print_detector(console, result.detector)
    known = "none: see --threshold" if threshold is None else f"{threshold.value:.4f} {threshold.basis}"
    console.print(f"threshold  {known}", markup=False)
    print_faceless(console, result.without_face)


def print_faceless(console: Console, files: Iterable[Path]) -> None:
    """Print the photographs without a face."""
    for file in files:
        console.print(f"[red]none[/]       {escape(from_home(str(file)))}: no face")
