"""Explain a wrong input of a layer: the images of the first layer, the outputs of other layers behind it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.core.network import LayerKind, NetworkLayer
from checks.diagnosis.causes import Cause, Explanation
from checks.diagnosis.layer_arithmetic import concatenated, distance, normalise

_ROUNDED = 1e-6  # relative L2, well above the rounding of a formula in float32
_EXACT = 1e-12
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's

Change = tuple[Cause, str, Callable[[Tensor], Tensor]]
"""A cause, a statement, and the function from the expected images to the changed ones."""


# The images of the first layer


def explain_images(given: Tensor, images: Tensor, pixels: Tensor | None) -> Explanation | None:
    """Explain how the port's images differ, or return None.

    Args:
        given: (N, 3, H, W), float64: the images that the port gave its first layer.
        images: The reference's images.
        pixels: (N, 3, H, W), 0 to 255; None computes them from `images`, taken as (x - 127.5) / 128.
    """
    known = pixels
    if pixels is None:
        pixels = images * 128 + 127.5
    for cause, statement, change in (*_arrangements(), *_precisions()):
        if distance(change(images), given) <= _EXACT:
            return cause, statement
    for formula, value in _standardisations(pixels):
        if distance(value, given) <= _ROUNDED:
            return Cause.STANDARDISATION, f"the images are standardised as {formula}"
        for cause, statement, change in _arrangements():
            if distance(change(value), given) <= _ROUNDED:
                return cause, f"{statement}, and the images are standardised as {formula}"
    fitted = _fit(images, given)
    if fitted is not None:
        return fitted
    for cause, statement, change in _arrangements():
        fitted = _fit(change(images), given)
        if fitted is not None:
            return cause, f"{statement}, and {fitted[1]}"
    return None if known is None else _pointwise(known, given)


def _arrangements() -> Iterator[Change]:
    yield Cause.CHANNEL_ORDER, "the channels are in the order BGR", lambda x: x.flip(1)
    yield Cause.ORIENTATION, "the images are mirrored", lambda x: x.flip(3)
    yield Cause.ORIENTATION, "the images are upside down", lambda x: x.flip(2)
    yield Cause.ORIENTATION, "height and width of the images are exchanged", lambda x: x.mT
    yield Cause.ORIENTATION, "the images are turned by 90 degrees", lambda x: x.rot90(1, (2, 3))
    statement = "an NHWC buffer is read as NCHW"
    yield Cause.IMAGE_LAYOUT, statement, lambda x: x.permute(0, 2, 3, 1).reshape(x.shape)


def _precisions() -> Iterator[Change]:
    for dtype in (torch.float16, torch.bfloat16):
        statement = f"the images are rounded to {str(dtype).removeprefix('torch.')}"
        yield Cause.INPUT_PRECISION, statement, partial(_through, dtype)
    for decimals in range(1, 8):
        statement = f"the images are rounded to {decimals} decimals"
        yield Cause.INPUT_PRECISION, statement, partial(_decimals, decimals)


def _through(dtype: torch.dtype, images: Tensor) -> Tensor:
    return images.to(dtype).double()


def _decimals(decimals: int, images: Tensor) -> Tensor:
    return images.round(decimals=decimals).float().double()


def _standardisations(pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Other standardisations: formula and images."""
    yield "(x - 127.5) / 128", (pixels - 127.5) / 128
    yield "(x - 127.5) / 127.5", (pixels - 127.5) / 127.5
    yield "(x - 128) / 128", (pixels - 128) / 128
    yield "x / 255", pixels / 255
    yield "x, which leaves them as they are", pixels
    for extent, axes in (
        ("each image", (1, 2, 3)),
        ("each image's channels", (2, 3)),
        ("the whole batch", (0, 1, 2, 3)),
    ):
        mean = pixels.mean(axes, keepdim=True)
        deviation = pixels.std(axes, correction=0, keepdim=True)
        floor = 1 / pixels[0].numel() ** 0.5  # `prewhiten` in davidsandberg/facenet's src/facenet.py
        yield f"(x - mean) / std over {extent} (prewhiten)", (pixels - mean) / deviation.clamp_min(floor)
    mean, deviation = (
        torch.tensor(values, dtype=pixels.dtype).view(1, 3, 1, 1)
        for values in (_IMAGENET_MEAN, _IMAGENET_DEVIATION)
    )
    yield "(x / 255 - mean) / std with ImageNet's mean and std", (pixels / 255 - mean) / deviation


def _fit(images: Tensor, given: Tensor) -> Explanation | None:
    """Fit given = a * images + b: for all images, for each channel, for each image, for both."""
    if given.shape != images.shape:
        return None
    for extent, axes in (
        ("", (0, 1, 2, 3)),
        ("for each channel", (0, 2, 3)),
        ("for each image", (1, 2, 3)),
        ("for each image and channel", (2, 3)),
    ):
        mean, other = images.mean(axes, keepdim=True), given.mean(axes, keepdim=True)
        spread = (images - mean).square().sum(axes, keepdim=True)
        factor = ((images - mean) * (given - other)).sum(axes, keepdim=True) / spread.clamp_min(1e-30)
        summand = other - factor * mean
        if not bool((factor > 0).all()) or distance(factor * images + summand, given) > _ROUNDED:
            continue
        a, b = float(factor.flatten()[0]), float(summand.flatten()[0])
        formula = f"{a:.6g} * x {'-' if b < 0 else '+'} {abs(b):.6g}"
        others = f" (other factors {extent})" if extent else ""
        return Cause.STANDARDISATION, f"the images are {formula} of the expected images x{others}"
    return None


def _pointwise(pixels: Tensor, given: Tensor) -> Explanation | None:
    """Fit any function of a pixel's value, such as one of integers that overflow."""
    if given.shape != pixels.shape:
        return None
    values = pixels.flatten().long()
    count = torch.zeros(256, dtype=torch.float64).index_add_(0, values, torch.ones_like(given).flatten())
    total = torch.zeros(256, dtype=torch.float64).index_add_(0, values, given.flatten())
    function = total / count.clamp_min(1)
    if distance(function[values].reshape(given.shape), given) > _ROUNDED:
        return None
    shown = ", ".join(f"{value} becomes {function[value]:.4g}" for value in (0, 64, 128, 192) if count[value])
    return Cause.STANDARDISATION, f"the pixels are mapped by another function: {shown}"


# The inputs of later layers


def explain_connection(
    layer: NetworkLayer, given: Tensor, expected: tuple[Tensor, ...]
) -> Explanation | None:
    """Explain how the input of a later layer differs, or return None.

    Args:
        layer: The expected layer.
        given: The port's input of the layer.
        expected: The expected inputs, as `NetworkLayer.inputs` orders them.
    """
    joined = concatenated(expected)
    if given.numel() != joined.numel():
        return None
    joined = joined.reshape(given.shape)
    if layer.kind is LayerKind.PROJECTION:
        for order in itertools.permutations(range(len(expected))):
            if torch.equal(torch.cat([expected[index] for index in order], dim=1), given):
                branches = ", ".join(map(str, order))
                return Cause.BRANCH_ORDER, f"its branches are concatenated in the order {branches}"
    if layer.kind is LayerKind.LOGITS:
        for statement, other in (
            ("it is given the embedding after L2 normalisation", normalise(joined)),
            ("it is given the embedding after a ReLU", F.relu(joined)),
        ):
            if distance(other, given) <= _EXACT:
                return Cause.CLASSIFIER_INPUT, statement
        return Cause.CLASSIFIER_INPUT, "it is not given the embedding before L2 normalisation"
    return _explain_dropout(given, joined)


def _explain_dropout(given: Tensor, joined: Tensor) -> Explanation | None:
    kept = given != 0
    if not bool(kept.any()) or bool(kept.all()):
        return None
    factor = float((given[kept] / joined[kept]).median())
    dropped = ~kept & (joined != 0)
    if distance(torch.where(kept, joined * factor, 0), given) > _EXACT or not bool(dropped.any()):
        return None
    share = float(dropped.sum() / (joined != 0).sum())
    return Cause.DROPOUT, f"{share:.0%} of its input is dropped, the rest multiplied by {factor:.4g}"
