"""Curves of figures by epoch, in panels side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from checks.report.chart_frame import FONT_SIZE, WIDTH, LegendEntry, style_axes
from checks.report.matplotlib_svg import colour

_HEIGHT = 250
_MARKERS = {"circles": "o", "squares": "s"}
_MOST_MARKED = 40  # epochs whose values have a mark


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure by epoch.

    Attributes:
        label: The label in the legend; curves of one label look alike.
        values: The figure of each epoch; None for one that is not known.
        role: The role that gives the colour.
        look: "circles" or "squares".
        first: The number of the first epoch.
    """

    label: str
    values: tuple[float | None, ...]
    role: str
    look: str
    first: int = 1


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """Curves on the same axes, which start at zero."""

    title: str
    curves: tuple[Curve, ...]


def curve_legend(panels: Sequence[CurvePanel]) -> tuple[LegendEntry, ...]:
    """The legend: an entry for each label."""
    curves = {curve.label: curve for panel in panels for curve in panel.curves}
    return tuple(LegendEntry(curve.label, curve.role, curve.look) for curve in curves.values())


def draw_curves(panels: Sequence[CurvePanel]) -> Figure:
    """Draw each panel, all over the same epochs."""
    figure = Figure((WIDTH / 72, _HEIGHT / 72), dpi=72)
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True)
    figure.subplots_adjust(
        left=52 / WIDTH, right=1 - 14 / WIDTH, bottom=30 / _HEIGHT, top=1 - 30 / _HEIGHT, wspace=0.28
    )
    for axes, panel in zip(grid.flat, panels, strict=True):
        style_axes(axes)
        axes.set_title(
            panel.title, loc="left", fontsize=FONT_SIZE, fontweight="bold", color=colour("ink"), pad=8
        )
        for curve in panel.curves:
            _draw_curve(axes, curve)
        values = [value for curve in panel.curves for value in curve.values if value is not None]
        axes.set_ylim(0, max(values, default=0) * 1.08 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=colour("grid"), linewidth=0.8)
    return figure


def _draw_curve(axes: Axes, curve: Curve) -> None:
    known = [(curve.first + place, value) for place, value in enumerate(curve.values) if value is not None]
    axes.plot(
        [epoch for epoch, _ in known],
        [value for _, value in known],
        color=colour(curve.role),
        linewidth=1.6,
        marker=_MARKERS[curve.look] if len(known) <= _MOST_MARKED else "",
        markersize=4.5,
        clip_on=False,
        zorder=3,
    )
