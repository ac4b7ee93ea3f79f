"""Margins: the distance of clean ports and of planted faults from the bound of each judgement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from checks.core import thresholds
from checks.core.judgement import Judgement

Shares = Mapping[str, float]
"""Judgement to the share of its bound, as in `Judgement`."""

FAR = 100.0
"""From this share on, a fault is not near a bound; how much further it is, is not measured."""

FLOAT32_FAULTS = frozenset({"tf32-products"})
"""Faults of float32 arithmetic, which a run in float64 does not have."""

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "compare": ("mapping", "rounding", "headline"),
    "audit": ("preprocessing", "arithmetic", "distance"),
    "gradients": ("gradients", "SGD", "Adam"),
}
"""Command to its judgements with a bound. tensors, structure and statistics count bits and places."""


@dataclass(frozen=True, slots=True)
class Margin:
    """The margin of a judgement on both sides of its bound.

    Attributes:
        command: The command that passes the judgement.
        judgement: Its name.
        clean: The bound over the largest value of a clean run.
        fault: The smallest value of a planted fault that the judgement is for, over the bound.
        nearest: The fault with that value.
    """

    command: str
    judgement: str
    clean: float
    fault: float
    nearest: str

    @property
    def holds(self) -> bool:
        """True if both sides are wide enough."""
        return min(self.clean, self.fault) >= thresholds.MARGIN


def shares_of(judgements: Iterable[Judgement]) -> dict[str, float]:
    """The shares of the judgements that have one."""
    return {judgement.name: judgement.share for judgement in judgements if judgement.share is not None}


def largest(*shares: Shares) -> dict[str, float]:
    """The largest share of each judgement."""
    merged: dict[str, float] = {}
    for each in shares:
        for name, share in each.items():
            merged[name] = max(share, merged.get(name, 0.0))
    return merged
