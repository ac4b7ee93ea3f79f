"""Values of a source that no network computes with: NaN, infinities, and variances without a root."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.layer_map import LOGITS_SCOPE, ConvertedRow

NEXT_STEP = "The training diverged, or the file is damaged: take an earlier checkpoint"
"""Advice on a source with broken values."""

_EPSILON = np.float32(0.001)
"""BatchNorm's epsilon, which is added to a variance before the root is taken."""

_MOST_NAMED = 3  # tensors in a sentence; the sentence counts the others


@dataclass(frozen=True, slots=True)
class BrokenValues:
    """The numbers of broken values in one tensor.

    Attributes:
        values: Number of elements.
        nan: Number of NaNs.
        infinite: Number of infinities.
        negative: Number of finite variances of -0.001 or below; BatchNorm's root of them is NaN or 0.
    """

    values: int
    nan: int
    infinite: int
    negative: int = 0

    def __str__(self) -> str:
        """The counts in words, such as "1 of 32 values is NaN"."""
        kinds = {
            "NaN": self.nan,
            "infinite": self.infinite,
            "negative, which a variance cannot be": self.negative,
        }
        counts = [(count, kind) for kind, count in kinds.items() if count]
        first, *others = (f"{count} {'is' if count == 1 else 'are'} {kind}" for count, kind in counts)
        return ", ".join([first.replace(" ", f" of {self.values} values ", 1), *others])


def count_broken_values(row: ConvertedRow, array: NDArray[Any]) -> BrokenValues | None:
    """Count the broken values of one float32 tensor; None if it has none."""
    finite = np.isfinite(array)
    is_variance = row.variable.endswith("/moving_variance")
    negative = int((array[finite] + _EPSILON <= 0).sum()) if is_variance else 0
    if finite.all() and not negative:
        return None
    nan = int(np.isnan(array).sum())
    return BrokenValues(array.size, nan, int(array.size - finite.sum()) - nan, negative)


def state_broken_values(broken: Mapping[str, BrokenValues], tensors: int) -> str:
    """Count and name the tensors with broken values, in a clause.

    Args:
        broken: Name of each such tensor, in the source, to the numbers of its broken values.
        tensors: Number of tensors that the network uses.
    """
    named = ", ".join(f"{name} ({values})" for name, values in list(broken.items())[:_MOST_NAMED])
    if len(broken) > _MOST_NAMED:
        named += f" and {len(broken) - _MOST_NAMED} more"
    hold = "holds" if len(broken) == 1 else "hold"
    infinite = any(values.nan or values.infinite for values in broken.values())
    what = "values that are not finite" if infinite else "negative variances"
    clause = f"{len(broken)} of {tensors} tensors {hold} {what}: {named}"
    if all(LOGITS_SCOPE.lower() in re.split("[/.]", name.lower()) for name in broken):
        clause += "; only the logits depend on them, the embeddings do not"
    return clause
