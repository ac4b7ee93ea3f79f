"""Find the standardisation of images that a converter folded into the first convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from checks.audit.compare_one_tensor import FLOATS
from checks.audit.folding_formulas import BatchNorm
from checks.audit.port_layers import PortTensor, PortWeights, Role
from checks.audit.predict_folding import KNOWN_SHARE, Prediction, fold_kernel, fold_offset
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
    norm = source.batch_norm(scope)
    if actual is None or actual.shape != expected.shape or actual.dtype not in FLOATS:
        return NOTHING_FOLDED
    for fold in _KNOWN_FOLDS:
        if _explains(fold, tensors, actual, expected, norm):
            return fold
    return NOTHING_FOLDED


def _explains(
    fold: FoldedStandardisation,
    tensors: Mapping[Role, PortTensor],
    kernel: Array,
    weights: Array,
    norm: BatchNorm,
) -> bool:
    """Return True if a fold of the source's tensors gives most of the kernel and most of the bias."""
    bias = tensors["biases"].array
    found: list[tuple[Role, Array, Prediction]]
    found = [("weights", kernel, fold_kernel(kernel, weights, norm, fold.divisor).kernel)]
    if bias.shape == norm.beta.shape and bias.dtype in FLOATS:
        found.append(("biases", bias, fold_offset(bias, weights, norm, fold.offset)))
    return all(
        np.mean(
            np.abs(actual.astype(np.float64) - expected.exact())
            <= expected.margin() + _half_step(tensors[role], actual.ndim)
        )
        >= KNOWN_SHARE
        for role, actual, expected in found
    )


def _half_step(tensor: PortTensor, rank: int) -> Array:
    """Half a step of integers, for an array with the output channel first; 0 of a tensor of floats."""
    if tensor.quantised is None:
        return np.zeros(())
    scale = tensor.quantised.quantisation.scale.astype(np.float64) / 2
    return scale if scale.size == 1 else scale.reshape(-1, *[1] * (rank - 1))
