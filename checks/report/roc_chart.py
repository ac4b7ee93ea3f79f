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
class RocCurve:
    """A characteristic.

    Attributes:
        label: The label in the legend.
        fpr: False accept rates, in rising order.
        tpr: The true accept rate at each.
        role: The role that gives the colour.
        look: "circles" or "squares".
    """

    label: str
    fpr: Sequence[float]
    tpr: Sequence[float]
    role: str = "pytorch"
    look: str = "circles"


@dataclass(frozen=True, slots=True)
class Roc:
    """The content of a chart.

    Attributes:
        description: A sentence on what the chart shows.
        curves: The characteristics; a later one is drawn over an earlier one.
        far: A false accept rate to mark; None marks none.
    """

    description: str
    curves: tuple[RocCurve, ...]
    far: float | None = None


def roc_legend(roc: Roc) -> tuple[LegendEntry, ...]:
    """The legend of a chart."""
    curves = tuple(LegendEntry(curve.label, curve.role, curve.look) for curve in roc.curves)
    return (
        curves
        if roc.far is None
        else (*curves, LegendEntry(f"false accept rate {roc.far:g}", "limit", "rule"))
    )


def draw_roc(roc: Roc) -> Figure:
    """Draw a characteristic by the logarithm of the false accept rate; smaller rates stand at the left."""
    figure, axes = new_axes(HEIGHT, top=14)
    axes.set_xlim(_LEAST - 0.1, 0.1)
    axes.set_ylim(-0.02, 1.02)
    places = range(_LEAST, 1)
    axes.set_xticks(list(places), [f"{10.0**place:g}" for place in places])
    axes.grid(color=colour("grid"), linewidth=0.8)
    for curve in roc.curves:
        axes.plot(
            [_place(rate) for rate in curve.fpr],
            list(curve.tpr),
            color=colour(curve.role),
            linewidth=1.6,
            marker={"circles": "o", "squares": "s"}[curve.look],
            markersize=3.2,
            zorder=3,
        )
    if roc.far is not None:
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
