"""The four judgements of a comparison: tensors, mapping, rounding, headline. Each is a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from checks.compare.result import InputMeasurement
from checks.core import thresholds
from checks.core.activations import short_name
from checks.core.inputs import NOISE
from checks.core.judgement import Judgement
from converter.casting import to_float32
from converter.convert import synthesise
from converter.layer_map import LOGITS_SCOPE, Synthesised
from converter.plan import Plan
from converter.same_bits import same_bits


def judge_tensors(
    state_dict: Mapping[str, NDArray[Any]],
    source: Mapping[str, NDArray[Any]],
    plan: Plan,
    own: Mapping[str, NDArray[Any]],
) -> Judgement:
    """Every tensor of the state_dict against the source, bit for bit.

    Args:
        state_dict: Key to array, as a user loads it.
        source: TensorFlow name to array, as this project reads it.
        plan: The plan that was made for the source.
        own: TensorFlow name to array, as TensorFlow's own reader gave it to the checkpoint's own graph.
    """
    details = [f"{key}: not in the state_dict" for row in plan.rows if (key := row.key) not in state_dict]
    known = {row.key for row in plan.rows}
    details += [f"{key}: not a tensor of this network" for key in state_dict if key not in known]
    for row in plan.rows:
        if row.key not in state_dict:
            continue
        found = state_dict[row.key]
        if isinstance(row, Synthesised):
            if not same_bits(found, synthesise(row)):
                details.append(f"{row.key}: not {row.fill} throughout")
            continue
        expected = to_float32(source[plan.sources[row.variable]])
        wanted = row.entry
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
            stated = f"{found.dtype} {found.shape}, expected {wanted.dtype} {wanted.shape}"
            details.append(f"{row.key}: {stated}")
        elif not same_bits(row.layout.inverse.apply(found), expected):
            changed = int((row.layout.inverse.apply(found) != expected).sum())
            details.append(f"{row.key}: {changed} of {expected.size} values differ from {row.variable}")
    if own:
        details += _judge_readers(source, plan, own)
    converted, synthesised = len(plan.converted), len(plan.synthesised)
    if details:
        statement = f"{len(details)} tensors differ from the source"
    else:
        statement = f"{converted} converted bit for bit, {synthesised} synthesised as stated"
        if plan.casts:
            dtypes = " and ".join(sorted({str(dtype) for dtype in plan.casts.values()}))
            statement += f" ({len(plan.casts)} of them of {dtypes}, cast to float32 first)"
        if own:
            statement += f"; TensorFlow's own reader gives the same {len(own)} of {converted}"
    return Judgement("tensors", not details, statement, tuple(details))


def _judge_readers(
    source: Mapping[str, NDArray[Any]], plan: Plan, own: Mapping[str, NDArray[Any]]
) -> list[str]:
    """Where TensorFlow's own reader and this project's differ; its graph may do without the Logits."""
    details = [
        f"{row.variable}: TensorFlow's own graph does not read it"
        for row in plan.converted
        if row.variable not in own and row.scope != LOGITS_SCOPE
    ]
    for name, array in own.items():
        if name not in plan.sources:
            details.append(f"{name}: read by TensorFlow's own graph, not converted")
        elif not same_bits(array, source[plan.sources[name]]):
            details.append(f"{name}: TensorFlow's own reader gives other values than this project's")
    return details


def judge_stored_tensors(digests: Mapping[str, str], stored: Mapping[str, str]) -> Judgement:
    """Every tensor of the state_dict against the fingerprints that came with stored activations.

    Args:
        digests: Key to dtype, shape and SHA-256 of the state_dict's tensors, in one string.
        stored: The same of the state_dict that belongs to the activations.
    """
    details = [f"{key}: not in the state_dict" for key in stored if key not in digests]
    details += [f"{key}: not a tensor of this network" for key in digests if key not in stored]
    details += [
        f"{key}: other values than those of the stored activations"
        for key, digest in stored.items()
        if digests.get(key, digest) != digest
    ]
    statement = f"{len(stored)} tensors have dtype, shape and SHA-256 of those of the stored activations"
    if details:
        statement = f"{len(details)} tensors differ from those of the stored activations"
    return Judgement("tensors", not details, statement, tuple(details))


def judge_mapping(inputs: Sequence[InputMeasurement]) -> Judgement:
    """Float64 against float64: the embeddings' distance and every activation, on every input."""
    limit = thresholds.MAPPING
    details = []
    for batch in inputs:
        if not batch.distance64 <= limit:
            details.append(f"{batch.name}: embeddings are {batch.distance64:.1e} apart")
        if batch.first_divergence is not None:
            activation = next(t for t in batch.activations if t.activation == batch.first_divergence)
            details.append(
                f"{batch.name}: first at {activation.activation}, relative L2 {activation.float64.relative_l2:.1e}"
            )
    distance = max(batch.distance64 for batch in inputs)
    worst = max(
        (activation for batch in inputs for activation in batch.activations),
        key=lambda t: t.float64.relative_l2,
    )
    statement = (
        f"float64: embeddings {distance:.1e} apart, worst activation {worst.float64.relative_l2:.1e} "
        f"({short_name(worst.activation)}); at most {limit:.0e}"
    )
    return Judgement("mapping", not details, statement, tuple(details))


def judge_rounding(inputs: Sequence[InputMeasurement]) -> Judgement:
    """Float32 errors against the float64 result: PyTorch's against TensorFlow's, and graph against graph."""
    details = []
    for batch in inputs:
        factor = thresholds.ROUNDING_FEW_VALUES if batch.few_values else thresholds.ROUNDING
        details += [
            f"{batch.name}: {activation.activation}: PyTorch is {activation.excess:.2f} times as far from float64 as TensorFlow, "
            f"at most {factor:g}"
            for activation in batch.activations
            if not activation.excess <= factor
        ]
        own_error = {activation.activation: activation.tensorflow_error for activation in batch.activations}
        details += [
            f"{batch.name}: {activation}: the rebuilt graph is {error:.1e} from float64, the checkpoint's own "
            f"{own_error[activation]:.1e}"
            for activation, error in batch.rebuilt_error.items()
            if not error <= factor * max(own_error[activation], thresholds.UNIT_ROUNDOFF)
            or not own_error[activation] <= factor * max(error, thresholds.UNIT_ROUNDOFF)
        ]
    statement = "float32: PyTorch's error over TensorFlow's, worst activation " + _worst_excess(inputs)
    compared = [value for batch in inputs for value in batch.rebuilt.values()]
    if compared:
        same = sum(value == 0.0 for value in compared)
        statement += f"; rebuilt and own graph agree bit for bit at {same} of {len(compared)} activations"
        if same < len(compared):
            statement += f", at most {max(compared):.1e} apart"
    else:
        statement += "; no graph of its own, the rebuilt one stands in"
    return Judgement("rounding", not details, statement, tuple(details))


def _worst_excess(inputs: Sequence[InputMeasurement]) -> str:
    parts = []
    for few_values, limit in ((False, thresholds.ROUNDING), (True, thresholds.ROUNDING_FEW_VALUES)):
        excesses = [
            activation.excess
            for batch in inputs
            if batch.few_values is few_values
            for activation in batch.activations
        ]
        if excesses:
            kind = "on few values" if few_values else "on varied inputs"
            parts.append(f"{max(excesses):.2f} {kind} (at most {limit:g})")
    return ", ".join(parts)


def judge_headline(inputs: Sequence[InputMeasurement]) -> Judgement:
    """The float32 distance that the field quotes, on five standard normal images."""
    noise = next(batch for batch in inputs if batch.name == NOISE)
    passed = noise.distance32 <= thresholds.HEADLINE and noise.row_distance32 <= thresholds.HEADLINE_ROW
    statement = (
        f"float32 distance {noise.distance32:.3e} (at most {thresholds.HEADLINE:.0e}), largest row "
        f"{noise.row_distance32:.1e} (at most {thresholds.HEADLINE_ROW:.0e})"
    )
    return Judgement("headline", passed, statement)
