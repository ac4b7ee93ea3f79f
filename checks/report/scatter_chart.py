"""Points in groups, in panels side by side with the same axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from checks.core.types import Array
from checks.report.chart_frame import FONT_SIZE, WIDTH, LegendEntry
from checks.report.matplotlib_svg import colour

_HEIGHT = 420
_ROLES = ("pytorch", "fault", "holds", "float64", "weaker", "ink")
_MARKERS = {"dots": "o", "boxes": "s", "cross": "X"}
_LOOKS = tuple((role, look) for look in _MARKERS for role in _ROLES)

MOST_GROUPS = len(_LOOKS)
"""The groups that can be told apart."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """The content of a chart.

    Attributes:
        description: A sentence on what the chart shows.
        groups: The label of each group, at most `MOST_GROUPS`.
        members: (N,) the place of each point's group.
        panels: The title and the (N, 2) points of each panel.
    """

    description: str
    groups: tuple[str, ...]
    members: Array
    panels: tuple[tuple[str, Array], ...]


def scatter_legend(scatter: Scatter) -> tuple[LegendEntry, ...]:
    """The legend: an entry for each group."""
    return tuple(
        LegendEntry(label, role, look) for label, (role, look) in zip(scatter.groups, _LOOKS, strict=False)
    )


def draw_scatter(scatter: Scatter) -> Figure:
    """Draw each panel; a unit is as long across as it is up."""
    figure = Figure((WIDTH / 72, _HEIGHT / 72), dpi=72)
    grid = figure.subplots(1, max(2, len(scatter.panels)), squeeze=False)
    figure.subplots_adjust(
        left=4 / WIDTH, right=1 - 4 / WIDTH, bottom=4 / _HEIGHT, top=1 - 30 / _HEIGHT, wspace=0.06
    )
    every = np.concatenate([points for _, points in scatter.panels])
    middle, reach = (
        (every.max(axis=0) + every.min(axis=0)) / 2,
        float(np.ptp(every, axis=0).max()) * 0.55 or 1.0,
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (title, points) in zip(grid.flat, scatter.panels, strict=False):
        _frame(axes, title)
        axes.set_xlim(middle[0] - reach, middle[0] + reach)
        axes.set_ylim(middle[1] - reach, middle[1] + reach)
        axes.set_aspect("equal")
        _draw_points(axes, scatter, points)
    return figure


def _frame(axes: Axes, title: str) -> None:
    axes.set_axis_on()
    axes.patch.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour("grid"))
    axes.set_title(title, loc="left", fontsize=FONT_SIZE, fontweight="bold", color=colour("ink"), pad=8)


def _draw_points(axes: Axes, scatter: Scatter, points: Array) -> None:
    for place, (role, look) in zip(range(len(scatter.groups)), _LOOKS, strict=False):
        shown = points[scatter.members == place]
        axes.plot(
            shown[:, 0],
            shown[:, 1],
            color=colour(role),
            linestyle="none",
            marker=_MARKERS[look],
            markersize=6.5,
            markerfacecolor="none" if look == "boxes" else None,
            markeredgewidth=1.4 if look == "boxes" else 0,
            alpha=0.85,
            zorder=3,
        )
