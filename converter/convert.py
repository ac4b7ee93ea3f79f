"""The conversion itself: pure functions from mappings of arrays to mappings of arrays."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converter.casting import CASTABLE, FLOAT32, Cast, measure_cast, to_float32
from converter.errors import PortError
from converter.formats.source import TensorInfo, TensorSource
from converter.layer_map import (
    BOTTLENECK_SCOPES,
    LOGITS_SCOPE,
    Converted,
    Row,
    Synthesised,
    Variant,
    table,
)
from converter.mtcnn_map import network_of_variables

Weights = Literal["variable", "average"]

AVERAGE = "ExponentialMovingAverage"  # tf.train.ExponentialMovingAverage, its default name
# Slots as the optimisers of tf.train name them, behind the name of the variable that they belong to.
SLOTS = {
    "Adadelta": "slot of the Adadelta optimiser",
    "Adadelta_1": "slot of the Adadelta optimiser",
    "Adagrad": "slot of the Adagrad optimiser",
    "Adam": "slot of the Adam optimiser (first moment)",
    "Adam_1": "slot of the Adam optimiser (second moment)",
    "Momentum": "slot of the Momentum optimiser",
    "RMSProp": "slot of the RMSProp optimiser (mean square)",
    "RMSProp_1": "slot of the RMSProp optimiser (momentum)",
    "RMSProp_2": "slot of the RMSProp optimiser (mean gradient)",
}
TRAINING_STATE = {
    "global_step": "step counter",
    "Variable": "step counter, which facenet's training scripts leave without a name",
    "beta1_power": "step state of the Adam optimiser",
    "beta2_power": "step state of the Adam optimiser",
    "centers": "class centres of the centre loss, used in training only",
}

ProblemKind = Literal["missing", "unexpected", "misshapen", "wrong dtype", "duplicate", "out of range"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One tensor that does not fit the network.

    Attributes:
        kind: What is the matter.
        name: The tensor.
        detail: What was expected and what was found; empty where the kind says it all.
    """

    kind: ProblemKind
    name: str
    detail: str = ""


class MappingError(PortError):
    """The tensors are not those of this network (exit code 3).

    Args:
        problems: Every problem that was found.
        found: How many tensors there were in all.
        expected: How many tensors the network has.
        hint: What the user can do about it, a sentence.
        path: The file at fault, where it is known.
    """

    exit_code = 3
    _most = 12  # lines of a kind; the rest is counted

    def __init__(
        self,
        problems: Sequence[Problem],
        found: int,
        expected: int,
        hint: str = "",
        path: Path | None = None,
    ) -> None:
        self.problems = tuple(problems)
        self._counts_and_hint = (found, expected, hint)
        missing = sum(problem.kind == "missing" for problem in problems)
        if missing == expected:
            head = f"not an Inception-ResNet-v1: none of its {expected} tensors is among the {found} found"
        else:
            head = f"{len(problems)} of the tensors do not fit Inception-ResNet-v1 ({found} found)"
        lines = [head if path is None else f"{path}: {head}"]
        for kind in dict.fromkeys(problem.kind for problem in problems):
            group = [problem for problem in problems if problem.kind == kind]
            lines.append(f"  {kind} ({len(group)}):")
            lines += [
                f"    {problem.name}{': ' if problem.detail else ''}{problem.detail}"
                for problem in group[: self._most]
            ]
            if len(group) > self._most:
                lines.append(f"    ... and {len(group) - self._most} more")
        super().__init__("\n".join([*lines, hint] if hint else lines))

    def named(self, path: Path) -> MappingError:
        """The same error, with the file that it is about."""
        return MappingError(self.problems, *self._counts_and_hint, path)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A source tensor that is not part of the state_dict, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of every tensor of a source, decided before any is read.

    Attributes:
        variant: The variant of the network that the tensors belong to.
        weights: Whether variables or their moving averages are used.
        rows: One row for each key of the state_dict, in its order.
        sources: Variable name to the name of the tensor that is read for it; the two differ where the
            average is used.
        left_out: Every other tensor of the source.
        casts: Name of each tensor that is not float32, and is cast to it, to its dtype.
    """

    variant: Variant
    weights: Weights
    rows: tuple[Row, ...]
    sources: Mapping[str, str]
    left_out: tuple[LeftOut, ...]
    casts: Mapping[str, np.dtype]

    @property
    def converted(self) -> tuple[Converted, ...]:
        """The rows that have a TensorFlow variable."""
        return tuple(row for row in self.rows if isinstance(row, Converted))

    @property
    def synthesised(self) -> tuple[Synthesised, ...]:
        """The rows that have none."""
        return tuple(row for row in self.rows if isinstance(row, Synthesised))


def describe(tensors: Mapping[str, NDArray[Any]]) -> Mapping[str, TensorInfo]:
    """Dtype and shape of every tensor; an open source is not read for it."""
    if isinstance(tensors, TensorSource):
        return tensors.info
    return {name: TensorInfo(array.dtype, array.shape) for name, array in tensors.items()}


def infer_variant(info: Mapping[str, TensorInfo]) -> Variant:
    """Tell the variant of the network from TensorFlow names and shapes.

    What cannot be told, because the tensor is missing or has another rank, takes the default; `plan` then
    reports that tensor.
    """
    bottleneck = next(
        (scope for scope in BOTTLENECK_SCOPES if f"{scope}/weights" in info), BOTTLENECK_SCOPES[0]
    )

    def outputs(name: str, default: int) -> int:
        shape = info[name].shape if name in info else ()
        return shape[1] if len(shape) == 2 and shape[1] > 0 else default

    classes = None
    if f"{LOGITS_SCOPE}/weights" in info:
        classes = outputs(f"{LOGITS_SCOPE}/weights", 1)
    elif f"{LOGITS_SCOPE}/biases" in info:
        classes = max(1, info[f"{LOGITS_SCOPE}/biases"].size)
    return Variant(
        embedding_size=outputs(f"{bottleneck}/weights", Variant().embedding_size),
        num_classes=classes,
        gamma=any(name.endswith("/BatchNorm/gamma") for name in info),
        bottleneck_scope=bottleneck,
    )


def plan(info: Mapping[str, TensorInfo], *, weights: Weights = "variable") -> Plan:
    """Decide for every tensor of a source what becomes of it.

    Args:
        info: TensorFlow names with dtypes and shapes.
        weights: "variable" takes the variables themselves, "average" their exponential moving averages. Where
            no BatchNorm statistic has one, all statistics are taken as they are: moving averages already.

    Raises:
        MappingError: Any tensor is missing, unexpected, misshapen, of a dtype that is neither float32 nor
            cast to it, or there twice; all of them are named.
    """
    variant = infer_variant(info)
    rows = table(variant)
    variables = {row.variable: row for row in rows if isinstance(row, Converted)}
    problems: list[Problem] = []
    sources: dict[str, str] = {}
    casts: dict[str, np.dtype] = {}
    averaged = {name for name in variables if weights == "average"}
    statistics = {name for name in averaged if name.endswith(("/moving_mean", "/moving_variance"))}
    if not any(f"{name}/{AVERAGE}" in info for name in statistics):
        averaged -= statistics
    for name, row in variables.items():
        source = f"{name}/{AVERAGE}" if name in averaged else name
        if source not in info:
            problems.append(Problem("missing", source, f"for {row.key}"))
            continue
        sources[name] = source
        found = info[source]
        if found.shape != row.shape:
            problems.append(Problem("misshapen", source, f"{found.shape}, expected {row.shape}"))
        if found.dtype in CASTABLE:
            casts[source] = found.dtype
        elif found.dtype != FLOAT32:
            problems.append(Problem("wrong dtype", source, f"{found.dtype}, expected float32"))
    used = set(sources.values())
    left_out: list[LeftOut] = []
    for name in info:
        if name in used:
            continue
        reason = reason_to_leave_out(name, variables)
        if reason is not None:
            left_out.append(LeftOut(name, reason))
        elif _in_other_bottleneck(name, variant) in variables:
            problems.append(Problem("duplicate", name, f"{variant.bottleneck_scope} is there as well"))
        else:
            problems.append(Problem("unexpected", name, f"{info[name].dtype} {info[name].shape}"))
    if problems:
        hint = ""
        if network := network_of_variables(info):
            hint = (
                f"This is the {network} of MTCNN, which is audited and not converted: "
                "python -m checks.audit PORT --against FILE."
            )
        elif weights == "average" and not any(name.endswith(f"/{AVERAGE}") for name in info):
            hint = "There are no moving averages here: leave out --weights average."
        elif any(problem.kind == "wrong dtype" for problem in problems):
            hint = "float32, float16, bfloat16 and float64 are converted: save the checkpoint in one of them."
        raise MappingError(problems, len(info), len(variables), hint)
    return Plan(variant, weights, rows, sources, tuple(left_out), casts)


def _in_other_bottleneck(name: str, variant: Variant) -> str | None:
    """What a variable of the Bottleneck scope that is not used would be called in the one that is."""
    for scope in BOTTLENECK_SCOPES:
        if scope != variant.bottleneck_scope and name.startswith(f"{scope}/"):
            return variant.bottleneck_scope + name.removeprefix(scope)
    return None


def reason_to_leave_out(name: str, variables: Container[str]) -> str | None:
    """Why a tensor of a checkpoint is no part of the network, or None where nothing explains it.

    Args:
        name: TensorFlow name.
        variables: The names of the network's variables.
    """
    if name in TRAINING_STATE:
        return TRAINING_STATE[name]
    if name in variables:
        return "its moving average is used instead"
    owner, _, suffix = name.rpartition("/")
    if owner in variables and suffix == AVERAGE:
        return "moving average; --weights average uses it"
    if owner in variables and suffix in SLOTS:
        return SLOTS[suffix]
    return None


def synthesise(row: Synthesised) -> NDArray[Any]:
    """The value of a state_dict entry that TensorFlow does not have."""
    return np.full(row.shape, row.fill, row.dtype)


def to_pytorch(
    tensors: Mapping[str, NDArray[Any]], *, weights: Weights = "variable"
) -> dict[str, NDArray[Any]]:
    """Turn TensorFlow tensors into a PyTorch state_dict.

    Args:
        tensors: Variable name to array, kernels in HWIO; an open `TensorSource` is read tensor by tensor, and
            only for what is used. float32 keeps every bit; float16, bfloat16 and float64 are cast as
            `to_float32` says.
        weights: As in `plan`.

    Returns:
        state_dict key to array, in the published order: kernels in OIHW, float32, with int64 batch counters.
        Every array is C-contiguous and the caller's own.

    Raises:
        MappingError: The tensors are not those of this network, or a finite value is beyond float32.
        SourceError: A tensor of an open source is corrupt.
    """
    decided = plan(describe(tensors), weights=weights)
    return {row.key: array for row, array in convert_rows(tensors, decided)}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a state_dict, made as planned.

    Attributes:
        row: What it is.
        array: Its value, C-contiguous and the caller's own.
        cast: What casting its tensor to float32 did; None where the tensor was float32, or there is none.
    """

    row: Row
    array: NDArray[Any]
    cast: Cast | None


def convert_entries(tensors: Mapping[str, NDArray[Any]], decided: Plan) -> Iterator[Entry]:
    """Carry out a plan that was made for these tensors, a tensor at a time.

    Raises:
        MappingError: Finite values are beyond float32; raised at the end, with every such tensor.
        SourceError: A tensor of an open source is corrupt.
    """
    problems: list[Problem] = []
    for row in decided.rows:
        if isinstance(row, Synthesised):
            yield Entry(row, synthesise(row), None)
            continue
        name = decided.sources[row.variable]
        array = tensors[name]
        try:
            single = to_float32(array)
        except OverflowError as error:
            problems.append(Problem("out of range", name, f"{error} (for {row.key})"))
            continue
        cast = measure_cast(array, single) if name in decided.casts else None
        moved = row.layout.apply(single)
        yield Entry(row, moved.copy() if np.may_share_memory(moved, array) else moved, cast)
    if problems:
        hint = "float32 cannot hold these values: train or save the checkpoint in float32."
        raise MappingError(problems, len(tensors), len(decided.sources), hint)


def convert_rows(tensors: Mapping[str, NDArray[Any]], decided: Plan) -> Iterator[tuple[Row, NDArray[Any]]]:
    """Like `convert_entries`, without a word on casts."""
    return ((entry.row, entry.array) for entry in convert_entries(tensors, decided))


def _is_other_scale(row: Row, state_dict: Mapping[str, NDArray[Any]], info: Mapping[str, TensorInfo]) -> bool:
    """Whether a row without a variable is a BatchNorm scale, and the state_dict has it other than one.

    A scale of another dtype or shape is a problem of its own and is not read.
    """
    return (
        isinstance(row, Synthesised)
        and row.dtype == "float32"
        and row.key in info
        and info[row.key].shape == row.shape
        and _may_stand_for(info[row.key].dtype, row)
        and not np.array_equal(state_dict[row.key], synthesise(row))
    )


def _may_stand_for(dtype: np.dtype, row: Row) -> bool:
    """Whether a row's entry may have this dtype; who casts a whole state_dict casts its counters as well."""
    return dtype == FLOAT32 or dtype in CASTABLE or (isinstance(row, Synthesised) and dtype == row.dtype)


def state_dict_variant(info: Mapping[str, TensorInfo], *, gamma: bool = False) -> Variant:
    """Tell the variant of the network from the keys and shapes of a state_dict."""

    def outputs(key: str, default: int | None) -> int | None:
        shape = info[key].shape if key in info else ()
        return shape[0] if shape else default

    classes = outputs("logits.weight", outputs("logits.bias", None))
    return Variant(outputs("last_linear.weight", None) or Variant().embedding_size, classes, gamma)


def to_tensorflow(
    state_dict: Mapping[str, NDArray[Any]], *, variant: Variant | None = None
) -> dict[str, NDArray[Any]]:
    """Turn a PyTorch state_dict back into TensorFlow tensors; the inverse of `to_pytorch`, bit for bit.

    Args:
        state_dict: Key to array, as `to_pytorch` returns it: float32 but for the batch counters. float16,
            bfloat16 and float64 are taken as well.
        variant: What a state_dict does not say: whether BatchNorm had a gamma and where the Bottleneck stood.
            Without it, a gamma is written where any BatchNorm weight differs from one, and the Bottleneck
            stands inside the network's scope. `infer_variant` tells it from the TensorFlow tensors.

    Returns:
        Variable name to C-contiguous array of the dtype that it had. Batch counters have no variable and are
        dropped.

    Raises:
        MappingError: The state_dict is not one of this network.
    """
    info = describe(state_dict)
    if variant is None:
        plain = state_dict_variant(info)
        gamma = any(_is_other_scale(row, state_dict, info) for row in table(plain))
        variant = state_dict_variant(info, gamma=gamma)
    rows = {row.key: row for row in table(variant)}
    problems = [Problem("missing", key) for key in rows if key not in info]
    problems += [
        Problem("unexpected", key, f"{found.dtype} {found.shape}")
        for key, found in info.items()
        if key not in rows
    ]
    for key, row in rows.items():
        if key not in info:
            continue
        if info[key].shape != row.entry.shape:
            problems.append(Problem("misshapen", key, f"{info[key].shape}, expected {row.entry.shape}"))
        if not _may_stand_for(info[key].dtype, row):
            problems.append(Problem("wrong dtype", key, f"{info[key].dtype}, expected {row.entry.dtype}"))
        if _is_other_scale(row, state_dict, info):
            problems.append(Problem("unexpected", key, "a BatchNorm scale other than one, without a gamma"))
    if problems:
        hint = ""
        prefix = next(iter(info)).partition(".")[0] + "." if info else ""
        if f"{prefix}conv2d_1a.conv.weight" in info and all(name.startswith(prefix) for name in info):
            hint = f"Every key begins with {prefix!r}: save the state_dict of the model inside the wrapper."
        raise MappingError(problems, len(info), len(rows), hint)
    return {
        row.variable: row.layout.inverse.apply(state_dict[key])
        for key, row in rows.items()
        if isinstance(row, Converted)
    }
