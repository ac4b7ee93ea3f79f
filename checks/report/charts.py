"""The charts of a page: one SVG each, which scales with the page; on a phone it is scrolled sideways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup
from matplotlib.figure import Figure

from checks.report.chart_frame import Key
from checks.report.depth_chart import Depth, depth_keys, draw_depth
from checks.report.histogram_chart import Panel, draw_histograms, histogram_keys
from checks.report.matplotlib_svg import drawing, inline


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


@dataclass(slots=True)
class Drawer:
    """Draws the charts of one page, in the order of the page.

    Attributes:
        drawn: The number of charts drawn; it makes their ids unique.
    """

    drawn: int = field(default=0, init=False)

    def depth(self, depth: Depth) -> Chart:
        """Draw error by depth."""
        return self._chart(depth.says, depth_keys(depth), lambda: draw_depth(depth))

    def histograms(self, says: str, panels: Sequence[Panel]) -> Chart:
        """Draw histograms beside each other."""
        return self._chart(says, histogram_keys(panels), lambda: draw_histograms(panels))

    def _chart(self, says: str, keys: tuple[Key, ...], draw: Callable[[], Figure]) -> Chart:
        self.drawn += 1
        with drawing():
            return Chart(says, keys, inline(draw(), f"c{self.drawn}-"))
