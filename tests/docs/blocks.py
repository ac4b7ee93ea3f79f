"""Reads the fenced blocks of a Markdown page, with what the page's comments say of them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (not run|not checked|exit code|file): (.+?) -->\n+\Z")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of shell or Python.

    Attributes:
        line: Where it begins in the page, from 1.
        language: "bash" or "python".
        code: What it holds.
        not_run: The reason that stands above it in a comment; empty for a block that is run.
        exit_code: The exit code that it should end with.
        file: The file that holds the code; it is written and not run. Empty for other blocks.
        output: What the page shows as its output; empty where the page shows none or marks it as not checked.
    """

    line: int
    language: str
    code: str
    not_run: str
    exit_code: int
    file: str = ""
    output: str = ""

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line, if all are calls of `facenet-port`; otherwise empty."""
        if self.language != "bash":
            return []
        lines = [shlex.split(line) for line in self.code.replace("\\\n", " ").splitlines()]
        return lines if all(words[:1] == ["facenet-port"] for words in lines) else []


def read_blocks(page: Path) -> list[Block]:
    """The shell and Python blocks of a page, in order; a `text` block is the output of the one before it."""
    text = page.read_text(encoding="utf-8")
    blocks: list[Block] = []
    for fence in _FENCE.finditer(text):
        language, content = fence.groups()
        comment = _COMMENT.search(text, 0, fence.start())
        kind, value = comment.groups() if comment else ("", "")
        if language == "text" and blocks and not blocks[-1].output and kind != "not checked":
            blocks[-1] = replace(blocks[-1], output=content)
        elif language in ("bash", "python"):
            line = text.count("\n", 0, fence.start()) + 1
            not_run = value if kind == "not run" else ""
            exit_code = int(value) if kind == "exit code" else 0
            file = value if kind == "file" else ""
            blocks.append(Block(line, language, content, not_run, exit_code, file))
    return blocks


def stable(line: str) -> str:
    """Reduce a line of output to what is the same on every machine: no measured figures, digests or padding.

    Whole numbers stay, such as 492 of 492. Figures with a fraction or an exponent are measured. Which
    activation has the worst figure of a right port depends on the number of threads.
    """
    line = re.sub(r"\b[0-9a-f]{64}\b", "SHA-256", line)
    line = re.sub(r"\d+\.\d+(e[-+]?\d+)?|\d+e[-+]?\d+", "#", line)
    line = re.sub(r"worst activation # \([\w/]+\); limit", "worst activation # (ACTIVATION); limit", line)
    return " ".join(line.split())
