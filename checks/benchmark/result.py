"""The result of the benchmark, as plain data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["conversion", "faces", "deploy", "training"]
"""A part of the benchmark."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the result: a ratio, seconds, or photographs a second.

    Attributes:
        name: The name of the figure.
        value: The median.
        low: The smallest value.
        high: The largest value.
        bound: The bound of the median; None if the figure has none.
        unit: The unit; empty for a ratio.
        at_least: Whether the bound is the smallest median that is accepted, and not the largest.
    """

    name: str
    value: float
    low: float
    high: float
    bound: float | None
    unit: str = ""
    at_least: bool = False

    @property
    def held(self) -> bool:
        """True if the bound is kept."""
        if self.bound is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def show(self, value: float) -> str:
        """Format a value with the unit of the figure."""
        return f"{value:.2f} {self.unit}".strip()

    @property
    def limit(self) -> str:
        """The bound in words; empty without one."""
        if self.bound is None:
            return ""
        return f"at {'least' if self.at_least else 'most'} {self.show(self.bound)}"


def summarise(
    name: str, values: Sequence[float], bound: float | None, unit: str = "", *, at_least: bool = False
) -> Figure:
    """Make the figure of several runs; the arguments are the attributes of `Figure`."""
    return Figure(name, statistics.median(values), min(values), max(values), bound, unit, at_least)


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """The result of the benchmark.

    Attributes:
        rounds: The number of runs of each command.
        figures: The figures, in the order of measuring.
        environment: The result of `checks.core.environment.environment`.
        notes: Sentences on what was not measured.
    """

    rounds: int
    figures: tuple[Figure, ...]
    environment: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if every bound is kept."""
        return all(figure.held for figure in self.figures)
