"""The charts of a page, each an SVG that scales with the page; on a phone the reader scrolls it sideways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup
from matplotlib.figure import Figure

from checks.report.chart_frame import LegendEntry
from checks.report.curve_chart import CurvePanel, curve_legend, draw_curves
from checks.report.depth_chart import Depth, depth_legend, draw_depth
from checks.report.distance_chart import Distances, distance_legend, draw_distances
from checks.report.histogram_chart import Panel, draw_histograms, histogram_legend
from checks.report.matplotlib_svg import drawing, inline
from checks.report.roc_chart import Roc, draw_roc, roc_legend
from checks.report.scatter_chart import Scatter, draw_scatter, scatter_legend


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as a page shows it.

    Attributes:
        description: A sentence on what it shows.
        legend: The legend.
        svg: The drawing.
    """

    description: str
    legend: tuple[LegendEntry, ...]
    svg: Markup


@dataclass(slots=True)
class Drawer:
    """Draws the charts of one page, in the order of the page.

    Attributes:
        count: The number of charts so far; it makes their ids unique.
    """

    count: int = field(default=0, init=False)

    def depth(self, depth: Depth) -> Chart:
        """Draw error by depth."""
        return self._chart(depth.description, depth_legend(depth), lambda: draw_depth(depth))

    def histograms(self, description: str, panels: Sequence[Panel]) -> Chart:
        """Draw histograms side by side."""
        return self._chart(description, histogram_legend(panels), lambda: draw_histograms(panels))

    def roc(self, roc: Roc) -> Chart:
        """Draw a receiver operating characteristic."""
        return self._chart(roc.description, roc_legend(roc), lambda: draw_roc(roc))

    def distances(self, distances: Distances) -> Chart:
        """Draw histograms of distances."""
        return self._chart(
            distances.description, distance_legend(distances), lambda: draw_distances(distances)
        )

    def curves(self, description: str, panels: Sequence[CurvePanel]) -> Chart:
        """Draw curves by epoch side by side."""
        return self._chart(description, curve_legend(panels), lambda: draw_curves(panels))

    def scatter(self, scatter: Scatter) -> Chart:
        """Draw points in groups."""
        return self._chart(scatter.description, scatter_legend(scatter), lambda: draw_scatter(scatter))

    def _chart(self, description: str, legend: tuple[LegendEntry, ...], draw: Callable[[], Figure]) -> Chart:
        self.count += 1
        with drawing():
            return Chart(description, legend, inline(draw(), f"c{self.count}-"))
