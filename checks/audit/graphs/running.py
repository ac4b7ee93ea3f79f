"""A graph run: its arithmetic against float64 with its own weights, its embeddings against the source's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from checks import thresholds
from checks.audit.graphs.preprocessing import Preprocessing, recognise, to_pixels
from checks.audit.result import GraphRun, LayerError, ProbeRun
from checks.metrics import l2_norm, relative_l2
from checks.probes import Probe, seeded_probes
from checks.taps import EMBEDDINGS, run_pytorch
from reference import InceptionResnetV1

Array = NDArray[Any]


class Runner(Protocol):
    """A graph with its runtime.

    Attributes:
        runtime: The runtime's name and version.
        feed: How images lie in its input, and their dtype.
        gives: What it gives, in words.
        dtype: What it takes.
        weights: What its weights are stored as.
        halved: Whether it computes in half precision.
        taps: The taps that can be looked at, in the order of evaluation.
        compared: The tap that what it gives is compared with.
    """

    runtime: str
    feed: str
    gives: str
    dtype: str
    weights: str
    halved: bool
    taps: tuple[str, ...]
    compared: str

    def fitted(self, images: Array) -> Array:
        """Images cut or repeated to the size that the graph takes, NHWC."""

    def embeddings(self, images: Array) -> Array:
        """(N, size): what it gives, as its runtime runs it by default."""

    def inner(self, images: Array) -> list[Array]:
        """What every tap gives, maps as NHWC, run as the graph is written."""


def run_graph(
    runner: Runner,
    own: Callable[[torch.dtype], InceptionResnetV1],
    source: InceptionResnetV1,
    seed: int,
    say: Callable[[str], None],
) -> GraphRun:
    """Run a graph on the seeded inputs.

    Args:
        runner: The graph.
        own: Makes the network with the graph's own weights, in an arithmetic.
        source: The network with the source's weights, in float64.
        seed: Of the inputs.
        say: Told what is going on.

    Raises:
        SourceError: Its runtime does not run it.
    """
    exact, rounded = own(torch.float64), own(torch.float16 if runner.halved else torch.float32)
    probes = [probe for probe in seeded_probes(seed) if not probe.name.startswith("odd size")]
    say("telling its preprocessing")
    preparing = recognise(
        to_pixels(runner.fitted(probes[1].images[:1])),
        lambda images: runner.inner(images)[0],
        lambda images: run_pytorch(exact, images, runner.taps)[runner.taps[0]],
        runner.dtype,
    )
    measured = []
    for probe in probes:
        say(f"running: {probe.name}")
        measured.append(_measure(runner, (exact, rounded, source), preparing, probe))
    return GraphRun(
        runtime=runner.runtime,
        weights=runner.weights,
        arithmetic="float16" if runner.halved else "float32",
        preprocessing=preparing.statement,
        feed=f"{preparing.feed}, {runner.feed}; gives {runner.gives}",
        probes=tuple(measured),
    )


def _measure(
    runner: Runner,
    networks: tuple[InceptionResnetV1, InceptionResnetV1, InceptionResnetV1],
    preparing: Preprocessing,
    probe: Probe,
) -> ProbeRun:
    """Run a graph on one probe, as its runtime optimises it and as it is written."""
    exact, rounded, source = networks
    images = runner.fitted(probe.images)
    fed = seen = images
    if not preparing.is_plain:
        fed, seen = preparing.prepare(to_pixels(images))
    taps = tuple(dict.fromkeys((*runner.taps, runner.compared)))
    wanted = run_pytorch(exact, seen, taps)
    floors = run_pytorch(rounded, seen, taps)
    floor = {tap: _floor(floors[tap], wanted[tap], runner.halved) for tap in taps}
    layers = tuple(
        LayerError(tap, _error(found, wanted[tap]), floor[tap])
        for tap, found in zip(runner.taps, runner.inner(fed), strict=True)
    )
    given = runner.embeddings(fed)
    right = run_pytorch(source, seen, (EMBEDDINGS,))[EMBEDDINGS]
    gap = _unit(given) - right if given.shape == right.shape else np.full(right.shape, np.inf)
    return ProbeRun(
        name=probe.name,
        few_values=probe.few_values,
        error=_error(given, wanted[runner.compared]),
        floor=floor[runner.compared],
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
    return max(relative_l2(rounded, exact), roundoff)


def _unit(embeddings: Array) -> Array:
    exact = embeddings.astype(np.float64)
    return np.asarray(exact / np.maximum(np.sqrt(np.square(exact).sum(axis=1, keepdims=True)), 1e-5))
