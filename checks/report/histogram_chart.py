"""Histograms of differences in units in the last place, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from checks.report.chart_frame import FONT_SIZE, WIDTH, LegendEntry, style_axes
from checks.report.matplotlib_svg import colour

_MOST_PLAIN = 13  # bins with plain numbers as labels; the labels of more bins are powers of two
_NEARLY_ALL = 0.998  # share of the values that get bins of their own; the others share one bin


@dataclass(frozen=True, slots=True)
class Counts:
    """A histogram, counted by `checks.core.metrics.ulp_histogram` as 0, 1, 2, 3-4, 5-8, ..."""

    label: str
    counts: tuple[int, ...]
    role: str


@dataclass(frozen=True, slots=True)
class Panel:
    """Histograms on the same axes: the first is filled, the second is an outline."""

    title: str
    counts: tuple[Counts, ...]


def histogram_legend(panels: Sequence[Panel]) -> tuple[LegendEntry, ...]:
    """The legend: the filled histogram, and the outlined one."""
    looks = ("block", "outline")
    return tuple(
        LegendEntry(histogram.label, histogram.role, look)
        for histogram, look in zip(panels[0].counts, looks, strict=False)
    )


def draw_histograms(panels: Sequence[Panel]) -> Figure:
    """Draw each panel, all with the same bins."""
    height = 250
    # Inches are 72 pixels here, so that a point is one.
    figure = Figure((WIDTH / 72, height / 72), dpi=72)
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True)
    figure.subplots_adjust(
        left=44 / WIDTH, right=1 - 8 / WIDTH, bottom=26 / height, top=1 - 30 / height, wspace=0.2
    )
    every = [histogram.counts for panel in panels for histogram in panel.counts]
    bins = max(map(_bins_of_most, every))
    folded = any(len(counts) > bins for counts in every)
    for axes, panel in zip(grid.flat, panels, strict=True):
        style_axes(axes)
        _draw_panel(axes, panel, bins)
        axes.set_title(
            panel.title, loc="left", fontsize=FONT_SIZE, fontweight="bold", color=colour("ink"), pad=8
        )
        places, names = _bin_ticks(bins, folded=folded)
        axes.set_xticks(places, names)
        axes.tick_params(labelbottom=True)
        axes.set_xlim(-0.7, max(bins + folded, 4) - 0.3)
        axes.set_ylim(0)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y", color=colour("grid"), linewidth=0.8)
    return figure


def _bins_of_most(counts: Sequence[int]) -> int:
    """Count the bins that hold nearly every value, so that a few outliers do not hide the others."""
    enough = _NEARLY_ALL * sum(counts)
    return next((place + 1 for place, below in enumerate(accumulate(counts)) if below >= enough), 1)


def _draw_panel(axes: Axes, panel: Panel, bins: int) -> None:
    """Draw the histograms of a panel; one bar after the last bin holds all values beyond."""
    for number, histogram in enumerate(panel.counts):
        inside, beyond = histogram.counts[:bins], sum(histogram.counts[bins:])
        counts = [*inside, *[0] * (bins - len(inside)), beyond] if beyond else inside
        total = sum(counts) or 1
        shares = [count / total for count in counts]
        ink = colour(histogram.role)
        if number == 0:
            axes.bar(range(len(shares)), shares, width=0.82, color=ink, alpha=0.75, zorder=2)
        else:
            edges = [place - 0.5 for place in range(len(shares) + 1)]
            axes.stairs(shares, edges, color=ink, linewidth=1.8, zorder=3)


def _bin_ticks(bins: int, *, folded: bool) -> tuple[list[int], list[str]]:
    """The places and labels of some bins; a label is the upper end: 0, 1, 2, 4, ..., or a power of two."""
    step = max(1, math.ceil(bins / 7))
    places = list(range(0, bins, step))
    names = [_bin_end(place, powers=bins > _MOST_PLAIN) for place in places]
    if folded:
        if bins - places[-1] < max(1, step / 2):  # too close to the last
            places, names = places[:-1], names[:-1]
        places.append(bins)
        names.append(f">{_bin_end(bins - 1, powers=bins > _MOST_PLAIN)}")
    return places, names


def _bin_end(place: int, *, powers: bool) -> str:
    if place == 0 or not powers:
        return str(2 ** (place - 1) if place else 0)
    return "2" + str(place - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
