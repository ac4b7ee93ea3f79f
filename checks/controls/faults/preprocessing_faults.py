"""Faults in preprocessing: the network is correct, its input is not."""

from __future__ import annotations

from contextlib import AbstractContextManager

import ml_dtypes
import numpy as np

from checks.controls.faults.change_port import attributes_set
from checks.controls.faults.fault import Fault, Site, activation_of
from checks.controls.port_pipeline import Pipeline, Prepare, Standardisation
from checks.core.inputs import prewhiten, standardise
from checks.core.types import Array
from checks.diagnosis.causes import Cause

# torchvision.transforms.Normalize for its ImageNet models.
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
_IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225])


def _site(label: str, prepare: Prepare, kind: Standardisation = "fixed") -> Site:
    def apply(port: Pipeline) -> AbstractContextManager[None]:
        given = lambda pixels: np.ascontiguousarray(prepare(pixels), dtype=np.float32)  # noqa: E731
        return attributes_set(port, prepare={**port.prepare, kind: given})

    return Site(label, activation_of("Conv2d_1a_3x3"), apply)


def _fault(name: str, shipped: str, cause: Cause, *sites: Site) -> Fault:
    return Fault(name, "preprocessing", shipped, cause, sites)


def _whitened(pixels: Array, axes: tuple[int, ...]) -> Array:
    images = pixels.astype(np.float64)
    deviation = images.std(axis=axes, keepdims=True)
    whitened: Array = (images - images.mean(axis=axes, keepdims=True)) / np.maximum(deviation, 1e-6)
    return whitened


def _reread(images: Array) -> Array:
    """Read an NHWC buffer as if it were NCHW; the result is in NHWC again."""
    count, height, width, channels = images.shape
    return images.reshape(count, channels, height, width).transpose(0, 2, 3, 1)


PREPROCESSING: tuple[Fault, ...] = (
    _fault(
        "bgr-for-rgb",
        "cv2.imread gives BGR and facenet was trained on RGB; some re-exports include the exchange.",
        Cause.CHANNEL_ORDER,
        _site("before the standardisation", lambda pixels: standardise(pixels[..., ::-1])),
        _site("after it", lambda pixels: standardise(pixels)[..., ::-1]),
        _site("per image", lambda pixels: prewhiten(pixels[..., ::-1]), "per image"),
    ),
    _fault(
        "prewhiten-for-fixed",
        "facenet's own examples prewhiten each image, while the models of 2018 were trained on (x - 127.5) "
        "/ 128.",
        Cause.STANDARDISATION,
        _site("as facenet prewhitens", prewhiten),
        _site("each channel", lambda pixels: _whitened(pixels, (1, 2))),
        _site("the whole batch", lambda pixels: _whitened(pixels, (0, 1, 2, 3))),
    ),
    _fault(
        "fixed-for-prewhiten",
        "The models of 2017 were trained on prewhitened images, and users standardise for them as for the "
        "newer models.",
        Cause.STANDARDISATION,
        _site("(x - 127.5) / 128", standardise, "per image"),
        _site("each channel", lambda pixels: _whitened(pixels, (1, 2)), "per image"),
        _site(
            "without the mean",
            lambda pixels: pixels / pixels.std(axis=(1, 2, 3), dtype=np.float64, keepdims=True),
            "per image",
        ),
    ),
    _fault(
        "another-divisor",
        "(x - 127.5) / 127.5, the range of -1 to 1 of many other networks, instead of (x - 127.5) / 128, or "
        "128 instead of 127.5.",
        Cause.STANDARDISATION,
        _site("(x - 127.5) / 127.5", lambda pixels: (pixels - 127.5) / 127.5),
        _site("(x - 128) / 128", lambda pixels: (pixels - 128.0) / 128.0),
        _site("(x - 127.5) / 255", lambda pixels: (pixels - 127.5) / 255.0),
    ),
    _fault(
        "another-range",
        "torchvision's ToTensor gives 0 to 1, its Normalize is ImageNet's, and a port that leaves both out "
        "gives 0 to 255.",
        Cause.STANDARDISATION,
        _site("x / 255", lambda pixels: pixels / 255.0),
        _site("ImageNet's", lambda pixels: (pixels / 255.0 - _IMAGENET_MEAN) / _IMAGENET_DEVIATION),
        _site("none", lambda pixels: pixels.astype(np.float32)),
    ),
    _fault(
        "integer-overflow",
        "Arithmetic on uint8 wraps: NumPy's `pixels - 128`, written for images that were float elsewhere.",
        Cause.STANDARDISATION,
        _site("x - 128 in uint8", lambda pixels: (pixels - np.uint8(128)) / 128.0),
        _site("x read as int8", lambda pixels: (pixels.view(np.int8) - 127.5) / 128.0),
        _site("rounded to integers", lambda pixels: np.round((pixels - 127.5) / 128.0)),
    ),
    _fault(
        "image-layout",
        "`reshape` or `view` to (N, 3, H, W) instead of a transposition: the shape is correct, the image is "
        "not.",
        Cause.IMAGE_LAYOUT,
        _site("NHWC read as NCHW", lambda pixels: _reread(standardise(pixels))),
        _site("pixels read as NCHW", lambda pixels: standardise(_reread(pixels))),
        _site("per image", lambda pixels: _reread(prewhiten(pixels)), "per image"),
    ),
    _fault(
        "orientation",
        "Test-time flips left on, OpenCV's (width, height) taken for (height, width), or EXIF orientation "
        "ignored.",
        Cause.ORIENTATION,
        _site("left to right", lambda pixels: standardise(pixels[:, :, ::-1])),
        _site("upside down", lambda pixels: standardise(pixels[:, ::-1])),
        _site("transposed", lambda pixels: standardise(pixels.transpose(0, 2, 1, 3))),
        _site("a quarter turn", lambda pixels: standardise(np.rot90(pixels, axes=(1, 2)))),
    ),
    _fault(
        "input-precision",
        "Half precision of a deployment left on at the input: the network computes in float32 on rounded "
        "images.",
        Cause.INPUT_PRECISION,
        _site("float16 after prewhitening", lambda pixels: prewhiten(pixels).astype(np.float16), "per image"),
        _site("four decimals", lambda pixels: np.round(standardise(pixels).astype(np.float64), 4)),
        _site(
            "bfloat16 after prewhitening",
            lambda pixels: prewhiten(pixels).astype(ml_dtypes.bfloat16),
            "per image",
        ),
    ),
)
"""Every class of faults in preprocessing."""
