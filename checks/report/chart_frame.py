"""The frame of every chart: its size, its axes and its legend."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from checks.report.matplotlib_svg import colour

# Sizes in CSS pixels, before the page scales them. `style.css` keeps a chart at least 46rem wide, so that its
# text is at least 11 pixels high.
WIDTH, HEIGHT = 860, 400
FONT_SIZE = 13.0
LEFT, RIGHT, BOTTOM = 58, 56, 34  # margins


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """An entry of a chart's legend: a label, and a sample.

    Attributes:
        label: The label.
        role: The role that gives the sample its colour.
        look: The shape of the sample, as `macros.html` names it.
    """

    label: str
    role: str
    look: str


def new_axes(height: int, top: int) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes; `top` is the margin above them."""
    figure = Figure((WIDTH / 72, height / 72), dpi=72)
    box = (LEFT / WIDTH, BOTTOM / height, 1 - (LEFT + RIGHT) / WIDTH, 1 - (BOTTOM + top) / height)
    axes = figure.add_axes(box)
    style_axes(axes)
    axes.set_xticks([])
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Style axes as those of every chart."""
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colour("muted"))
    axes.tick_params(length=0, labelsize=FONT_SIZE, labelcolor=colour("muted"), pad=6)
