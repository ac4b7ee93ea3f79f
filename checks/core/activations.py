"""The activations that are compared, and PyTorch's values of them.

An activation is named after its TensorFlow scope, and is the output of one PyTorch module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from checks.core.mtcnn_network import MTCNN_LAYERS, MTCNN_MODULES
from checks.core.network import AVERAGE_POOL, BOTTLENECK, EMBEDDINGS, LOGITS, MAX_POOL, LayerKind
from checks.core.types import Array
from converter.layer_map import BLOCKS, CONVOLUTIONS, NETWORK_SCOPE
from converter.mtcnn_layer_map import MtcnnNetwork, Network
from reference import InceptionResnetV1
from reference.mtcnn import ONet, PNet, RNet

MtcnnModel = PNet | RNet | ONet
Model = InceptionResnetV1 | MtcnnModel


def _stage_modules() -> dict[str, str]:
    """Stage to module, from the blocks of the layer map."""
    stages: dict[str, str] = {}
    for scope, module, layers in BLOCKS:
        if scope:
            stages[f"{NETWORK_SCOPE}/{scope}"] = module
            continue
        for layer in layers:
            stages[f"{NETWORK_SCOPE}/{layer.scope}"] = layer.module
            if layer.module == "conv2d_2b":
                stages[MAX_POOL] = "maxpool_3a"
    stages[AVERAGE_POOL] = "avgpool_1a"
    stages[BOTTLENECK] = "last_bn"
    return stages


STAGES: Mapping[str, str] = _stage_modules()
"""Stage to the module whose output it is, in the order of evaluation; embeddings and logits follow."""

LAYERS: Mapping[str, str] = {layer.scope: layer.module for layer in CONVOLUTIONS}
"""Each of the 132 convolutions to its module, whose output follows BatchNorm and ReLU, or the bias."""


def activation_names(*, every_layer: bool, logits: bool) -> tuple[str, ...]:
    """The activations to compare, in the order of evaluation; a block follows its convolutions."""
    names: list[str] = []
    for stage in STAGES:
        if every_layer:
            names += [layer for layer in LAYERS if layer.startswith(f"{stage}/")]
        names.append(stage)
    return (*names, EMBEDDINGS, LOGITS) if logits else (*names, EMBEDDINGS)


def activations_of(network: Network, *, every_layer: bool) -> tuple[str, ...]:
    """The activations of a network to compare, as `activation_names`; of MTCNN's networks always all."""
    if isinstance(network, MtcnnNetwork):
        return tuple(MTCNN_LAYERS[network.name])
    return activation_names(every_layer=every_layer, logits=network.num_classes is not None)


def name_of(model: MtcnnModel) -> str:
    """The name of a network of MTCNN in the layer maps."""
    return {PNet: "P-Net", RNet: "R-Net", ONet: "O-Net"}[type(model)]


Stop = Callable[[str, Array], bool]
"""Takes an activation's name and array, and returns True to end the run there."""


class _StoppedError(Exception):
    """Ends a run early."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Have PyTorch compute each operation on one thread, while open.

    One thread gives the same bits on any number of cores. It costs little: with several threads, each of the
    132 small convolutions waits for the slowest one.

    PyTorch's number of threads is a setting of the whole process. Code that runs models in several threads
    opens this around all of them; inside, opening it again changes nothing.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_pytorch(
    model: Model,
    images: Array,
    activations: tuple[str, ...],
    stop: Stop | None = None,
) -> dict[str, Array]:
    """Run the model on one thread and keep the output of every activation.

    Args:
        model: In evaluation mode; its device and dtype are those of the arithmetic.
        images: (N, H, W, 3), converted to the model's dtype.
        activations: As `activation_names` gives them.
        stop: Called at every activation but embeddings and logits, as soon as it is computed.

    Returns:
        Activation to array of the model's dtype: maps as (N, H', W', channels), vectors as (N, size). After a
        stop, only the activations up to it.
    """
    outputs: dict[str, Array] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs[name] = _channels_last(output)
            if stop is not None and stop(name, outputs[name]):
                raise _StoppedError

        return hook

    if isinstance(model, InceptionResnetV1):
        modules: Mapping[str, str] = {**LAYERS, **STAGES}
    else:
        modules = MTCNN_MODULES[name_of(model)]
    handles = [
        model.get_submodule(modules[name]).register_forward_hook(keep(name))  # type: ignore[arg-type]
        for name in activations
        if name in modules
    ]
    parameter = next(model.parameters())
    try:
        with one_thread(), torch.inference_mode():
            x = torch.from_numpy(images).to(parameter.device, parameter.dtype).permute(0, 3, 1, 2)
            if isinstance(model, InceptionResnetV1):
                outputs |= _run_heads(model, model.prelogits(x), activations)
            else:
                model(x)
    except _StoppedError:
        activations = tuple(name for name in activations if name in outputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: outputs[name] for name in activations}


def _run_heads(model: InceptionResnetV1, prelogits: Tensor, activations: tuple[str, ...]) -> dict[str, Array]:
    """The embeddings, and the logits if they are asked for."""
    outputs = {}
    was_classifying = model.classify
    try:
        model.classify = False
        outputs[EMBEDDINGS] = _channels_last(model.head(prelogits))
        if LOGITS in activations:
            model.classify = True
            outputs[LOGITS] = _channels_last(model.head(prelogits))
    finally:
        model.classify = was_classifying
    return outputs


def run_module(model: MtcnnModel, activation: str, x: Tensor) -> Tensor:
    """Run one module of a network of MTCNN on an input of its own.

    Args:
        model: The network.
        activation: The activation that the module gives.
        x: The module's input, of the model's dtype: a map (N, channels, H, W) or a vector.
    """
    name = name_of(model)
    if MTCNN_LAYERS[name][activation].kind is LayerKind.FULLY_CONNECTED:
        x = facenet_flatten(x)
    output: Tensor = model.get_submodule(MTCNN_MODULES[name][activation])(x)
    return output


def facenet_flatten(x: Tensor) -> Tensor:
    """Flatten maps as facenet's detector does, whose axes are width, height, channels; keep vectors."""
    return x.permute(0, 3, 2, 1).flatten(start_dim=1) if x.ndim == 4 else x


def _channels_last(output: Tensor) -> Array:
    """Turn a map into (N, H, W, channels); leave a vector as it is."""
    array: Array = (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).cpu().numpy()
    return array
