"""What a graph does to an image before its first convolution, told by what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.metrics import relative_l2
from checks.probes import prewhiten, standardise

Array = NDArray[Any]
Pixels = Callable[[Array], Array]

RECOGNISED = 2e-3
"""Largest relative L2 at which what the first convolution gives still counts as that of one way to prepare an
image. The two ways that are nearest to each other, by 127.5 and by 128, are 4e-3 apart; half precision rounds
by 5e-4."""

_FIXED = "(x - 127.5) / 128"
_PER_IMAGE = "(x - mean) / std over each image"

_FEEDS: Mapping[str, Pixels] = {
    "standardised images": standardise,
    "pixels of 0 to 255": lambda pixels: pixels.astype(np.float32),
    "pixels of 0 to 1": lambda pixels: (pixels / 255.0).astype(np.float32),
}
_BAKED: Mapping[str, Pixels] = {
    _FIXED: standardise,
    "x / 127.5 - 1": lambda pixels: (pixels / 127.5 - 1.0).astype(np.float32),
    "x / 255": _FEEDS["pixels of 0 to 1"],
    _PER_IMAGE: prewhiten,
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
        distance: Relative L2 of what its first convolution gives from what this makes the network's give.
    """

    feed: str
    baked: str
    reverses: bool
    distance: float

    @property
    def known(self) -> bool:
        """Whether it explains what the first convolution gives."""
        return self.distance <= RECOGNISED

    @property
    def is_plain(self) -> bool:
        """Whether the graph does nothing to its images, as the published networks do."""
        return self.feed == "standardised images" and self.baked == _FIXED and not self.reverses

    @property
    def statement(self) -> str:
        """What the graph does, a clause."""
        if not self.known:
            return (
                f"unknown: no known way to prepare images explains its first layer ({self.distance:.1e} off)"
            )
        if self.is_plain:
            return "none baked in: it takes standardised RGB images"
        order = "BGR" if self.reverses else "RGB"
        if self.baked == _PER_IMAGE:
            return f"{self.baked} is baked in: it takes {order} images of any scale"
        if self.feed == "standardised images":
            baked = "none baked in" if self.baked == _FIXED else f"{self.baked} is baked in"
            return f"{baked}: it takes standardised {order} images"
        return f"{self.baked} is baked in: it takes {order} {self.feed}"

    def prepare(self, pixels: Array) -> tuple[Array, Array]:
        """What to feed of images of whole pixels, and what the network sees of them, both float32."""
        turned = pixels[..., ::-1] if self.reverses else pixels
        return np.ascontiguousarray(_FEEDS[self.feed](turned)), _BAKED[self.baked](pixels)


def to_pixels(images: Array) -> Array:
    """Standardised images as the whole pixels nearest to them, 0 to 255, float64."""
    return np.clip(np.round(images.astype(np.float64) * 128.0 + 127.5), 0, 255)


def recognise(
    pixels: Array, run: Callable[[Array], Array], network: Callable[[Array], Array], dtype: str
) -> Preprocessing:
    """Find what explains what a graph's first convolution gives, which no fault behind it can hide.

    Args:
        pixels: (N, H, W, 3), whole numbers of 0 to 255.
        run: Gives what it gives for what is fed to the graph, NHWC.
        network: Gives what the network's gives, without any preprocessing.
        dtype: What the graph takes.
    """
    seen = {name: network(prepared(pixels)) for name, prepared in _BAKED.items()}
    whole = dtype in ("uint8", "int8", "int32")
    best: Preprocessing | None = None
    for feed, prepared in _FEEDS.items():
        if whole and feed != _BYTES:
            continue
        for reverses in (False, True):
            turned = pixels[..., ::-1] if reverses else pixels
            given = run(np.ascontiguousarray(prepared(turned)))
            for baked, wanted in seen.items():
                if (feed, baked) == _SAME:
                    continue  # the same as standardised images that are only standardised
                distance = relative_l2(given, wanted)
                if best is None or distance < best.distance:
                    best = Preprocessing(feed, baked, reverses, distance)
    assert best is not None
    return best
