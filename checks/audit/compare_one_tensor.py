"""Compare a single tensor with the source's, bit for bit, or with the prediction of a folded tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from checks.audit.port_layers import PortTensor, Role
from checks.audit.predict_folding import KNOWN_SHARE, Prediction
from checks.audit.result import Status, TensorResult
from checks.audit.source_weights import SourceWeights, TensorPlace
from checks.core.metrics import ulp_distance, ulp_histogram
from checks.core.network import KEYS, stage_of
from checks.core.types import Array
from checks.diagnosis.causes import Cause
from checks.diagnosis.explain_tensor import SourceTensors, explain
from converter.casting import FLOAT32, HALVES
from converter.same_bits import differing_bits, same_bits

FLOATS = (*HALVES, FLOAT32, np.dtype(np.float64))

_LEAST_HALVES = (5.96e-8, 1e-7)
"""`min_positive_val` of onnxruntime.transformers.float16: today's default, and the one before it."""

_RAISED = "rounded, and the least values are raised as by onnxruntime's converter"


def compare_with_source(tensor: PortTensor, scope: str, role: Role, source: SourceWeights) -> TensorResult:
    """Compare a tensor with the source's; where it differs, add the reason if that is known.

    Args:
        tensor: The port's tensor.
        scope: The TensorFlow scope of its layer.
        role: Its role in the layer.
        source: The source.
    """
    expected = source.tensor(scope, role)
    if expected is None:
        return uncompared(tensor, TensorPlace(stage_of(scope)), "extra", "the layer has no such tensor")
    place = source.place(scope, role)
    result = compare_exactly(tensor, expected, place)
    if result.is_faithful or source.broken is not None:  # broken values have no cause in the port
        return result
    return _explain(result, tensor, place.key, source)


def compare_exactly(tensor: PortTensor, expected: Array, place: TensorPlace) -> TensorResult:
    """Compare a tensor with the expected float32 tensor, bit for bit.

    A tensor in half precision must hold the nearest values, a tensor in float64 the same values. An infinity
    is never right for a finite value, although it is the nearest value of a type that does not reach as far.

    Args:
        tensor: The port's tensor.
        expected: The source's tensor, in TensorFlow's layout.
        place: The place of the tensor in the network.
    """
    actual, layout = tensor.array, tensor.layout
    rank_fits = len(layout.permutation) == expected.ndim
    shape = layout.shape(expected.shape) if rank_fits else expected.shape
    if not rank_fits or actual.shape != shape:
        return uncompared(tensor, place, "differs", f"shape {actual.shape}, expected {shape}")
    if actual.dtype not in FLOATS:
        is_integer = actual.dtype.kind in "iu"
        cause = (
            f"it is quantised to integers ({actual.dtype})"
            if is_integer
            else f"weights cannot be {actual.dtype}"
        )
        return uncompared(tensor, place, "differs", cause)
    exact = layout.apply(expected)
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = exact.astype(actual.dtype)
        single = actual.astype(np.float32)
    if actual.dtype != FLOAT32:
        nearest = _with_nans_of(actual, nearest)
    if actual.dtype in HALVES and (overflows := _count_overflows(actual, exact)):
        return _refuse_overflows(measure(tensor, nearest, place, "differs"), overflows)
    if same_bits(actual, nearest):
        return measure(tensor, nearest, place, "rounded" if actual.dtype in HALVES else "equal")
    result = measure(tensor, nearest, place, "differs")
    if actual.dtype == np.float64 and same_bits(single, nearest.astype(np.float32)):
        return replace(result, status="approximate", detail="float64 that rounds to the source's float32")
    if actual.dtype in HALVES and _is_raised(actual, nearest, exact):
        return replace(result, status="approximate", detail=_RAISED)
    return replace(result, detail=_find_other_rounding(actual, exact)) if actual.dtype in HALVES else result


def compare_with_prediction(
    tensor: PortTensor, prediction: Prediction, place: TensorPlace, detail: str
) -> TensorResult:
    """Compare a folded tensor with the prediction from the source's tensors.

    Args:
        tensor: The port's tensor.
        prediction: The prediction, in the layout of the tensor.
        place: The place of the tensor in the network.
        detail: A clause on the factors that are folded in.
    """
    actual = tensor.array
    values = _with_nans_of(actual, prediction.values)
    hits = ~differing_bits(actual, values)
    if hits.all() and prediction.is_unique and np.isfinite(actual).all():
        return measure(tensor, values, place, "folded", detail)
    exact = prediction.exact()
    with np.errstate(over="ignore"):
        nearest = _with_nans_of(actual, exact.astype(actual.dtype))
    overflows = _count_overflows(actual, exact)
    if overflows:
        return _refuse_overflows(measure(tensor, nearest, place, "differs", detail), overflows)
    if hits.all() and prediction.is_unique:
        return measure(tensor, values, place, "folded", detail)
    if hits.all():
        return measure(tensor, nearest, place, "approximate", f"{detail}, within rounding")
    if actual.dtype in HALVES and _is_raised(actual, values, exact):
        return measure(tensor, values, place, "approximate", f"{detail}, {_RAISED}")
    is_near = (np.abs(actual.astype(np.float64) - exact) <= prediction.margin()) | hits
    is_other_formula = hits.mean() < KNOWN_SHARE or not prediction.is_unique
    if is_other_formula and is_near.all():
        way = _find_other_rounding(actual, exact) if actual.dtype in HALVES else ""
        status: Status = "differs" if way else "approximate"
        return measure(tensor, nearest, place, status, f"{detail}, {way or 'by an unknown formula'}")
    result = measure(tensor, values, place, "differs")
    return replace(result, detail=f"{detail}, except in {result.differing} of {result.values} values")


def _count_overflows(actual: Array, exact: Array) -> int:
    """Count the values that are not finite although the exact ones are."""
    return int((np.isfinite(exact) & ~np.isfinite(actual)).sum())


def _refuse_overflows(result: TensorResult, overflows: int) -> TensorResult:
    """State values that are not finite although the source's are, as differing."""
    values = "a value that is" if overflows == 1 else f"{overflows} values that are"
    cause = f"{values} finite in the source and not finite in {result.dtype}"
    detail = f"{result.detail}; {cause}" if result.detail else cause
    return replace(
        result, differing=max(result.differing, overflows), not_finite=overflows, index=None, detail=detail
    )


def uncompared(tensor: PortTensor, place: TensorPlace, status: Status, detail: str = "") -> TensorResult:
    """Make a result without a comparison of values."""
    array = tensor.array
    return TensorResult(
        name=tensor.name,
        variable=place.variable,
        stage=place.stage,
        layout=tensor.layout.name if place.variable else "",
        dtype=str(array.dtype),
        shape=array.shape,
        status=status,
        values=array.size,
        differing=0 if status in ("equal", "not judged") else array.size,
        detail=detail,
        key=place.key,
    )


def measure(
    tensor: PortTensor, expected: Array, place: TensorPlace, status: Status, detail: str = ""
) -> TensorResult:
    """Make a result from the distances of the values; `expected` has the dtype and shape of the tensor."""
    actual = tensor.array
    differs = differing_bits(actual, expected)
    result = TensorResult(
        name=tensor.name,
        variable=place.variable,
        stage=place.stage,
        layout=tensor.layout.name,
        dtype=str(actual.dtype),
        shape=actual.shape,
        status=status,
        values=actual.size,
        differing=int(differs.sum()),
        ulp_histogram=(actual.size,) if actual.size else (),
        detail=detail,
        key=place.key,
    )
    if not differs.any():  # counting steps takes most of the time of an audit
        return result
    steps = ulp_distance(actual, expected)
    finite = np.isfinite(steps)
    with np.errstate(over="ignore", invalid="ignore"):
        gap = np.abs(actual.astype(np.float64) - expected)
    gap = np.where(differs, np.where(np.isnan(gap), np.inf, gap), -1.0)
    index = np.unravel_index(int(gap.argmax()), gap.shape)
    return replace(
        result,
        not_finite=int((~finite).sum()),
        max_abs=float(gap[index]),
        max_ulp=int(steps.max(initial=0, where=finite)),
        ulp_histogram=ulp_histogram(steps),
        index=tuple(map(int, index)),
        actual=float(actual[index]),
        expected=float(expected[index]),
    )


def _explain(result: TensorResult, tensor: PortTensor, key: str, source: SourceWeights) -> TensorResult:
    """Add the reason why a tensor differs, if it is a known cause."""
    if key not in KEYS or key not in source.state_dict.tensors:
        return result
    actual = tensor.channels_first()
    return add_cause(result, tensor.array if actual is None else actual, key, source.state_dict)


def add_cause(result: TensorResult, actual: Array, key: str, source: SourceTensors) -> TensorResult:
    """Add the reason why a tensor differs, if it is a known cause.

    Args:
        result: The result of a tensor that differs.
        actual: The port's tensor, in the layout of the state_dict.
        key: Its state_dict key, one of the source's.
        source: The tensors that it may come from.
    """
    if actual.dtype != FLOAT32 or actual.size != source.tensors[key].size:
        return result
    if result.not_finite:  # a NaN may have come from anywhere
        return result
    with np.errstate(all="ignore"):  # damaged values overflow anywhere
        explanation = explain(key, actual, source)
    if explanation is None or explanation[0] is Cause.VALUES:
        return result  # which has the first value that differs, and the number of those that do
    return replace(result, detail="; ".join(filter(None, (explanation[1], result.detail))))


def _with_nans_of(actual: Array, expected: Array) -> Array:
    """Give computed NaNs the bits of the port's: a tool and NumPy may make NaNs of other bits."""
    both = np.isnan(actual) & np.isnan(expected)
    return np.where(both, actual, expected) if both.any() else expected


def _find_other_rounding(actual: Array, exact: Array) -> str:
    """Find the way to round to half precision that gives most of a tensor, and more than the nearest values.

    Args:
        actual: The port's tensor, in half precision.
        exact: The exact values.

    Returns:
        A clause, such as "rounded down, not to the nearest"; empty if there is none.
    """
    with np.errstate(all="ignore"):
        nearest = exact.astype(actual.dtype)
        wide = nearest.astype(np.float64)
        down, inwards = (np.nextafter(nearest, actual.dtype.type(end)) for end in (-np.inf, 0.0))
    ways = (
        ("rounded down, not to the nearest", np.where(wide > exact, down, nearest)),
        (
            "rounded towards zero, not to the nearest",
            np.where(np.abs(wide) > np.abs(exact), inwards, nearest),
        ),
    )
    return find_wrong_rule(actual, int((nearest == actual).sum()), ways)


def find_wrong_rule(actual: Array, by_right_rule: int, rules: Iterable[tuple[str, Array]]) -> str:
    """Find the wrong rule that gives at least `KNOWN_SHARE` of a tensor, and more than the right rule.

    Args:
        actual: The values.
        by_right_rule: The number of values that the right rule gives.
        rules: A clause on each wrong rule, with the values that it gives.

    Returns:
        The clause of the rule that gives the most, the first of several; empty if there is none.
    """
    needed, found = max(math.ceil(KNOWN_SHARE * actual.size), by_right_rule + 1), ""
    for clause, values in rules:
        given = int((values == actual).sum())
        if given >= needed:
            needed, found = given + 1, clause
    return found


def _is_raised(actual: Array, nearest: Array, exact: Array) -> bool:
    """Return True if the only differences are tiny values that were raised to a converter's least value."""
    for least in _LEAST_HALVES:
        raised = np.copysign(np.float64(least), exact).astype(actual.dtype)
        if np.array_equal(actual, np.where((exact != 0) & (np.abs(exact) < least), raised, nearest)):
            return True
    return False
