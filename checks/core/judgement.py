"""A judgement: a statement that a check makes, and whether it holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Judgement:
    """A statement and whether it holds.

    Attributes:
        name: Name of the judgement, such as "mapping".
        passed: Whether it holds.
        statement: The result with its figures, one line.
        details: A line for each difference; empty if it holds.
        share: The largest measured value as a share of its bound: above 1 the judgement fails. None if it
            counts bits or places, which are equal or not.
    """

    name: str
    passed: bool
    statement: str
    details: tuple[str, ...] = ()
    share: float | None = None
