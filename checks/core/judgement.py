"""A judgement: one statement that a check makes, and whether it holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict.

    Attributes:
        name: What was judged.
        passed: Whether it holds.
        statement: The finding with its figures, one line.
        details: What is wrong, item by item; empty where it holds.
    """

    name: str
    passed: bool
    statement: str
    details: tuple[str, ...] = ()
