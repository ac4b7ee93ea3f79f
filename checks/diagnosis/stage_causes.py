"""Why what joins and ends the layers (sums, reductions, pools, the norm) computes another thing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from checks.core.network import NORM_FLOOR, NetworkLayer
from checks.diagnosis.candidates import ACTIVATIONS, Candidate, activated, other_activations
from checks.diagnosis.causes import Cause
from checks.diagnosis.layer_arithmetic import normalise


def residuals(layer: NetworkLayer, shortcut: Tensor, update: Tensor, found: Tensor) -> Iterator[Candidate]:
    """The sum at the end of a residual block: other endings, and other factors, fitted."""
    if found.shape != shortcut.shape:
        return
    right = "a ReLU" if layer.relu else "no ReLU"
    total = shortcut + layer.scale * update
    yield from other_activations(total, right)
    yield Candidate(
        Cause.RELU,
        "a ReLU cuts the residual before it is added",
        lambda: activated(layer)(shortcut + layer.scale * F.relu(update)),
    )
    for activation in (right, "a ReLU" if right == "no ReLU" else "no ReLU"):
        first, second = _factors(shortcut, update, found, positive=activation == "a ReLU")
        function = ACTIVATIONS[activation]
        for a, b in ((float(f"{first:.6g}"), float(f"{second:.6g}")), (first, second)):

            def output(a: float = a, b: float = b, function: Callable[[Tensor], Tensor] = function) -> Tensor:
                return function(a * shortcut + b * update)

            ending = "" if activation == right else f", and it ends with {activation}"
            if math.isclose(a, 1, rel_tol=1e-9):
                words = f"the residual's scale is {b:.6g}, not {layer.scale:g}{ending}"
                yield Candidate(Cause.RESIDUAL_SCALE, words, output)
            else:
                words = f"the shortcut is scaled by {a:.6g} and the residual by {b:.6g}, not {layer.scale:g}"
                yield Candidate(Cause.SCALED_SHORTCUT, words + ending, output)


def _factors(shortcut: Tensor, update: Tensor, found: Tensor, *, positive: bool) -> tuple[float, float]:
    """Least squares of a and b in found = a * shortcut + b * update, where a ReLU has not cut it off."""
    alive = found > 0 if positive else torch.ones_like(found, dtype=torch.bool)
    columns = torch.stack([shortcut[alive], update[alive]], dim=1)
    if len(columns) < 2:
        return 0.0, 0.0
    first, second = torch.linalg.lstsq(columns, found[alive].unsqueeze(1)).solution.flatten().tolist()
    return first, second


def reductions(inputs: tuple[Tensor, ...], found: Tensor) -> Iterator[Candidate]:
    """Branches in another order, or another pool beside them."""
    branches, x = inputs[:-1], inputs[-1]
    parts = [*branches, F.max_pool2d(x, 3, 2)]
    for order in itertools.permutations(range(len(parts))):
        if order != tuple(range(len(parts))):
            yield Candidate(
                Cause.BRANCH_ORDER,
                f"its branches are concatenated in the order {', '.join(map(str, order))}",
                partial(torch.cat, [parts[number] for number in order], dim=1),
            )
    for pooling in poolings(x, parts[-1].shape):
        yield Candidate(
            pooling.cause,
            pooling.words,
            partial(_with_pool, branches, pooling),
        )
    yield from other_activations(torch.cat(parts, dim=1), "no ReLU")


def _with_pool(branches: tuple[Tensor, ...], pooling: Candidate) -> Tensor:
    return torch.cat([*branches, pooling.output()], dim=1)


def poolings(x: Tensor, shape: torch.Size) -> Iterator[Candidate]:
    """Pools of other kinds, sizes and paddings that give the shape."""
    for size, stride, padding, ceil in itertools.product((3, 2, 1, 4, 5), (2, 1, 3), (0, 1), (False, True)):
        if padding > size // 2 or min(x.shape[2:]) + 2 * padding < size:
            continue
        told = f"of {size}x{size} at stride {stride}"
        told += (f", padding {padding}" if padding else "") + (", ceil_mode" if ceil else "")
        average = f"pools the average {told}, padding counted" if padding else f"pools the average {told}"
        pools: list[tuple[str, Callable[[], Tensor]]] = [
            (f"pools the maximum {told}", partial(F.max_pool2d, x, size, stride, padding, 1, ceil)),
            (average, partial(F.avg_pool2d, x, size, stride, padding, ceil)),
        ]
        if padding:
            pools.append(
                (
                    f"pools the average {told}, padding not counted",
                    partial(F.avg_pool2d, x, size, stride, padding, ceil, False),
                )
            )
        for words, output in pools:
            if output().shape == shape:
                yield Candidate(Cause.POOLING, f"{words}, not the maximum of 3x3 at stride 2", output)
    yield from _one_sided(x, shape)


def _one_sided(x: Tensor, shape: torch.Size) -> Iterator[Candidate]:
    """Pools that are padded on two sides only, as TensorFlow's SAME or a shift by one does."""
    functions: tuple[Callable[[Tensor, int, int], Tensor], ...] = (F.max_pool2d, F.avg_pool2d)
    for words, padding in (("right and bottom", (0, 1, 0, 1)), ("left and top", (1, 0, 1, 0))):
        for size, function in itertools.product((3, 2), functions):
            if min(x.shape[2:]) + 1 < size:
                continue
            pooled = function(F.pad(x, padding), size, 2)[:, :, : shape[2], : shape[3]]
            told = f"its {size}x{size} pool is padded {words}"
            if pooled.shape == shape:
                yield Candidate(Cause.POOLING, told, partial(torch.clone, pooled))


def averages(x: Tensor) -> Iterator[Candidate]:
    """Other ways to make one value of each channel."""
    axes = (2, 3)
    for words, output in (
        ("the maximum", x.amax(axes, keepdim=True)),
        ("the sum", x.sum(axes, keepdim=True)),
        ("the median", x.flatten(2).median(dim=2).values[..., None, None]),
        ("the average of what is not zero", x.sum(axes, keepdim=True) / (x != 0).sum(axes, keepdim=True)),
        ("the middle", x[:, :, x.shape[2] // 2, x.shape[3] // 2, None, None]),
        ("the root of the mean square", x.square().mean(axes, keepdim=True).sqrt()),
        ("the average over an area of 8x8", x.sum(axes, keepdim=True) / 64),
        ("half the average and half the maximum", (x.mean(axes, True) + x.amax(axes, True)) / 2),
    ):
        yield Candidate(Cause.POOLING, f"pools {words}, not the average", partial(torch.clone, output))


def normalisations(prelogits: Tensor, found: Tensor) -> Iterator[Candidate]:
    """Other norms and floors under the embeddings, or none."""
    norm = prelogits.norm(dim=1, keepdim=True)
    square = prelogits.square()
    options: list[tuple[str, Callable[[], Tensor]]] = [
        ("the embedding is not normalised", lambda: prelogits),
        ("it divides by the L1 norm", lambda: F.normalize(prelogits, p=1)),
        ("it divides by the largest value", lambda: F.normalize(prelogits, p=math.inf)),
        ("it normalises over the batch and not over the embedding", lambda: F.normalize(prelogits, dim=0)),
        ("it divides by the norm of the whole batch", lambda: prelogits / prelogits.norm()),
        ("it divides by the squared norm", lambda: prelogits / norm.square()),
        ("the embedding is cut off by a ReLU", lambda: normalise(F.relu(prelogits))),
        ("a ReLU cuts off the normalised embedding", lambda: F.relu(normalise(prelogits))),
        ("a softmax takes the place of the norm", lambda: prelogits.softmax(dim=1)),
        ("a tanh takes the place of the norm", lambda: prelogits.tanh()),
        ("the mean is taken away first", lambda: normalise(prelogits - prelogits.mean(dim=1, keepdim=True))),
    ]
    for floor in (1e-10, 1e-12, 0.0, *(10.0**-power for power in range(1, 20))):
        if floor != NORM_FLOOR:
            options += [
                (
                    f"the norm counts as {floor:g} at least, not as {NORM_FLOOR:g}",
                    partial(torch.div, prelogits, norm.clamp_min(floor)),
                )
            ]
        options += [
            (f"{floor:g} is added to the norm", partial(torch.div, prelogits, norm + floor)),
            (
                f"{floor:g} is added to the squared norm",
                partial(torch.div, prelogits, (square.sum(1, keepdim=True) + floor).sqrt()),
            ),
        ]
    for words, output in options:
        yield Candidate(Cause.NORMALISATION, words, output)
    if found.shape == prelogits.shape:
        factors = (found * prelogits).sum(1, keepdim=True) / square.sum(1, keepdim=True)
        told = ", ".join(f"{1 / value:.6g}" for value in factors.flatten()[:2].tolist() if value)
        words = f"it divides by {told} and not by the norm"
        yield Candidate(Cause.NORMALISATION, words, lambda: prelogits * factors)
