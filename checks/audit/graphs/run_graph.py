"""Run a graph on the seeded inputs, and measure the error of its arithmetic and of its embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from checks.audit.folded_standardisation import NOTHING_FOLDED, FoldedStandardisation
from checks.audit.graphs.preprocessing import (
    Preprocessing,
    detect_misreading,
    detect_preprocessing,
    detect_resized,
    to_pixels,
)
from checks.audit.result import GraphRun, InputRun
from checks.core import thresholds
from checks.core.activations import run_pytorch
from checks.core.inputs import InputBatch, seeded_inputs
from checks.core.metrics import l2_norm, relative_l2
from checks.core.network import BOTTLENECK, EMBEDDINGS, LOGITS, NORM_FLOOR
from checks.core.rounding import first_image, measure_rounding
from checks.core.types import Array, Arrays, Say
from reference import InceptionResnetV1


class GraphSession(ABC):
    """A graph that is open in its runtime; by default one that takes standardised images of float32.

    Attributes:
        runtime: Name and version of the runtime.
        input_description: A clause on the layout and the dtype of its input.
        input_dtype: The dtype of its input.
        output_description: A clause on its outputs.
        weights_dtype: The dtype that its weights are stored in.
        computes_in_half: Whether it computes in half precision.
        activations: The activations that can be fetched, in the order of evaluation, with the Bottleneck.
        outputs: The activation that each of its outputs gives.
    """

    runtime: str
    input_description = "NHWC float32"
    input_dtype = "float32"
    output_description = "embeddings of length one"
    weights_dtype = "float32"
    computes_in_half = False
    activations: tuple[str, ...]
    outputs: tuple[str, ...] = (EMBEDDINGS,)

    def fit_images(self, images: Array) -> Array:
        """Cut or repeat NHWC images to the size that the graph takes."""
        return images

    @abstractmethod
    def run(self, images: Array) -> list[Array]:
        """Run the graph as its runtime does by default; return each of `outputs` as (N, size)."""

    def prepare(self, images: Array) -> Array:
        """Return the first convolution's input, NHWC."""
        return images

    @abstractmethod
    def run_layers(self, images: Array) -> list[Array]:
        """Run the graph node by node; return every activation, NHWC."""


def run_graph(
    session: GraphSession,
    networks: Networks,
    batches: Sequence[InputBatch],
    say: Say = lambda _: None,
) -> GraphRun:
    """Run a graph on some inputs.

    Args:
        session: The graph.
        networks: The networks that it is compared with.
        batches: The inputs, of which one is noise; `audited_batches` gives those of an audit.
        say: Progress callback.

    Raises:
        SourceError: The runtime refuses the graph, crashes or does not finish.
    """
    say("detecting the preprocessing")
    preprocessing = find_preprocessing(session, networks.fold, batches)
    return run_batches(session, networks, preprocessing, batches, say)


def find_preprocessing(
    session: GraphSession, fold: FoldedStandardisation, batches: Sequence[InputBatch]
) -> Preprocessing:
    """Find how a graph prepares its images. The arguments are those of `run_graph`."""
    pixels = to_pixels(session.fit_images(batches[min(1, len(batches) - 1)].images[:1]))

    def prepare(images: Array) -> Array:
        return fold.apply(session.prepare(images))

    preprocessing = detect_preprocessing(pixels, prepare, session.input_dtype)
    if not np.isfinite(preprocessing.distance):  # the sizes differ
        preprocessing = detect_resized(pixels, prepare, session.input_dtype)
    if not preprocessing.is_known:
        preprocessing = detect_misreading(pixels, prepare, session.input_dtype, preprocessing)
    return preprocessing


def run_batches(
    session: GraphSession,
    networks: Networks,
    preprocessing: Preprocessing,
    batches: Sequence[InputBatch],
    say: Say = lambda _: None,
) -> GraphRun:
    """Run a graph whose preprocessing is known on some inputs; on none, describe the preprocessing."""
    runs = []
    for batch in batches:
        say(f"running: {batch.name}")
        runs.append(run_batch(session, networks, preprocessing, batch))
    is_exact = (
        preprocessing.is_known and preprocessing.distance <= thresholds.PREPARED[arithmetic_of(session)]
    )
    own, source = (each.last_linear.out_features for each in (networks.exact, networks.source))
    return replace(
        describe_run(session, preprocessing, is_exact, runs),
        prepared=preprocessing.distance,
        sizes=None if own == source else (own, source),
    )


def arithmetic_of(session: GraphSession) -> str:
    """The precision that a graph computes in."""
    return "float16" if session.computes_in_half else "float32"


def describe_run(
    session: GraphSession, preprocessing: Preprocessing, is_prepared_exactly: bool, inputs: Sequence[InputRun]
) -> GraphRun:
    """Describe the run of a graph: its runtime, its preprocessing, and each input."""
    order = "BGR" if preprocessing.reverses else "RGB"
    return GraphRun(
        runtime=session.runtime,
        weights=session.weights_dtype,
        arithmetic=arithmetic_of(session),
        preprocessing=preprocessing.statement,
        baked=preprocessing.baked if preprocessing.is_known and preprocessing.is_baked_in else None,
        is_prepared_exactly=is_prepared_exactly,
        resized=preprocessing.resized,
        order=order,
        gives=session.output_description,
        feed=f"{order} {preprocessing.feed}, {session.input_description}; gives {session.output_description}",
        inputs=tuple(inputs),
    )


def audited_batches(seed: int) -> list[InputBatch]:
    """The seeded inputs but that of odd size, because a graph is audited at its own image size."""
    return [batch for batch in seeded_inputs(seed) if not batch.name.startswith("odd size")]


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks that a graph is compared with.

    Attributes:
        exact: The network with the graph's own weights, in float64.
        rounded: The same network in the graph's precision: its error is PyTorch's own rounding.
        source: The network with the source's weights, in float64.
        fold: The standardisation that is folded into the graph's first convolution.
    """

    exact: InceptionResnetV1
    rounded: InceptionResnetV1
    source: InceptionResnetV1
    fold: FoldedStandardisation = NOTHING_FOLDED

    def run(self, images: Array, names: tuple[str, ...]) -> Outputs:
        """Run the networks on the images that the graph's own first convolution takes.

        Args:
            images: (N, H, W, 3).
            names: The activations to keep of the networks with the graph's own weights.
        """
        exact = run_pytorch(self.exact, images, names)
        rounded = run_pytorch(self.rounded, images, names)
        if self.source is self.exact and self.fold.is_identity and EMBEDDINGS in names:
            return Outputs(exact, rounded, exact[EMBEDDINGS])
        source = run_pytorch(self.source, self.fold.apply(images), (EMBEDDINGS,))
        return Outputs(exact, rounded, source[EMBEDDINGS])


@dataclass(frozen=True, slots=True)
class Outputs:
    """The expected outputs of a graph on an input, as `Networks` gives them.

    Attributes:
        exact: Activation to array of the network with the graph's own weights, in float64.
        rounded: The same in the graph's precision.
        source: The embeddings of the network with the source's weights, in float64.
    """

    exact: Arrays
    rounded: Arrays
    source: Array


def round_network(network: InceptionResnetV1, *, to_half: bool = False) -> InceptionResnetV1:
    """Copy a network of float64 in the precision that a graph computes in.

    It has the bits of a network that is built anew from the weights, because float64 holds them exactly.
    """
    dtype = torch.float16 if to_half else torch.float32
    rounded: dict[int, object] = {
        id(each): each.to(dtype) for each in network.buffers() if each.is_floating_point()
    }
    for parameter in network.parameters():
        rounded[id(parameter)] = nn.Parameter(parameter.detach().to(dtype))
    return deepcopy(network, rounded)  # which takes these tensors in place of copies in float64


def run_batch(
    session: GraphSession, networks: Networks, preprocessing: Preprocessing, batch: InputBatch
) -> InputRun:
    """Run a graph on one input, as its runtime optimises it and node by node.

    Every network takes the images that the graph's own first convolution takes, because preprocessing is
    judged separately. Of a graph without known layers these are the ones that its preprocessing gives.
    """
    images = prepared = session.fit_images(batch.images)
    arrays: list[Array] = []
    if not preprocessing.takes_standardised:
        pixels = to_pixels(images)
        images, prepared = preprocessing.to_feed(pixels), preprocessing.to_network(pixels)
    if session.activations:
        prepared = session.prepare(images)
        # One image shows the rounding of the layers; the others are run for their embeddings alone.
        has_embeddings = any(name != LOGITS for name in session.outputs)
        arrays = session.run_layers(images[:1] if has_embeddings else images)
    actual = dict(zip(session.activations, arrays, strict=True))
    outputs = list(zip(session.outputs, session.run(images), strict=True)) or [
        (BOTTLENECK, actual[BOTTLENECK])
    ]
    roundoff = thresholds.HALF_ROUNDOFF if session.computes_in_half else thresholds.UNIT_ROUNDOFF
    layers = measure_rounding(networks.exact, *first_image(prepared, actual), roundoff)
    # PyTorch adds up the products of a classifier in blocks, LiteRT one by one. Training gives most products
    # of a logit one sign, and then LiteRT's sum rounds much more.
    sums = max((each.bound / thresholds.ROUNDING for each in layers if each.activation == LOGITS), default=0)
    expected = networks.run(prepared, tuple(dict.fromkeys(name for name, _ in outputs)))
    floors = {
        name: max(
            _floor(expected.rounded[name], expected.exact[name], session.computes_in_half),
            sums if name == LOGITS else 0,
        )
        for name, _ in outputs
    }
    error, floor = max(
        ((_error(array, expected.exact[name]), floors[name]) for name, array in outputs),
        key=lambda pair: pair[0] / pair[1],
    )
    vectors = [array for name, array in outputs if name != LOGITS] or [actual[BOTTLENECK]]
    embeddings = vectors[0].reshape(len(images), -1)
    gap = np.full(expected.source.shape, np.inf)
    if embeddings.shape == expected.source.shape:
        gap = normalise(embeddings) - expected.source
    return InputRun(
        name=batch.name,
        few_values=batch.few_values,
        error=error,
        floor=floor,
        distance=l2_norm(gap),
        row_distance=max(l2_norm(row) for row in gap),
        layers=layers,
    )


def _error(actual: Array, expected: Array) -> float:
    """Relative L2 of the difference; a graph may store a vector as a map of one pixel."""
    return relative_l2(actual.reshape(expected.shape), expected) if actual.size == expected.size else np.inf


def _floor(rounded: Array, exact: Array, in_half: bool) -> float:
    """PyTorch's own error, at least the roundoff of one operation."""
    roundoff = thresholds.HALF_ROUNDOFF if in_half else thresholds.UNIT_ROUNDOFF
    error = relative_l2(rounded, exact)
    return max(error, roundoff) if np.isfinite(error) else roundoff


def normalise(embeddings: Array) -> Array:
    """Divide each embedding by its length, in float64."""
    exact = embeddings.astype(np.float64)
    lengths = np.sqrt(np.square(exact).sum(axis=1, keepdims=True))
    return np.asarray(exact / np.maximum(lengths, NORM_FLOOR))
