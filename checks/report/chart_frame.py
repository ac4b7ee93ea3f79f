"""The frame that every chart has: its size, its axes and its legend."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from checks.report.matplotlib_svg import colour

# Sizes in CSS pixels, before the page scales them. `style.css` keeps a chart at least 46rem wide, so that letters
# are at least 11 pixels high.
WIDTH, HEIGHT = 860, 400
LETTERS = 13.0
LEFT, RIGHT, BOTTOM = 58, 56, 34  # margins


@dataclass(frozen=True, slots=True)
class Key:
    """A line of a chart's legend; `look` names a sample that the template draws in the colour of `role`."""

    label: str
    role: str
    look: str


def new_axes(height: int, top: int) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; `top` is the margin above them."""
    figure = Figure((WIDTH / 72, height / 72), dpi=72)
    box = (LEFT / WIDTH, BOTTOM / height, 1 - (LEFT + RIGHT) / WIDTH, 1 - (BOTTOM + top) / height)
    axes = figure.add_axes(box)
    dress(axes)
    axes.set_xticks([])
    return figure, axes


def dress(axes: Axes) -> None:
    """Give axes the looks that all charts share."""
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colour("muted"))
    axes.tick_params(length=0, labelsize=LETTERS, labelcolor=colour("muted"), pad=6)
