"""Why a tensor of a port is not the source's, where the source's is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.core.activations import short_name
from checks.core.metrics import ulp_distance
from checks.core.network import KEYS, NETWORK, STATISTICS, LayerKind
from checks.diagnosis.causes import Cause
from converter.layer_map import CONVOLUTIONS

Array = NDArray[Any]
Explanation = tuple[Cause, str]
"""A cause, and in words what is the matter with the tensor."""

_FEW_VALUES = 0.01  # share of a tensor's values that counts as single ones
_FEW_STEPS = 8  # float32 steps within which a tensor counts as the same but for single bits
_ROUNDED = 1e-5  # relative; a float32 result of a square root, a product or a quotient lies well within
_COARSE = 0.02  # relative L2 within which a tensor may be the same in lower precision
_FEWER = 0.25  # share of distinct values left, below which a tensor was quantised
_SAMPLE = 512  # values that are formatted as text one by one

_HWIO = (2, 3, 1, 0)  # axes of OIHW that give TensorFlow's order
_AXES = ("height", "width", "inputs", "outputs")


@dataclass(frozen=True, slots=True)
class Others:
    """What else a tensor could have been mistaken for.

    Attributes:
        source: state_dict key to the right tensor.
        averages: The same of the moving averages; empty where the checkpoint has none.
    """

    source: Mapping[str, Array]
    averages: Mapping[str, Array]


def same(one: Array, other: Array) -> bool:
    """Whether two float32 tensors have the same shape and bits."""
    if one.shape != other.shape:
        return False
    # Looking at one corner first saves reading megabytes of tensors that have nothing in common.
    corner = (slice(0, 4),) * one.ndim
    first, second = np.ascontiguousarray(one[corner]), np.ascontiguousarray(other[corner])
    if not np.array_equal(first.view(np.int32), second.view(np.int32)):
        return False
    return np.array_equal(
        np.ascontiguousarray(one).view(np.int32), np.ascontiguousarray(other).view(np.int32)
    )


def explain(key: str, found: Array, others: Others) -> Explanation | None:
    """Say how a tensor of a port came from the source's, or None.

    Args:
        key: Its state_dict key.
        found: The port's float32 tensor, other than the source's.
        others: What it could have been made of.
    """
    right = others.source[key]
    role = _role(key)
    explanations: tuple[Callable[[], Explanation | None], ...] = (
        lambda: _constant(found, right, role),
        lambda: _layout(found, right) if right.ndim > 1 else None,
        lambda: _average(key, found, others.averages),
        lambda: _statistics(key, found, others.source) if role in STATISTICS else None,
        lambda: _other_tensor(key, found, others.source),
        lambda: _permuted(key, found, right),
        lambda: _precision(found, right),
        lambda: _single_values(found, right),
        lambda: _scaled(found, right),
        lambda: _fresh(found, right),
    )
    return next((told for explanation in explanations if (told := explanation()) is not None), None)


def _role(key: str) -> str:
    return next(role for role, name in NETWORK[KEYS[key]].keys.items() if name == key)


def _constant(found: Array, right: Array, role: str) -> Explanation | None:
    low, high = found.min(), found.max()
    if role == "gamma" and (right == 1).all() and 0 <= low < 0.5 < high <= 1:
        return Cause.UNLOADED, f"is {low:g} to {high:g}, not 1, as PyTorch drew it before 1.2"
    return (Cause.UNLOADED, f"is {low:g} throughout") if found.size > 1 and low == high else None


def _layout_variants(kernel: Array) -> Iterator[tuple[Cause, str, Callable[[Array], Array]]]:
    """Every known way to get a kernel's layout wrong, but the right one.

    Args:
        kernel: OIHW, or (outputs, inputs); only its shape is looked at.

    Yields:
        The cause, what is the matter in words, and the function from the right tensor to the wrong one, which
        may have another shape.
    """
    if kernel.ndim == 4:
        yield Cause.HEIGHT_WIDTH, "has height and width exchanged", lambda a: a.swapaxes(2, 3)
        sides: tuple[tuple[tuple[int, ...], str], ...] = (
            ((2, 3), "height and width"),
            ((2,), "height"),
            ((3,), "width"),
        )
        for axes, words in sides:
            if all(kernel.shape[axis] > 1 for axis in axes):
                yield Cause.FLIPPED, f"is flipped in {words}", partial(np.flip, axis=axes)
    yield Cause.IN_OUT, "has inputs and outputs exchanged", lambda a: a.swapaxes(0, 1)
    if kernel.ndim == 4:
        both = "has inputs and outputs exchanged, and height and width"
        yield Cause.IN_OUT, both, lambda a: a.transpose(1, 0, 3, 2)
    order = _HWIO if kernel.ndim == 4 else (1, 0)
    names = _AXES if kernel.ndim == 4 else _AXES[2:]
    for axes in itertools.permutations(range(kernel.ndim)):
        told = ", ".join(names[axis] for axis in axes)
        words = f"was reshaped from ({told}) instead of transposed"

        def reshaped(a: Array, axes: tuple[int, ...] = axes) -> Array:
            return a.transpose(order).transpose(axes).reshape(a.shape)

        yield Cause.RESHAPED, words, reshaped


def _layout(found: Array, right: Array) -> Explanation | None:
    for cause, words, wrong in _layout_variants(right):
        if same(found, wrong(right)):
            return cause, words
    return None


def _average(key: str, found: Array, averages: Mapping[str, Array]) -> Explanation | None:
    if key in averages and same(found, averages[key]):
        return Cause.AVERAGES, "is the moving average where the variable belongs, or the reverse"
    return None


def _statistics(key: str, found: Array, source: Mapping[str, Array]) -> Explanation | None:
    keys = NETWORK[KEYS[key]].keys
    for role in STATISTICS:
        other = source[keys[role]]
        if keys[role] != key and not (other == other[0]).all():
            if same(found, other):
                return Cause.STATISTICS, f"is the {role}"
            if same(found, np.abs(other)):  # a variance has to be positive
                return Cause.STATISTICS, f"is the {role}, its sign taken away"
    right = source[key]
    if not key.endswith("running_var"):
        return None
    with np.errstate(all="ignore"):
        for words, made in (
            ("the standard deviation", np.sqrt(right)),
            ("the standard deviation with epsilon", np.sqrt(right + np.float32(0.001))),
            ("the square of the variance", np.square(right)),
            ("the reciprocal of the variance", 1 / right),
            ("the reciprocal of the standard deviation", 1 / np.sqrt(right)),
            ("the reciprocal of the standard deviation with epsilon", 1 / np.sqrt(right + np.float32(0.001))),
            ("the logarithm of the variance", np.log(right)),
        ):
            if np.allclose(found, made, rtol=_ROUNDED, atol=0):
                return Cause.STANDARD_DEVIATION, f"is {words}"
    return None


def _other_tensor(key: str, found: Array, source: Mapping[str, Array]) -> Explanation | None:
    for other, array in source.items():
        if other != key and other in KEYS and same(found, array):
            activation = KEYS[other]
            role = _role(other)
            if role == _role(key):
                return Cause.OTHER_TENSOR, f"belongs to {short_name(activation)}"
            return Cause.OTHER_TENSOR, f"is the {role} of {short_name(activation)}"
    return None


def _permuted(key: str, found: Array, right: Array) -> Explanation | None:
    if found.shape != right.shape:
        return None
    for axis, side in enumerate(("output", "input")[: right.ndim]):
        places = _permutation(np.moveaxis(found, axis, 0), np.moveaxis(right, axis, 0))
        if places is None:
            continue
        if axis == 1 and (branches := _moved_branches(key, places)) is not None:
            return Cause.BRANCH_ORDER, f"takes the branches in the order {branches}"
        return Cause.PERMUTED, f"has its {side} channels in another order"
    return None


def _permutation(found: Array, right: Array) -> list[int] | None:
    """For each row of `found` the row of `right` that it is; None where it is none, or one is used twice."""
    rows: dict[bytes, list[int]] = {}
    for number, row in enumerate(right):
        rows.setdefault(row.tobytes(), []).append(number)
    places = []
    for row in found:
        left = rows.get(row.tobytes())
        if not left:
            return None
        places.append(left.pop(0))
    return places


_WIDTHS = {layer.scope: layer.outputs for layer in CONVOLUTIONS}


def _branch_sizes(key: str) -> tuple[int, ...]:
    """Channels of each branch that a projection takes; empty where the key is of another layer."""
    layer = NETWORK[KEYS[key]]
    if layer.kind is not LayerKind.PROJECTION:
        return ()
    return tuple(_WIDTHS[activation] for activation in layer.inputs if activation is not None)


def _moved_branches(key: str, places: list[int]) -> str | None:
    """The order of branches that a permutation of input channels amounts to, such as "1, 0"; or None."""
    sizes = _branch_sizes(key)
    starts = [0, *itertools.accumulate(sizes)][:-1]
    blocks = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    for order in itertools.permutations(range(len(sizes))):
        if places == [place for number in order for place in blocks[number]] and len(order) > 1:
            return ", ".join(map(str, order))
    return None


def _precision(found: Array, right: Array) -> Explanation | None:
    if found.shape != right.shape:
        return None
    with np.errstate(all="ignore"):
        for name, rounded in (("float16", right.astype(np.float16)), ("bfloat16", _bfloat16(right))):
            if same(found, rounded.astype(np.float32)):
                return Cause.PRECISION, f"was stored as {name}"
        gap = np.abs(found - right).max()
        for decimals in range(2, 11):
            if gap <= 10.0**-decimals + 1e-7 * np.abs(right).max() and np.array_equal(
                found, np.round(right.astype(np.float64), decimals).astype(np.float32)
            ):
                return Cause.PRECISION, f"was stored with {decimals} decimals"
    for digits in range(2, 9):
        if _is_text(found, right, f"{{:.{digits}g}}"):
            return Cause.PRECISION, f"was stored with {digits} significant digits"
    scale = float(np.abs(right).max()) or 1.0
    coarse = float(np.linalg.norm(found - right)) <= _COARSE * float(np.linalg.norm(right))
    if (coarse or gap <= scale / 100) and np.unique(found).size <= _FEWER * np.unique(right).size:
        return Cause.PRECISION, f"has {np.unique(found).size} distinct values where the source has more"
    return None


def _is_text(found: Array, right: Array, pattern: str) -> bool:
    """Whether a sample of the values is what is read back after printing the right ones so."""
    sample = np.linspace(0, right.size - 1, min(_SAMPLE, right.size)).astype(int)
    printed = [float(pattern.format(float(right.flat[place]))) for place in sample]
    return np.array_equal(found.ravel()[sample], np.array(printed, np.float32))


def _bfloat16(array: Array) -> Array:
    """Rounded to the eight bits of bfloat16's significand, half to even, still in float32."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def _single_values(found: Array, right: Array) -> Explanation | None:
    if found.shape != right.shape:
        return None
    changed = int((found.view(np.int32) != right.view(np.int32)).sum())
    steps = int(ulp_distance(found, right).max())
    where = ", ".join(map(str, np.argwhere(found.view(np.int32) != right.view(np.int32))[0].tolist()))
    if steps <= _FEW_STEPS:
        count = "one float32 step" if steps <= 1 else f"at most {steps} float32 steps"
        return Cause.VALUES, f"has {changed} of {found.size} values off by {count}, the first at [{where}]"
    if changed <= max(4, _FEW_VALUES * found.size) and changed < found.size:
        return Cause.VALUES, f"has {changed} of {found.size} values changed, the first at [{where}]"
    return None


def _scaled(found: Array, right: Array) -> Explanation | None:
    if found.shape != right.shape or not np.isfinite(found).all():
        return None
    rows, wanted = (array.reshape(len(array), -1).astype(np.float64) for array in (found, right))
    if rows.shape[1] == 1:  # a vector: one factor or one summand for all of it
        rows, wanted = rows.T, wanted.T
    factors = (rows * wanted).sum(axis=1) / np.maximum(np.square(wanted).sum(axis=1), 1e-300)
    if np.allclose(factors, 1, rtol=0, atol=_ROUNDED):
        return None
    if np.allclose(rows, factors[:, None] * wanted, rtol=_ROUNDED, atol=1e-7 * float(np.abs(wanted).max())):
        low, high = factors.min(), factors.max()
        words = f"{low:.6g}" if math.isclose(low, high, rel_tol=_ROUNDED) else f"{low:.6g} to {high:.6g}"
        return Cause.FOLDED, f"is scaled by {words}, as by another BatchNorm"
    return None


def _fresh(found: Array, right: Array) -> Explanation | None:
    return (Cause.UNLOADED, _FRESH) if _is_fresh(found) else None


_FRESH = "has PyTorch's initial values: it was never loaded"


def _is_fresh(found: Array) -> bool:
    """Whether a kernel is uniform as PyTorch's layers start, within 1/sqrt(inputs * height * width)."""
    if found.ndim < 2 or found.size < 500:
        return False
    bound = 1 / math.sqrt(math.prod(found.shape[1:]))
    uniform = bound / math.sqrt(3)
    return bool(np.abs(found).max() <= bound and abs(float(found.std()) / uniform - 1) < 0.05)
