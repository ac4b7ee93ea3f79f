"""The receiver operating characteristic: the share of right acceptances by the share of wrong ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from checks.report.chart_frame import FONT_SIZE, HEIGHT, LegendEntry, new_axes
from checks.report.matplotlib_svg import colour

_LEAST = -4  # log10 of the smallest false accept rate that has a place of its own


@dataclass(frozen=True, slots=True)
class Roc:
    """The content of a chart.

    Attributes:
        description: A sentence on what the chart shows.
        fpr: False accept rates, in rising order.
        tpr: The true accept rate at each.
        far: A false accept rate to mark.
    """

    description: str
    fpr: Sequence[float]
    tpr: Sequence[float]
    far: float


def roc_legend(roc: Roc) -> tuple[LegendEntry, ...]:
    """The legend of a chart."""
    return (
        LegendEntry("same pairs accepted, by different pairs accepted", "pytorch", "circles"),
        LegendEntry(f"false accept rate {roc.far:g}", "limit", "rule"),
    )


def draw_roc(roc: Roc) -> Figure:
    """Draw a characteristic by the logarithm of the false accept rate; smaller rates stand at the left."""
    figure, axes = new_axes(HEIGHT, top=14)
    axes.set_xlim(_LEAST - 0.1, 0.1)
    axes.set_ylim(-0.02, 1.02)
    places = range(_LEAST, 1)
    axes.set_xticks(list(places), [f"{10.0**place:g}" for place in places])
    axes.grid(color=colour("grid"), linewidth=0.8)
    heights = [_place(rate) for rate in roc.fpr]
    axes.plot(
        heights, list(roc.tpr), color=colour("pytorch"), linewidth=1.6, marker="o", markersize=3.2, zorder=3
    )
    axes.axvline(_place(roc.far), color=colour("limit"), linewidth=1.2, linestyle=(0, (5, 3)), zorder=2)
    axes.annotate(
        "FAR",
        (1, 0),
        (8, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        va="center",
        color=colour("muted"),
        fontsize=FONT_SIZE,
    )
    return figure


def _place(rate: float) -> float:
    return max(math.log10(rate), _LEAST) if rate > 0 else _LEAST
