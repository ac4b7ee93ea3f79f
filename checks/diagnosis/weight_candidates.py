"""Why a layer's tensors are wrong where the right ones are not at hand: what makes the layer agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from checks.core import thresholds
from checks.core.activations import short_name
from checks.core.network import EPSILON, KEYS, NETWORK, STATISTICS, NetworkLayer
from checks.diagnosis.causes import Cause
from checks.diagnosis.channel_fit import ROUNDED, fit_channels, match_channels
from checks.diagnosis.layer_arithmetic import distance, finish, linear_part, per_channel, run_weights
from checks.diagnosis.lost_values import Correction, lost_values
from checks.diagnosis.tensor_causes import branch_sizes, layout_variants, undo_layout


def explain_without_source(
    layer: NetworkLayer,
    x: Tensor,
    wanted: Tensor,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    state: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
) -> Correction | None:
    """Find what makes a layer agree with the reference, or what its tensors look like.

    Args:
        layer: The layer.
        x: The reference's input, float64.
        wanted: The reference's output.
        tensors: The port's, by role.
        shapes: Role to the shape that the tensor should have.
        state: state_dict key to tensor of the whole port.
        averages: state_dict key to moving average; empty where there is none.
    """
    right_shape = tensors["weight"].shape == torch.Size(shapes["weight"])
    linear = linear_part(layer, x, tensors["weight"]) if right_shape else None
    fit = None if linear is None else fit_channels(linear, wanted, positive=layer.relu)
    told = fit is not None and fit.tells
    if linear is not None and fit is not None and not (told and not fit.holds):
        for correction, limit in (
            *_exchanged(layer, tensors),
            *_vectors_elsewhere(layer, tensors, state, averages),
        ):
            output = finish(layer, linear, {**tensors, **correction.tensors})
            if distance(output, wanted) <= limit:
                exact = limit == thresholds.MAPPING
                return correction if exact else correction._replace(tensors={})
    kernel_is_right = told and fit is not None and fit.holds
    for correction in _corrections(layer, tensors, shapes, state, averages, vectors_only=kernel_is_right):
        # One image decides against most of them.
        corrected = {**tensors, **correction.tensors}
        if distance(run_weights(layer, x[:1], corrected), wanted[:1]) <= thresholds.MAPPING and (
            distance(run_weights(layer, x, corrected), wanted) <= thresholds.MAPPING
        ):
            return correction
    if linear is None or fit is None:
        return None
    return (
        _averaged(layer, tensors, averages)
        or _permuted(layer, tensors, linear, wanted)
        or lost_values(layer, tensors, linear, wanted, fit)
    )


def _corrections(
    layer: NetworkLayer,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    state: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    *,
    vectors_only: bool,
) -> Iterator[Correction]:
    """Corrections that have to be tried by running the layer."""
    yield from _averages(layer, averages)
    if not vectors_only:
        yield from _layouts(tensors["weight"], shapes["weight"])
        yield from _branches(layer, tensors["weight"])
        yield from _kernels_elsewhere(layer, tensors, state)
        yield from _averaged_kernel(layer, averages)
    yield from _units_elsewhere(layer, state)


def _averaged(
    layer: NetworkLayer, tensors: Mapping[str, Tensor], averages: Mapping[str, Tensor]
) -> Correction | None:
    """Whether tensors are the averages; the variables that belong there are then not at hand."""
    taken = [
        role
        for role, key in layer.keys.items()
        if key in averages
        and torch.equal(tensors[role], averages[key])
        and bool((tensors[role] != tensors[role].flatten()[0]).any())
    ]
    if not taken:
        return None
    return Correction(Cause.AVERAGES, f"moving averages stand for the variables: {', '.join(taken)}", {})


def _permuted(
    layer: NetworkLayer, tensors: Mapping[str, Tensor], linear: Tensor, wanted: Tensor
) -> Correction | None:
    """Whether the kernel's output channels, or those of all tensors, are in another order."""
    run = finish(layer, linear, tensors)
    places = match_channels(run, wanted)
    if places is not None:
        moved = {role: tensor[places] for role, tensor in tensors.items()}
        return Correction(Cause.PERMUTED, "all its output channels are in another order", moved)
    if "bias" in tensors:
        places = match_channels(linear, wanted - per_channel(tensors["bias"], wanted))
    else:
        root = (tensors["variance"] + EPSILON).sqrt() / tensors["gamma"]
        before = wanted - per_channel(tensors["beta"], wanted)
        before = before * per_channel(root, wanted) + per_channel(tensors["mean"], wanted)
        places = match_channels(linear, before, seen=wanted > 0 if layer.relu else None)
    if places is None:
        return None
    moved = {"weight": tensors["weight"][places]}
    corrected = finish(layer, linear[:, places], tensors)
    if distance(corrected, wanted) > thresholds.MAPPING:
        return None
    return Correction(Cause.PERMUTED, "the kernel has its output channels in another order", moved)


Limited = tuple[Correction, float]
"""A correction and the distance within which the layer has to agree with it."""


def _exchanged(layer: NetworkLayer, tensors: Mapping[str, Tensor]) -> Iterator[Limited]:
    """BatchNorm's tensors among themselves, their roots and squares, and a scale of one."""
    if "gamma" not in tensors:
        return
    gamma = {"gamma": torch.ones_like(tensors["gamma"])}
    words = "BatchNorm's scale is not one"
    yield Correction(Cause.UNLOADED, words, gamma), thresholds.MAPPING
    for order in itertools.permutations(STATISTICS):
        swapped = {role: tensors[other] for role, other in zip(STATISTICS, order, strict=True)}
        changed = {role: tensor for role, tensor in swapped.items() if tensor is not tensors[role]}
        if changed and bool((swapped["variance"] > -EPSILON).all()):
            words = f"BatchNorm's {', '.join(changed)} are exchanged"
            yield Correction(Cause.STATISTICS, words, changed), thresholds.MAPPING
    variance = tensors["variance"]
    for words, made in (
        ("the variance is the standard deviation", variance.square()),
        ("the variance is the standard deviation with epsilon", variance.square() - EPSILON),
        ("the variance is its own square", variance.clamp_min(0).sqrt()),
        ("the variance is its reciprocal", 1 / variance),
        ("the variance is the reciprocal of the standard deviation", 1 / variance.square()),
        (
            "the variance is the reciprocal of the standard deviation with epsilon",
            1 / variance.square() - EPSILON,
        ),
    ):
        yield Correction(Cause.STANDARD_DEVIATION, words, {"variance": made}), ROUNDED


def _vectors_elsewhere(
    layer: NetworkLayer,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
) -> Iterator[Limited]:
    for role in tensors:
        if role == "weight":
            continue
        if layer.keys[role] in averages:
            words = f"the {role} is the moving average where the variable belongs, or the reverse"
            average = {role: averages[layer.keys[role]]}
            yield Correction(Cause.AVERAGES, words, average), thresholds.MAPPING
        for key, tensor in state.items():
            if key in KEYS and key != layer.keys[role] and tensor.shape == tensors[role].shape:
                words = f"the {role} is not its own: that of {short_name(KEYS[key])} ({key}) fits"
                yield Correction(Cause.OTHER_TENSOR, words, {role: tensor}), thresholds.MAPPING


def _layouts(weight: Tensor, shape: tuple[int, ...]) -> Iterator[Correction]:
    found = weight.numpy()
    if found.size != np.prod(shape):
        return
    for cause, words, wrong in layout_variants(np.empty(shape, np.int8)):
        right = undo_layout(wrong, found, shape)
        if right is not None and not (right.shape == found.shape and np.array_equal(right, found)):
            yield Correction(cause, f"the kernel {words}", {"weight": torch.from_numpy(right)})


def _branches(layer: NetworkLayer, weight: Tensor) -> Iterator[Correction]:
    """A projection's input channels by branches in other orders; any kernel's in reverse."""
    sizes = branch_sizes(layer.keys["weight"])
    for order in itertools.permutations(range(len(sizes))):
        if order == tuple(range(len(sizes))):
            continue
        blocks = dict(
            zip(order, torch.split(weight, [sizes[number] for number in order], dim=1), strict=True)
        )
        restored = torch.cat([blocks[number] for number in range(len(sizes))], dim=1)
        words = f"the kernel takes the branches in the order {', '.join(map(str, order))}"
        yield Correction(Cause.BRANCH_ORDER, words, {"weight": restored})
    for axis, side in ((1, "input"), (0, "output")):
        words = f"the kernel has its {side} channels in reverse"
        yield Correction(Cause.PERMUTED, words, {"weight": weight.flip(axis)})


def _averages(layer: NetworkLayer, averages: Mapping[str, Tensor]) -> Iterator[Correction]:
    taken = {role: averages[key] for role, key in layer.keys.items() if key in averages}
    if taken:
        words = f"{', '.join(taken)} are the moving averages where the variables belong, or the reverse"
        yield Correction(Cause.AVERAGES, words, taken)


def _averaged_kernel(layer: NetworkLayer, averages: Mapping[str, Tensor]) -> Iterator[Correction]:
    key = layer.keys["weight"]
    if key in averages:
        words = "the kernel is the moving average where the variable belongs, or the reverse"
        yield Correction(Cause.AVERAGES, words, {"weight": averages[key]})


def _kernels_elsewhere(
    layer: NetworkLayer, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Iterator[Correction]:
    for other in _alike(layer, tensors["weight"], state):
        key = other.keys["weight"]
        words = f"the kernel is not its own: that of {short_name(other.activation)} ({key}) fits"
        yield Correction(Cause.OTHER_TENSOR, words, {"weight": state[key]})


def _units_elsewhere(layer: NetworkLayer, state: Mapping[str, Tensor]) -> Iterator[Correction]:
    for other in _alike(layer, state[layer.keys["weight"]], state):
        taken = {role: state[key] for role, key in other.keys.items()}
        words = f"all its tensors are those of another layer: those of {short_name(other.activation)} fit"
        yield Correction(Cause.OTHER_TENSOR, words, taken)


def _alike(layer: NetworkLayer, weight: Tensor, state: Mapping[str, Tensor]) -> Iterator[NetworkLayer]:
    for other in NETWORK.values():
        if other.kind is not layer.kind or other.activation == layer.activation:
            continue
        if state[other.keys["weight"]].shape == weight.shape:
            yield other
