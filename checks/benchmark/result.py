"""The result of the benchmark, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the result: a ratio, or seconds.

    Attributes:
        name: The name of the figure.
        value: The median.
        low: The smallest value.
        high: The largest value.
        bound: The bound: the largest median that is accepted.
        unit: The unit; empty for a ratio.
    """

    name: str
    value: float
    low: float
    high: float
    bound: float
    unit: str = ""

    @property
    def held(self) -> bool:
        """True if the bound is kept."""
        return self.value <= self.bound

    def show(self, value: float) -> str:
        """Format a value with the unit of the figure."""
        return f"{value:.2f} {self.unit}".strip()


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """The result of the benchmark.

    Attributes:
        rounds: The number of runs of each command.
        figures: The figures, in the order of measuring.
        environment: The result of `checks.core.environment.environment`.
    """

    rounds: int
    figures: tuple[Figure, ...]
    environment: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """True if every bound is kept."""
        return all(figure.held for figure in self.figures)
