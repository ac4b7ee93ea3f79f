"""The charts of a report: one SVG each, which scales with the page; on a phone it is scrolled sideways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from checks.report.svg import colour, drawing, inline

_LETTER = 0.6  # width of a letter over its size, an ample mean
_MOST_PLAIN = 13  # counts of a histogram; beyond, their ends are shown as powers of two


# Sizes in CSS pixels, before the page scales them. `style.css` keeps a chart at least 46rem wide, so that letters
# are at least 11 pixels high.
_WIDTH, _HEIGHT = 860, 400
_LETTERS = 13.0
_LEFT, _RIGHT, _BOTTOM = 58, 56, 34  # margins


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as a page shows it.

    Attributes:
        says: A sentence on what it shows.
        keys: The legend.
        svg: The drawing.
    """

    says: str
    keys: tuple[Key, ...]
    svg: Markup


@dataclass(frozen=True, slots=True)
class Key:
    """A line of a chart's legend; `look` names a sample that the template draws in the colour of `role`."""

    label: str
    role: str
    look: str


@dataclass(frozen=True, slots=True)
class Series:
    """Errors in the order of evaluation; zero and infinity have places of their own.

    Attributes:
        label: For the legend.
        values: One for each place.
        role: Colour.
        look: "circles", "squares" (both joined by a line), "dots", "boxes" (not joined) or "broad" (a line
            without marks, drawn below the others).
        most: Whatever is beyond it is crossed out in the colour of faults; None crosses out nothing.
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


@dataclass(frozen=True, slots=True)
class Mark:
    """A place marked by a vertical line: what is there, its name, and the colour's role."""

    place: int
    what: str
    name: str
    role: str = "fault"


@dataclass(frozen=True, slots=True)
class Depth:
    """What a chart of error by depth shows.

    Attributes:
        says: In words.
        series: All of one length.
        groups: Name and first index of each part of the network, in order.
        limits: Horizontal lines.
        mark: None marks nothing.
        band: Values and the factor up to which others may exceed them.
        lower: Whether to draw it in two thirds of the height.
    """

    says: str
    series: tuple[Series, ...]
    groups: tuple[tuple[str, int], ...]
    limits: tuple[Limit, ...] = ()
    mark: Mark | None = None
    band: tuple[tuple[float, ...], float] | None = None
    lower: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """A histogram as `checks.core.metrics.ulp_histogram` counts: 0, 1, 2, 3-4, 5-8, ..."""

    label: str
    counts: tuple[int, ...]
    role: str


@dataclass(frozen=True, slots=True)
class Panel:
    """Histograms over each other: the first filled, the second an outline."""

    title: str
    counts: tuple[Counts, ...]


@dataclass(slots=True)
class Drawer:
    """Draws the charts of one page, in the order of the page.

    Attributes:
        drawn: How many it has drawn: no two have an id in common.
    """

    drawn: int = field(default=0, init=False)

    def depth(self, depth: Depth) -> Chart:
        """Error by depth on a log scale."""
        return self._chart(depth.says, _depth_keys(depth), lambda: _draw_depth(depth))

    def histograms(self, says: str, panels: Sequence[Panel]) -> Chart:
        """Draw histograms beside each other."""
        first = panels[0].counts
        looks = ("block", "outline")
        keys = tuple(Key(one.label, one.role, look) for one, look in zip(first, looks, strict=False))
        return self._chart(says, keys, lambda: _draw_histograms(panels))

    def _chart(self, says: str, keys: tuple[Key, ...], draw: Callable[[], Figure]) -> Chart:
        self.drawn += 1
        with drawing():
            return Chart(says, keys, inline(draw(), f"c{self.drawn}-"))


def _depth_keys(depth: Depth) -> tuple[Key, ...]:
    keys = [Key(one.label, one.role, one.look) for one in depth.series]
    if depth.band is not None:
        keys.append(Key(f"allowed: up to {depth.band[1]:g} times the floor", "floor", "band"))
    if any(one.most is not None and not value <= one.most for one in depth.series for value in one.values):
        keys.append(Key("beyond the limit", "fault", "cross"))
    return (*keys, *(Key(f"{one.tag} {one.label}", one.role, "rule") for one in depth.limits))


class _Scale:
    """Where a value stands: log10 of it, zero below everything else and infinity above."""

    def __init__(self, depth: Depth) -> None:
        values = [value for one in depth.series for value in one.values]
        proper = [value for value in values if 0 < value < math.inf] + [one.value for one in depth.limits]
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
        """Places and names of at most so many powers of ten, of zero and of infinity."""
        step = math.ceil((self._high - self._low + 1) / most)
        for power in range(self._high, self._low - 1, -step):
            yield power, f"1e{power}" if power else "1"
        if self._zero is not None:
            yield self._zero, "0"
        if self._infinite is not None:
            yield self._infinite, "∞"


def _draw_depth(depth: Depth) -> Figure:
    height = _HEIGHT * 2 // 3 if depth.lower else _HEIGHT
    figure, axes = _axes(height, top=14 if depth.mark is None else 48)
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
            fontsize=_LETTERS,
        )
    if depth.band is not None:
        values, factor = depth.band
        low, high = ([scale(times * value) for value in values] for times in (1, factor))
        axes.fill_between(range(count), low, high, color=colour("floor"), alpha=0.28, linewidth=0, zorder=2)
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
    if series.most is None:
        return
    beyond = [place for place, value in enumerate(series.values) if not value <= series.most]
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


def _draw_groups(axes: Axes, groups: Sequence[tuple[str, int]], count: int) -> None:
    """Stripes behind the parts of the network, and their names below."""
    edges = [*(first - 0.5 for _, first in groups), count - 0.5]
    for number, (left, right) in enumerate(pairwise(edges)):
        if number % 2 == 0:
            axes.axvspan(left, right, color=colour("stripe"), linewidth=0, zorder=0)
    a_place = (_WIDTH - _LEFT - _RIGHT) / (count + 1)
    names = [name for name, _ in groups]
    widths = [_LETTERS * (_LETTER * len(name) + 0.6) for name in names]
    centres = [(one + other) / 2 * a_place for one, other in pairwise(edges)]
    for name, at in zip(names, _spread(centres, widths), strict=True):
        axes.annotate(
            name,
            (at / a_place, 0),
            (0, -6),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
            color=colour("muted"),
            fontsize=_LETTERS,
        )


def _spread(centres: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Centres moved to the right, as little as it takes for nothing to overlap."""
    spread: list[float] = []
    for centre, width, before in zip(centres, widths, [0.0, *widths], strict=False):
        spread.append(max(centre, spread[-1] + (before + width) / 2) if spread else centre)
    return spread


def _draw_mark(axes: Axes, mark: Mark) -> None:
    """A vertical line, and above the axes what is there."""
    width = _WIDTH - _LEFT - _RIGHT
    low, high = axes.get_xlim()
    at = (mark.place - low) / (high - low)
    half = _LETTERS * _LETTER * max(len(mark.name), len(mark.what)) / 2 / width
    # Within the figure: the margins may be written in as well.
    least, most = half - _LEFT / width, 1 + _RIGHT / width - half
    axes.axvline(mark.place, color=colour(mark.role), linewidth=1.6, zorder=2.5)
    axes.annotate(
        f"{mark.what}\n{mark.name}",
        (min(max(at, least), most), 1),
        (0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="bottom",
        linespacing=1.3,
        color=colour(mark.role),
        fontsize=_LETTERS,
        fontweight="bold",
    )


def _draw_histograms(panels: Sequence[Panel]) -> Figure:
    height = 250
    # Inches are 72 pixels here, so that a point is one.
    figure = Figure((_WIDTH / 72, height / 72), dpi=72)
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True)
    figure.subplots_adjust(
        left=44 / _WIDTH, right=1 - 8 / _WIDTH, bottom=26 / height, top=1 - 30 / height, wspace=0.2
    )
    bins = max(len(one.counts) for panel in panels for one in panel.counts)
    for axes, panel in zip(grid.flat, panels, strict=True):
        _dress(axes)
        _draw_panel(axes, panel)
        axes.set_title(
            panel.title, loc="left", fontsize=_LETTERS, fontweight="bold", color=colour("ink"), pad=8
        )
        step = max(1, math.ceil(bins / 7))
        places = [place for place in range(bins) if place % step == 0]
        axes.set_xticks(places, [_steps(place, powers=bins > _MOST_PLAIN) for place in places])
        axes.tick_params(labelbottom=True)
        axes.set_xlim(-0.7, max(bins, 4) - 0.3)
        axes.set_ylim(0)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y", color=colour("grid"), linewidth=0.8)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for number, one in enumerate(panel.counts):
        total = sum(one.counts) or 1
        shares = [count / total for count in one.counts]
        edges = [place - 0.5 for place in range(len(shares) + 1)]
        drawn = colour(one.role)
        if number == 0:
            axes.bar(range(len(shares)), shares, width=0.82, color=drawn, alpha=0.75, zorder=2)
        else:
            axes.stairs(shares, edges, color=drawn, linewidth=1.8, zorder=3)


def _steps(place: int, *, powers: bool) -> str:
    """The upper end of a count: 0, 1, 2, 4, ..."""
    if place == 0 or not powers:
        return str(2 ** (place - 1) if place else 0)
    return "2" + str(place - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _axes(height: int, top: int) -> tuple[Figure, Axes]:
    figure = Figure((_WIDTH / 72, height / 72), dpi=72)
    box = (_LEFT / _WIDTH, _BOTTOM / height, 1 - (_LEFT + _RIGHT) / _WIDTH, 1 - (_BOTTOM + top) / height)
    axes = figure.add_axes(box)
    _dress(axes)
    axes.set_xticks([])
    return figure, axes


def _dress(axes: Axes) -> None:
    """The looks that all axes have: hardly any."""
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colour("muted"))
    axes.tick_params(length=0, labelsize=_LETTERS, labelcolor=colour("muted"), pad=6)
