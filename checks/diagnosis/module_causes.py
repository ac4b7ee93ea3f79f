"""Why a layer computes another thing than it should with the tensors and the input that it has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.core import thresholds
from checks.core.network import EPSILON, LayerKind, NetworkLayer
from checks.diagnosis.candidates import Candidate, activated, other_activations
from checks.diagnosis.causes import Cause
from checks.diagnosis.layer_arithmetic import (
    Tensors,
    batch_norm,
    concatenated,
    convolve,
    distance,
    linear_part,
    normalise,
    per_channel,
    residual,
    run_weights,
    zeros_around,
)
from checks.diagnosis.stage_causes import averages, normalisations, poolings, reductions, residuals

_EPSILONS = (1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 0.0, 1e-4, 1e-2, 0.1, 1.001e-5, float(torch.tensor(1e-3)))


_MODES = ("reflect", "replicate", "circular")


def explain(
    layer: NetworkLayer,
    inputs: tuple[Tensor, ...],
    tensors: Tensors,
    found: Tensor | str,
    *,
    pool: Tensor | None = None,
) -> Candidate | None:
    """Name what a layer computes instead of what it should, or None where nothing known fits.

    Args:
        layer: The layer as it should be.
        inputs: What the port gave it, as `NetworkLayer.inputs` orders it.
        tensors: The port's tensors of this layer.
        found: What it made of them, or in words why it made nothing.
        pool: What the pool of a reduction made, where that was seen.
    """
    if isinstance(found, str):
        if layer.kind is LayerKind.REDUCTION and pool is not None:
            found = pool
            return _first(poolings(inputs[-1], found.shape), found)
        if "more than 1 value per channel" in found:  # torch.nn.functional.batch_norm on a single row
            return Candidate(
                Cause.BATCH_STATISTICS, "BatchNorm takes the batch's own statistics", lambda: inputs[0]
            )
        return None
    return _first(_candidates(layer, inputs, tensors, found), found)


def _first(candidates: Iterator[Candidate], found: Tensor) -> Candidate | None:
    for candidate in candidates:
        if distance(candidate.output(), found) <= thresholds.MAPPING:
            return candidate
    return None


def _candidates(
    layer: NetworkLayer, inputs: tuple[Tensor, ...], tensors: Tensors, found: Tensor
) -> Iterator[Candidate]:
    match layer.kind:
        case LayerKind.UNIT | LayerKind.BOTTLENECK:
            yield from _units(layer, concatenated(inputs), tensors, found)
        case LayerKind.PROJECTION | LayerKind.LOGITS:
            yield from _biased(layer, concatenated(inputs), tensors)
        case LayerKind.RESIDUAL:
            yield from residuals(layer, inputs[0], inputs[1], found)
        case LayerKind.REDUCTION:
            yield from reductions(inputs, found)
        case LayerKind.MAX_POOL:
            yield from poolings(inputs[0], found.shape)
        case LayerKind.AVERAGE_POOL:
            yield from averages(inputs[0])
            yield from poolings(inputs[0], found.shape)
        case LayerKind.EMBEDDINGS:
            yield from normalisations(inputs[0], found)


def _units(layer: NetworkLayer, x: Tensor, tensors: Tensors, found: Tensor) -> Iterator[Candidate]:
    """What convolution, BatchNorm and ReLU become when one of them is another."""
    linear = linear_part(layer, x, tensors["weight"])
    activate = activated(layer)
    if linear.shape == found.shape:
        yield from _batch_norms(linear, tensors, activate, found)
        yield from other_activations(batch_norm(linear, tensors), "a ReLU" if layer.relu else "no ReLU")
        yield from _orders(linear, tensors)
    if layer.kind is LayerKind.UNIT:
        yield from _kernels(layer, x, tensors)
        yield from _paddings(layer, x, tensors, found)


def _batch_norms(
    linear: Tensor, tensors: Tensors, activate: Callable[[Tensor], Tensor], found: Tensor
) -> Iterator[Candidate]:
    def normalised(epsilon: float, outside: bool = False) -> Callable[[], Tensor]:
        return lambda: activate(batch_norm(linear, tensors, epsilon, outside=outside))

    fitted = fit_epsilon(linear, tensors, found)
    for epsilon in _EPSILONS if fitted is None else (*_EPSILONS, float(f"{fitted:.3g}"), fitted):
        words = f"BatchNorm's epsilon is {epsilon:g}, not {EPSILON:g}"
        if f"{epsilon:g}" == f"{EPSILON:g}":
            words = f"BatchNorm's epsilon is {epsilon!r}, not {EPSILON!r}"
        yield Candidate(Cause.EPSILON, words, normalised(epsilon))
    for epsilon in (EPSILON, *_EPSILONS):
        yield Candidate(
            Cause.EPSILON_PLACE,
            f"BatchNorm's epsilon ({epsilon:g}) is added to the standard deviation, not to the variance",
            normalised(epsilon, True),
        )
    axes = [axis for axis in range(linear.ndim) if axis != 1]
    values = linear.numel() // linear.shape[1]  # in a channel; one alone has no unbiased variance
    for unbiased in (False, True) if values > 1 else (False,):
        batch = {
            **tensors,
            "mean": linear.mean(axes),
            "variance": linear.var(axes, unbiased=unbiased),
        }
        yield Candidate(
            Cause.BATCH_STATISTICS,
            "BatchNorm takes the batch's own statistics, not the moving ones",
            partial(_normalised, linear, batch, activate),
        )
    if linear.ndim == 4:  # InstanceNorm
        each = F.instance_norm(linear, eps=EPSILON)
        beta, gamma = (per_channel(tensors[role], linear) for role in ("beta", "gamma"))
        words = "BatchNorm takes each image's own statistics, not the moving ones"
        yield Candidate(Cause.BATCH_STATISTICS, words, lambda: activate(each * gamma + beta))
    yield from _parts_of_batch_norm(linear, tensors, activate)


def _normalised(linear: Tensor, tensors: Tensors, activate: Callable[[Tensor], Tensor]) -> Tensor:
    return activate(batch_norm(linear, tensors))


def _parts_of_batch_norm(
    linear: Tensor, tensors: Tensors, activate: Callable[[Tensor], Tensor]
) -> Iterator[Candidate]:
    yield Candidate(Cause.BATCH_NORM, "BatchNorm is left out", lambda: activate(linear))
    neutral = {
        "gamma": torch.ones_like(tensors["beta"]),
        "beta": torch.zeros_like(tensors["beta"]),
        "mean": torch.zeros_like(tensors["beta"]),
        "variance": torch.full_like(tensors["beta"], 1 - EPSILON),
    }
    for count in (1, 2, 3):
        for roles in itertools.combinations(neutral, count):
            some = {**tensors, **{role: neutral[role] for role in roles}}
            yield Candidate(
                Cause.BATCH_NORM,
                f"BatchNorm is done without {' and '.join(roles)}",
                partial(_normalised, linear, some, activate),
            )
    twice = batch_norm(batch_norm(linear, tensors), tensors)
    yield Candidate(Cause.BATCH_NORM, "BatchNorm is done twice", lambda: activate(twice))


def fit_epsilon(linear: Tensor, tensors: Tensors, found: Tensor) -> float | None:
    """The epsilon with which BatchNorm would give an output, from where it is not cut off; or None."""
    beta, mean, gamma = (per_channel(tensors[role], linear) for role in ("beta", "mean", "gamma"))
    gap, above = (linear - mean) * gamma, found - beta
    alive = (found > 0) & (above.abs() > 1e-3 * found.abs().max())
    if not alive.any():
        return None
    variance = per_channel(tensors["variance"], linear).expand_as(linear)[alive]
    epsilon = torch.square(gap[alive] / above[alive]) - variance
    smallest = variance <= variance.quantile(0.05) if variance.numel() < 1e6 else variance <= variance.mean()
    fitted = float(epsilon[smallest].median())
    return fitted if math.isfinite(fitted) and fitted >= 0 else None


def _orders(linear: Tensor, tensors: Tensors) -> Iterator[Candidate]:
    before = batch_norm(F.relu(linear), tensors)
    yield Candidate(Cause.RELU_ORDER, "the ReLU comes before BatchNorm", lambda: before)
    yield Candidate(Cause.RELU_ORDER, "a ReLU comes before BatchNorm as well", lambda: F.relu(before))


def _kernels(layer: NetworkLayer, x: Tensor, tensors: Tensors) -> Iterator[Candidate]:
    """The kernel taken in another way than it stands in the tensor."""
    weight = tensors["weight"]
    for cause, words, other in (
        (Cause.HEIGHT_WIDTH, "the module exchanges the kernel's height and width", weight.mT),
        (Cause.FLIPPED, "the module flips the kernel: a convolution, not a correlation", weight.flip((2, 3))),
    ):
        if not torch.equal(other, weight):
            turned = {**tensors, "weight": other}
            yield Candidate(cause, words, partial(run_weights, layer, x, turned))


def _paddings(layer: NetworkLayer, x: Tensor, tensors: Tensors, found: Tensor) -> Iterator[Candidate]:
    """Another padding that gives the same shape: where the zeros are, or that they are none."""
    weight = tensors["weight"]
    stride = layer.stride

    def widths(size: int, kernel: int, wanted: int) -> list[tuple[int, int]]:
        pairs = itertools.product(range(kernel + 1), range(kernel + 1))
        return sorted(
            (pair for pair in pairs if (size + sum(pair) - kernel) // stride + 1 == wanted),
            key=lambda pair: (abs(pair[0] - pair[1]), pair),
        )

    def padded(padding: tuple[int, int, int, int], mode: str) -> Callable[[], Tensor]:
        def output() -> Tensor:
            normalised = batch_norm(convolve(x, weight, stride, padding, mode), tensors)
            return F.relu(normalised)

        return output

    right = zeros_around(layer, weight)
    across = widths(x.shape[3], weight.shape[3], found.shape[3])
    down = widths(x.shape[2], weight.shape[2], found.shape[2])
    for top, left in itertools.product(down, across):
        padding = (*left, *top)
        if padding == right:
            continue
        words = f"pads left {left[0]}, right {left[1]}, top {top[0]}, bottom {top[1]}, not {_sides(right)}"
        yield Candidate(Cause.PADDING, words, padded(padding, "constant"))
    for mode in _MODES if any(right) else ():
        yield Candidate(Cause.PADDING, f"pads by {mode}, not with zeros", padded(right, mode))


def _sides(padding: tuple[int, int, int, int]) -> str:
    return ", ".join(map(str, padding))


def _biased(layer: NetworkLayer, x: Tensor, tensors: Tensors) -> Iterator[Candidate]:
    output = run_weights(layer, x, tensors)
    if layer.kind is LayerKind.LOGITS:
        for words, other in (
            ("the embedding after L2 normalisation", normalise(x)),
            ("what a ReLU leaves of the embedding", F.relu(x)),
        ):
            yield Candidate(
                Cause.CLASSIFIER_INPUT,
                f"it is given {words}",
                partial(run_weights, layer, other, tensors),
            )
    yield from other_activations(output, "no ReLU")
    linear = linear_part(layer, x, tensors["weight"])
    yield Candidate(Cause.UNLOADED, "its biases are not added", lambda: linear)
    twice = linear + 2 * per_channel(tensors["bias"], linear)
    yield Candidate(Cause.UNLOADED, "its biases are added twice", lambda: twice)


def right_output(layer: NetworkLayer, inputs: tuple[Tensor, ...], tensors: Tensors) -> Tensor:
    """What a layer should make of its inputs and its own tensors."""
    match layer.kind:
        case LayerKind.RESIDUAL:
            return residual(layer, *inputs)
        case LayerKind.REDUCTION:
            return torch.cat([*inputs[:-1], F.max_pool2d(inputs[-1], 3, 2)], dim=1)
        case LayerKind.MAX_POOL:
            return F.max_pool2d(inputs[0], 3, 2)
        case LayerKind.AVERAGE_POOL:
            return inputs[0].mean((2, 3), keepdim=True)
        case LayerKind.EMBEDDINGS:
            return normalise(inputs[0])
        case _:
            return run_weights(layer, concatenated(inputs), tensors)
