"""Error by depth: the chart of errors at every activation or tensor, in the order of evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from checks.core import thresholds
from checks.report.chart_frame import FONT_SIZE, HEIGHT, LEFT, RIGHT, WIDTH, LegendEntry, new_axes
from checks.report.matplotlib_svg import colour

_CHARACTER = 0.6  # mean width of a character over the font size, rounded up


@dataclass(frozen=True, slots=True)
class Series:
    """Errors in the order of evaluation; zero and infinity have places of their own.

    Attributes:
        label: The label in the legend.
        values: The errors, one for each place.
        role: The role that gives the colour.
        look: "circles" and "squares" are joined by a line, "dots" and "boxes" are not. "broad" is a line
            without marks, below the others.
        most: The largest value that is not crossed out as a fault; None crosses out nothing.
    """

    label: str
    values: tuple[float, ...]
    role: str
    look: str
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """A horizontal line: a threshold or a unit roundoff, with a tag beside the axes."""

    label: str
    tag: str
    value: float
    role: str = "muted"


UNIT64 = 2.0**-53
"""Relative error of one float64 rounding (IEEE 754)."""

SINGLE = Limit("unit roundoff of float32", "2⁻²⁴", thresholds.UNIT_ROUNDOFF)
DOUBLE = Limit("unit roundoff of float64", "2⁻⁵³", UNIT64)


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at a place: its label, the place's name, and the role that gives its colour."""

    place: int
    label: str
    name: str
    role: str = "fault"


@dataclass(frozen=True, slots=True)
class Depth:
    """The content of a chart of error by depth.

    Attributes:
        description: A sentence on what the chart shows.
        series: The series, all of one length.
        groups: The name and the first index of each part of the network, in order.
        limits: The horizontal lines.
        mark: The place to mark; None marks nothing.
        lower: Whether the chart is drawn at two thirds of the height.
    """

    description: str
    series: tuple[Series, ...]
    groups: tuple[tuple[str, int], ...]
    limits: tuple[Limit, ...] = ()
    mark: Mark | None = None
    lower: bool = False


def depth_legend(depth: Depth) -> tuple[LegendEntry, ...]:
    """The legend of a chart of error by depth."""
    legend = [LegendEntry(series.label, series.role, series.look) for series in depth.series]
    if any(_places_beyond(series) for series in depth.series):
        legend.append(LegendEntry("beyond the limit", "fault", "cross"))
    rules = (LegendEntry(f"{limit.tag} {limit.label}", limit.role, "rule") for limit in depth.limits)
    return (*legend, *rules)


class _Scale:
    """The height of a value: its log10; zero stands below everything else and infinity above."""

    def __init__(self, depth: Depth) -> None:
        values = [value for series in depth.series for value in series.values]
        proper = [value for value in values if 0 < value < math.inf]
        proper += [limit.value for limit in depth.limits]
        logs = [math.log10(value) for value in proper]
        self._low, self._high = math.floor(min(logs)), math.ceil(max(logs))
        self._zero = self._low - 1.0 if 0 in values else None
        self._infinite = None if all(map(math.isfinite, values)) else self._high + 1.0
        self.bottom = self._low - 0.3 if self._zero is None else self._zero - 0.5
        self.top = self._high + 0.3 if self._infinite is None else self._infinite + 0.5

    def __call__(self, value: float) -> float:
        if not value < math.inf:  # NaN as well
            return self._high + 1.0
        return self._low - 1.0 if value == 0 else math.log10(value)

    def ticks(self, most: int) -> Iterator[tuple[float, str]]:
        """The places and labels of at most `most` powers of ten, of zero and of infinity."""
        step = math.ceil((self._high - self._low + 1) / most)
        for power in range(self._high, self._low - 1, -step):
            yield power, f"1e{power}" if power else "1"
        if self._zero is not None:
            yield self._zero, "0"
        if self._infinite is not None:
            yield self._infinite, "∞"


def draw_depth(depth: Depth) -> Figure:
    """Draw errors on a log scale."""
    height = HEIGHT * 2 // 3 if depth.lower else HEIGHT
    figure, axes = new_axes(height, top=14 if depth.mark is None else 48)
    scale = _Scale(depth)
    count = len(depth.series[0].values)
    axes.set_xlim(-1, count)
    axes.set_ylim(scale.bottom, scale.top)
    places, names = zip(*scale.ticks(7 if depth.lower else 10), strict=True)
    axes.set_yticks(places, names)
    axes.grid(axis="y", color=colour("grid"), linewidth=0.8)
    _draw_groups(axes, depth.groups, count)
    for limit in depth.limits:
        dashes = (0, (5, 3)) if limit.role == "limit" else (0, (1, 2))
        axes.axhline(scale(limit.value), color=colour(limit.role), linewidth=1.2, linestyle=dashes, zorder=2)
        axes.annotate(
            limit.tag,
            (1, scale(limit.value)),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=colour(limit.role),
            fontsize=FONT_SIZE,
        )
    for series in depth.series:
        _draw_series(axes, series, scale)
    if depth.mark is not None:
        _draw_mark(axes, depth.mark)
    return figure


def _draw_series(axes: Axes, series: Series, scale: _Scale) -> None:
    heights = [scale(value) for value in series.values]
    size = 3.2
    shape = {"circles": "o", "squares": "s", "dots": "o", "boxes": "s"}.get(series.look, "")
    broad = series.look == "broad"
    axes.plot(
        heights,
        color=colour(series.role),
        linewidth=4.2 if broad else 1.2,
        linestyle="none" if series.look in ("dots", "boxes") else "solid",
        marker=shape,
        markersize=size,
        markerfacecolor="none" if series.look == "boxes" else None,
        markeredgewidth=0.9 if series.look == "boxes" else 0,
        zorder=2.2 if broad else 3,
    )
    beyond = _places_beyond(series)
    axes.plot(
        beyond,
        [heights[place] for place in beyond],
        color=colour("fault"),
        linestyle="none",
        marker="X",
        markersize=size * 2,
        markeredgewidth=0,
        zorder=4,
    )


def _places_beyond(series: Series) -> list[int]:
    """The places of the values that exceed the limit; NaN exceeds every limit."""
    if series.most is None:
        return []
    return [place for place, value in enumerate(series.values) if not value <= series.most]


def _draw_groups(axes: Axes, groups: Sequence[tuple[str, int]], count: int) -> None:
    """Draw a stripe behind every second part of the network, and the names of all parts below."""
    edges = [*(first - 0.5 for _, first in groups), count - 0.5]
    for number, (left, right) in enumerate(pairwise(edges)):
        if number % 2 == 0:
            axes.axvspan(left, right, color=colour("stripe"), linewidth=0, zorder=0)
    place_width = (WIDTH - LEFT - RIGHT) / (count + 1)
    names = [name for name, _ in groups]
    widths = [FONT_SIZE * (_CHARACTER * len(name) + 0.6) for name in names]
    centres = [(left + right) / 2 * place_width for left, right in pairwise(edges)]
    for name, centre in zip(names, _spread(centres, widths), strict=True):
        axes.annotate(
            name,
            (centre / place_width, 0),
            (0, -6),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
            color=colour("muted"),
            fontsize=FONT_SIZE,
        )


def _spread(centres: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Move centres to the right, as little as possible, until nothing overlaps."""
    spread: list[float] = []
    for centre, width, before in zip(centres, widths, [0.0, *widths], strict=False):
        spread.append(max(centre, spread[-1] + (before + width) / 2) if spread else centre)
    return spread


def _draw_mark(axes: Axes, mark: Mark) -> None:
    """Draw a vertical line, and its label above the axes."""
    width = WIDTH - LEFT - RIGHT
    low, high = axes.get_xlim()
    at = (mark.place - low) / (high - low)
    half = FONT_SIZE * _CHARACTER * max(len(mark.name), len(mark.label)) / 2 / width
    # The label stays within the figure, margins included.
    least, most = half - LEFT / width, 1 + RIGHT / width - half
    axes.axvline(mark.place, color=colour(mark.role), linewidth=1.6, zorder=2.5)
    axes.annotate(
        f"{mark.label}\n{mark.name}",
        (min(max(at, least), most), 1),
        (0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="bottom",
        linespacing=1.3,
        color=colour(mark.role),
        fontsize=FONT_SIZE,
        fontweight="bold",
    )
