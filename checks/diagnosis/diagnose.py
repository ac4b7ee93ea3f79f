"""Why a port differs: every wrong layer in isolation, and the known cause that explains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checks.core import thresholds
from checks.core.activations import short_name
from checks.core.network import EPSILON, NETWORK, LayerKind, NetworkLayer
from checks.diagnosis import input_causes, module_causes, tensor_causes
from checks.diagnosis.causes import Cause
from checks.diagnosis.layer_arithmetic import concatenated, distance, layer_input, run_weights
from checks.diagnosis.run_layers import Isolated, isolate, to_torch
from checks.diagnosis.tensor_causes import Others, same
from converter.layer_map import Variant, table
from reference import InceptionResnetV1

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong at one activation.

    Attributes:
        activation: TensorFlow scope.
        distance: Relative L2 of the layer's output, given the reference's own input; infinite where the shape
            differs or the layer cannot be run. At most `thresholds.MAPPING` where the fault does not show on
            this input.
        cause: The known cause that explains it, or None.
        statement: What is wrong, a plain sentence with values.
        repair: Key to the corrected tensor (float32); empty where the cause is not in the weights.
        in_weights: Whether the fault is in the tensors.
    """

    activation: str
    distance: float
    cause: Cause | None
    statement: str
    repair: Mapping[str, Array] = field(default_factory=dict)
    in_weights: bool = False


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything found wrong in a port.

    Attributes:
        findings: In the order of evaluation; empty for a clean port.
    """

    findings: tuple[Finding, ...]

    @property
    def summary(self) -> tuple[str, ...]:
        """A line for each cause: the layers that have it, and what is wrong at the first."""
        groups: dict[tuple[Cause | None, bool], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.cause, finding.in_weights), []).append(finding)
        lines = []
        for (cause, _), found in groups.items():
            activations = list(dict.fromkeys(short_name(finding.activation) for finding in found))
            others = f" (and at {_listed(activations[1:])})" if len(activations) > 1 else ""
            lines.append(f"{cause or 'unknown'} at {activations[0]}{others}: {found[0].statement}")
        return tuple(lines)

    @property
    def repair(self) -> dict[str, Array]:
        """Key to corrected tensor, of all findings."""
        return {key: array for finding in self.findings for key, array in finding.repair.items()}

    def as_json(self) -> list[dict[str, Any]]:
        """The findings without the corrected tensors themselves."""
        return [
            {
                "activation": finding.activation,
                "distance": finding.distance,
                "cause": finding.cause,
                "statement": finding.statement,
                "repaired_by": sorted(finding.repair),
            }
            for finding in self.findings
        ]


_MOST_ACTIVATIONS = 4  # named in a line of the summary


def _listed(activations: Sequence[str]) -> str:
    if len(activations) <= _MOST_ACTIVATIONS:
        return ", ".join(activations)
    return f"{', '.join(activations[:_MOST_ACTIVATIONS])} and {len(activations) - _MOST_ACTIVATIONS} more"


def diagnose(
    model: InceptionResnetV1,
    reference: Mapping[str, Array],
    images: Array,
    *,
    source: Mapping[str, Array],
    given: Array | None = None,
    pixels: Array | None = None,
    averages: Mapping[str, Array] | None = None,
) -> Diagnosis:
    """Find every wrong layer of a port and its cause.

    Each layer is run on the reference's own input. Where its output differs, three things are asked: was it
    given another input, are its tensors wrong, does its module compute another thing? What is named makes
    the layer agree with the reference, or reproduces what it gave, to `thresholds.MAPPING`.

    Args:
        model: The port, float64, in evaluation mode, on the CPU. Left as it was.
        reference: Activation to float64 activations (N, H, W, channels) or (N, size) at every activation of
            `activation_names(every_layer=True)`, for `images`.
        images: (N, H, W, 3), float32, standardised; one or two images do.
        source: state_dict key to the right tensor (float32).
        given: (N, H, W, 3): what the port is given instead, where it standardises for itself.
        pixels: (N, H, W, 3), uint8: what both were made of.
        averages: state_dict key to the checkpoint's moving average (float32), where it has them.
    """
    with torch.inference_mode():
        return Diagnosis(
            tuple(_Search(model, reference, images, given, pixels, source, averages or {}).findings())
        )


class _Search:
    """What the search for causes works on: the port's state, the reference, and the isolated layers."""

    def __init__(
        self,
        model: InceptionResnetV1,
        reference: Mapping[str, Array],
        images: Array,
        given: Array | None,
        pixels: Array | None,
        source: Mapping[str, Array],
        averages: Mapping[str, Array],
    ) -> None:
        self._images = _nchw(images)
        self._pixels = None if pixels is None else _nchw(pixels)
        self._reference = to_torch(reference)
        self._source = source
        self._averages = averages
        self._state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
        classes = None if model.logits is None else self._state.get("logits.bias", torch.empty(1)).numel()
        rows = table(Variant(model.last_linear.out_features, classes))
        self._shapes = {row.key: row.entry.shape for row in rows}
        port_images = self._images if given is None else _nchw(given)
        self._isolated: Isolated = isolate(model, port_images, self._reference)

    def findings(self) -> Iterator[Finding]:
        """Everything wrong, in the order of evaluation; at one activation the input, the tensors, the module."""
        for activation, wanted in self._reference.items():
            layer = NETWORK[activation]
            found = self._isolated.outputs[activation]
            gap = distance(found, wanted)
            if gap <= thresholds.MAPPING:
                yield from self._silent(layer, gap)
                continue
            yield from self._explained(layer, wanted, found, gap)

    def _silent(self, layer: NetworkLayer, gap: float) -> Iterator[Finding]:
        """Tensors that differ from the source's where it does not show."""
        yield from self._against_source(layer, gap, "the layer agrees all the same")

    def _explained(
        self, layer: NetworkLayer, wanted: Tensor, found: Tensor | str, gap: float
    ) -> Iterator[Finding]:
        expected = layer_input(layer, self._images, self._reference)
        tensors = {role: self._state[key] for role, key in layer.keys.items() if key in self._state}
        got, wiring = self._input(layer, expected)
        reasons = []
        if wiring is not None:
            reasons.append(Finding(layer.activation, gap, *wiring))
        if len(tensors) < len(layer.keys):
            reasons += self._without(layer, got, tensors, found, gap)
        else:
            if layer.keys:
                reasons += self._wrong_tensors(layer, concatenated(expected), wanted, tensors, gap)
            reasons += self._wrong_module(layer, got, tensors, found, gap, explained=bool(reasons))
        if not reasons:
            words = found if isinstance(found, str) else f"the layer is {gap:.1e} away; no known cause fits"
            reasons.append(Finding(layer.activation, gap, None, words))
        yield from reasons

    def _input(
        self, layer: NetworkLayer, expected: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Cause | None, str] | None]:
        """What the port gave a layer, and what is wrong with that."""
        seen = self._isolated.inputs.get(layer.activation)
        if seen is None:
            return expected, None
        seen = seen.double()
        if layer.kind is LayerKind.RESIDUAL:
            own, got = expected[:1], (seen, *expected[1:])
        elif layer.kind is LayerKind.REDUCTION:
            own, got = expected[-1:], (*expected[:-1], seen)
        else:
            own, got = expected, (seen,)
        whole = concatenated(own)
        gap = distance(seen, whole.reshape(seen.shape) if seen.numel() == whole.numel() else whole)
        if gap == 0.0:
            return expected, None
        if layer.inputs == (None,):
            explained = input_causes.explain_images(seen, whole, self._pixels)
        else:
            explained = input_causes.explain_wiring(layer, seen, own, self._reference)
        return got, explained or (None, f"its input is {gap:.1e} away from what it should be")

    def _wrong_tensors(
        self, layer: NetworkLayer, x: Tensor, wanted: Tensor, tensors: Mapping[str, Tensor], gap: float
    ) -> list[Finding]:
        found = list(self._against_source(layer, gap, ""))
        right = {role: _exact(self._source[key]) for role, key in layer.keys.items()}
        agreement = distance(run_weights(layer, x, right), wanted)
        if agreement > thresholds.MAPPING:  # the layer map, or whoever read the source, is at fault
            words = f"the source's own tensors leave the layer {agreement:.1e} away"
            return [Finding(layer.activation, gap, None, words, in_weights=True)]
        words = f"; with the source's the layer agrees to {agreement:.0e}"
        return [
            Finding(layer.activation, gap, one.cause, one.statement + words, one.repair, in_weights=True)
            for one in found
        ]

    def _against_source(self, layer: NetworkLayer, gap: float, ending: str) -> Iterator[Finding]:
        """The tensors of a layer that are not the source's, those with the same cause together."""
        others = Others(self._source, self._averages)
        groups: dict[Cause | None, dict[str, str]] = {}
        for role, key in layer.keys.items():
            port = self._state.get(key)
            if port is None or _holds(port, self._source[key]):
                continue
            single = port.numpy().astype(np.float32)
            told = None
            if not same(single, self._source[key]):
                told = tensor_causes.explain(key, single, others)
            cause, words = told or (None, "has other values than the source's")
            groups.setdefault(cause, {})[role] = words
        if Cause.FOLDED in groups and len(groups) > 1:  # folding moves the other tensors as well
            groups = {
                Cause.FOLDED: {role: words for group in groups.values() for role, words in group.items()}
            }
        for cause, roles in groups.items():
            repair = {layer.keys[role]: self._source[layer.keys[role]] for role in roles}
            statement = _joined(roles) + (f"; {ending}" if ending else "")
            yield Finding(layer.activation, gap, cause, statement, repair, in_weights=True)

    def _without(
        self,
        layer: NetworkLayer,
        got: tuple[Tensor, ...],
        tensors: Mapping[str, Tensor],
        found: Tensor | str,
        gap: float,
    ) -> list[Finding]:
        """A layer of which the port has not every tensor: BatchNorm or the biases were left out."""
        if "weight" not in tensors:
            return []
        ones = torch.ones(len(tensors["weight"]), dtype=torch.float64)
        neutral = {"gamma": ones, "beta": 0 * ones, "mean": 0 * ones, "variance": (1 - EPSILON) * ones}
        neutral["bias"] = 0 * ones
        missing = [role for role in layer.keys if role not in tensors]
        filled = {**{role: neutral[role] for role in missing}, **tensors}
        if distance(found, module_causes.right_output(layer, got, filled)) > thresholds.MAPPING:
            return []
        if missing == ["bias"]:
            return [Finding(layer.activation, gap, Cause.UNLOADED, "the port has no biases there")]
        return [
            Finding(layer.activation, gap, Cause.BATCH_NORM, f"BatchNorm is left out: {', '.join(missing)}")
        ]

    def _wrong_module(
        self,
        layer: NetworkLayer,
        got: tuple[Tensor, ...],
        tensors: Mapping[str, Tensor],
        found: Tensor | str,
        gap: float,
        *,
        explained: bool,
    ) -> list[Finding]:
        """Whether the module computes another thing with the tensors and the input that it has."""
        if "weight" in tensors and tensors["weight"].shape != torch.Size(self._shapes[layer.keys["weight"]]):
            return []  # a kernel of another shape needs other settings
        try:
            right = module_causes.right_output(layer, got, tensors)
            if distance(found, right) <= thresholds.MAPPING or _both_undefined(found, right):
                return []
            candidate = module_causes.explain(
                layer, got, tensors, found, pool=self._isolated.pools.get(layer.activation)
            )
        except RuntimeError as error:  # PyTorch's: shapes that do not go together
            return [] if explained else [Finding(layer.activation, gap, None, str(error).splitlines()[0])]
        if candidate is not None:
            return [Finding(layer.activation, gap, candidate.cause, candidate.words)]
        if isinstance(found, str):
            words = found
        else:
            words = "the module computes another thing with its tensors; no known cause fits"
        return [] if explained else [Finding(layer.activation, gap, None, words)]


_PLURALS = {"is": "are", "has": "have", "was": "were", "takes": "take", "belongs": "belong"}


def _joined(roles: Mapping[str, str]) -> str:
    """A clause for each tensor; those of which the same is to be said together."""
    clauses: dict[str, list[str]] = {}
    for role, words in roles.items():
        clauses.setdefault(words, []).append("kernel" if role == "weight" else role)
    return "; ".join(_clause(names, words) for words, names in clauses.items())


def _clause(names: Sequence[str], words: str) -> str:
    if len(names) == 1:
        return f"the {names[0]} {words}"
    verb, _, rest = words.partition(" ")
    return f"the {', '.join(names[:-1])} and {names[-1]} {_PLURALS[verb]} {rest}"


def _holds(port: Tensor, right: Array) -> bool:
    """Whether a float64 tensor is exactly a float32 one, the sign of zero included."""
    if tuple(port.shape) != right.shape:
        return False
    return torch.equal(port.contiguous().view(torch.int64), _exact(right).view(torch.int64))


def _both_undefined(found: Tensor | str, right: Tensor) -> bool:
    """Whether both outputs are of one shape and not finite, as with a negative variance."""
    return (
        isinstance(found, Tensor)
        and found.shape == right.shape
        and not bool(right.isfinite().all())
        and torch.equal(found.isfinite(), right.isfinite())
    )


def _exact(array: Array) -> Tensor:
    return torch.from_numpy(array).double()


def _nchw(images: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).double().permute(0, 3, 1, 2)
