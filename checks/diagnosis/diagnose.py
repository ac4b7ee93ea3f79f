"""Find why a port differs: run every layer on the reference's input, and explain the wrong ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from checks.core import thresholds
from checks.core.activations import Model
from checks.core.metrics import figure
from checks.core.mtcnn_network import layers_of
from checks.core.network import LayerKind, NetworkLayer
from checks.core.types import Array
from checks.diagnosis import explain_input, explain_module, explain_tensor
from checks.diagnosis.causes import Cause, Explanation
from checks.diagnosis.explain_tensor import SourceTensors
from checks.diagnosis.layer_arithmetic import concatenated, distance, layer_input, run_weights
from checks.diagnosis.result import Diagnosis, Finding
from checks.diagnosis.run_layers import run_layers, to_torch
from converter.layer_map import ConvertedRow, Variant
from converter.mtcnn_layer_map import Network, rows_of
from reference import InceptionResnetV1


def diagnose(
    model: Model,
    reference: Mapping[str, Array],
    images: Array,
    *,
    source: Mapping[str, Array],
    averages: Mapping[str, Array] | None = None,
    given: Array | None = None,
    pixels: Array | None = None,
    variant: Network | None = None,
    most_layers: int | None = None,
) -> Diagnosis:
    """Find every wrong layer of a port and its cause.

    Each layer runs on the reference's own input, whatever the layers before it do. If its output differs,
    three questions follow: does the port give the layer another input, do its tensors differ from the
    source's, does its module compute something else? An explanation must reproduce the port's output, to
    `thresholds.MAPPING`.

    Args:
        model: The port, float64, in evaluation mode, on the CPU. It is left as it was.
        reference: Activation to float64 array (N, H, W, channels) or (N, size) for `images`, at every
            activation of `activation_names(every_layer=True)`.
        images: (N, H, W, 3), float32, standardised; one or two images are enough.
        source: state_dict key to the expected tensor (float32).
        averages: state_dict key to the checkpoint's moving average (float32), if it has averages.
        given: (N, H, W, 3): the port's own images, if it standardises the pixels itself.
        pixels: (N, H, W, 3), uint8: the pixels of `images` and `given`.
        variant: Network of the checkpoint, which names the TensorFlow variables; None is Inception-ResNet-v1
            with today's names.
        most_layers: Stop after this number of wrong layers; None explains all of them.

    Returns:
        The findings in the order of evaluation.
    """
    if variant is None:
        assert isinstance(model, InceptionResnetV1)
        logits = source.get("logits.bias")
        variant = Variant(model.last_linear.out_features, None if logits is None else len(logits))
    with torch.inference_mode():
        search = _Search(
            model,
            to_torch(reference),
            images=_nchw(images),
            given=_nchw(images if given is None else given),
            pixels=None if pixels is None else _nchw(pixels),
            source=SourceTensors(source, averages or {}, layers_of(variant)),
            variables={row.key: row.variable for row in rows_of(variant) if isinstance(row, ConvertedRow)},
            most_layers=most_layers,
        )
        wrong_layers = itertools.islice(search.wrong_layers(), most_layers)
        return Diagnosis(tuple(itertools.chain.from_iterable(wrong_layers)))


class _Search:
    """Runs a port's layers, and looks for causes in the input, the tensors and the module of each.

    Args:
        model: The port.
        reference: Activation to the reference's output.
        images: The reference's images.
        given: The port's images.
        pixels: The pixels of both, if they are known.
        source: The expected tensors.
        variables: state_dict key to TensorFlow variable.
        most_layers: Number of wrong layers to run to; None runs all layers.
    """

    def __init__(
        self,
        model: Model,
        reference: Mapping[str, Tensor],
        *,
        images: Tensor,
        given: Tensor,
        pixels: Tensor | None,
        source: SourceTensors,
        variables: Mapping[str, str],
        most_layers: int | None,
    ) -> None:
        self._reference = reference
        self._images, self._pixels = images, pixels
        self._source, self._variables = source, variables
        self._state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
        self._runs = run_layers(model, given, reference, most_layers)

    def wrong_layers(self) -> Iterator[list[Finding]]:
        """The findings of each wrong layer, in the order of evaluation."""
        for activation in self._reference:
            if activation in self._runs.outputs:  # the run may have stopped early
                findings = self._examine(self._source.layers[activation])
                if findings:
                    yield findings

    def _examine(self, layer: NetworkLayer) -> list[Finding]:
        """The faults of one layer: its input, then its tensors, then its module."""
        output, expected = self._runs.outputs[layer.activation], self._reference[layer.activation]
        gap = distance(output, expected)
        if gap <= thresholds.MAPPING:
            return self._wrong_tensors(layer, gap, "on the images of the diagnosis this does not show")
        inputs, wrong_input = self._inputs(layer)
        findings = [] if wrong_input is None else [Finding(layer.activation, gap, *wrong_input)]
        if layer.keys:
            findings += self._wrong_tensors_that_show(layer, gap)
        wrong_module = self._wrong_module(layer, inputs, output)
        if wrong_module is not None:
            findings.append(Finding(layer.activation, gap, *wrong_module))
        if not findings:
            statement = (
                output if isinstance(output, str) else f"relative L2 {figure(gap)}; no known cause fits"
            )
            findings.append(Finding(layer.activation, gap, None, statement))
        return findings

    # Input

    def _inputs(self, layer: NetworkLayer) -> tuple[tuple[Tensor, ...], tuple[Cause | None, str] | None]:
        """The inputs that the port gave a layer; if they are wrong, the cause and a statement too."""
        expected = layer_input(layer, self._images, self._reference)
        seen = self._runs.inputs.get(layer.activation)
        if seen is None:
            return expected, None
        seen = seen.double()
        # A block's module is given the shortcut or the pool's input; its other inputs come from its layers.
        match layer.kind:
            case LayerKind.RESIDUAL:
                own, inputs = expected[:1], (seen, *expected[1:])
            case LayerKind.REDUCTION:
                own, inputs = expected[-1:], (*expected[:-1], seen)
            case _:
                own, inputs = expected, (seen,)
        whole = concatenated(own)
        gap = distance(seen, whole.reshape(seen.shape) if seen.numel() == whole.numel() else whole)
        if gap == 0.0:
            return expected, None
        if layer.inputs == (None,):
            explanation = explain_input.explain_images(seen, whole, self._pixels)
        else:
            explanation = explain_input.explain_connection(layer, seen, own)
        return inputs, explanation or (None, f"its input differs, relative L2 {figure(gap)}")

    # Tensors

    def _wrong_tensors_that_show(self, layer: NetworkLayer, gap: float) -> list[Finding]:
        """The wrong tensors of a wrong layer, if the source's tensors make the layer agree."""
        expected = {role: _exact(self._source.tensors[key]) for role, key in layer.keys.items()}
        x = concatenated(layer_input(layer, self._images, self._reference))
        agreement = distance(run_weights(layer, x, expected), self._reference[layer.activation])
        if agreement <= thresholds.MAPPING:
            exactly = f"to {agreement:.0e}" if agreement else "bit for bit"
            return self._wrong_tensors(layer, gap, f"with the source's tensors the layer agrees {exactly}")
        statement = (
            f"the source's own tensors give relative L2 {figure(agreement)}: the fault is in the layer map "
            "or the reader of the source, not in the port"
        )
        return [Finding(layer.activation, gap, None, statement, in_weights=True)]

    def _wrong_tensors(self, layer: NetworkLayer, gap: float, ending: str) -> list[Finding]:
        """A finding for each cause among the tensors of a layer that differ from the source's."""
        groups: dict[Cause | None, dict[str, str]] = {}
        for role, key in layer.keys.items():
            port = self._state.get(key)
            if port is not None and not _same_values(port, self._source.tensors[key]):
                cause, statement = self._explain_tensor(key, port)
                groups.setdefault(cause, {})[role] = statement
        if Cause.FOLDED in groups and len(groups) > 1:  # folding changes the other tensors as well
            together = {role: text for group in groups.values() for role, text in group.items()}
            groups = {Cause.FOLDED: together}
        return [
            self._in_weights(
                Finding(layer.activation, gap, cause, f"{_sentence(statements)}; {ending}"),
                [layer.keys[role] for role in statements],
            )
            for cause, statements in groups.items()
        ]

    def _explain_tensor(self, key: str, port: Tensor) -> tuple[Cause | None, str]:
        single = port.numpy().astype(np.float32)
        explanation = None
        if not explain_tensor.same(single, self._source.tensors[key]):
            explanation = explain_tensor.explain(key, single, self._source)
        return explanation or (None, "has other values than the source's")

    def _in_weights(self, finding: Finding, keys: Sequence[str]) -> Finding:
        """Add the repair of the tensors to a finding, and the first value that differs."""
        first = keys[0]
        finding = replace(
            finding,
            in_weights=True,
            repair={key: self._source.tensors[key] for key in keys},
            key=first,
            variable=self._variables.get(first),
        )
        actual, expected = self._state[first], _exact(self._source.tensors[first])
        if actual.shape != expected.shape:
            return finding
        differing = (_bits(actual) != _bits(expected)).nonzero()
        index = tuple(differing[0].tolist())
        return replace(
            finding,
            index=index,
            expected=float(expected[index]),
            actual=float(actual[index]),
            count=len(differing),
        )

    # Module

    def _wrong_module(
        self, layer: NetworkLayer, inputs: tuple[Tensor, ...], output: Tensor | str
    ) -> Explanation | None:
        """The cause if the module computes something else from its own tensors and inputs."""
        tensors = {role: self._state[key] for role, key in layer.keys.items() if key in self._state}
        if "weight" in tensors and not self._has_expected_shape(layer):
            return None  # a kernel of another shape needs other settings
        pool = self._runs.pools.get(layer.activation)
        try:
            return explain_module.explain(layer, inputs, tensors, output, pool=pool)
        except RuntimeError:  # PyTorch's, if shapes do not fit
            return None

    def _has_expected_shape(self, layer: NetworkLayer) -> bool:
        key = layer.keys["weight"]
        return tuple(self._state[key].shape) == self._source.tensors[key].shape


_PLURALS = {"is": "are", "has": "have", "was": "were", "takes": "take", "belongs": "belong"}


def _sentence(statements: Mapping[str, str]) -> str:
    """A clause for each statement, about all tensors that it holds for."""
    names: dict[str, list[str]] = {}
    for role, statement in statements.items():
        names.setdefault(statement, []).append("kernel" if role == "weight" else role)
    return "; ".join(_clause(tensors, statement) for statement, tensors in names.items())


def _clause(names: Sequence[str], statement: str) -> str:
    if len(names) == 1:
        return f"the {names[0]} {statement}"
    verb, _, rest = statement.partition(" ")
    return f"the {', '.join(names[:-1])} and {names[-1]} {_PLURALS[verb]} {rest}"


def _same_values(port: Tensor, expected: Array) -> bool:
    """Return True if a float64 tensor has exactly the values of a float32 one, signs of zero included."""
    return tuple(port.shape) == expected.shape and torch.equal(_bits(port), _bits(_exact(expected)))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int64)


def _exact(array: Array) -> Tensor:
    return torch.from_numpy(array).double()


def _nchw(images: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).double().permute(0, 3, 1, 2)
