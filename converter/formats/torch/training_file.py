"""Finding the state_dict in a training file: a dictionary with an epoch, an optimiser and the like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from converter.formats.safe_pickle import Unread
from converter.formats.torch.state_dict_pickle import Tensor

_MOST_DEPTH = 3  # of dictionaries around the state_dict


def find_state_dicts(
    content: dict[Any, Any], names: Sequence[str] | None = None
) -> list[tuple[tuple[Any, ...], dict[Any, Any]]]:
    """List the dictionaries of tensors below a dictionary, each with the keys that lead to it.

    One that holds another is not listed.

    Args:
        content: The dictionary.
        names: The keys to follow; None follows all.
    """
    found: list[tuple[tuple[Any, ...], dict[Any, Any]]] = []
    seen: set[int] = set()  # a hostile pickle may hold one dictionary a million times

    def walk(outer: dict[Any, Any], path: tuple[Any, ...]) -> None:
        for key in outer if names is None else names:
            value = outer.get(key)
            if not isinstance(value, dict) or isinstance(key, Unread) or id(value) in seen:
                continue
            seen.add(id(value))
            before = len(found)
            if len(path) < _MOST_DEPTH - 1:
                walk(value, (*path, key))
            if len(found) == before and holds_tensors(value):
                found.append(((*path, key), value))

    walk(content, ())
    return found


def names_beside(content: dict[Any, Any], keys: Sequence[str]) -> Iterator[str]:
    """Yield the names of the entries beside the one that keys lead to, and beside each on the way."""
    for number, key in enumerate(keys):
        yield from (".".join((*keys[:number], str(name)[:200])) for name in content if name != key)
        content = content[key]


def holds_tensors(value: Any) -> bool:
    """Return whether a value may be a state_dict."""
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())
