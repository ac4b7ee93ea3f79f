"""The inputs of a comparison at a third of their cost, for tests that do not judge the figures."""

from __future__ import annotations

from checks.core.inputs import InputBatch, seeded_inputs

TAKEN_FROM = "checks.compare.expected_from_tensorflow.seeded_inputs"
"""The name that a test replaces by `first_images`: a comparison with TensorFlow takes its inputs there."""


def first_images(seed: int) -> list[InputBatch]:
    """The five built-in inputs, each with its first image alone."""
    return [InputBatch(batch.name, batch.images[:1]) for batch in seeded_inputs(seed)]
