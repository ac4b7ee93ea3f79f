"""Why a layer of a port is given another input than it should: the images, or what other layers made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.core.activations import short_name
from checks.core.network import LayerKind, NetworkLayer
from checks.diagnosis.causes import Cause
from checks.diagnosis.layer_arithmetic import concatenated, distance, normalise
from checks.diagnosis.tensor_causes import Explanation

_ROUNDED = 1e-6  # relative L2; the same formula in float32, in another order, lies well within
_EXACT = 1e-12
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's

Change = tuple[Cause, str, Callable[[Tensor], Tensor]]


def explain_images(given: Tensor, images: Tensor, pixels: Tensor | None) -> Explanation | None:
    """Say what was done to the images of a port, or None.

    Args:
        given: (N, 3, H, W), float64: what the port's first layer got.
        images: The same as the reference got it.
        pixels: (N, 3, H, W), 0 to 255, where they are known; otherwise they are told from `images`, as
            standardised in 2018.
    """
    known = pixels
    if pixels is None:
        pixels = images * 128 + 127.5
    for cause, words, change in (*_arrangements(), *_precisions()):
        if distance(change(images), given) <= _EXACT:
            return cause, words
    for words, value in _standardisations(pixels):
        if distance(value, given) <= _ROUNDED:
            return Cause.STANDARDISATION, f"the images are standardised as {words}"
        for cause, arrangement, change in _arrangements():
            if distance(change(value), given) <= _ROUNDED:
                return cause, f"{arrangement}, and the images are standardised as {words}"
    fitted = _fit(images, given)
    if fitted is not None:
        return fitted
    for cause, arrangement, change in _arrangements():
        fitted = _fit(change(images), given)
        if fitted is not None:
            return cause, f"{arrangement}, and {fitted[1]}"
    return None if known is None else _pointwise(known, given)


def _pointwise(pixels: Tensor, given: Tensor) -> Explanation | None:
    """Whether the input is some function of each pixel's value, as where integers overflow."""
    if given.shape != pixels.shape:
        return None
    values = pixels.flatten().long()
    count = torch.zeros(256, dtype=torch.float64).index_add_(0, values, torch.ones_like(given).flatten())
    total = torch.zeros(256, dtype=torch.float64).index_add_(0, values, given.flatten())
    function = total / count.clamp_min(1)
    if distance(function[values].reshape(given.shape), given) > _ROUNDED:
        return None
    told = ", ".join(f"{value} becomes {function[value]:.4g}" for value in (0, 64, 128, 192) if count[value])
    return Cause.STANDARDISATION, f"the pixels are mapped in another way: {told}"


def _reordered(order: tuple[int, ...], images: Tensor) -> Tensor:
    return images[:, list(order)]


def _through(dtype: torch.dtype, images: Tensor) -> Tensor:
    return images.to(dtype).double()


def _decimals(decimals: int, images: Tensor) -> Tensor:
    return images.round(decimals=decimals).float().double()


def _arrangements() -> Iterator[Change]:
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            words = "the channels are in the order " + "".join("RGB"[channel] for channel in order)
            yield Cause.CHANNEL_ORDER, words, partial(_reordered, order)
    yield Cause.ORIENTATION, "the images are mirrored", lambda x: x.flip(3)
    yield Cause.ORIENTATION, "the images are upside down", lambda x: x.flip(2)
    yield Cause.ORIENTATION, "the images are turned by 180 degrees", lambda x: x.flip((2, 3))
    yield Cause.ORIENTATION, "height and width of the images are exchanged", lambda x: x.mT
    yield Cause.ORIENTATION, "the images are turned by 90 degrees", lambda x: x.rot90(1, (2, 3))
    yield Cause.ORIENTATION, "the images are turned by 270 degrees", lambda x: x.rot90(3, (2, 3))

    def as_nchw(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(x.shape)

    def as_nhwc(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return x.reshape(batch, height, width, channels).permute(0, 3, 1, 2)

    yield Cause.IMAGE_LAYOUT, "NHWC is read as NCHW", as_nchw
    yield Cause.IMAGE_LAYOUT, "NCHW is read as NHWC", as_nhwc


def _precisions() -> Iterator[Change]:
    for dtype in (torch.float16, torch.bfloat16):
        words = f"the images are rounded to {str(dtype).removeprefix('torch.')}"
        yield Cause.INPUT_PRECISION, words, partial(_through, dtype)
    for words, function in (("rounded", torch.round), ("cut off", torch.floor)):
        for clipped in (False, True):

            def whole(
                x: Tensor, function: Callable[[Tensor], Tensor] = function, clip: bool = clipped
            ) -> Tensor:
                pixels = function(x * 128 + 127.5)
                return ((pixels.clamp(0, 255) if clip else pixels) - 127.5) / 128

            yield Cause.INPUT_PRECISION, f"the images are {words} to whole pixels", whole
    for decimals in range(1, 8):
        words = f"the images are rounded to {decimals} decimals"
        yield Cause.INPUT_PRECISION, words, partial(_decimals, decimals)


def _standardisations(pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
    each, every = (1, 2, 3), (0, 1, 2, 3)
    size = pixels[0].numel()
    yield "(x - 127.5) / 128", (pixels - 127.5) / 128
    yield "(x - 127.5) / 127.5", (pixels - 127.5) / 127.5
    yield "(x - 128) / 128", (pixels - 128) / 128
    yield "x / 255", pixels / 255
    yield "x, not at all", pixels
    yield "x - 127.5", pixels - 127.5
    for words, axes in (
        ("each image", each),
        ("each image's channels", (2, 3)),
        ("the whole batch", every),
    ):
        mean = pixels.mean(axes, keepdim=True)
        for unbiased in (False, True):
            deviation = pixels.std(axes, unbiased=unbiased, keepdim=True)
            floor = 1 / size**0.5  # facenet.py: prewhiten
            yield f"(x - mean) / std over {words} (prewhiten)", (pixels - mean) / deviation.clamp_min(floor)
    mean, deviation = (
        torch.tensor(values, dtype=pixels.dtype).view(1, 3, 1, 1)
        for values in (_IMAGENET_MEAN, _IMAGENET_DEVIATION)
    )
    yield "ImageNet's mean and deviation say", (pixels / 255 - mean) / deviation


def _fit(images: Tensor, given: Tensor) -> Explanation | None:
    """Whether the input is a * x + b of what it should be: for all images, each channel or each image."""
    if given.shape != images.shape:
        return None
    for words, axes in (
        ("", (0, 1, 2, 3)),
        (" for each channel", (0, 2, 3)),
        (" for each image", (1, 2, 3)),
        (" for each image and channel", (2, 3)),
    ):
        mean, other = images.mean(axes, keepdim=True), given.mean(axes, keepdim=True)
        spread = (images - mean).square().sum(axes, keepdim=True)
        factor = ((images - mean) * (given - other)).sum(axes, keepdim=True) / spread.clamp_min(1e-30)
        summand = other - factor * mean
        if not bool((factor > 0).all()) or distance(factor * images + summand, given) > _ROUNDED:
            continue
        a, b = float(factor.flatten()[0]), float(summand.flatten()[0])
        told = f"{a:.6g} * x {'-' if b < 0 else '+'} {abs(b):.6g}"
        which = f", and likewise another one{words}" if words else ""
        return Cause.STANDARDISATION, f"the images are {told} of what they should be{which}"
    return None


def explain_wiring(
    layer: NetworkLayer, got: Tensor, expected: tuple[Tensor, ...], reference: Mapping[str, Tensor]
) -> Explanation | None:
    """Say what another layer than the first is given instead of what the layers before it made, or None.

    Args:
        layer: The layer as it should be.
        got: What the port gave it.
        expected: What it should get, as `NetworkLayer.inputs` orders it.
        reference: Every activation.
    """
    whole = concatenated(expected)
    if got.numel() != whole.numel():
        return None
    whole = whole.reshape(got.shape)
    if layer.kind is LayerKind.PROJECTION:
        for order in itertools.permutations(range(len(expected))):
            if torch.equal(torch.cat([expected[number] for number in order], dim=1), got):
                order_words = ", ".join(map(str, order))
                return Cause.BRANCH_ORDER, f"its branches are concatenated in the order {order_words}"
    if layer.kind is LayerKind.LOGITS:
        for words, other in (
            ("the embedding after L2 normalisation", normalise(whole)),
            ("what a ReLU leaves of the embedding", F.relu(whole)),
        ):
            if distance(other, got) <= _EXACT:
                return Cause.CLASSIFIER_INPUT, f"it is given {words}"
    if distance(F.relu(whole), got) <= _EXACT:
        return Cause.RELU, "a ReLU cuts its input off"
    kept = got != 0
    if bool(kept.any()) and not bool(kept.all()):
        factor = float((got[kept] / whole[kept]).median())
        dropped = torch.where(kept, whole * factor, torch.zeros_like(whole))
        if distance(dropped, got) <= _EXACT and float((~kept & (whole != 0)).sum()) > 0:
            share = float((~kept & (whole != 0)).sum() / (whole != 0).sum())
            return Cause.DROPOUT, f"{share:.0%} of its input is dropped, the rest multiplied by {factor:.4g}"
    for name, activation in reference.items():
        if activation.shape == got.shape and distance(activation, got) <= _EXACT:
            if layer.kind is LayerKind.LOGITS:
                return Cause.CLASSIFIER_INPUT, f"it is given the output of {short_name(name)}"
            return None
    return (
        (Cause.CLASSIFIER_INPUT, "it is not given the embedding") if layer.kind is LayerKind.LOGITS else None
    )
