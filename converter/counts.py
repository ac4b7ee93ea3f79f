"""Counts in messages."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a count with its noun: "1 tensor", "2 tensors".

    Args:
        count: The count.
        noun: The noun in the singular.
        plural: The plural; empty adds an s.
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"
