"""Find the standardisation of images that a converter folded into the first convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from checks.audit.compare_one_tensor import FLOATS
from checks.audit.folding_formulas import BatchNorm
from checks.audit.port_layers import PortTensor, PortWeights, Role
from checks.audit.predict_folding import KNOWN_SHARE, fold_kernel, fold_offset
from checks.audit.source_weights import SourceWeights
from checks.core.network import network_layers
from checks.core.types import Array
from converter.layouts import CONVOLUTION


@dataclass(frozen=True, slots=True)
class FoldedStandardisation:
    """A standardisation that was folded into the first convolution.

    The convolution takes x; the network's own takes x / divisor - offset.

    Attributes:
        divisor: The divisor, which the weights hold.
        offset: The offset, which the bias holds: the first convolution has no padding, so a constant adds the
            same to every pixel.
    """

    divisor: float = 1.0
    offset: float = 0.0

    @property
    def is_identity(self) -> bool:
        """True if nothing was folded in."""
        return self == NOTHING_FOLDED

    def apply(self, images: Array) -> Array:
        """Turn the images that the convolution takes into those that the network takes, float64."""
        return np.asarray(images.astype(np.float64) / self.divisor - self.offset)


NOTHING_FOLDED = FoldedStandardisation()

_KNOWN_FOLDS = (
    NOTHING_FOLDED,
    FoldedStandardisation(128),
    FoldedStandardisation(127.5),
    FoldedStandardisation(255),
    FoldedStandardisation(128, 127.5 / 128),
    FoldedStandardisation(127.5, 1),
    FoldedStandardisation(1, 1),
)


def find_folded_standardisation(port: PortWeights, source: SourceWeights) -> FoldedStandardisation:
    """Find the standardisation that was folded into the first convolution of a graph."""
    first = network_layers(source.variant)[0]
    return standardisation_of_first_layer(port.layers.get(first.scope, {}), source)


def standardisation_of_first_layer(
    tensors: Mapping[Role, PortTensor], source: SourceWeights
) -> FoldedStandardisation:
    """Find the standardisation in a first convolution; the identity if its BatchNorm is not folded in.

    Args:
        tensors: The port's tensors of the first convolution.
        source: The source.
    """
    scope = network_layers(source.variant)[0].scope
    weights = source.tensor(scope, "weights")
    if not {"weights", "biases"} <= set(tensors) or "moving_variance" in tensors or weights is None:
        return NOTHING_FOLDED
    expected, actual = CONVOLUTION.apply(weights), tensors["weights"].channels_first()
    bias, norm = tensors["biases"].array, source.batch_norm(scope)
    if actual is None or actual.shape != expected.shape or actual.dtype not in FLOATS:
        return NOTHING_FOLDED
    has_bias = bias.shape == norm.beta.shape and bias.dtype in FLOATS
    for fold in _KNOWN_FOLDS:
        if _explains(fold, actual, bias if has_bias else None, expected, norm):
            return fold
    return NOTHING_FOLDED


def _explains(
    fold: FoldedStandardisation, kernel: Array, bias: Array | None, weights: Array, norm: BatchNorm
) -> bool:
    """Return True if a fold of the source's tensors gives most of the kernel and most of the bias."""
    pairs = [(kernel, fold_kernel(kernel, weights, norm, fold.divisor).kernel)]
    if bias is not None:
        pairs.append((bias, fold_offset(bias, weights, norm, fold.offset)))
    return all(
        np.mean(np.abs(actual.astype(np.float64) - expected.exact) <= expected.margin) >= KNOWN_SHARE
        for actual, expected in pairs
    )
