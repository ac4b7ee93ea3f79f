"""Detect a graph's preprocessing of images from the input of its first convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from checks.core.inputs import prewhiten, standardise
from checks.core.metrics import figure, relative_l2
from checks.core.types import Array
from converter.hub.catalog_entry import FIXED, PER_IMAGE

Pixels = Callable[[Array], Array]

RECOGNISED = 2e-3
"""Largest relative L2 at which an image counts as prepared in a known way. The two closest ways, by 127.5
and by 128, are 4e-3 apart; half precision rounds by 5e-4."""

_COLOUR = (40, 110, 200)  # channels that differ, so that their order shows

_STANDARDISED = "standardised images"
_BYTES = "pixels of 0 to 255"
_SHARES = "pixels of 0 to 1"
_FEEDS: Mapping[str, Pixels] = {
    _STANDARDISED: standardise,
    _BYTES: lambda pixels: pixels.astype(np.float32),
    _SHARES: lambda pixels: (pixels / 255.0).astype(np.float32),
}
"""The name of each input of a graph, to the function that computes it from pixels."""

_BAKED: Mapping[str, Pixels] = {
    FIXED: standardise,
    "x / 127.5 - 1": lambda pixels: (pixels / 127.5 - 1.0).astype(np.float32),
    "x / 255": _FEEDS[_SHARES],
    PER_IMAGE: prewhiten,
}
"""The name of each input of the first convolution, to the function that computes it from pixels."""

_MISREADINGS: Mapping[str, Pixels] = {
    "it exchanges the height and the width of images": lambda images: images.transpose(0, 2, 1, 3),
    "it takes NHWC images for NCHW": lambda images: images.reshape(
        len(images), images.shape[3], *images.shape[1:3]
    ).transpose(0, 2, 3, 1),
    "it takes NCHW images for NHWC": lambda images: np.ascontiguousarray(
        images.transpose(0, 3, 1, 2)
    ).reshape(images.shape),
}
"""A clause on each mistake in the order of axes, to the function that makes it."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The input of a graph, and the graph's own operations on it before the first convolution.

    Attributes:
        feed: The input of the graph: one of the names of `_FEEDS`.
        baked: The input of the first convolution: one of the names of `_BAKED`.
        reverses: Whether the graph takes BGR.
        distance: Relative L2 of the actual input of the first convolution from this one.
        resized: A clause on the sizes, such as "from 224x224 to 160x160"; empty if the size stays.
        misreading: A clause on the mistake in the order of axes that explains the input of the first
            convolution; empty if none does.
        takes_integers: Whether the input of the graph is of integers, which hold no other scale.
    """

    feed: str
    baked: str
    reverses: bool
    distance: float
    resized: str = ""
    misreading: str = ""
    takes_integers: bool = False

    @property
    def is_known(self) -> bool:
        """True if it explains the input of the first convolution."""
        return self.distance <= RECOGNISED and not self.misreading

    @property
    def takes_standardised(self) -> bool:
        """True if the graph takes standardised RGB images."""
        return self.takes_images and not self.reverses

    @property
    def takes_images(self) -> bool:
        """True if the graph takes images that are standardised before."""
        return self.feed == _STANDARDISED

    @property
    def is_baked_in(self) -> bool:
        """True if the graph standardises images itself."""
        return not (self.feed == _STANDARDISED and self.baked == FIXED)

    @property
    def statement(self) -> str:
        """A clause on the preprocessing."""
        if self.misreading:
            return f"{self.misreading}, {replace(self, misreading='').statement}"
        if not self.is_known:
            off = f"{figure(self.distance)} off"
            return f"unknown: no known way to prepare images gives what its first layer takes ({off})"
        if self.resized:
            known = replace(self, resized="").statement
            return f"{known}; it resizes them {self.resized}, which is not judged"
        order = "BGR" if self.reverses else "RGB"
        if not self.is_baked_in:
            return f"none baked in: it takes standardised {order} images"
        if self.baked == PER_IMAGE and not self.takes_integers:
            return f"{self.baked} is baked in: it takes {order} images of any scale"
        return f"{self.baked} is baked in: it takes {order} {self.feed}"

    def to_network(self, pixels: Array) -> Array:
        """Prepare images of whole pixels as for the first convolution, float32."""
        return _BAKED[self.baked](pixels)

    def to_feed(self, pixels: Array) -> Array:
        """Prepare images of whole pixels for the graph's input, float32."""
        return _feed(self.feed, pixels, reverses=self.reverses)


def to_pixels(images: Array) -> Array:
    """Round standardised images to the nearest whole pixels, 0 to 255, float64."""
    return np.clip(np.round(images.astype(np.float64) * 128.0 + 127.5), 0, 255)


def detect_preprocessing(
    pixels: Array,
    prepare: Callable[[Array], Array],
    dtype: str,
    embed: Callable[[Array], Array] = lambda images: images,
) -> Preprocessing:
    """Find the known way to prepare an image that is nearest to a graph's.

    Args:
        pixels: (N, H, W, 3), whole numbers of 0 to 255.
        prepare: Function from the graph's input to the input of its first convolution, both NHWC, or to its
            embeddings.
        dtype: The dtype of the graph's input.
        embed: Function from the input of the first convolution to the embeddings, if `prepare` gives these.
    """
    baked_images = {name: embed(bake(pixels)) for name, bake in _BAKED.items()}
    takes_integers = dtype in ("uint8", "int8", "int32")
    best: Preprocessing | None = None
    for feed in (_BYTES,) if takes_integers else _FEEDS:
        for reverses in (False, True):
            prepared = prepare(_feed(feed, pixels, reverses=reverses))
            for baked, expected in baked_images.items():
                if (feed, baked) == (_SHARES, "x / 255"):
                    continue  # a graph that leaves its input alone: the first row of both tables covers it
                distance = relative_l2(prepared, expected) if prepared.shape == expected.shape else np.inf
                if best is None or distance < best.distance:
                    best = Preprocessing(feed, baked, reverses, distance, takes_integers=takes_integers)
    assert best is not None
    return best


def detect_misreading(
    pixels: Array, prepare: Callable[[Array], Array], dtype: str, unknown: Preprocessing
) -> Preprocessing:
    """Find the mistake in the order of axes that explains a graph's unknown way to prepare an image.

    Args:
        pixels: As in `detect_preprocessing`.
        prepare: Function from the graph's input to the input of its first convolution, both NHWC.
        dtype: The dtype of the graph's input.
        unknown: The nearest known way, which is returned if no mistake explains the graph's.
    """
    for misreading, misread in _MISREADINGS.items():
        read = detect_preprocessing(pixels, prepare, dtype, misread)
        if read.is_known:
            return replace(read, misreading=misreading)
    return unknown


def detect_resized(pixels: Array, prepare: Callable[[Array], Array], dtype: str) -> Preprocessing:
    """Find the known way to prepare an image for a graph that brings images to another size.

    The arguments are those of `detect_preprocessing`, of which only the shape of `pixels` counts: the images
    have one colour, which no resampling changes. So the way to resample stays unknown.
    """
    height, width = pixels.shape[1:3]
    sizes = set()

    def prepare_and_fit(images: Array) -> Array:
        prepared = prepare(images)
        sizes.add(f"from {height}x{width} to {prepared.shape[1]}x{prepared.shape[2]}")
        return fit_size(prepared, height, width)

    plain = np.broadcast_to(np.array(_COLOUR, np.float64), pixels.shape)
    found = detect_preprocessing(plain, prepare_and_fit, dtype)
    return replace(found, resized=" or ".join(sorted(sizes)))


def fit_size(images: Array, height: int | None, width: int | None) -> Array:
    """Cut or repeat NHWC images to a size; None leaves an extent as it is."""
    for axis, extent in ((1, height), (2, width)):
        if extent is not None and extent != images.shape[axis]:
            images = np.take(images, np.arange(extent) % images.shape[axis], axis=axis)
    return images


def _feed(feed: str, pixels: Array, *, reverses: bool) -> Array:
    return np.ascontiguousarray(_FEEDS[feed](pixels[..., ::-1] if reverses else pixels))
