"""Group activations and keys by part of the network, for the axis of a chart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from checks.core.network import short_name
from converter.layer_map import BLOCKS

Groups = tuple[tuple[str, int], ...]
"""The name and the first index of each part, in order."""

_MTCNN = re.compile(r"(?:conv|prelu|PReLU|pool)(\d)|conv\d-\d|prob1")
_STEM, _HEAD = "stem", "head"
_REPEATS = {"Repeat": "block35 ×5", "Repeat_1": "block17 ×10", "Repeat_2": "block8 ×5"}  # noqa: RUF001


def activation_groups(activations: Sequence[str]) -> Groups:
    """Group activations by part."""
    return _group([_part_of_activation(short_name(activation)) for activation in activations])


def _part_of_activation(activation: str) -> str:
    first = activation.partition("/")[0]
    if mtcnn := _MTCNN.fullmatch(first):
        return f"conv{mtcnn[1]}" if mtcnn[1] else "outputs"
    if first.startswith(("Conv2d", "MaxPool")):
        return _STEM
    return _REPEATS.get(first, first if first.startswith(("Mixed", "Block")) else _HEAD)


def _modules() -> dict[str, str]:
    """Map the first part of a state_dict key to the part of the network."""
    parts = {}
    for scope, module, _ in BLOCKS:
        if scope:
            parts[module.partition(".")[0]] = _part_of_activation(scope)
    return parts


_MODULES = _modules()


def key_groups(keys: Sequence[str]) -> Groups:
    """Group the keys of a state_dict by part; the input belongs to the stem."""
    return _group([_part_of_key(key.partition(".")[0]) for key in keys])


def _part_of_key(module: str) -> str:
    if module in ("last_linear", "last_bn", "logits"):
        return _HEAD
    return _MODULES.get(module, _STEM)


def _group(names: Sequence[str]) -> Groups:
    groups = []
    first = 0
    for name, members in groupby(names):
        groups.append((name, first))
        first += len(list(members))
    return tuple(groups)
