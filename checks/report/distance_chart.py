"""Histograms of the distances of pairs that should match, and of pairs that should not, on the same axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from checks.core.types import Array
from checks.report.chart_frame import FONT_SIZE, HEIGHT, LegendEntry, new_axes
from checks.report.matplotlib_svg import colour

_BINS = 60


@dataclass(frozen=True, slots=True)
class Distances:
    """The content of a chart.

    Attributes:
        description: A sentence on what the chart shows.
        same: Distances of the pairs that should match.
        different: Distances of the others.
        thresholds: The label and the place of each threshold.
    """

    description: str
    same: Array
    different: Array
    thresholds: tuple[tuple[str, float], ...]


def distance_legend(distances: Distances) -> tuple[LegendEntry, ...]:
    """The legend of a chart."""
    return (
        LegendEntry(f"same person, {len(distances.same):,} pairs", "pytorch", "block"),
        LegendEntry(f"different people, {len(distances.different):,} pairs", "ink", "outline"),
    )


def draw_distances(distances: Distances) -> Figure:
    """Draw both histograms, each as shares of its own pairs."""
    figure, axes = new_axes(HEIGHT * 4 // 5, top=48)
    largest = max(values.max(initial=0) for values in (distances.same, distances.different))
    edges = np.linspace(0, largest or 1, _BINS + 1)
    shares = [_shares(values, edges) for values in (distances.same, distances.different)]
    axes.bar(
        edges[:-1], shares[0], width=np.diff(edges) * 0.86, align="edge", color=colour("pytorch"), alpha=0.75
    )
    axes.stairs(shares[1], edges, color=colour("ink"), linewidth=1.8, zorder=3)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0)
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}%"))
    axes.grid(axis="y", color=colour("grid"), linewidth=0.8)
    for row, (label, place) in enumerate(distances.thresholds):
        axes.axvline(place, color=colour("limit"), linewidth=1.2, linestyle=(0, (5, 3)), zorder=4)
        axes.annotate(
            label,
            (place, 1),
            (0, 6 + 17 * row),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=colour("limit"),
            fontsize=FONT_SIZE,
        )
    return figure


def _shares(values: Array, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts, _ = np.histogram(values, edges)
    return counts / max(len(values), 1)
