"""Turn a matplotlib figure into SVG that follows the page's colours and fonts, light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

_ROLES = (
    *("ink", "muted", "grid", "stripe", "card"),
    *("pytorch", "float64", "floor", "fault", "limit", "holds", "weaker"),
)
_STAND_INS = {f"#0{number:x}fade": f"var(--{role})" for number, role in enumerate(_ROLES)}
_BY_ROLE = dict(zip(_ROLES, _STAND_INS, strict=True))

_COLOUR = re.compile("|".join(_STAND_INS))
_FONT = re.compile(r"font-family:[^;]*;?")  # matplotlib's own font; the page sets another
_LONG = re.compile(r"(\d+\.\d{2})\d+")
_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # empty: equal charts are equal bytes


def colour(role: str) -> str:
    """The stand-in colour of a role; `inline` replaces it by the page's own colour."""
    return _BY_ROLE[role]


@contextmanager
def drawing() -> Iterator[None]:
    """Make matplotlib ignore the user's settings and print every text as it is."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "facenet-port",
                "text.parse_math": False,
                "path.simplify": False,
                "axes.unicode_minus": True,
            }
        )
        yield


def inline(figure: Figure, prefix: str) -> Markup:
    """Turn a figure into an <svg> without a size of its own.

    Args:
        figure: The figure, drawn in the colours that `colour` gives.
        prefix: The prefix of every id, so that no two figures of a page share an id.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata=_METADATA)
    root = ElementTree.fromstring(written.getvalue())  # noqa: S314 - matplotlib has just written it
    used = {value[1:] for element in root.iter() for name, value in element.items() if name.endswith("}href")}
    used |= set(re.findall(r"url\(#([^)]+)\)", written.getvalue()))
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):  # a style would apply to the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        for name, value in list(element.items()):
            del element.attrib[name]
            if name != "id" or value in used:
                element.set(_local(name), _value(_local(name), value, prefix))
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "aria-hidden": "true"})  # the figure around it has the description
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - serialised, hence escaped


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _value(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name == "href":
        return f"#{prefix}{value[1:]}"
    value = _COLOUR.sub(lambda match: _STAND_INS[match[0]], value)
    value = value.replace("url(#", f"url(#{prefix}")
    if name == "style":
        return _FONT.sub("", value).strip("; ")
    if name in ("d", "x", "y", "transform", "points"):
        return _LONG.sub(r"\1", " ".join(value.split()))
    return value
