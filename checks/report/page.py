"""The page around a report: the verdict at its head, what was measured, the provenance at its foot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from checks.core.judgement import Judgement
from checks.report.provenance import Provenance
from converter.atomic import AtomicFiles
from converter.layer_map import Variant

_KIT = Path(__file__).parent
_NUMBER = re.compile(r"(\b\d(?:\.\d{1,3})?e[-+]\d{1,3}\b)")
_BREAK = re.compile(r"(?<=/)(?=\w)|(?<=\.)(?=[a-z_])")  # of a path or a key, but no decimal fraction


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a report.

    Attributes:
        command: The command's name.
        passed: The verdict.
        word: The same in a word.
        sentence: The same in a sentence.
        facts: What was judged and against what: name and value.
        judgements: Each verdict.
        place: Where the fault is; empty where there is none, or it has no place.
        reasons: Why, and what else is to be known first: name and sentence.
    """

    command: str
    passed: bool
    word: str
    sentence: str
    facts: tuple[tuple[str, str], ...]
    judgements: tuple[Judgement, ...]
    place: str = ""
    reasons: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: its name, its figures, and what it is: "", "fault" or "strong"."""

    name: str
    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: a name in the first column, figures in the others.

    Attributes:
        name: Above the first column.
        headings: Above the others.
        rows: In order.
        words: How many of the last columns hold words.
    """

    name: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    words: int = 0


def write_html(path: Path, template: str, head: Head, provenance: Provenance, **content: Any) -> None:
    """Render a report and write it, whole or not at all.

    Args:
        path: The file to write; one that exists is replaced.
        template: Path of its template within `checks`, such as "audit/page.html".
        head: Its head.
        provenance: Its foot.
        content: What the template shows between them.

    Raises:
        UsageError: Its folder does not exist, or the path is a folder.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_KIT, _KIT.parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["split"] = split
    environment.filters["breakable"] = breakable
    page = environment.get_template(template).render(head=head, provenance=provenance, **content)
    # A path need not be UTF-8: what cannot be written is shown by its number.
    written = page.encode("utf-8", "backslashreplace")
    with AtomicFiles(path.parent, overwrite=True) as files:
        files.stage(path.name).write_bytes(written)
        files.commit()


def network(variant: Variant) -> str:
    """A network in words."""
    classes = "no classifier" if variant.num_classes is None else f"{variant.num_classes} classes"
    return f"Inception-ResNet-v1, {variant.embedding_size}-d embedding, {classes}"


def breakable(text: str) -> Markup:
    """A text, escaped, that may be broken within the names in it, but not within its numbers."""
    pieces = _NUMBER.split(text)
    pieces[::2] = [Markup("<wbr>").join(map(escape, _BREAK.split(piece))) for piece in pieces[::2]]
    pieces[1::2] = [Markup('<span class="number">{}</span>').format(number) for number in pieces[1::2]]
    return Markup("").join(pieces)


def split(lines: Sequence[Any], most: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """What is shown at once, and what is folded away; a single line is not worth a fold."""
    return (lines, ()) if len(lines) <= most + 1 else (lines[:most], lines[most:])
