"""Run every layer of a port by itself, on the reference's own input.

This is teacher forcing: one forward pass records each layer's output and replaces it by the reference's. A
layer whose output differs is then wrong itself, whatever the layers before it do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from checks.core import thresholds
from checks.core.activations import LAYERS, STAGES, Model, MtcnnModel, name_of, run_module
from checks.core.mtcnn_network import MTCNN_LAYERS
from checks.core.network import BOTTLENECK, EMBEDDINGS, LOGITS
from checks.core.types import Array
from checks.diagnosis.layer_arithmetic import distance, layer_input
from reference import InceptionResnetV1

POOLS: Mapping[str, str] = {"InceptionResnetV1/Mixed_6a": "branch2", "InceptionResnetV1/Mixed_7a": "branch3"}
"""Each reduction to the branch of its module that is a pool, which has no activation of its own."""

_NOT_EVALUATED = "the port does not evaluate it"


@dataclass(frozen=True, slots=True)
class LayerRuns:
    """The outputs and inputs of a port's layers, each run on the reference's activations.

    Attributes:
        outputs: Activation to the port's own output, (N, channels, H, W) or (N, size), or to the reason why
            there is none.
        inputs: Activation to the port's input of the layer, for the layers that were called.
        pools: Reduction to the output of its pool, for the pools that were called.
    """

    outputs: Mapping[str, Tensor | str]
    inputs: Mapping[str, Tensor]
    pools: Mapping[str, Tensor]


def to_torch(reference: Mapping[str, Array]) -> dict[str, Tensor]:
    """Activations in PyTorch's layout: maps as (N, channels, H, W), without copies."""
    tensors = {activation: torch.from_numpy(array) for activation, array in reference.items()}
    return {
        activation: tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor
        for activation, tensor in tensors.items()
    }


class _EnoughError(Exception):
    """Ends a pass that has shown enough wrong layers."""


def run_layers(
    model: Model,
    images: Tensor,
    reference: Mapping[str, Tensor],
    most_wrong: int | None = None,
) -> LayerRuns:
    """Run every layer of a port on the reference's activations.

    Several threads may run this at once, each with a port of its own.

    Args:
        model: The port, float64, in evaluation mode. It is left as it was.
        images: (N, 3, H, W), float64.
        reference: Every activation, as `to_torch` gives it.
        most_wrong: Stop after this number of layers that differ; the layers behind them then have no outputs.
    """
    if not isinstance(model, InceptionResnetV1):
        return LayerRuns(_run_mtcnn(model, images, reference), {}, {})
    run = _Run(model, reference, most_wrong)
    with torch.inference_mode(), run.forced():
        try:
            model.prelogits(images.clone())
        except _EnoughError:
            return LayerRuns(run.outputs, run.inputs, run.pools)
        except Exception as error:  # any exception of a faulty port is a finding
            run.failure = _reason(error)
    with torch.inference_mode(), run.watching_classifier():
        run.head()
    missing = [activation for activation in reference if activation not in run.outputs]
    run.outputs |= dict.fromkeys(missing, run.failure or _NOT_EVALUATED)
    return LayerRuns(run.outputs, run.inputs, run.pools)


def _run_mtcnn(model: MtcnnModel, images: Tensor, reference: Mapping[str, Tensor]) -> dict[str, Tensor | str]:
    """The outputs of the modules of a network of MTCNN; as in `LayerRuns`."""
    outputs: dict[str, Tensor | str] = {}
    for activation in reference:
        (x,) = layer_input(MTCNN_LAYERS[name_of(model)][activation], images, reference)
        try:
            outputs[activation] = run_module(model, activation, x)
        except RuntimeError as error:  # PyTorch's, if a tensor of another shape does not fit
            outputs[activation] = _reason(error)
    return outputs


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Run:
    """A forward pass, with its hooks and its records.

    Attributes:
        outputs: As in `LayerRuns`.
        inputs: As in `LayerRuns`.
        pools: As in `LayerRuns`.
        failure: The reason why the pass broke off; empty if it did not.
    """

    def __init__(
        self, model: InceptionResnetV1, reference: Mapping[str, Tensor], most_wrong: int | None
    ) -> None:
        self._model, self._reference = model, reference
        self._most_wrong = most_wrong
        self._wrong: set[str] = set()
        self.outputs: dict[str, Tensor | str] = {}
        self.inputs: dict[str, Tensor] = {}
        self.pools: dict[str, Tensor] = {}
        self.failure = ""

    @contextmanager
    def forced(self) -> Iterator[None]:
        """Replace every module's output by the reference's activation, while open."""
        modules = {
            activation: name
            for activation, name in {**LAYERS, **STAGES}.items()
            if activation in self._reference
        }
        with ExitStack() as closing:
            closing.enter_context(_buffers_kept(self._model))
            for activation, name in modules.items():
                module = self._model.get_submodule(name)
                if activation != BOTTLENECK:
                    self._watch_input(closing, activation, module)
                if activation in POOLS:
                    self._watch_pool(closing, activation, module)
                forced = self._reference[activation]
                closing.enter_context(self._failing_softly(activation, module, forced))
                closing.callback(module.register_forward_hook(self._force(activation, forced)).remove)
            # The Bottleneck is two modules: the first takes its input, the second gives its output.
            linear = self._model.get_submodule("last_linear")
            self._watch_input(closing, BOTTLENECK, linear)
            nothing = torch.zeros_like(self._reference[BOTTLENECK])
            closing.enter_context(self._failing_softly(BOTTLENECK, linear, nothing))
            yield

    @contextmanager
    def watching_classifier(self) -> Iterator[None]:
        """Record the classifier's input, while open."""
        with ExitStack() as closing:
            if isinstance(self._model.logits, nn.Module):
                self._watch_input(closing, LOGITS, self._model.logits)
            yield

    def head(self) -> None:
        """Run the head, which follows the last BatchNorm, for the embeddings and for the logits."""
        was_classifying = self._model.classify
        try:
            for activation, classify in ((EMBEDDINGS, False), (LOGITS, True)):
                if activation not in self._reference:
                    continue
                self._model.classify = classify
                try:
                    self.outputs[activation] = self._model.head(self._reference[BOTTLENECK].clone())
                except Exception as error:
                    self.outputs[activation] = _reason(error)
        finally:
            self._model.classify = was_classifying

    def _watch_input(self, closing: ExitStack, activation: str, module: nn.Module) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs:
                self.inputs.setdefault(activation, inputs[0].clone())

        closing.callback(module.register_forward_pre_hook(hook).remove)

    def _watch_pool(self, closing: ExitStack, activation: str, module: nn.Module) -> None:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            self.pools.setdefault(activation, output.clone())

        pool = module.get_submodule(POOLS[activation])
        closing.callback(pool.register_forward_hook(hook).remove)

    def _force(self, activation: str, forced: Tensor) -> Callable[[nn.Module, Any, Any], Tensor]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            # Copies: a port that works in place would change the recorded output and the reference.
            copy = output.clone() if isinstance(output, Tensor) else output
            first = self.outputs.setdefault(activation, copy)
            if self._most_wrong is not None and distance(first, forced) > thresholds.MAPPING:
                self._wrong.add(activation)
                if len(self._wrong) == self._most_wrong:
                    raise _EnoughError
            return forced.clone()

        return hook

    @contextmanager
    def _failing_softly(self, activation: str, module: nn.Module, instead: Tensor) -> Iterator[None]:
        """If the module's forward raises, record the error and give `instead`, while open."""
        forward = module.forward
        of_the_instance = vars(module).get("forward")

        def guarded(*inputs: Any) -> Any:
            try:
                return forward(*inputs)
            except _EnoughError:
                raise
            except Exception as error:
                self.outputs.setdefault(activation, _reason(error))
                return instead.clone()

        module.forward = guarded
        try:
            yield
        finally:
            if of_the_instance is None:
                del module.forward
            else:
                module.forward = of_the_instance


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers at the end: a BatchNorm left in training mode moves its statistics."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
