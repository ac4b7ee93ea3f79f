"""Weights of a file or of a published name: the network that they need, or an existing network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from converter.hub.pretrained import load_pretrained
from converter.hub.weights_file import load_published_networks, load_weights_file
from converter.mtcnn_layer_map import MtcnnNetwork, Network
from reference.inception_resnet_v1 import InceptionResnetV1
from reference.mtcnn import ONet, PNet, RNet


def load(path: str | Path, *, ignore: Sequence[str] = ()) -> InceptionResnetV1 | PNet | RNet | ONet:
    """Build the network that a file's weights need, with these weights, in evaluation mode.

    The network is Inception-ResNet-v1 with the file's embedding size and number of classes, or one of MTCNN's
    networks. The file's keys may have a prefix, and a training file may hold the state_dict beside an
    optimiser.

    Args:
        path: A .pt or .safetensors file. If its manifest (`weights.pt.json`) stands beside it, its SHA-256
            must be the one in the manifest.
        ignore: Shell patterns of tensors to leave out, such as `arcface.*`.

    Raises:
        UsageError: The file is not a state_dict, holds two networks, or a pattern matches nothing or a tensor
            that the network needs.
        SourceError: The file is unreadable, corrupt or not the one of its manifest.
        MappingError: The tensors are not those of this network; the message lists them.
    """
    weights = load_weights_file(path, ignore=ignore)
    with torch.device("meta"):  # no memory and no initial values, which the weights replace
        model = build_network(weights.network)
    model.load_state_dict(weights.state_dict, assign=True)
    return model.to(torch.get_default_device(), torch.get_default_dtype()).eval()


def build_network(network: Network) -> InceptionResnetV1 | PNet | RNet | ONet:
    """Build a network of the layer maps, randomly initialised."""
    if isinstance(network, MtcnnNetwork):
        classes: dict[str, type[PNet | RNet | ONet]] = {"P-Net": PNet, "R-Net": RNet, "O-Net": ONet}
        return classes[network.name]()
    return InceptionResnetV1(num_classes=network.num_classes, embedding_size=network.embedding_size)


def load_weights(model: InceptionResnetV1, name: str, *, offline: bool = False) -> None:
    """Load the verified weights of a published checkpoint into a model.

    A model without a classifier takes the other weights. A classifier of another number of classes is
    randomly initialised, with a warning.

    Args:
        model: Model of any device and any floating dtype, which do not change.
        name: A name or alias of the catalog, such as `vggface2`.
        offline: Never download.

    Raises:
        ValueError: The model's embedding has another size.
        UsageError: The catalog has no such name.
        RequirementError: The weights are not in the cache and cannot be downloaded.
        SourceError: A downloaded or cached file is damaged.
    """
    weights = load_pretrained(name, offline=offline)
    state_dict = weights.state_dict
    _check_embedding_size(name, weights.embedding_size, model.last_linear.out_features)
    if model.logits is None or model.logits.out_features != weights.num_classes:
        state_dict = {key: tensor for key, tensor in state_dict.items() if not key.startswith("logits.")}
        if model.logits is not None:
            model.logits.reset_parameters()
            _warn_of_other_classes(name, weights.num_classes, model.logits.out_features, stacklevel=3)
            state_dict |= model.logits.state_dict(prefix="logits.")
    model.load_state_dict(state_dict)


def load_mtcnn(
    *, offline: bool = False, progress: Callable[[int, int | None], None] | None = None
) -> tuple[PNet, RNet, ONet]:
    """Build MTCNN's networks with the published weights of davidsandberg/facenet, in evaluation mode.

    Args:
        offline: Never download.
        progress: Called with the bytes of a download, done and in all.

    Raises:
        RequirementError: The weights are not in the cache and cannot be downloaded.
        SourceError: The cached files are damaged.
    """
    networks = PNet(), RNet(), ONet()
    state_dicts = load_published_networks("mtcnn", offline=offline, progress=progress)
    for network, state_dict in zip(networks, state_dicts, strict=True):
        network.load_state_dict(state_dict)
        network.eval()
    return networks


def build_pretrained(
    model: InceptionResnetV1,
    name: str,
    num_classes: int | None,
    embedding_size: int | None,
    dropout_prob: float,
    offline: bool,
) -> None:
    """Create a model's layers with published weights; its constructor calls this with its own arguments."""

    def build(published_size: int, published_classes: int | None) -> None:
        if embedding_size is not None:
            _check_embedding_size(name, published_size, embedding_size)
        with torch.device("meta"):  # no memory and no initial values, which the weights replace
            model.build(published_size, published_classes, dropout_prob)

    weights = load_pretrained(name, offline=offline, build=build)
    model.load_state_dict(weights.state_dict, assign=True)
    if num_classes is not None and num_classes != weights.num_classes:
        # The caller of the constructor is the third level above.
        _warn_of_other_classes(name, weights.num_classes, num_classes, stacklevel=4)
        model.logits = nn.Linear(weights.embedding_size, num_classes)
    if model.classify and model.logits is None:
        raise ValueError(f"{name!r} has no classifier: classify=True needs num_classes")
    model.to(torch.get_default_device(), torch.get_default_dtype())


def _check_embedding_size(name: str, published: int, expected: int) -> None:
    if published != expected:
        raise ValueError(
            f"the embeddings of {name!r} have {published} numbers, those of this model have {expected}"
        )


def _warn_of_other_classes(name: str, published: int | None, classes: int, stacklevel: int) -> None:
    trained = "has no classifier" if published is None else f"was trained on {published} classes"
    message = f"{name!r} {trained}, not {classes}: the logits layer is randomly initialised"
    warnings.warn(message, stacklevel=stacklevel)
