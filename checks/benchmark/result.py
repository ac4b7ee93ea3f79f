"""The result of the benchmark, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result: a ratio within one run, or seconds.

    Attributes:
        name: What was measured.
        value: The median.
        low: The smallest value.
        high: The largest value.
        bound: The largest median that is accepted.
        unit: Unit of the four; empty for a ratio.
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
        """A value with its unit."""
        return f"{value:.2f} {self.unit}".strip()


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """The result of the benchmark.

    Attributes:
        rounds: How often each command ran.
        figures: In the order of measuring.
        environment: As `checks.core.environment.environment` gives it.
    """

    rounds: int
    figures: tuple[Figure, ...]
    environment: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """True if every bound is kept."""
        return all(figure.held for figure in self.figures)
