"""The plan of a conversion: the variant of the network in a source, and the use of each tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converter.casting import CASTABLE, FLOAT32
from converter.errors import PortError
from converter.formats.source import TensorInfo, TensorSource
from converter.layer_map import (
    BOTTLENECK_SCOPES,
    LOGITS_SCOPE,
    ConvertedRow,
    Row,
    SynthesisedRow,
    Variant,
)
from converter.mtcnn_layer_map import MtcnnNetwork, Network, find_network, rows_of

Weights = Literal["variable", "average"]

AVERAGE = "ExponentialMovingAverage"  # tf.train.ExponentialMovingAverage, its default name
# Slots of the optimisers of tf.train; the name of a slot's variable comes before it.
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
    "save_counter": "number of checkpoints saved, of tf.train.Checkpoint",
    "beta1_power": "step state of the Adam optimiser",
    "beta2_power": "step state of the Adam optimiser",
    "centers": "class centres of the centre loss, used in training only",
}

NO_BOTTLENECK = (
    "this is the network of before February 2017: it has no Bottleneck (in PyTorch last_linear and last_bn), "
    "and its embeddings are the 1792 numbers of the average pool",
    "That network is not ported; give a model with a Bottleneck, such as those that `facenet-port list` "
    "shows.",
)
"""The clause and the advice on a network whose only missing tensors are those of the Bottleneck."""

_OTHER_NETWORKS = {"InceptionResnetV2": "Inception-ResNet-v2", "squeezenet": "SqueezeNet"}
"""Scope to name of the other networks of facenet's models folder."""

_OTHER_DTYPE = "float32, float16, bfloat16 and float64 are converted: save the checkpoint in one of them."
_OF_BATCH_NORM = re.compile(r"(.*)(/BatchNorm/|\.bn\.|^last_bn\.)")
_QUANTISATION_RANGE = re.compile(r"_quant/(min|max)$")  # tf.contrib.quantize
_BIAS = re.compile(r"[/.]bias(es)?(:0)?$")

ProblemKind = Literal["missing", "unexpected", "misshapen", "wrong dtype", "duplicate", "out of range"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A tensor that does not fit the network.

    Attributes:
        kind: The kind of problem.
        name: The tensor.
        detail: The actual and the expected value; empty if the kind says everything.
    """

    kind: ProblemKind
    name: str
    detail: str = ""


class MappingError(PortError):
    """The tensors are not those of this network (exit code 3).

    Args:
        problems: Every problem.
        actual: Number of tensors in the source.
        expected: Number of tensors in the network.
        hint: Advice for the user, a sentence.
        path: The file at fault, if known.
        summary: A clause that says it all, instead of the list of problems.
        network: The network that the tensors are not of; None stands for Inception-ResNet-v1.
    """

    exit_code = 3
    _most = 12  # lines of a kind; the message counts the others

    def __init__(
        self,
        problems: Sequence[Problem],
        actual: int,
        expected: int,
        hint: str = "",
        path: Path | None = None,
        *,
        summary: str = "",
        network: Network | None = None,
    ) -> None:
        self.problems = tuple(problems)
        self._counts = (actual, expected)
        self._hint, self._summary, self._network = hint, summary, network
        where = "" if path is None else f"{path}: "
        if summary:
            super().__init__(f"{where}{summary}. {hint}")
            return
        missing = [problem.name for problem in problems if problem.kind == "missing"]
        if len(missing) == expected and not isinstance(network, MtcnnNetwork):
            example = f"an expected name, such as {missing[0]}"
            none = "its only tensor does not have" if actual == 1 else f"none of its {actual} tensors has"
            head = f"not an Inception-ResNet-v1: {none} {example}"
        else:
            name = str(network) if isinstance(network, MtcnnNetwork) else "an Inception-ResNet-v1"
            kinds = Counter(problem.kind for problem in problems)
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            head = f"not the tensors of {name}: {counts} ({actual} given, {expected} expected)"
        lines = [where + head]
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

    def named(self, path: Path, problems: Sequence[Problem], hint: str) -> MappingError:
        """Return the same error with its file, the file's own names, and a hint if it has none."""
        return MappingError(
            problems, *self._counts, self._hint or hint, path, summary=self._summary, network=self._network
        )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A source tensor that is not part of the state_dict, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The use of every tensor of a source, planned before any is read.

    Attributes:
        network: The network that the tensors belong to.
        weights: Whether variables or their moving averages are used.
        rows: One row for each key of the state_dict, in its order.
        sources: Variable name to the name of the tensor to read; the two differ if the average is used.
        left_out: Every other tensor of the source.
        casts: Name of each tensor to cast to float32, to its dtype.
    """

    network: Network
    weights: Weights
    rows: tuple[Row, ...]
    sources: Mapping[str, str]
    left_out: tuple[LeftOut, ...]
    casts: Mapping[str, np.dtype]

    @property
    def variant(self) -> Variant:
        """The variant of Inception-ResNet-v1, which the caller knows that the network is."""
        assert isinstance(self.network, Variant)
        return self.network

    @property
    def converted(self) -> tuple[ConvertedRow, ...]:
        """Rows with a TensorFlow variable."""
        return tuple(row for row in self.rows if isinstance(row, ConvertedRow))

    @property
    def synthesised(self) -> tuple[SynthesisedRow, ...]:
        """Rows without a TensorFlow variable."""
        return tuple(row for row in self.rows if isinstance(row, SynthesisedRow))


def describe(tensors: Mapping[str, NDArray[Any]]) -> Mapping[str, TensorInfo]:
    """List the dtype and shape of every tensor, without reading an open source."""
    if isinstance(tensors, TensorSource):
        return tensors.info
    return {name: TensorInfo(array.dtype, array.shape) for name, array in tensors.items()}


def infer_variant(info: Mapping[str, TensorInfo]) -> Variant:
    """Infer the variant of the network from TensorFlow names and shapes.

    If a tensor is missing or has another rank, its property takes the default; `plan_conversion` then reports
    that tensor.
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


def state_dict_variant(info: Mapping[str, TensorInfo], *, gamma: bool = False) -> Variant:
    """Infer the variant of the network from the keys and shapes of a state_dict."""

    def outputs(key: str, default: int | None) -> int | None:
        shape = info[key].shape if key in info else ()
        return shape[0] if shape else default

    classes = outputs("logits.weight", outputs("logits.bias", None))
    return Variant(outputs("last_linear.weight", None) or Variant().embedding_size, classes, gamma)


def plan_conversion(info: Mapping[str, TensorInfo], *, weights: Weights = "variable") -> Plan:
    """Plan the use of every tensor of a source.

    Args:
        info: TensorFlow names with dtypes and shapes.
        weights: "variable" takes the variables, "average" their exponential moving averages. If no BatchNorm
            statistic has an average, the statistics are taken, which are moving averages already.

    Raises:
        MappingError: Tensors are missing, unexpected, misshapen, duplicate, or of a dtype that is not cast to
            float32; the error names all of them.
    """
    plain = {name.removesuffix(f"/{AVERAGE}"): info[name] for name in info} | dict(info)
    network = find_network(info, "tensorflow") or infer_variant(plain)
    rows = rows_of(network)
    variables = {row.variable: row for row in rows if isinstance(row, ConvertedRow)}
    sources = _choose_sources(info, variables, weights)
    problems: list[Problem] = []
    casts: dict[str, np.dtype] = {}
    for name, row in variables.items():
        source = sources[name]
        if source not in info:
            problems.append(Problem("missing", source, f"for {row.key}"))
            continue
        actual = info[source]
        if actual.shape != row.shape:
            problems.append(Problem("misshapen", source, f"{actual.shape}, expected {row.shape}"))
        if actual.dtype in CASTABLE:
            casts[source] = actual.dtype
        elif actual.dtype != FLOAT32:
            problems.append(Problem("wrong dtype", source, f"{actual.dtype}, expected float32"))
    used = set(sources.values())
    left_out: list[LeftOut] = []
    for name in info:
        if name in used:
            continue
        reason = reason_to_leave_out(name, variables)
        if reason is not None:
            left_out.append(LeftOut(name, reason))
        elif isinstance(network, Variant) and _in_other_bottleneck(name, network) in variables:
            problems.append(Problem("duplicate", name, f"{network.bottleneck_scope} exists as well"))
        else:
            problems.append(Problem("unexpected", name, f"{info[name].dtype} {info[name].shape}"))
    if problems:
        missing = [name for name in variables if sources[name] not in info]
        summary, advice = _recognise(info, weights, missing, network)
        if changed := recognise_change(problems):
            summary, advice = changed
        is_other = any(problem.kind == "wrong dtype" for problem in problems)
        hint = advice or (_OTHER_DTYPE if is_other else "")
        raise MappingError(problems, len(info), len(variables), hint, summary=summary, network=network)
    return Plan(network, weights, rows, sources, tuple(left_out), casts)


def _recognise(
    info: Mapping[str, TensorInfo], weights: Weights, missing: Sequence[str], network: Network
) -> tuple[str, str]:
    """Recognise a source that lacks tensors for one reason: a clause that says so, and advice; else empty."""
    if missing and weights == "variable" and all(f"{name}/{AVERAGE}" in info for name in missing):
        count = "a variable" if len(missing) == 1 else f"{len(missing)} variables"
        return (
            f"it holds only the moving averages of {count}, under the names NAME/{AVERAGE}",
            "Take the averages: --weights average.",
        )
    if weights == "average" and not any(name.endswith(f"/{AVERAGE}") for name in info):
        return (
            f"it holds no moving averages, which have names that end in /{AVERAGE}",
            "Leave out --weights average to take the variables.",
        )
    if isinstance(network, MtcnnNetwork):
        return "", ""
    if other := other_network(info):
        return other
    bottleneck = [name for name in missing if name.startswith(f"{network.bottleneck_scope}/")]
    return NO_BOTTLENECK if bottleneck and bottleneck == missing and len(missing) >= 4 else ("", "")


def recognise_change(problems: Sequence[Problem]) -> tuple[str, str] | None:
    """Recognise weights that were quantised or folded, if that explains every problem of a source.

    Returns:
        A clause that says so, and advice; else None.
    """
    folded, dtypes, biases = set(), Counter[str](), 0
    for each in problems:
        dtype = each.detail.partition(",")[0]
        if each.kind == "missing" and (match := _OF_BATCH_NORM.match(each.name)):
            folded.add(match[1])
        elif each.kind == "wrong dtype" and re.match("u?int", dtype):
            dtypes[dtype] += 1
        elif each.kind != "unexpected":
            return None
        biases += each.kind == "unexpected" and bool(_BIAS.search(each.name))
    if dtypes:
        tensors = ", ".join(f"{count} of {dtype}" for dtype, count in dtypes.items())
        clause = f"its weights are quantised to integers (tensors: {tensors}); the float32 weights are gone"
        return clause, "Give the model from before it was quantised."
    if not folded or biases < len(folded):
        return None
    what = "BatchNorm is" if len(folded) == 1 else "BatchNorms are"
    return (
        f"{len(folded)} {what} folded into weights and biases, and cannot be taken apart again",
        "Give the model from before that; `facenet-port audit FILE --against CHECKPOINT` judges this one as "
        "it is.",
    )


def other_network(names: Iterable[str]) -> tuple[str, str] | None:
    """Recognise another network of facenet by its scope: a clause that says so, and advice; else None."""
    scopes = {part for name in names for part in name.split("/")[:-1]}
    found = [] if "InceptionResnetV1" in scopes else [each for each in _OTHER_NETWORKS if each in scopes]
    if not found:
        return None
    scope = found[0]
    return (
        f"this is {_OTHER_NETWORKS[scope]}, another network of facenet: its tensors stand under {scope}/",
        "Only Inception-ResNet-v1 is ported; give such a model, as `facenet-port list` shows them.",
    )


def _choose_sources(
    info: Mapping[str, TensorInfo], variables: Mapping[str, ConvertedRow], weights: Weights
) -> dict[str, str]:
    """Map each variable name to the name of the tensor to read."""
    if weights == "variable":
        return {name: name for name in variables}
    averages = {name: f"{name}/{AVERAGE}" for name in variables}
    statistics = [name for name in variables if name.endswith(("/moving_mean", "/moving_variance"))]
    if not any(averages[name] in info for name in statistics):
        averages |= {name: name for name in statistics}
    return averages


def _in_other_bottleneck(name: str, variant: Variant) -> str | None:
    """Translate a name in the unused Bottleneck scope to the used scope; None for any other name."""
    for scope in BOTTLENECK_SCOPES:
        if scope != variant.bottleneck_scope and name.startswith(f"{scope}/"):
            return variant.bottleneck_scope + name.removeprefix(scope)
    return None


def reason_to_leave_out(name: str, variables: Container[str]) -> str | None:
    """Explain why a tensor of a checkpoint is not part of the network; None without an explanation.

    Args:
        name: TensorFlow name.
        variables: The names of the network's variables.
    """
    if name in TRAINING_STATE:
        return TRAINING_STATE[name]
    if name in variables:
        return "its moving average is used instead"
    if _QUANTISATION_RANGE.search(name):
        return "range of a value that was rounded in training (FakeQuant)"
    owner, _, suffix = name.rpartition("/")
    if owner in variables and suffix == AVERAGE:
        return "moving average; --weights average uses it"
    if owner in variables and suffix in SLOTS:
        return SLOTS[suffix]
    return None
