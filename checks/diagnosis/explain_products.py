"""Explains float32 products of fewer bits, which a GPU computes unless its user forbids it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from checks.core.activations import activations_of, run_pytorch
from checks.core.models import Port
from checks.core.rounding import LayerRounding, describe_share, measure_rounding, worst_share
from checks.core.types import Array
from checks.diagnosis.causes import Cause
from checks.diagnosis.result import Finding
from converter.mtcnn_layer_map import Network

_CONVOLUTIONS = "torch.backends.cudnn.allow_tf32"
_PRODUCTS = "torch.backends.cuda.matmul.allow_tf32"


def explain_products(port: Port, network: Network, image: Array) -> Finding | None:
    """Find out whether TF32 explains that layers round more than float32 does: run them without it.

    TF32 has ten bits of fraction, float32 has 23. PyTorch lets cuDNN use it by default
    (https://docs.pytorch.org/docs/stable/notes/cuda.html).

    Args:
        port: The port.
        network: Its network.
        image: (1, H, W, 3), float32.

    Returns:
        The finding; None if no layer rounds too much, or if layers still do without TF32.
    """
    settings = [
        name
        for name, is_on in (
            (_CONVOLUTIONS, torch.backends.cudnn.allow_tf32),
            (_PRODUCTS, torch.backends.cuda.matmul.allow_tf32),
        )
        if is_on
    ]
    exceeding = [layer for layer in _measure(port, network, image) if layer.exceeds]
    if not settings or not exceeding:
        return None
    with _float32_products():
        exact = _measure(port, network, image)
    if any(layer.exceeds for layer in exact):
        return None
    first = exceeding[0]
    statement = (
        f"PyTorch multiplies in TF32 ({' and '.join(settings)}), and {len(exceeding)} layers round more than "
        f"float32 does; without it the worst has {describe_share(worst_share(exact))} of what rounding allows"
    )
    return Finding(first.activation, first.error, Cause.TF32, statement)


def _measure(port: Port, network: Network, image: Array) -> tuple[LayerRounding, ...]:
    outputs = run_pytorch(port.float32, image, activations_of(network, every_layer=True))
    return measure_rounding(port.float64, image, outputs)


@contextmanager
def _float32_products() -> Iterator[None]:
    """Forbid TF32, while open."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
