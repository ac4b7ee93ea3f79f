"""A graph run: its arithmetic against float64 with its own weights, its embeddings against the source's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from checks.audit.compare_tensors import InputFold
from checks.audit.graphs.preprocessing import Preprocessing, recognise, to_pixels
from checks.audit.result import GraphRun, InputRun, LayerError
from checks.core import thresholds
from checks.core.activations import BOTTLENECK, EMBEDDINGS, LOGITS, run_pytorch
from checks.core.inputs import InputBatch, seeded_inputs
from checks.core.metrics import l2_norm, relative_l2
from reference import InceptionResnetV1

Array = NDArray[Any]


class GraphSession(Protocol):
    """A graph with its runtime.

    Attributes:
        runtime: The runtime's name and version.
        feed: How images lie in its input, and their dtype.
        gives: What it gives, in words.
        dtype: What it takes.
        weights: What its weights are stored as.
        halved: Whether it computes in half precision.
        activations: The activations that can be looked at, in the order of evaluation; the Bottleneck is one.
        outputs: The activations that its outputs are.
    """

    runtime: str
    feed: str
    gives: str
    dtype: str
    weights: str
    halved: bool
    activations: tuple[str, ...]
    outputs: tuple[str, ...]

    def fitted(self, images: Array) -> Array:
        """Images cut or repeated to the size that the graph takes, NHWC."""

    def given(self, images: Array) -> list[Array]:
        """What each of `outputs` is, (N, size), as its runtime runs it by default."""

    def inner(self, images: Array) -> tuple[Array, list[Array]]:
        """What the first convolution takes, and what every activation gives, NHWC, run as the graph is written."""


def run_graph(
    runner: GraphSession,
    own: Callable[[torch.dtype], InceptionResnetV1],
    source: InceptionResnetV1,
    fold: InputFold,
    seed: int,
    say: Callable[[str], None],
) -> GraphRun:
    """Run a graph on the seeded inputs.

    Args:
        runner: The graph.
        own: Makes the network with the graph's own weights, in an arithmetic.
        source: The network with the source's weights, in float64.
        fold: What was folded into the graph's first convolution.
        seed: Of the inputs.
        say: Told what is going on.

    Raises:
        SourceError: Its runtime does not run it.
    """
    networks = _Networks(
        own(torch.float64), own(torch.float16 if runner.halved else torch.float32), source, fold
    )
    arithmetic = "float16" if runner.halved else "float32"
    inputs = [batch for batch in seeded_inputs(seed) if not batch.name.startswith("odd size")]
    say("telling its preprocessing")
    pixels = to_pixels(runner.fitted(inputs[1].images[:1]))
    preparing = recognise(pixels, lambda images: _unfold(runner.inner(images)[0], fold), runner.dtype)
    measured = []
    for batch in inputs:
        say(f"running: {batch.name}")
        measured.append(_measure(runner, networks, preparing, batch))
    return GraphRun(
        runtime=runner.runtime,
        weights=runner.weights,
        arithmetic=arithmetic,
        preprocessing=preparing.statement,
        baked=preparing.baked if preparing.known and not preparing.is_left_to_others else None,
        is_prepared_right=preparing.distance
        <= thresholds.PREPARED["float16" if runner.halved else "float32"],
        feed=f"{preparing.feed}, {runner.feed}; gives {runner.gives}",
        inputs=tuple(measured),
    )


@dataclass(frozen=True, slots=True)
class _Networks:
    """What a graph is held against: `run_graph` says what each is."""

    exact: InceptionResnetV1
    rounded: InceptionResnetV1
    source: InceptionResnetV1
    fold: InputFold


def _unfold(images: Array, fold: InputFold) -> Array:
    """What the network takes where the graph's first convolution takes `images`, float64."""
    return np.asarray(images.astype(np.float64) / fold.divisor - fold.offset)


def _measure(
    runner: GraphSession, networks: _Networks, preparing: Preprocessing, batch: InputBatch
) -> InputRun:
    """Run a graph on one input, as its runtime optimises it and as it is written.

    Every network sees the image that the graph's own first convolution sees: how it was prepared is judged by
    itself.
    """
    fed = images = runner.fitted(batch.images)
    if not preparing.takes_standardised:
        fed = preparing.feed_of(to_pixels(images))
    seen, inner = runner.inner(fed)
    activations = tuple(dict.fromkeys((*runner.activations, *runner.outputs)))
    wanted = run_pytorch(networks.exact, seen, activations)
    floors = run_pytorch(networks.rounded, seen, activations)
    floor = {
        activation: _floor(floors[activation], wanted[activation], runner.halved)
        for activation in activations
    }
    layers = tuple(
        LayerError(activation, _error(found, wanted[activation]), floor[activation])
        for activation, found in zip(runner.activations, inner, strict=True)
    )
    given = runner.given(fed)
    worst = max(
        (
            (_error(found, wanted[activation]), floor[activation])
            for activation, found in zip(runner.outputs, given, strict=True)
        ),
        key=lambda pair: pair[0] / pair[1],
        default=(layers[-1].error, layers[-1].floor),
    )
    embedding = next(
        (found for activation, found in zip(runner.outputs, given, strict=True) if activation != LOGITS),
        inner[runner.activations.index(BOTTLENECK)].reshape(len(images), -1),
    )
    right = run_pytorch(networks.source, _unfold(seen, networks.fold), (EMBEDDINGS,))[EMBEDDINGS]
    gap = _unit(embedding) - right if embedding.shape == right.shape else np.full(right.shape, np.inf)
    return InputRun(
        name=batch.name,
        few_values=batch.few_values,
        error=worst[0],
        floor=worst[1],
        distance=l2_norm(gap),
        row_distance=max(l2_norm(row) for row in gap),
        layers=layers,
    )


def _error(found: Array, wanted: Array) -> float:
    """Relative L2; graphs may keep vectors as maps of one pixel."""
    return relative_l2(found.reshape(wanted.shape), wanted) if found.size == wanted.size else np.inf


def _floor(rounded: Array, exact: Array, halved: bool) -> float:
    """PyTorch's own error, which counts as one rounding at least."""
    roundoff = thresholds.HALF_ROUNDOFF if halved else thresholds.UNIT_ROUNDOFF
    error = relative_l2(rounded, exact)
    return max(error, roundoff) if np.isfinite(error) else roundoff


def _unit(embeddings: Array) -> Array:
    exact = embeddings.astype(np.float64)
    return np.asarray(exact / np.maximum(np.sqrt(np.square(exact).sum(axis=1, keepdims=True)), 1e-5))
