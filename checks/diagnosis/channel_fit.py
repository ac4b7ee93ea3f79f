"""How one map's channels follow from another's: by a factor and a summand, or in another order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_FIT = 1e-10  # relative; a channel that is an affine function of another leaves no more than this
_ENOUGH = 0.3  # share of the channels that have to be seen
_COMPARED = 12  # places of a channel that are compared to find which it is
ROUNDED = 1e-5  # relative L2 of a layer whose tensor went through a float32 square root or the like


class Fit(NamedTuple):
    """Each channel of an output as a * x + b of another map's.

    Attributes:
        factor: a of each channel.
        summand: b of each channel.
        good: Whether the channel is that, to rounding; so is one of which nothing is seen.
        near: Whether it is that, to the rounding of float32.
        seen: Whether enough of the channel is seen to tell.
    """

    factor: Tensor
    summand: Tensor
    good: Tensor
    near: Tensor
    seen: Tensor

    @property
    def tells(self) -> bool:
        """Whether enough is seen to tell at all; two vectors of a batch do not."""
        return bool(self.seen.double().mean() > _ENOUGH)

    @property
    def holds(self) -> bool:
        """Whether every channel fits: the kernel is right, or is scaled."""
        return bool(self.good.all())


def fit_channels(linear: Tensor, wanted: Tensor, *, positive: bool) -> Fit:
    """Fit each channel of `wanted`, where a ReLU has not cut it off, as an affine function of `linear`'s."""
    axes = [axis for axis in range(linear.ndim) if axis != 1]

    def total(values: Tensor) -> Tensor:
        return values.sum(axes, keepdim=True)

    alive = (wanted > 0).double() if positive else torch.ones_like(wanted)
    count = total(alive)
    mean_x, mean_y = (total(value * alive) / count.clamp_min(1) for value in (linear, wanted))
    x, y = (linear - mean_x) * alive, (wanted - mean_y) * alive
    factor = total(x * y) / total(x * x).clamp_min(1e-300)
    rest = total((y - factor * x).square()).sqrt()
    seen = count > 2
    size = total((wanted * alive).square()).sqrt() + total((factor * linear * alive).square()).sqrt()
    good, near = ((rest <= limit * size) | ~seen for limit in (_FIT, ROUNDED))
    values = (factor, mean_y - factor * mean_x, good, near, seen)
    return Fit(*(value.flatten() for value in values))


def fit_bias(linear: Tensor, wanted: Tensor) -> Tensor:
    """What has to be added to each channel."""
    return (wanted - linear).mean([axis for axis in range(linear.ndim) if axis != 1])


def match_channels(found: Tensor, wanted: Tensor, seen: Tensor | None = None) -> list[int] | None:
    """For each channel of `wanted` that of `found` which equals it where it is seen; None without a match."""
    one, other = (x.transpose(0, 1).flatten(1) for x in (found, wanted))
    visible = torch.ones_like(other, dtype=torch.bool) if seen is None else seen.transpose(0, 1).flatten(1)
    size = float(other[visible].abs().max()) if bool(visible.any()) else 0.0
    free = set(range(len(one)))
    places: list[int | None] = []
    for channel in range(len(other)):
        at = visible[channel].nonzero().flatten()[:_COMPARED]
        if not len(at):
            places.append(None)
            continue
        near = (one[:, at] - other[channel, at]).abs().amax(dim=1) <= 1e-9 * size
        match = [number for number in near.nonzero().flatten().tolist() if number in free]
        if not match:
            return None
        places.append(match[0])
        free.remove(match[0])
    left = iter(sorted(free))
    order = [next(left) if place is None else place for place in places]
    return None if order == list(range(len(order))) else order
