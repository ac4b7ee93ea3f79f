"""What a comparison measures, and its four judgements, each a pure function of what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.compare.repair import Repair
from checks.core import thresholds
from checks.core.activations import EMBEDDINGS, short_name
from checks.core.inputs import NOISE
from checks.core.judgement import Judgement
from checks.core.metrics import Difference, difference, l2_norm, relative_l2
from checks.core.tensorflow_side import Activations
from checks.diagnosis.diagnose import Diagnosis
from converter.casting import to_float32
from converter.convert import synthesise
from converter.convert_file import same_bits
from converter.layer_map import LOGITS_SCOPE, Synthesised, Variant
from converter.plan import Plan


@dataclass(frozen=True, slots=True)
class ActivationMeasurement:
    """Everything measured at one activation on one input.

    Attributes:
        activation: TensorFlow scope.
        float32: PyTorch from TensorFlow, both in float32.
        float64: PyTorch from TensorFlow, both in float64.
        pytorch_error: Relative L2 of PyTorch's float32 from TensorFlow's float64.
        tensorflow_error: Relative L2 of TensorFlow's float32 from the same.
        excess: The first error over the second, which counts as one unit roundoff at least.
    """

    activation: str
    float32: Difference
    float64: Difference
    pytorch_error: float
    tensorflow_error: float
    excess: float


@dataclass(frozen=True, slots=True)
class InputMeasurement:
    """Everything measured on one input.

    Attributes:
        name: The input.
        few_values: As in `InputBatch`.
        own_graph: As in `Activations`.
        activations: In the order of evaluation.
        distance64: Frobenius distance of the embeddings in float64.
        distance32: The same in float32.
        row_distance32: Largest distance of a single embedding in float32.
        rebuilt: As in `Activations`.
        rebuilt_error: As in `Activations`.
    """

    name: str
    few_values: bool
    own_graph: bool
    activations: tuple[ActivationMeasurement, ...]
    distance64: float
    distance32: float
    row_distance32: float
    rebuilt: Mapping[str, float]
    rebuilt_error: Mapping[str, float]

    @property
    def first_divergence(self) -> str | None:
        """The first activation at which the float64 results differ by more than rounding; None where none does."""
        return next(
            (t.activation for t in self.activations if not t.float64.relative_l2 <= thresholds.MAPPING), None
        )


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a comparison.

    Attributes:
        source: What was compared against.
        state_dict: The file that was judged, or None where the source was converted for it.
        own_graph: The file of the checkpoint's own graph, or None where the rebuilt graph stood in.
        variant: The variant of the network.
        judgements: tensors, mapping, rounding, headline.
        inputs: What was measured on each input; empty where the state_dict could not be loaded.
        environment: Versions and machine.
        diagnosis: Where a judgement failed, the wrong layers and their causes; None where none failed, or no
            cause could be sought.
        undiagnosed: Why no cause could be sought; empty otherwise.
        repair: What came of a repair; None where none was asked for.
        files: Every file that was read, but photographs.
        seed: Of the inputs.
    """

    source: str
    state_dict: str | None
    own_graph: str | None
    variant: Variant
    judgements: tuple[Judgement, ...]
    inputs: tuple[InputMeasurement, ...]
    environment: Mapping[str, Any]
    diagnosis: Diagnosis | None = None
    undiagnosed: str = ""
    repair: Repair | None = None
    files: tuple[str, ...] = ()
    seed: int = 0

    @property
    def passed(self) -> bool:
        """Whether every judgement holds."""
        return all(judgement.passed for judgement in self.judgements)


def measure(
    activations: Activations,
    float32: Mapping[str, NDArray[Any]],
    float64: Mapping[str, NDArray[Any]],
    differ: Callable[[NDArray[Any], NDArray[Any]], Difference] = difference,
) -> InputMeasurement:
    """Measure PyTorch's activations against TensorFlow's.

    An array of another shape than TensorFlow's is infinitely far from it.

    Args:
        activations: TensorFlow's side.
        float32: Activation to array of PyTorch in float32.
        float64: Activation to array of PyTorch in float64.
        differ: Measures two arrays of one shape.
    """
    measured = []
    for activation, exact in activations.float64.items():
        pytorch_error = _relative(float32[activation], exact)
        tensorflow_error = relative_l2(activations.float32[activation], exact)
        measured.append(
            ActivationMeasurement(
                activation,
                _difference(float32[activation], activations.float32[activation], differ),
                _difference(float64[activation], exact, differ),
                pytorch_error,
                tensorflow_error,
                pytorch_error / max(tensorflow_error, thresholds.UNIT_ROUNDOFF),
            )
        )
    gap32 = _gap(float32[EMBEDDINGS], activations.float32[EMBEDDINGS])
    gap64 = _gap(float64[EMBEDDINGS], activations.float64[EMBEDDINGS])
    return InputMeasurement(
        name=activations.batch.name,
        few_values=activations.batch.few_values,
        own_graph=activations.own_graph,
        activations=tuple(measured),
        distance64=l2_norm(gap64),
        distance32=l2_norm(gap32),
        row_distance32=max(l2_norm(row) for row in gap32),
        rebuilt=activations.rebuilt,
        rebuilt_error=activations.rebuilt_error,
    )


_NOWHERE_NEAR = Difference(math.inf, math.inf, -1.0, 2**64 - 1, math.inf)


def _difference(
    found: NDArray[Any],
    wanted: NDArray[Any],
    differ: Callable[[NDArray[Any], NDArray[Any]], Difference],
) -> Difference:
    return differ(found, wanted) if found.shape == wanted.shape else _NOWHERE_NEAR


def _relative(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return relative_l2(found, wanted) if found.shape == wanted.shape else math.inf


def _gap(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    """The difference in float64; infinite throughout where the shapes differ."""
    return found.astype(np.float64) - wanted if found.shape == wanted.shape else np.full(wanted.shape, np.inf)


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
