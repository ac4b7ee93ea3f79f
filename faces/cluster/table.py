"""Print the result of `cluster` on the terminal: a line for each cluster."""

from __future__ import annotations

from checks.core.render import Row, Table, print_table
from converter import command_line
from converter.counts import counted
from converter.home_folder import from_home
from faces.cluster.result import ClusterResult
from faces.detect.table import print_detector
from faces.embed.table import print_faceless
from faces.evaluate.table import describe_network

_MOST_CLUSTERS = 20
_MOST_NAMES = 3


def print_result(result: ClusterResult) -> None:
    """Print the result on stdout."""
    console = command_line.console()
    console.print(f"[bold]{headline(result)}[/]")
    model, origin = result.embedded.model, result.embedded.embeddings.origin
    console.print(f"model      {describe_network(model)}; crop {origin.crop}", markup=False)
    print_detector(console, result.embedded.detector)
    console.print(f"threshold  {result.threshold.value:.4f} {result.threshold.basis}", markup=False)
    print_faceless(console, result.embedded.without_face)
    shown = result.clusters[:_MOST_CLUSTERS]
    rows = tuple(
        Row(str(number), (f"{len(cluster):,}", _name(result, cluster)))
        for number, cluster in enumerate(shown, 1)
    )
    print_table(console, Table("cluster", ("faces", "folders or first photographs"), rows, text_columns=1))
    if len(shown) < len(result.clusters):
        console.print(f"{len(result.clusters) - len(shown):,} more: --json or --report FILE.html has them")


def headline(result: ClusterResult) -> str:
    """The result in a sentence."""
    faces = counted(len(result.embedded.embeddings.files), "face")
    sentence = f"{faces} in {counted(len(result.clusters), 'cluster')}"
    return f"{sentence}, {result.alone} of them of one face." if result.alone else f"{sentence}."


def describe_people(result: ClusterResult, cluster: tuple[int, ...]) -> str:
    """The people of a cluster by the names of their folders; empty if no face has one."""
    return ", ".join(f"{person} {faces}" for person, faces in result.people(cluster))


def _name(result: ClusterResult, cluster: tuple[int, ...]) -> str:
    files = result.embedded.embeddings.files
    named = [from_home(str(files[place])) for place in cluster[:_MOST_NAMES]]
    rest = ", ..." if len(cluster) > _MOST_NAMES else ""
    return describe_people(result, cluster) or ", ".join(named) + rest
