"""Find the layers of a state_dict, a Keras file or a TensorFlow checkpoint, by the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from checks.audit.port_layers import (
    BATCH_NORM,
    PortTensor,
    PortWeights,
    Role,
    printable,
)
from checks.audit.result import Status, TensorResult
from checks.audit.source_weights import state_dict_keys, variable_name
from checks.core.network import network_layers
from converter.errors import SourceError
from converter.formats.source import Naming
from converter.keras_layer_map import keras_names, keras_weight
from converter.layer_map import BOTTLENECK_SCOPES, Layer, Variant
from converter.layouts import CONVOLUTION, FULLY_CONNECTED, VECTOR, Layout
from converter.network_names import COUNTER, NetworkTensors, known_names
from converter.plan import AVERAGE, NO_BOTTLENECK, other_network, reason_to_leave_out

_SCALAR = Layout("->", ())
_KEYS = state_dict_keys(Variant(num_classes=1))
_AS_TENSORFLOW = {4: Layout("HWIO->HWIO", (0, 1, 2, 3)), 2: Layout("IO->IO", (0, 1)), 1: VECTOR}


def find_named_layers(source: NetworkTensors, *, averages: bool = False) -> PortWeights:
    """Find the layer and the role of every tensor of an open file.

    A convolution with its BatchNorm folded in has a bias, which the network does not have. Its name is the
    one that PyTorch, Keras or slim would give it.

    Args:
        source: The open file, under the network's names.
        averages: Whether moving averages stand for their variables, which the file does not have.

    Raises:
        SourceError: No tensor has a name of this network, it is another network of facenet, or a tensor is
            corrupt.
    """
    names = expected_names(source.naming)
    places = {name: (scope, role) for scope, roles in names.items() for role, name in roles.items()}
    aliases = _aliases(source.naming)
    layers: dict[str, dict[Role, PortTensor]] = {}
    leftovers: list[TensorResult] = []
    for name, info in source.info.items():
        known = name.removesuffix(f"/{AVERAGE}") if averages else name
        place = places.get(aliases.get(known, known))
        shown = printable(source.original(name))
        if place is None or place[1] in layers.get(place[0], {}):
            reason = _reason(source.naming, name)
            status: Status = "not judged" if reason else "extra"
            detail = reason or "not a tensor of this network"
            leftovers.append(
                TensorResult(shown, "", "", "", str(info.dtype), info.shape, status, detail=detail)
            )
            continue
        scope, role = place
        layout = _layout(source.naming, role, len(info.shape))
        layers.setdefault(scope, {})[role] = PortTensor(shown, np.array(source[name]), layout)
    if other := other_network(source.info):
        raise SourceError(source.path, other[0], next_step=other[1].removesuffix("."))
    if not layers:
        first = ", ".join(list(source.info)[:3])
        none = "its only tensor" if len(source) == 1 else f"none of its {len(source)} tensors"
        has = "does not have" if len(source) == 1 else "has"
        raise SourceError(
            source.path,
            f"not an Inception-ResNet-v1: {none} ({first}, ...) {has} an "
            f"expected name, such as {names[network_layers(Variant())[0].scope]['weights']}",
            next_step="Give the weights of a FaceNet port under the names of facenet-pytorch, Keras or slim",
        )
    absent = {layer.scope for layer in network_layers(Variant())} - set(layers)
    if absent == {BOTTLENECK_SCOPES[0]}:
        raise SourceError(source.path, NO_BOTTLENECK[0], next_step=NO_BOTTLENECK[1].removesuffix("."))
    full_names: dict[str, dict[Role, str]] = {
        scope: {role: source.prefix + name for role, name in roles.items()} for scope, roles in names.items()
    }
    return PortWeights(layers, full_names, tuple(leftovers))


def holds_averages_only(source: NetworkTensors) -> bool:
    """Return whether a file has the moving averages of the convolutions' weights, but not the weights."""
    weights = [name for name in known_names(source.naming) if name.endswith("/weights")]
    return not any(name in source for name in weights) and any(
        f"{name}/{AVERAGE}" in source for name in weights
    )


@cache
def expected_names(naming: Naming) -> Mapping[str, Mapping[Role, str]]:
    """Map scope and role to the name of every tensor that a file with this naming may hold."""
    return {layer.scope: _layer_names(naming, layer) for layer in network_layers(Variant(num_classes=1))}


def _layer_names(naming: Naming, layer: Layer) -> dict[Role, str]:
    """Map the roles of a layer to names; a convolution with its BatchNorm folded in has a bias as well."""
    roles: tuple[Role, ...] = ("weights", "biases", *(BATCH_NORM if layer.batch_norm else ()))
    if naming == "keras":
        return {role: keras_weight(layer.scope, role) for role in roles}
    names: dict[Role, str] = {role: variable_name(layer.scope, role) for role in roles}
    if naming == "tensorflow":
        return names
    keys: dict[Role, str] = {role: _KEYS[name] for role, name in names.items() if name in _KEYS}
    keys["biases"] = f"{keys['weights'].removesuffix('weight')}bias"
    if layer.batch_norm:
        keys["counter"] = f"{keys['beta'].removesuffix('bias')}{COUNTER}"
    return {role: keys[role] for role in (*roles, "counter") if role in keys}


def _aliases(naming: Naming) -> dict[str, str]:
    """Map alternative names of tensors to those of `expected_names`."""
    if naming == "tensorflow":
        new, old = BOTTLENECK_SCOPES
        leaves = ("weights", "biases", *(f"BatchNorm/{role}" for role in BATCH_NORM))
        return {f"{old}/{leaf}": f"{new}/{leaf}" for leaf in leaves}
    if naming == "keras":
        by_variable: dict[str, str] = {}
        aliases = {}
        for name, variable in keras_names().items():
            aliases[name] = by_variable.setdefault(variable, name)
        return aliases
    return {}


def _layout(naming: Naming, role: Role, rank: int) -> Layout:
    if role == "counter":
        return _SCALAR
    if naming == "pytorch" and role == "weights":
        return CONVOLUTION if rank == 4 else FULLY_CONNECTED
    return _AS_TENSORFLOW.get(rank, VECTOR)


def _reason(naming: Naming, name: str) -> str:
    """Give the reason why a file may hold a tensor outside the network; empty if none is known."""
    if naming != "tensorflow":
        return ""
    new, old = BOTTLENECK_SCOPES
    plain = name.replace(f"{old}/", f"{new}/", 1) if name.startswith(f"{old}/") else name
    return reason_to_leave_out(plain, _variables()) or ""


@cache
def _variables() -> frozenset[str]:
    return frozenset(name for roles in expected_names("tensorflow").values() for name in roles.values())
