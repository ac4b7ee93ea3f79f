"""Explain how a tensor of a port came from the source's tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from checks.core.metrics import ulp_distance
from checks.core.network import KEYS, NETWORK, STATISTICS, LayerKind, NetworkLayer, short_name
from checks.core.types import Array
from checks.diagnosis.causes import Cause, Explanation
from converter.layer_map import CONVOLUTIONS
from converter.same_bits import differing_bits, same_bits

_FEW_VALUES = 0.01  # largest share of a tensor's values that counts as single values
_FEW_STEPS = 8  # largest distance in float32 steps that counts as a change of last bits
_ROUNDED = 1e-5  # relative, well above the rounding of a square root, product or quotient in float32
_COARSE = 0.02  # largest relative L2 of a tensor in lower precision
_FEWER = 0.25  # largest share of the distinct values that a quantised tensor keeps

_HWIO = (2, 3, 1, 0)  # axes of OIHW that give TensorFlow's order
_HWIO_OF_OIWH = (3, 2, 1, 0)


@dataclass(frozen=True, slots=True)
class SourceTensors:
    """The tensors that a port should hold, and the moving averages that it may hold by mistake.

    Attributes:
        tensors: state_dict key to the expected tensor (float32).
        averages: state_dict key to the moving average (float32); empty if the checkpoint has none.
        layers: Activation to layer of the network that they belong to.
    """

    tensors: Mapping[str, Array]
    averages: Mapping[str, Array]
    layers: Mapping[str, NetworkLayer] = field(default_factory=lambda: NETWORK)

    def layer_and_role(self, key: str) -> tuple[NetworkLayer, str]:
        """The layer that a tensor belongs to, and its role there."""
        return next(
            (layer, role)
            for layer in self.layers.values()
            for role, name in layer.keys.items()
            if name == key
        )


def same(first: Array, second: Array) -> bool:
    """Return True if two float32 tensors have the same shape and bits."""
    # Most pairs differ at once: comparing a corner first saves reading megabytes.
    corner = (slice(0, 4),) * first.ndim
    return (
        first.shape == second.shape and same_bits(first[corner], second[corner]) and same_bits(first, second)
    )


def explain(key: str, actual: Array, source: SourceTensors) -> Explanation | None:
    """Explain how a tensor of a port came from the source's, or return None.

    The statement is a clause about the tensor that begins with a verb: "is flipped along height".

    Args:
        key: Its state_dict key.
        actual: The port's float32 tensor, which differs from the source's.
        source: The tensors that it may come from.
    """
    expected = source.tensors[key]
    layer, role = source.layer_and_role(key)
    explanations: tuple[Callable[[], Explanation | None], ...] = (
        lambda: _constant(actual, expected, role),
        lambda: _layout(actual, expected, layer) if expected.ndim > 1 else None,
        lambda: _average(key, actual, source.averages),
        lambda: _statistics(key, actual, source.tensors) if role in STATISTICS else None,
        lambda: _other_tensor(key, role, actual, source),
        lambda: _permuted(layer, actual, expected),
        lambda: _precision(actual, expected),
        lambda: _not_finite(actual),
        lambda: _single_values(actual, expected),
        lambda: _scaled(actual, expected),
        lambda: _initial(actual),
    )
    return next((answer for explanation in explanations if (answer := explanation()) is not None), None)


def _constant(actual: Array, expected: Array, role: str) -> Explanation | None:
    low, high = actual.min(), actual.max()
    if role == "gamma" and (expected == 1).all() and 0 <= low < 0.5 < high <= 1:
        return Cause.UNLOADED, f"is {low:g} to {high:g}, not 1, as PyTorch drew it before 1.2"
    return (
        (Cause.UNLOADED, f"is {low:g} throughout")
        if actual.size > 1 and low == high and np.isfinite(low)
        else None
    )


def _layout(actual: Array, expected: Array, layer: NetworkLayer) -> Explanation | None:
    layouts = _wrong_kernels(layer) if expected.ndim == 4 else _wrong_matrices(expected, layer)
    for cause, statement, wrong in layouts:
        if same(actual, wrong(expected)):
            return cause, statement
    return None


WrongLayout = tuple[Cause, str, Callable[[Array], Array]]
"""The cause, the statement, and the function from the expected tensor to the wrong one, whose shape may
differ."""


def _wrong_kernels(layer: NetworkLayer) -> Iterator[WrongLayout]:
    """The known ways to get a kernel's layout wrong: of OIHW, or of MTCNN's OIWH."""
    is_mtcnn = layer.kind is LayerKind.CONVOLUTION
    first, second = ("width", "height") if is_mtcnn else ("height", "width")
    exchanged = f"is laid out as (outputs, inputs, {second}, {first})"
    yield Cause.HEIGHT_WIDTH, exchanged, lambda a: a.swapaxes(2, 3)
    yield Cause.FLIPPED, f"is flipped along {first}", lambda a: np.flip(a, 2)
    yield Cause.FLIPPED, f"is flipped along {second}", lambda a: np.flip(a, 3)
    yield Cause.FLIPPED, "is flipped along height and width", lambda a: np.flip(a, (2, 3))
    exchanged = f"is laid out as (inputs, outputs, {first}, {second})"
    yield Cause.IN_OUT, exchanged, lambda a: a.swapaxes(0, 1)
    exchanged = f"is laid out as (inputs, outputs, {second}, {first})"
    yield Cause.IN_OUT, exchanged, lambda a: a.transpose(1, 0, 3, 2)
    axes = _HWIO_OF_OIWH if is_mtcnn else _HWIO
    reshaped = "was reshaped from (height, width, inputs, outputs)"
    yield Cause.RESHAPED, reshaped, lambda a: a.transpose(axes).reshape(a.shape)


def _wrong_matrices(matrix: Array, layer: NetworkLayer) -> Iterator[WrongLayout]:
    """The known ways to get the layout of a matrix (outputs, inputs) wrong."""
    yield Cause.IN_OUT, "is laid out as (inputs, outputs)", lambda a: a.T
    yield Cause.RESHAPED, "was reshaped from (inputs, outputs)", lambda a: a.T.reshape(a.shape)
    if layer.kind is not LayerKind.FULLY_CONNECTED or layer.kernel is None or layer.kernel == (1, 1):
        return
    height, width = layer.kernel
    maps = (len(matrix), width, height, matrix.shape[1] // (width * height))  # as facenet flattens them
    names = ("width", "height", "channels")
    for order in itertools.permutations(range(3)):
        axes = (0, *(axis + 1 for axis in order))
        given = ", ".join(names[axis] for axis in order)
        yield (
            Cause.FLATTENED,
            f"takes its inputs in the order ({given}), not ({', '.join(names)})",
            partial(_flattened, maps=maps, axes=axes),
        )


def _flattened(matrix: Array, maps: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    return matrix.reshape(maps).transpose(axes).reshape(matrix.shape)


def _average(key: str, actual: Array, averages: Mapping[str, Array]) -> Explanation | None:
    if key in averages and same(actual, averages[key]):
        return Cause.AVERAGES, "is the moving average where the variable belongs, or the reverse"
    return None


def _statistics(key: str, actual: Array, source: Mapping[str, Array]) -> Explanation | None:
    keys = NETWORK[KEYS[key]].keys
    for role in STATISTICS:
        other = source[keys[role]]
        if keys[role] != key and not (other == other[0]).all():
            if same(actual, other):
                return Cause.STATISTICS, f"is the {role}"
            if same(actual, np.abs(other)):  # a variance has to be positive
                return Cause.STATISTICS, f"is the {role} without its sign"
    if key != keys["variance"]:
        return None
    with np.errstate(all="ignore"):
        deviation = np.sqrt(source[key])
        for name, other in (
            ("the standard deviation", deviation),
            ("the reciprocal of the standard deviation", 1 / deviation),
        ):
            if np.allclose(actual, other, rtol=_ROUNDED, atol=0):
                return Cause.STANDARD_DEVIATION, f"is {name}"
    return None


def _other_tensor(key: str, role: str, actual: Array, source: SourceTensors) -> Explanation | None:
    for layer in source.layers.values():
        for other_role, other in layer.keys.items():
            if other != key and other in source.tensors and same(actual, source.tensors[other]):
                place = short_name(layer.activation)
                if role == other_role:
                    return Cause.OTHER_TENSOR, f"belongs to {place}"
                return Cause.OTHER_TENSOR, f"is the {other_role} of {place}"
    return None


def _permuted(layer: NetworkLayer, actual: Array, expected: Array) -> Explanation | None:
    if actual.shape != expected.shape:
        return None
    for axis, side in enumerate(("output", "input")[: expected.ndim]):
        indices = _permutation(np.moveaxis(actual, axis, 0), np.moveaxis(expected, axis, 0))
        if indices is None:
            continue
        if axis == 1 and (branches := _moved_branches(layer, indices)) is not None:
            return Cause.BRANCH_ORDER, f"takes the branches in the order {branches}"
        return Cause.PERMUTED, f"has its {side} channels in another order"
    return None


def _permutation(actual: Array, expected: Array) -> list[int] | None:
    """For each row of `actual`, the index of the same row in `expected`; None if this is no permutation."""
    rows: dict[bytes, list[int]] = {}
    for index, row in enumerate(expected):
        rows.setdefault(row.tobytes(), []).append(index)
    indices = []
    for row in actual:
        left = rows.get(row.tobytes())
        if not left:
            return None
        indices.append(left.pop(0))
    return indices


_WIDTHS = {layer.scope: layer.outputs for layer in CONVOLUTIONS}


def _branch_sizes(layer: NetworkLayer) -> tuple[int, ...]:
    """Channels of each branch that a projection takes; empty for another layer."""
    if layer.kind is not LayerKind.PROJECTION:
        return ()
    return tuple(_WIDTHS[activation] for activation in layer.inputs if activation is not None)


def _moved_branches(layer: NetworkLayer, indices: list[int]) -> str | None:
    """The order of branches, such as "1, 0", if a permutation of input channels moves whole branches."""
    sizes = _branch_sizes(layer)
    starts = [0, *itertools.accumulate(sizes)][:-1]
    blocks = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    for order in itertools.permutations(range(len(sizes))):
        if len(order) > 1 and indices == [index for branch in order for index in blocks[branch]]:
            return ", ".join(map(str, order))
    return None


def _precision(actual: Array, expected: Array) -> Explanation | None:
    if actual.shape != expected.shape:
        return None
    with np.errstate(all="ignore"):
        for name, rounded in (("float16", expected.astype(np.float16)), ("bfloat16", _bfloat16(expected))):
            if same(actual, rounded.astype(np.float32)):
                return Cause.PRECISION, f"was stored as {name}"
        gap = np.abs(actual - expected).max()
        for decimals in range(2, 11):
            if gap <= 10.0**-decimals + 1e-7 * np.abs(expected).max() and np.array_equal(
                actual, np.round(expected.astype(np.float64), decimals).astype(np.float32)
            ):
                return Cause.PRECISION, f"was stored with {decimals} decimals"
        scale = float(np.abs(expected).max()) or 1.0
        coarse = float(np.linalg.norm(actual - expected)) <= _COARSE * float(np.linalg.norm(expected))
    if coarse or gap <= scale / 100:
        distinct, before = np.unique(actual).size, np.unique(expected).size
        if distinct <= _FEWER * before:
            return Cause.PRECISION, f"has {distinct} distinct values, the source's {before}: it was quantised"
    return None


def _bfloat16(array: Array) -> Array:
    """Round to the eight bits of bfloat16's significand, half to even; the dtype stays float32."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def _not_finite(actual: Array) -> Explanation | None:
    places = np.argwhere(~np.isfinite(actual))
    if not len(places):
        return None
    verb = "is" if len(places) == 1 else "are"
    where = ", ".join(map(str, places[0].tolist()))
    statement = f"has {len(places)} of {actual.size} values that {verb} not finite, the first at [{where}]"
    return Cause.VALUES, statement


def _single_values(actual: Array, expected: Array) -> Explanation | None:
    if actual.shape != expected.shape:
        return None
    differing = np.argwhere(differing_bits(actual, expected))
    changed = len(differing)
    steps = float(ulp_distance(actual, expected).max())
    where = ", ".join(map(str, differing[0].tolist()))
    if steps <= _FEW_STEPS:
        count = "one float32 step" if steps <= 1 else f"at most {steps:.0f} float32 steps"
        return Cause.VALUES, f"has {changed} of {actual.size} values off by {count}, the first at [{where}]"
    if changed <= max(4, _FEW_VALUES * actual.size) and changed < actual.size:
        return Cause.VALUES, f"has {changed} of {actual.size} values changed, the first at [{where}]"
    return None


def _scaled(actual: Array, expected: Array) -> Explanation | None:
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return None
    rows, expected_rows = (array.reshape(len(array), -1).astype(np.float64) for array in (actual, expected))
    if rows.shape[1] == 1:  # a vector: one factor for all of it
        rows, expected_rows = rows.T, expected_rows.T
    factors = (rows * expected_rows).sum(axis=1) / np.maximum(np.square(expected_rows).sum(axis=1), 1e-300)
    if np.allclose(factors, 1, rtol=0, atol=_ROUNDED):
        return None
    if np.allclose(
        rows, factors[:, None] * expected_rows, rtol=_ROUNDED, atol=1e-7 * float(np.abs(expected_rows).max())
    ):
        low, high = factors.min(), factors.max()
        factor = f"{low:.6g}" if math.isclose(low, high, rel_tol=_ROUNDED) else f"{low:.6g} to {high:.6g}"
        return Cause.FOLDED, f"is scaled by {factor}, as by another BatchNorm"
    return None


def _initial(actual: Array) -> Explanation | None:
    """Recognise PyTorch's initial kernels: uniform within 1/sqrt(inputs * height * width)."""
    if actual.ndim < 2 or actual.size < 500:
        return None
    bound = 1 / math.sqrt(math.prod(actual.shape[1:]))
    uniform = bound / math.sqrt(3)
    if np.abs(actual).max() > bound or abs(float(actual.std()) / uniform - 1) >= 0.05:
        return None
    return Cause.UNLOADED, "has PyTorch's initial values: it was never loaded"
