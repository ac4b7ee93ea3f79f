"""Wrong images are diagnosed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from checks.diagnosis import diagnose
from checks.diagnosis.causes import Cause
from tests.checks.diagnosis.faulty_ports import (
    IMAGES,
    PIXELS,
    Arrays,
    port_of,
)

pytestmark = pytest.mark.slow


def _prewhiten(pixels: NDArray[Any]) -> NDArray[Any]:
    each = pixels.astype(np.float64)
    mean, deviation = (f(each, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    return (each - mean) / np.maximum(deviation, 1 / np.sqrt(each[0].size))


INPUTS: dict[str, tuple[Callable[[NDArray[Any]], NDArray[Any]], Cause, str]] = {
    "BGR": (lambda p: (p[..., ::-1] - 127.5) / 128, Cause.CHANNEL_ORDER, "BGR"),
    "divided by 127.5": (lambda p: (p - 127.5) / 127.5, Cause.STANDARDISATION, "/ 127.5"),
    "0 to 1": (lambda p: p / 255.0, Cause.STANDARDISATION, "x / 255"),
    "prewhitened": (_prewhiten, Cause.STANDARDISATION, "prewhiten"),
    "overflow": (lambda p: p.view(np.int8) / 128, Cause.STANDARDISATION, "64 becomes 0.5, 128 becomes -1"),
    "mirrored": (lambda p: (p[:, :, ::-1] - 127.5) / 128, Cause.ORIENTATION, "mirrored"),
    "layout": (
        lambda p: ((p.reshape(2, 3, 123, 107) - 127.5) / 128).transpose(0, 2, 3, 1),
        Cause.IMAGE_LAYOUT,
        "NHWC buffer is read as NCHW",
    ),
    "4 decimals": (lambda p: np.round((p - 127.5) / 128, 4), Cause.INPUT_PRECISION, "4 decimals"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_another_input_is_named(name: str, clean: Arrays, reference: Mapping[str, NDArray[Any]]) -> None:
    prepare, cause, text = INPUTS[name]
    given = prepare(PIXELS).astype(np.float32)
    most = None if name == "BGR" else 1  # the layers behind the first take the same inputs in every case
    (finding,) = diagnose(
        port_of(clean), reference, IMAGES, given=given, pixels=PIXELS, source=clean, most_layers=most
    ).findings
    assert finding.cause == cause
    assert finding.activation.endswith("Conv2d_1a_3x3")
    assert text in finding.statement


def test_a_port_that_prepares_its_images_inside_is_diagnosed_as_well(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = port_of(clean)
    prelogits = port.prelogits
    port.prelogits = lambda images: prelogits(images.flip(1).mT.mT)  # type: ignore[method-assign]
    (finding,) = diagnose(port, reference, IMAGES, source=clean).findings
    assert finding.cause == Cause.CHANNEL_ORDER
