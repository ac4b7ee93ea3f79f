"""Every tensor of a port against the source's: bit for bit, or as folding and rounding would have made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.audit.folding import (
    KNOWN_SHARE,
    BatchNorm,
    Prediction,
    find_epsilon,
    fold_affine,
    fold_bias,
    fold_kernel,
    fold_offset,
)
from checks.audit.port_layers import (
    BATCH_NORM,
    PortTensor,
    PortWeights,
    Role,
    network_layers,
    residual_scale,
    stage_of,
)
from checks.audit.result import Status, TensorResult
from checks.core.activations import short_name
from checks.core.metrics import ulp_distance, ulp_histogram
from checks.core.network import KEYS
from checks.diagnosis.explain_tensor import SourceTensors, explain
from converter.casting import FLOAT32, HALVES
from converter.layer_map import BOTTLENECK_SCOPES, Converted, Layer, Variant, table
from converter.layouts import CONVOLUTION, FULLY_CONNECTED, Layout
from converter.same_bits import same_bits

Array = NDArray[Any]
_FLOATS = (*HALVES, FLOAT32, np.dtype(np.float64))


@dataclass(frozen=True, slots=True)
class Source:
    """What a port is held against.

    Attributes:
        variant: The variant of the network.
        tensors: Variable name, with the Bottleneck where it stands today, to float32 array in TensorFlow's
            layout.
        others: What a tensor could have been mistaken for.
    """

    variant: Variant
    tensors: Mapping[str, Array]
    others: SourceTensors

    def of(self, scope: str, role: Role) -> Array | None:
        """One tensor of a layer; a gamma that the source does not have is one throughout."""
        inner = f"{scope}/BatchNorm/{role}" if role in BATCH_NORM else f"{scope}/{role}"
        if inner not in self.tensors and role == "gamma":
            return np.ones_like(self.tensors[f"{scope}/BatchNorm/beta"])
        return self.tensors.get(inner)

    def norm(self, scope: str) -> BatchNorm:
        """A layer's BatchNorm."""
        gamma, beta, mean, variance = (self.of(scope, role) for role in BATCH_NORM)
        assert gamma is not None and beta is not None and mean is not None and variance is not None
        return BatchNorm(gamma, beta, mean, variance)

    def key(self, scope: str, role: Role) -> str:
        """What the published state_dict calls a tensor; empty where it has none."""
        inner = f"{scope}/BatchNorm/{role}" if role in BATCH_NORM else f"{scope}/{role}"
        return _keys(self.variant).get(inner, "")


def _keys(variant: Variant) -> dict[str, str]:
    full = Variant(variant.embedding_size, variant.num_classes or 1, gamma=True)
    return {row.variable: row.key for row in table(full) if isinstance(row, Converted)}


def source_tensors(variables: Mapping[str, Array], variant: Variant, others: SourceTensors) -> Source:
    """A source for an audit, from its float32 variables under their own names."""
    new, old = BOTTLENECK_SCOPES
    if variant.bottleneck_scope == old:
        variables = {
            f"{new}{name.removeprefix(old)}" if name.startswith(f"{old}/") else name: array
            for name, array in variables.items()
        }
    return Source(variant, variables, others)


def audit_tensors(port: PortWeights, source: Source) -> tuple[TensorResult, ...]:
    """A result for every tensor of a port, in the network's order, then for what belongs to no layer."""
    results: list[TensorResult] = []
    for layer in network_layers(source.variant):
        found = port.layers.get(layer.scope, {})
        if not found and layer.scope == "Logits":
            continue  # a port may do without the classifier; the verdict says so
        results += _audit_layer(layer, found, port.names.get(layer.scope, {}), source)
    if source.variant.num_classes is None:
        for tensor in port.layers.get("Logits", {}).values():
            results.append(_plain(tensor, "Logits", "not judged", detail="the source has no classifier"))
    for leftover in port.leftovers:
        status: Status = "not judged" if leftover.reason else "extra"
        detail = leftover.reason or "no tensor of this network"
        results.append(
            TensorResult(leftover.name, "", "", "", leftover.dtype, leftover.shape, status, detail=detail)
        )
    return tuple(results)


def compare_tensor(tensor: PortTensor, expected: Array, variable: str, stage: str) -> TensorResult:
    """Hold a tensor against the float32 one that it has to be, in TensorFlow's layout, bit for bit.

    One in half precision has to be the nearest value of it, one in float64 the same value.
    """
    found = tensor.array
    rank_fits = len(tensor.layout.permutation) == expected.ndim
    if not rank_fits or found.shape != tensor.layout.shape(expected.shape):
        shape = tensor.layout.shape(expected.shape) if rank_fits else expected.shape
        return _plain(tensor, stage, "differs", variable, f"shape {found.shape}, expected {shape}")
    if found.dtype not in _FLOATS:
        return _plain(tensor, stage, "differs", variable, f"{found.dtype} is no dtype of a weight")
    with np.errstate(over="ignore"):
        right = tensor.layout.apply(expected).astype(found.dtype)
    if same_bits(found, right):
        return _measured(tensor, right, variable, stage, "rounded" if found.dtype in HALVES else "equal")
    result = _measured(tensor, right, variable, stage, "differs")
    with np.errstate(over="ignore"):
        single = found.astype(np.float32)
    if found.dtype == np.float64 and same_bits(single, right.astype(np.float32)):
        words = "in float64, which rounds to the source's float32"
        return replace(result, status="approximate", detail=words)
    if found.dtype in HALVES and _is_raised(found, right, tensor.layout.apply(expected)):
        return replace(result, status="approximate", detail=RAISED)
    return result


_LEAST = (5.96e-8, 1e-7)
RAISED = "rounded, but for the least values, which were raised as onnxruntime's converter does"


def _is_raised(found: Array, right: Array, exact: Array) -> bool:
    """Whether half precision differs only in that tiny values were raised to the least that is kept.

    `min_positive_val` of onnxruntime.transformers.float16, today's default and the one before.
    """
    for least in _LEAST:
        tiny = np.copysign(np.float64(least), exact).astype(found.dtype)
        if np.array_equal(found, np.where((exact != 0) & (np.abs(exact) < least), tiny, right)):
            return True
    return False


def _audit_layer(
    layer: Layer, found: Mapping[Role, PortTensor], names: Mapping[Role, str], source: Source
) -> Iterator[TensorResult]:
    scope = layer.scope
    if scope != "Logits" and not found:
        for role in _needed(layer, names, source):
            yield _missing(layer, role, names)
        return
    is_folded = (
        layer.batch_norm
        and "moving_variance" not in found
        and ("biases" in found or "scale" in found or "shift" in found)
    )
    if is_folded and "weights" in found:
        yield from _audit_folded(layer, found, source)
        return
    if not layer.batch_norm and scope != "Logits" and _is_scaled(layer, found, source):
        yield from _audit_scaled(layer, found, source)
        return
    if not names and not layer.batch_norm and scope != "Logits" and "factor" not in found:
        yield from _missing_scale(layer)
    for role in _needed(layer, names, source):
        if role not in found:
            yield _missing(layer, role, names)
    for role, tensor in found.items():
        yield _audit_plain(layer, role, tensor, source)


def _needed(layer: Layer, names: Mapping[Role, str], source: Source) -> list[Role]:
    """What a layer has to have; a gamma only where PyTorch or the source has one."""
    if not layer.batch_norm:
        return ["weights", "biases"]
    roles: list[Role] = ["weights", "beta", "moving_mean", "moving_variance"]
    if "counter" in names or f"{layer.scope}/BatchNorm/gamma" in source.tensors:
        roles.insert(1, "gamma")
    return roles


def _audit_plain(layer: Layer, role: Role, tensor: PortTensor, source: Source) -> TensorResult:
    stage = stage_of(layer.scope)
    if role == "counter":
        if tensor.array.size != 1:
            problem = f"shape {tensor.array.shape}, expected one number"
            return _plain(tensor, stage, "differs", detail=problem)
        count = tensor.array.reshape(-1)[0]
        if count == 0:
            return _plain(tensor, stage, "equal")
        return _plain(tensor, stage, "differs", detail=f"counts {count} batches, the source none")
    if role == "factor":
        return _audit_factor(layer, tensor)
    expected = source.of(layer.scope, role)
    if expected is None:
        return _plain(tensor, stage, "extra", detail="the layer has no such tensor")
    variable = f"{layer.scope}/BatchNorm/{role}" if role in BATCH_NORM else f"{layer.scope}/{role}"
    result = compare_tensor(tensor, expected, variable, stage)
    return result if result.is_faithful else _explained(result, tensor, layer, role, source)


def _missing_scale(layer: Layer) -> Iterator[TensorResult]:
    """Of a graph: a residual that is scaled neither by a product nor in its weights, and should be."""
    scale = residual_scale(layer.scope)
    if scale != 1.0:
        name = f"{short_name(layer.scope.rpartition('/')[0])}, the residual scale of {scale:g}"
        yield TensorResult(name, "", stage_of(layer.scope), "", "", (), "missing")


def _audit_factor(layer: Layer, tensor: PortTensor) -> TensorResult:
    """The one number that a residual is multiplied by."""
    right = np.full(tensor.array.shape, residual_scale(layer.scope)).astype(tensor.array.dtype)
    stage = stage_of(layer.scope)
    status: Status = "equal" if same_bits(tensor.array, right) else "differs"
    result = _measured(tensor, right, "", stage, status)
    if status == "equal":
        return result
    found = float(tensor.array.reshape(-1)[0])
    return _with(result, f"residual scale {found:g}, expected {residual_scale(layer.scope):g}")


def _audit_folded(layer: Layer, found: Mapping[Role, PortTensor], source: Source) -> Iterator[TensorResult]:
    """A convolution, or the Bottleneck, with its BatchNorm in it, or beside it as a product and a sum."""
    scope, stage = layer.scope, stage_of(layer.scope)
    norm = source.norm(scope)
    weights = source.of(scope, "weights")
    assert weights is not None
    kernel = found["weights"]
    inner = f"{scope}/BatchNorm"
    if "scale" in found:
        yield _audit_plain(layer, "weights", kernel, source)
        if "biases" in found:
            yield _plain(found["biases"], stage, "extra", detail="a bias before the product and the sum")
        if "shift" not in found:
            yield _plain(found["scale"], stage, "differs", inner, "a factor without a summand")
            return
        scale, shift = found["scale"], found["shift"]
        if not all(_fits(tensor, norm.beta.shape) for tensor in (scale, shift)):
            for tensor in (scale, shift):
                yield _plain(tensor, stage, "differs", inner, f"{tensor.array.dtype} {tensor.array.shape}")
            return
        for tensor, prediction in zip(
            (scale, shift), fold_affine(scale.array, shift.array, norm), strict=True
        ):
            yield _folded(tensor, prediction, inner, stage, "BatchNorm beside the weights")
        return
    bias = found.get("biases") or found.get("shift")
    if "biases" in found and "shift" in found:
        yield _plain(found["shift"], stage, "extra", detail="a second bias")
    channels_first = _channels_first(kernel)
    wanted = _to_channels_first(weights)
    if channels_first is None or channels_first.shape != wanted.shape or kernel.array.dtype not in _FLOATS:
        shape = kernel.layout.shape(weights.shape) if weights.ndim == kernel.array.ndim else weights.shape
        problem = f"{kernel.array.dtype} {kernel.array.shape}, expected {shape}"
        yield _plain(kernel, stage, "differs", f"{scope}/weights", problem)
        return
    beside = bias.array if bias is not None and _fits(bias, norm.beta.shape) else None
    fold = _input_fold(channels_first, beside, wanted, norm) if layer.inputs == 3 else InputFold()
    folded = fold_kernel(channels_first, wanted, norm.factor() / fold.divisor)
    words = "BatchNorm folded in"
    if fold != InputFold():
        words += f", and of the image x / {fold.divisor:g} - {fold.offset:g}"
    result = _folded(
        PortTensor(kernel.name, channels_first, kernel.layout),
        folded.kernel,
        f"{scope}/weights",
        stage,
        words,
    )
    if result.status == "differs" and result.differing > (1 - KNOWN_SHARE) * result.values:
        epsilon = find_epsilon(channels_first, wanted, norm)
        words = (
            f"folded with an epsilon of {epsilon:g}"
            if epsilon is not None
            else _reversed_input(layer, channels_first, wanted, norm)
        )
        result = _with(result, words) if words else result
    yield _reshaped(result, kernel)
    if bias is None:
        return
    if not _fits(bias, norm.beta.shape):
        yield _plain(bias, stage, "differs", inner, f"{bias.array.dtype} {bias.array.shape}")
        return
    plain = fold == InputFold()
    right = (
        fold_bias(bias.array, norm, folded) if plain else fold_offset(bias.array, wanted, norm, fold.offset)
    )
    yield _folded(bias, right, inner, stage, words)


@dataclass(frozen=True, slots=True)
class InputFold:
    """What a converter folded into the first convolution.

    It takes x where the network takes x / divisor - offset.

    Attributes:
        divisor: In the weights.
        offset: In the bias; the first convolution is not padded, so that a constant is the same everywhere.
    """

    divisor: float = 1.0
    offset: float = 0.0


_INPUT_FOLDS = tuple(
    InputFold(*each)
    for each in ((1, 0), (128, 0), (127.5, 0), (255, 0), (128, 127.5 / 128), (127.5, 1), (1, 1))
)


def find_input_fold(port: PortWeights, source: Source) -> InputFold:
    """What was folded into a graph's first convolution, which then takes other images than the network."""
    first = network_layers(source.variant)[0]
    found = port.layers.get(first.scope, {})
    weights = source.of(first.scope, "weights")
    if not {"weights", "biases"} <= set(found) or "moving_variance" in found or weights is None:
        return InputFold()
    array, wanted = _channels_first(found["weights"]), _to_channels_first(weights)
    norm = source.norm(first.scope)
    if array is None or array.shape != wanted.shape or array.dtype not in _FLOATS:
        return InputFold()
    bias = found["biases"]
    return _input_fold(array, bias.array if _fits(bias, norm.beta.shape) else None, wanted, norm)


def _input_fold(found: Array, bias: Array | None, weights: Array, norm: BatchNorm) -> InputFold:
    """The first of the known folds that most of the weights and biases bear out; none where no one is."""
    for fold in _INPUT_FOLDS:
        kernel = fold_kernel(found, weights, norm.factor() / fold.divisor).kernel
        right = None if bias is None else fold_offset(bias, weights, norm, fold.offset)
        if all(
            np.mean(np.abs(each.astype(np.float64) - wanted.exact) <= wanted.margin) >= KNOWN_SHARE
            for each, wanted in ((found, kernel), (bias, right))
            if each is not None and wanted is not None
        ):
            return fold
    return InputFold()


def _reversed_input(layer: Layer, found: Array, wanted: Array, norm: BatchNorm) -> str:
    """Whether the first convolution was made for BGR images."""
    if layer.inputs != 3:
        return ""
    flipped = np.ascontiguousarray(wanted[:, ::-1])
    return "its input channels are reversed: made for BGR" if _gives(found, flipped, norm.factor()) else ""


def _gives(found: Array, weights: Array, factor: Array) -> bool:
    return float((fold_kernel(found, weights, factor).kernel.values == found).mean()) >= KNOWN_SHARE


def _is_scaled(layer: Layer, found: Mapping[Role, PortTensor], source: Source) -> bool:
    """Whether a residual's last convolution seems to hold the residual scale as well."""
    kernel, bias = found.get("weights"), found.get("biases")
    weights, scale = source.of(layer.scope, "weights"), residual_scale(layer.scope)
    if scale == 1.0 or "factor" in found or kernel is None or bias is None or weights is None:
        return False
    array = _channels_first(kernel)
    wanted = _to_channels_first(weights)
    if array is None or array.shape != wanted.shape or array.dtype not in _FLOATS:
        return False
    # Medians, which a damaged value does not move.
    size = float(np.median(np.abs(wanted)))
    found_size = float(np.nanmedian(np.abs(array.astype(np.float64))))
    return size > 0 and abs(found_size / size - scale) < abs(1 - scale) / 2


def _audit_scaled(layer: Layer, found: Mapping[Role, PortTensor], source: Source) -> Iterator[TensorResult]:
    """A residual's last convolution with the residual scale in it."""
    scope, stage = layer.scope, stage_of(layer.scope)
    scale = residual_scale(scope)
    weights, biases = source.of(scope, "weights"), source.of(scope, "biases")
    kernel, bias = found["weights"], found["biases"]
    assert weights is not None and biases is not None
    factor = np.full(layer.outputs, scale)
    words = f"residual scale {scale:g} folded in"
    for tensor, right in ((kernel, _to_channels_first(weights)), (bias, biases[:, None])):
        array = _channels_first(tensor)
        if array is None or array.size != right.size or array.dtype not in _FLOATS:
            yield _plain(tensor, stage, "differs", scope, f"{tensor.array.dtype} {tensor.array.shape}")
            continue
        array = array.reshape(right.shape)
        # One constant serves the whole layer: the float nearest to the scale.
        prediction = _scaled(array, right, factor)
        leaf = "weights" if tensor is kernel else "biases"
        result = _folded(
            PortTensor(tensor.name, array, tensor.layout), prediction, f"{scope}/{leaf}", stage, words
        )
        yield _reshaped(result, tensor)


def _scaled(found: Array, right: Array, factor: Array) -> Prediction:
    single = factor.astype(np.float32).reshape(-1, *[1] * (right.ndim - 1))
    exact = right.astype(np.float64) * single
    values = (right * single).astype(found.dtype)
    return Prediction(values, exact, np.zeros_like(exact))


def _folded(
    tensor: PortTensor, prediction: Prediction, variable: str, stage: str, words: str
) -> TensorResult:
    """Judge a tensor by what folding should have made of it."""
    hits = (tensor.array == prediction.values) & (np.signbit(tensor.array) == np.signbit(prediction.values))
    if hits.all() and prediction.told:
        return _with(_measured(tensor, prediction.values, variable, stage, "folded"), words)
    if hits.all():
        right = prediction.exact.astype(tensor.array.dtype)
        return _with(_measured(tensor, right, variable, stage, "approximate"), f"{words}, within rounding")
    if tensor.array.dtype in HALVES and _is_raised(tensor.array, prediction.values, prediction.exact):
        result = _measured(tensor, prediction.values, variable, stage, "approximate")
        return _with(result, f"{words}, {RAISED}")
    within = np.abs(tensor.array.astype(np.float64) - prediction.exact) <= prediction.margin
    if (hits.mean() < KNOWN_SHARE or not prediction.told) and within.all():
        result = _measured(
            tensor, prediction.exact.astype(tensor.array.dtype), variable, stage, "approximate"
        )
        return _with(result, f"{words}, by a formula that is not known here")
    result = _measured(tensor, prediction.values, variable, stage, "differs")
    return _with(result, f"{words}, but {result.differing} of {result.values} values are others")


def _explained(
    result: TensorResult, tensor: PortTensor, layer: Layer, role: Role, source: Source
) -> TensorResult:
    """Add why a tensor differs, where one of the known causes explains it."""
    key = source.key(layer.scope, role)
    if (
        tensor.array.dtype != FLOAT32
        or key not in KEYS
        or tensor.array.size != source.others.tensors[key].size
    ):
        return result
    with np.errstate(all="ignore"):  # damaged values overflow anywhere
        told = explain(key, _in_pytorch(tensor), source.others)
    if told is None:
        return result
    return _with(result, "; ".join(filter(None, (told[1], result.detail))))


def _in_pytorch(tensor: PortTensor) -> Array:
    """The tensor in the layout of the published state_dicts."""
    permutation = tensor.layout.permutation
    if tensor.array.ndim != len(permutation):
        return tensor.array
    back = tensor.layout.inverse.apply(tensor.array)
    target: Layout | None = {4: CONVOLUTION, 2: FULLY_CONNECTED}.get(tensor.array.ndim)
    return np.ascontiguousarray(back if target is None else target.apply(back))


def _channels_first(tensor: PortTensor) -> Array | None:
    if tensor.array.ndim == 1:
        return np.ascontiguousarray(tensor.array)
    if tensor.array.ndim != len(tensor.layout.permutation):
        return None
    return _to_channels_first(tensor.layout.inverse.apply(tensor.array))


def _to_channels_first(array: Array) -> Array:
    """TensorFlow's layout to (outputs, inputs, height, width), or (outputs, inputs)."""
    return (CONVOLUTION if array.ndim == 4 else FULLY_CONNECTED).apply(array)


def _fits(tensor: PortTensor, shape: tuple[int, ...]) -> bool:
    return tensor.array.shape == shape and tensor.array.dtype in _FLOATS


def _missing(layer: Layer, role: Role, names: Mapping[Role, str]) -> TensorResult:
    name = names.get(role) or f"{short_name(layer.scope)}/{role}"
    return TensorResult(name, layer.scope, stage_of(layer.scope), "", "", (), "missing")


def _plain(
    tensor: PortTensor, stage: str, status: Status, variable: str = "", detail: str = ""
) -> TensorResult:
    """A result without a measurement."""
    array = tensor.array
    differing = 0 if status in ("equal", "not judged") else array.size
    return TensorResult(
        tensor.name, variable, stage, tensor.layout.name if variable else "", str(array.dtype), array.shape,
        status, array.size, differing, detail=detail,
    )  # fmt: skip


def _measured(tensor: PortTensor, right: Array, variable: str, stage: str, status: Status) -> TensorResult:
    steps = ulp_distance(tensor.array, right)
    other = ~((tensor.array == right) & (np.signbit(tensor.array) == np.signbit(right)))
    both_nan = np.isnan(tensor.array.astype(np.float64)) & np.isnan(right.astype(np.float64))
    return TensorResult(
        name=tensor.name,
        variable=variable,
        stage=stage,
        layout=tensor.layout.name,
        dtype=str(tensor.array.dtype),
        shape=tensor.array.shape,
        status=status,
        values=tensor.array.size,
        differing=int((other & ~(both_nan & (steps == 0))).sum()),
        max_ulp=int(steps.max(initial=0)),
        ulp_histogram=ulp_histogram(steps) if steps.size else (),
    )


def _with(result: TensorResult, detail: str) -> TensorResult:
    return replace(result, detail=detail)


def _reshaped(result: TensorResult, tensor: PortTensor) -> TensorResult:
    """A result that was measured in another layout, with the shape that the port has."""
    return replace(result, shape=tensor.array.shape)
