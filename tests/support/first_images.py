"""The inputs of a comparison at a third of their cost, for tests that do not judge the figures."""

from __future__ import annotations

from checks.core.inputs import InputBatch, inputs_of
from checks.core.network import Network

TAKEN_FROM = "checks.compare.expected_from_tensorflow.inputs_of"
"""The name that a test replaces by `first_images`: a comparison with TensorFlow takes its inputs there."""


def first_images(network: Network, seed: int) -> list[InputBatch]:
    """The built-in inputs of a network, each with its first image alone."""
    return [InputBatch(batch.name, batch.images[:1]) for batch in inputs_of(network, seed)]
