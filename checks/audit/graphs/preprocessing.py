"""What a graph does to an image before its first convolution, told by what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.core.inputs import prewhiten, standardise
from checks.core.metrics import relative_l2
from converter.hub.catalog_entry import FIXED, PER_IMAGE

Array = NDArray[Any]
Pixels = Callable[[Array], Array]

RECOGNISED = 2e-3
"""Largest relative L2 at which an image still counts as prepared in one of the known ways. The two that are
nearest to each other, by 127.5 and by 128, are 4e-3 apart; half precision rounds by 5e-4."""

_STANDARDISED = "standardised images"
_FEEDS: Mapping[str, Pixels] = {
    _STANDARDISED: standardise,
    "pixels of 0 to 255": lambda pixels: pixels.astype(np.float32),
    "pixels of 0 to 1": lambda pixels: (pixels / 255.0).astype(np.float32),
}
_BAKED: Mapping[str, Pixels] = {
    FIXED: standardise,
    "x / 127.5 - 1": lambda pixels: (pixels / 127.5 - 1.0).astype(np.float32),
    "x / 255": _FEEDS["pixels of 0 to 1"],
    PER_IMAGE: prewhiten,
}
_SAME = ("pixels of 0 to 1", "x / 255")
_BYTES = "pixels of 0 to 255"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How images go into a graph, and what it does to them.

    Attributes:
        feed: What it takes: one of the names of `_FEEDS`.
        baked: What it computes of them: one of the names of `_BAKED`.
        reverses: Whether it takes BGR.
        distance: Relative L2 of the image that its first convolution takes from the one that this gives.
    """

    feed: str
    baked: str
    reverses: bool
    distance: float

    @property
    def known(self) -> bool:
        """Whether it explains what the first convolution takes."""
        return self.distance <= RECOGNISED

    @property
    def takes_standardised(self) -> bool:
        """Whether standardised images may be fed as they are; where nothing is known they are, too."""
        return self.feed == _STANDARDISED and not self.reverses

    @property
    def is_left_to_others(self) -> bool:
        """Whether the graph leaves it to others to standardise images."""
        return self.feed == _STANDARDISED and self.baked == FIXED

    @property
    def statement(self) -> str:
        """What the graph does, a clause."""
        if not self.known:
            return (
                f"unknown: no known way to prepare images gives what its first layer takes "
                f"({self.distance:.1e} off)"
            )
        order = "BGR" if self.reverses else "RGB"
        if self.is_left_to_others:
            return f"none baked in: it takes standardised {order} images"
        if self.baked == PER_IMAGE:
            return f"{self.baked} is baked in: it takes {order} images of any scale"
        return f"{self.baked} is baked in: it takes {order} {self.feed}"

    def feed_of(self, pixels: Array) -> Array:
        """What to feed of images of whole pixels, float32."""
        return _feed(self.feed, pixels, reverses=self.reverses)


def to_pixels(images: Array) -> Array:
    """Standardised images as the whole pixels nearest to them, 0 to 255, float64."""
    return np.clip(np.round(images.astype(np.float64) * 128.0 + 127.5), 0, 255)


def recognise(pixels: Array, prepare: Callable[[Array], Array], dtype: str) -> Preprocessing:
    """Find which of the known ways to prepare an image a graph follows.

    Args:
        pixels: (N, H, W, 3), whole numbers of 0 to 255.
        prepare: Gives the image that the graph's first convolution takes for what is fed to it, NHWC.
        dtype: What the graph takes.
    """
    seen = {name: prepared(pixels) for name, prepared in _BAKED.items()}
    whole = dtype in ("uint8", "int8", "int32")
    best: Preprocessing | None = None
    for feed in _FEEDS:
        if whole and feed != _BYTES:
            continue
        for reverses in (False, True):
            given = prepare(_feed(feed, pixels, reverses=reverses))
            for baked, wanted in seen.items():
                if (feed, baked) == _SAME:
                    continue  # the same as standardised images that are only standardised
                distance = relative_l2(given, wanted) if given.shape == wanted.shape else np.inf
                if best is None or distance < best.distance:
                    best = Preprocessing(feed, baked, reverses, distance)
    assert best is not None
    return best


def _feed(feed: str, pixels: Array, *, reverses: bool) -> Array:
    return np.ascontiguousarray(_FEEDS[feed](pixels[..., ::-1] if reverses else pixels))
