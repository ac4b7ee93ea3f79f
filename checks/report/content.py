"""The head of a page, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from checks.core.judgement import Judgement


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a page.

    Attributes:
        command: The name of the command.
        passed: The verdict.
        word: The verdict in a word.
        sentence: The verdict in a sentence.
        facts: The name and value of each fact on the port and the source.
        judgements: The judgements, in order.
        place: The place of the fault; empty without one.
        reasons: The label and the sentence of each cause.
        is_weaker: Whether everything that was compared is the same, but too little was compared to pass.
    """

    command: str
    passed: bool
    word: str
    sentence: str
    facts: tuple[tuple[str, str], ...]
    judgements: tuple[Judgement, ...]
    place: str = ""
    reasons: tuple[tuple[str, str], ...] = ()
    is_weaker: bool = False
