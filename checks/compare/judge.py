"""The four judgements of a comparison: tensors, mapping, rounding, headline. Each is a pure function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from checks.compare.result import InputMeasurement
from checks.core import thresholds
from checks.core.inputs import NOISE
from checks.core.judgement import Judgement
from checks.core.metrics import figure
from checks.core.network import short_name
from checks.core.rounding import describe_share, describe_worst, worst_share
from checks.core.types import Array
from converter.casting import to_float32
from converter.convert import synthesise
from converter.counts import counted
from converter.layer_map import LOGITS_SCOPE, SynthesisedRow
from converter.plan import Plan
from converter.same_bits import differing_bits, same_bits


def judge_tensors(
    state_dict: Mapping[str, Array],
    source: Mapping[str, Array],
    plan: Plan,
    own: Mapping[str, Array],
) -> Judgement:
    """Judge every tensor of the state_dict against the source, bit for bit.

    Args:
        state_dict: Key to array, as a user loads it.
        source: TensorFlow name to array, as `converter` reads it.
        plan: The plan of the source's conversion.
        own: TensorFlow name to array, as TensorFlow's reader gives it to the checkpoint's own graph.
    """
    details = [f"{key}: not in the state_dict" for row in plan.rows if (key := row.key) not in state_dict]
    known = {row.key for row in plan.rows}
    details += [f"{key}: not a tensor of this network" for key in state_dict if key not in known]
    for row in plan.rows:
        if row.key not in state_dict:
            continue
        actual = state_dict[row.key]
        if (actual.dtype, actual.shape) != (row.info.dtype, row.info.shape):
            stated = f"{actual.dtype} {actual.shape}, expected {row.info.dtype} {row.info.shape}"
            details.append(f"{row.key}: {stated}")
        elif isinstance(row, SynthesisedRow):
            if not same_bits(actual, synthesise(row)):
                details.append(f"{row.key}: not {row.fill} throughout")
        else:
            expected = to_float32(source[plan.sources[row.variable]])
            difference = _describe_difference(row.layout.inverse.apply(actual), expected)
            if difference:
                details.append(f"{row.key}: {difference} {row.variable}")
    if own:
        details += _judge_readers(source, plan, own)
    converted, synthesised = len(plan.converted), len(plan.synthesised)
    if details:
        statement = f"{_tensors_differ(len(details))} from the source"
    else:
        statement = f"{converted} converted bit for bit"
        if synthesised:  # a network of MTCNN has none
            statement += f", {synthesised} synthesised as stated"
        if plan.casts:
            dtypes = " and ".join(sorted({str(dtype) for dtype in plan.casts.values()}))
            statement += f" ({len(plan.casts)} of them of {dtypes}, cast to float32 first)"
        if own:
            statement += f"; TensorFlow's own reader gives the same {len(own)} of {converted}"
    return Judgement("tensors", not details, statement, tuple(details))


def _describe_difference(actual: Array, expected: Array) -> str:
    """Count the values whose bits differ, as "1 of 32 values differs from"; empty if none does."""
    if same_bits(actual, expected):
        return ""
    differing = differing_bits(actual, expected)
    count = int(differing.sum())
    broken = int((differing & ~np.isfinite(actual) & np.isfinite(expected)).sum())
    what = f" ({broken} {'is' if broken == 1 else 'are'} not finite)" if broken else ""
    return f"{count} of {actual.size} values {'differs' if count == 1 else 'differ'}{what} from"


def _judge_readers(source: Mapping[str, Array], plan: Plan, own: Mapping[str, Array]) -> list[str]:
    """A line for each tensor that TensorFlow's reader and `converter` read differently."""
    details = [
        f"{row.variable}: TensorFlow's own graph does not read it"
        for row in plan.converted
        if row.variable not in own and row.scope != LOGITS_SCOPE  # a frozen graph has no Logits
    ]
    for name, array in own.items():
        if name not in plan.sources:
            details.append(f"{name}: read by TensorFlow's own graph, not converted")
        elif not same_bits(array, source[plan.sources[name]]):
            details.append(f"{name}: TensorFlow's own reader gives other values than this project's")
    return details


def judge_stored_tensors(digests: Mapping[str, str], stored: Mapping[str, str]) -> Judgement:
    """Judge every tensor of the state_dict against the fingerprints stored with the activations.

    Args:
        digests: Key to dtype, shape and SHA-256 of the state_dict's tensor, in one string.
        stored: The same for the state_dict that belongs to the activations.
    """
    details = [f"{key}: not in the state_dict" for key in stored if key not in digests]
    details += [f"{key}: not a tensor of this network" for key in digests if key not in stored]
    details += [
        f"{key}: its dtype, shape or SHA-256 is not the stored one"
        for key, digest in stored.items()
        if digests.get(key, digest) != digest
    ]
    statement = f"{len(stored)} tensors have the dtype, shape and SHA-256 stored with the activations"
    if details:
        statement = f"{_tensors_differ(len(details))} from those stored with the activations"
    return Judgement("tensors", not details, statement, tuple(details))


def judge_mapping(inputs: Sequence[InputMeasurement]) -> Judgement:
    """Judge in float64 the distance of the embeddings, and every activation, on every input."""
    limit = thresholds.MAPPING
    details = []
    for batch in inputs:
        if not batch.distance64 <= limit:
            details.append(f"{batch.name}: {batch.outputs} are {_apart(batch.distance64)}")
        first = next((measured for measured in batch.activations if measured.diverges), None)
        if first is not None:
            place = short_name(first.activation)
            details.append(f"{batch.name}: first at {place}, relative L2 {figure(first.float64.relative_l2)}")
    distance = max(batch.distance64 for batch in inputs)
    measured = [measured for batch in inputs for measured in batch.activations]
    worst = max(measured, key=lambda measured: measured.float64.relative_l2)
    statement = (
        f"float64: {inputs[0].outputs} {_apart(distance)}, worst activation "
        f"{figure(worst.float64.relative_l2)} ({short_name(worst.activation)}); limit {limit:.0e}"
    )
    share = max(distance, worst.float64.relative_l2) / limit
    return Judgement("mapping", not details, statement, tuple(details), share)


def judge_rounding(inputs: Sequence[InputMeasurement]) -> Judgement:
    """Judge the float32 rounding of every layer on its own input, in PyTorch and in the own graph.

    The own graph is measured from the network that the checkpoint was converted to, so this also shows that
    its graph computes that network.
    """
    details = []
    for batch in inputs:
        for layers, subject in (
            (batch.rounding, "PyTorch"),
            (batch.own_rounding, "the checkpoint's own graph"),
        ):
            details += [
                f"{batch.name}: {short_name(layer.activation)}: {subject} is {figure(layer.error)} from the "
                f"float64 result of the same input; rounding allows {layer.bound:.1e}"
                for layer in layers
                if layer.exceeds
            ]
    shares = [worst_share(batch.rounding) for batch in inputs]
    own = [worst_share(batch.own_rounding) for batch in inputs if batch.own_rounding]
    statement = f"float32: PyTorch's worst layer has {describe_worst(max(shares))}"
    compared = [value for batch in inputs for value in batch.rebuilt.values()]
    if compared:
        same = sum(value == 0.0 for value in compared)
        statement += f", TensorFlow's {describe_share(max(own))}"
        statement += f"; own and rebuilt graph equal at {same} of {len(compared)} activations"
        if same < len(compared):
            statement += f", at most {max(compared):.1e} apart"
    else:
        statement += "; there is only the rebuilt graph"
    return Judgement("rounding", not details, statement, tuple(details), max([*shares, *own]))


def _apart(distance: float) -> str:
    return f"{distance:.1e} apart" if math.isfinite(distance) else "not finite"


def _tensors_differ(count: int) -> str:
    return f"{counted(count, 'tensor')} {'differs' if count == 1 else 'differ'}"


def judge_headline(inputs: Sequence[InputMeasurement]) -> Judgement:
    """Judge the float32 distance that other ports quote, on the standard normal images."""
    noise = next(batch for batch in inputs if batch.name == NOISE)
    share = max(noise.distance32 / thresholds.HEADLINE, noise.row_distance32 / thresholds.HEADLINE_ROW)
    statement = (
        f"float32 distance {figure(noise.distance32, '.3e')} on {noise.images} {noise.name} images (limit "
        f"{thresholds.HEADLINE:.0e}), largest row {figure(noise.row_distance32)} (limit "
        f"{thresholds.HEADLINE_ROW:.0e})"
    )
    return Judgement("headline", share <= 1, statement, share=share)
