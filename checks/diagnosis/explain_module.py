"""Explain why a module computes a wrong output from its own tensors and inputs.

A candidate is a known fault with the output that it gives. The first candidate that gives the port's output
is the explanation. The known faults are those of real ports, which the controls plant. A wrong number (an
epsilon, a scale, a padding) is computed from the output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.core import thresholds
from checks.core.network import EPSILON, NORM_FLOOR, STATISTICS, LayerKind, NetworkLayer
from checks.diagnosis.causes import Cause, Explanation
from checks.diagnosis.layer_arithmetic import (
    Tensors,
    batch_norm,
    concatenated,
    convolve,
    distance,
    expected_output,
    linear_part,
    normalise,
    per_channel,
    residual_sum,
    run_weights,
    zeros_around,
)

_PYTORCH_EPSILON = 1e-5  # the default of torch.nn.BatchNorm2d
_PADDING_MODES = ("reflect", "replicate", "circular")
_FLOORS = (1e-12, 1e-10, 1e-6)  # torch.nn.functional.normalize's default; TensorFlow's without the root; 1e-6

Activation = Callable[[Tensor], Tensor]


class Candidate(NamedTuple):
    """A known fault, and the output of a layer with it."""

    cause: Cause
    statement: str
    output: Callable[[], Tensor]


def explain(
    layer: NetworkLayer,
    inputs: tuple[Tensor, ...],
    tensors: Tensors,
    output: Tensor | str,
    *,
    pool: Tensor | None = None,
) -> Explanation | None:
    """Name the fault of a module; None if it has none, or no known cause fits.

    Args:
        layer: The expected layer.
        inputs: The port's inputs of the layer, as `NetworkLayer.inputs` orders them.
        tensors: The port's tensors of this layer, by role.
        output: The output of the port, or the reason why there is none.
        pool: The output of a reduction's pool, if it is known.

    Raises:
        RuntimeError: PyTorch's, if shapes do not fit together.
    """
    missing = [role for role in layer.keys if role not in tensors]
    if missing:
        return _explain_missing(layer, inputs, tensors, output, missing)
    expected = expected_output(layer, inputs, tensors)
    if distance(output, expected) <= thresholds.MAPPING or _both_undefined(output, expected):
        return None
    if isinstance(output, Tensor):
        return _first(_candidates(layer, inputs, tensors, output), output)
    if layer.kind is LayerKind.REDUCTION and pool is not None:  # its branches did not fit together
        return _first(_pools(inputs[-1], pool.shape), pool)
    if "more than 1 value per channel" in output:  # torch.nn.functional.batch_norm on a single row
        return Cause.BATCH_STATISTICS, "BatchNorm uses the batch's own statistics"
    return None


def _first(candidates: Iterator[Candidate], output: Tensor) -> Explanation | None:
    for candidate in candidates:
        if distance(candidate.output(), output) <= thresholds.MAPPING:
            return candidate.cause, candidate.statement
    return None


def _explain_missing(
    layer: NetworkLayer,
    inputs: tuple[Tensor, ...],
    tensors: Tensors,
    output: Tensor | str,
    missing: list[str],
) -> Explanation | None:
    """Explain a layer that has fewer tensors, if the port computes it without them."""
    if "weight" in missing:
        return None
    neutral = _neutral(tensors["weight"])
    filled = {**tensors, **{role: neutral[role] for role in missing}}
    if distance(output, expected_output(layer, inputs, filled)) > thresholds.MAPPING:
        return None
    if missing == ["bias"]:
        return Cause.UNLOADED, "the port has no biases in this layer"
    return Cause.BATCH_NORM, f"BatchNorm is left out: the port has no {', '.join(missing)}"


def _neutral(weight: Tensor) -> dict[str, Tensor]:
    """Values of BatchNorm's tensors and of biases that leave the output as it is."""
    ones = torch.ones(len(weight), dtype=torch.float64)
    return {
        "gamma": ones,
        "beta": 0 * ones,
        "mean": 0 * ones,
        "variance": (1 - EPSILON) * ones,
        "bias": 0 * ones,
    }


def _both_undefined(output: Tensor | str, expected: Tensor) -> bool:
    """Return True if both are infinite or NaN at the same values, as after a negative variance."""
    return (
        isinstance(output, Tensor)
        and output.shape == expected.shape
        and not bool(expected.isfinite().all())
        and torch.equal(output.isfinite(), expected.isfinite())
    )


def _candidates(
    layer: NetworkLayer, inputs: tuple[Tensor, ...], tensors: Tensors, output: Tensor
) -> Iterator[Candidate]:
    match layer.kind:
        case LayerKind.UNIT | LayerKind.BOTTLENECK:
            yield from _units(layer, concatenated(inputs), tensors, output)
        case LayerKind.PROJECTION | LayerKind.LOGITS:
            x = concatenated(inputs)
            yield from _activations(layer, run_weights(layer, x, tensors))
            linear = linear_part(layer, x, tensors["weight"])
            yield Candidate(Cause.UNLOADED, "its biases are not added", lambda: linear)
        case LayerKind.RESIDUAL:
            yield from _sums(layer, inputs[0], inputs[1], output)
        case LayerKind.REDUCTION:
            yield from _reductions(inputs)
        case LayerKind.MAX_POOL:
            yield from _pools(inputs[0], output.shape)
        case LayerKind.AVERAGE_POOL:
            yield from _average_pools(inputs[0])
        case LayerKind.EMBEDDINGS:
            yield from _normalisations(inputs[0], output)


# Activations

_NO_RELU, _RELU = "no ReLU", "a ReLU"
_ACTIVATIONS: dict[str, Activation] = {
    _NO_RELU: lambda x: x,
    _RELU: F.relu,
    "a leaky ReLU of slope 0.01": F.leaky_relu,
}


def _expected_activation(layer: NetworkLayer) -> str:
    return _RELU if layer.relu else _NO_RELU


def _activations(layer: NetworkLayer, before: Tensor) -> Iterator[Candidate]:
    """Every other activation function."""
    expected = _expected_activation(layer)
    for name, function in _ACTIVATIONS.items():
        if name != expected:
            statement = f"it ends with {name} and should end with {expected}"
            yield Candidate(Cause.RELU, statement, partial(function, before))


# Convolution, BatchNorm, ReLU


def _units(layer: NetworkLayer, x: Tensor, tensors: Tensors, output: Tensor) -> Iterator[Candidate]:
    linear = linear_part(layer, x, tensors["weight"])
    if linear.shape == output.shape:
        yield from _batch_norms(layer, linear, tensors, output)
        yield from _activations(layer, batch_norm(linear, tensors))
        swapped = partial(batch_norm, F.relu(linear), tensors)
        yield Candidate(Cause.RELU_ORDER, "the ReLU comes before BatchNorm", swapped)
    if layer.kind is LayerKind.UNIT:
        yield from _kernels(layer, x, tensors)
        yield from _paddings(layer, x, tensors, output)


def _batch_norms(
    layer: NetworkLayer, linear: Tensor, tensors: Tensors, output: Tensor
) -> Iterator[Candidate]:
    activate = _ACTIVATIONS[_expected_activation(layer)]

    def normalised(
        epsilon: float = EPSILON, *, outside: bool = False, other: Tensors | None = None
    ) -> Callable[[], Tensor]:
        return lambda: activate(batch_norm(linear, {**tensors, **(other or {})}, epsilon, outside=outside))

    for epsilon in (_PYTORCH_EPSILON, *_fit_epsilon(linear, tensors, output)):
        stated = f"{epsilon:g}, not {EPSILON:g}"
        if f"{epsilon:g}" == f"{EPSILON:g}":
            stated = f"{epsilon!r}, not {EPSILON!r}"
        yield Candidate(Cause.EPSILON, f"BatchNorm's epsilon is {stated}", normalised(epsilon))
    yield Candidate(
        Cause.EPSILON_PLACE,
        f"BatchNorm adds its epsilon of {EPSILON:g} to the standard deviation, not to the variance",
        normalised(outside=True),
    )
    axes = [axis for axis in range(linear.ndim) if axis != 1]
    yield Candidate(
        Cause.BATCH_STATISTICS,
        "BatchNorm uses the batch's own statistics, not the moving ones",
        normalised(other={"mean": linear.mean(axes), "variance": linear.var(axes, correction=0)}),
    )
    yield Candidate(Cause.BATCH_NORM, "BatchNorm is left out", lambda: activate(linear))
    neutral = _neutral(tensors["weight"])
    for role in STATISTICS:
        statement = f"BatchNorm is done without its {role}"
        yield Candidate(Cause.BATCH_NORM, statement, normalised(other={role: neutral[role]}))


def _fit_epsilon(linear: Tensor, tensors: Tensors, output: Tensor) -> tuple[float, ...]:
    """The epsilon of a BatchNorm with this output, rounded and exact; empty if the output does not show it.

    Values that a ReLU cuts off show nothing.
    """
    beta, mean, gamma = (per_channel(tensors[role], linear) for role in ("beta", "mean", "gamma"))
    gap, above = (linear - mean) * gamma, output - beta
    alive = (output > 0) & (above.abs() > 1e-3 * output.abs().max())
    if not alive.any():
        return ()
    variance = per_channel(tensors["variance"], linear).expand_as(linear)[alive]
    epsilon = torch.square(gap[alive] / above[alive]) - variance
    # The epsilon weighs most beside a small variance.
    smallest = variance <= variance.quantile(0.05) if variance.numel() < 1e6 else variance <= variance.mean()
    fitted = float(epsilon[smallest].median())
    return (float(f"{fitted:.3g}"), fitted) if math.isfinite(fitted) and fitted >= 0 else ()


def _kernels(layer: NetworkLayer, x: Tensor, tensors: Tensors) -> Iterator[Candidate]:
    """Other uses of the kernel."""
    weight = tensors["weight"]
    for cause, statement, other in (
        (Cause.HEIGHT_WIDTH, "the module exchanges the kernel's height and width", weight.mT),
        (Cause.FLIPPED, "the module flips the kernel: a convolution, not a correlation", weight.flip((2, 3))),
        (Cause.FLIPPED, "the module flips the kernel along height", weight.flip(2)),
        (Cause.FLIPPED, "the module flips the kernel along width", weight.flip(3)),
    ):
        if not torch.equal(other, weight):
            yield Candidate(cause, statement, partial(run_weights, layer, x, {**tensors, "weight": other}))


def _paddings(layer: NetworkLayer, x: Tensor, tensors: Tensors, output: Tensor) -> Iterator[Candidate]:
    """Every padding with zeros that gives the output's shape, and other borders."""
    weight, stride = tensors["weight"], layer.stride

    def widths(size: int, kernel: int, result: int) -> list[tuple[int, int]]:
        pairs = itertools.product(range(kernel + 1), range(kernel + 1))
        return sorted(
            (pair for pair in pairs if (size + sum(pair) - kernel) // stride + 1 == result),
            key=lambda pair: (abs(pair[0] - pair[1]), pair),
        )

    def padded(padding: tuple[int, int, int, int], mode: str) -> Callable[[], Tensor]:
        return lambda: F.relu(batch_norm(convolve(x, weight, stride, padding, mode), tensors))

    expected = zeros_around(layer, weight)
    across = widths(x.shape[3], weight.shape[3], output.shape[3])
    down = widths(x.shape[2], weight.shape[2], output.shape[2])
    for top, left in itertools.product(down, across):
        padding = (*left, *top)
        if padding != expected:
            statement = f"pads {_sides(padding)}, not {_sides(expected)}"
            yield Candidate(Cause.PADDING, statement, padded(padding, "constant"))
    for mode in _PADDING_MODES if any(expected) else ():
        yield Candidate(Cause.PADDING, f"pads by {mode}, not with zeros", padded(expected, mode))


def _sides(padding: tuple[int, int, int, int]) -> str:
    names = ("left", "right", "top", "bottom")
    return ", ".join(f"{name} {width}" for name, width in zip(names, padding, strict=True))


# Sums and concatenations


def _sums(layer: NetworkLayer, shortcut: Tensor, update: Tensor, output: Tensor) -> Iterator[Candidate]:
    """Residual sums with another activation or other factors."""
    if output.shape != shortcut.shape:
        return
    expected = _expected_activation(layer)
    yield from _activations(layer, shortcut + layer.scale * update)
    for name in (expected, _NO_RELU if layer.relu else _RELU):
        function = _ACTIVATIONS[name]
        ending = "" if name == expected else f", and it ends with {name}"
        fitted = _fit_factors(shortcut, update, output, positive=name == _RELU)
        for a, b in ((float(f"{fitted[0]:.6g}"), float(f"{fitted[1]:.6g}")), fitted):
            output_of = partial(residual_sum, shortcut, update, a, b, function)
            if math.isclose(a, 1, rel_tol=1e-9):
                statement = f"the residual's scale is {b:.6g}, not {layer.scale:g}{ending}"
                yield Candidate(Cause.RESIDUAL_SCALE, statement, output_of)
            else:
                statement = (
                    f"the shortcut is scaled by {a:.6g} and the residual by {b:.6g}, not {layer.scale:g}"
                )
                yield Candidate(Cause.SCALED_SHORTCUT, statement + ending, output_of)


def _fit_factors(shortcut: Tensor, update: Tensor, output: Tensor, *, positive: bool) -> tuple[float, float]:
    """Fit output = a * shortcut + b * update, by least squares, to values that no ReLU cuts off."""
    alive = output > 0 if positive else torch.ones_like(output, dtype=torch.bool)
    columns = torch.stack([shortcut[alive], update[alive]], dim=1)
    if len(columns) < 2:
        return 0.0, 0.0
    a, b = torch.linalg.lstsq(columns, output[alive].unsqueeze(1)).solution.flatten().tolist()
    return a, b


def _reductions(inputs: tuple[Tensor, ...]) -> Iterator[Candidate]:
    """Reductions with another order of branches, or another pool."""
    branches, x = inputs[:-1], inputs[-1]
    parts = [*branches, F.max_pool2d(x, 3, 2)]
    for order in itertools.permutations(range(len(parts))):
        if order != tuple(range(len(parts))):
            statement = f"its branches are concatenated in the order {', '.join(map(str, order))}"
            ordered = [parts[index] for index in order]
            yield Candidate(Cause.BRANCH_ORDER, statement, partial(torch.cat, ordered, dim=1))
    for cause, statement, pooled in _pools(x, parts[-1].shape):
        yield Candidate(cause, statement, partial(_beside, branches, pooled))


def _beside(branches: tuple[Tensor, ...], pooled: Callable[[], Tensor]) -> Tensor:
    return torch.cat([*branches, pooled()], dim=1)


# Pools and the norm


def _pools(x: Tensor, shape: torch.Size) -> Iterator[Candidate]:
    """Other pools of 3x3 at stride 2 that give this shape."""
    height, width = shape[2:]
    for statement, pool in (
        ("it rounds the size of its output up (ceil_mode)", partial(F.max_pool2d, ceil_mode=True)),
        ("it has padding 1, not 0", partial(F.max_pool2d, padding=1)),
        ("it pools the average, not the maximum", F.avg_pool2d),
        ("it pools the average with padding 1 counted, not the maximum", partial(F.avg_pool2d, padding=1)),
    ):
        pooled = pool(x, 3, 2)
        if pooled.shape == shape:
            yield Candidate(Cause.POOLING, statement, partial(torch.clone, pooled))
    for sides, padding in (("right and bottom", (0, 1, 0, 1)), ("left and top", (1, 0, 1, 0))):
        pooled = F.max_pool2d(F.pad(x, padding), 3, 2)[:, :, :height, :width]
        if pooled.shape == shape:
            yield Candidate(
                Cause.POOLING, f"it is padded at {sides}, not at all", partial(torch.clone, pooled)
            )


def _average_pools(x: Tensor) -> Iterator[Candidate]:
    """Other ways to reduce a channel to one value."""
    for reduction, output in (
        ("the maximum", x.amax((2, 3), keepdim=True)),
        ("the sum", x.sum((2, 3), keepdim=True)),
        ("the average of 2x2 values only", x[:, :, :2, :2].mean((2, 3), keepdim=True)),
    ):
        yield Candidate(
            Cause.POOLING, f"pools {reduction}, not the average of the map", partial(torch.clone, output)
        )


def _normalisations(prelogits: Tensor, output: Tensor) -> Iterator[Candidate]:
    """Other normalisations: none, other norms, other floors."""
    yield Candidate(Cause.NORMALISATION, "the embedding is not normalised", lambda: prelogits)
    yield Candidate(Cause.NORMALISATION, "it divides by the L1 norm", partial(F.normalize, prelogits, p=1))
    statement = "it normalises over the batch, not over the embedding"
    yield Candidate(Cause.NORMALISATION, statement, partial(F.normalize, prelogits, dim=0))
    for floor in _FLOORS:
        statement = f"the norm is at least {floor:g}, not {NORM_FLOOR:g}"
        yield Candidate(Cause.NORMALISATION, statement, partial(normalise, prelogits, floor))
    if output.shape == prelogits.shape:
        factors = (output * prelogits).sum(1, keepdim=True) / prelogits.square().sum(1, keepdim=True)
        divisors = ", ".join(f"{1 / value:.6g}" for value in factors.flatten()[:2].tolist() if value)
        statement = f"it divides by {divisors}, not by the norm"
        yield Candidate(Cause.NORMALISATION, statement, lambda: prelogits * factors)
