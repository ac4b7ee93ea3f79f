"""The conversion itself, as pure functions on tensors: `to_pytorch` and its inverse `to_tensorflow`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.casting import BFLOAT16, CASTABLE, FLOAT32, Cast, measure_cast, to_float32
from converter.formats.source import TensorInfo, TensorSource
from converter.keras_layer_map import keras_names
from converter.layer_map import ConvertedRow, Row, SynthesisedRow, Variant, table
from converter.mtcnn_layer_map import Network, find_network, rows_of
from converter.network_names import COUNTER, NetworkTensors, find_prefix, network_name
from converter.plan import (
    NO_BOTTLENECK,
    MappingError,
    Plan,
    Problem,
    Weights,
    describe,
    plan_conversion,
    recognise_change,
    state_dict_variant,
)

if TYPE_CHECKING:
    from torch import Tensor


def to_pytorch(tensors: Mapping[str, NDArray[Any]], *, weights: Weights = "variable") -> dict[str, Tensor]:
    """Turn TensorFlow tensors into a state_dict for `load_state_dict`.

    Args:
        tensors: As in `to_numpy_state_dict`.
        weights: As in `plan_conversion`.

    Returns:
        The result of `to_numpy_state_dict` as tensors on the CPU, which belong to the caller.

    Raises:
        MappingError: The tensors are not those of this network, or a finite value is beyond float32.
        SourceError: A tensor of an open source is corrupt.
    """
    import torch

    arrays = to_numpy_state_dict(tensors, weights=weights)
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def to_numpy_state_dict(
    tensors: Mapping[str, NDArray[Any]], *, weights: Weights = "variable"
) -> dict[str, NDArray[Any]]:
    """Turn TensorFlow tensors into the arrays of a state_dict, without PyTorch.

    Args:
        tensors: Variable name to array, kernels in HWIO; or an open source of any format, from which only
            the tensors in use are read, one by one. float32 keeps every bit; `to_float32` casts float16,
            bfloat16 and float64. A prefix of an open source's names is taken off, as `find_prefix` says.
        weights: As in `plan_conversion`.

    Returns:
        state_dict key to array, in the published order: kernels in OIHW, float32, with int64 batch counters.
        Every array is C-contiguous and belongs to the caller.

    Raises:
        MappingError: The tensors are not those of this network, or a finite value is beyond float32.
        SourceError: A tensor of an open source is corrupt.
    """
    if isinstance(tensors, TensorSource):
        tensors, plan = plan_tensors(tensors, weights, views=True)
    else:
        plan = plan_conversion(describe(tensors), weights=weights)
    return {tensor.row.key: tensor.array for tensor in convert_tensors(tensors, plan)}


def plan_tensors(
    source: TensorSource, weights: Weights = "variable", *, views: bool = False
) -> tuple[Mapping[str, NDArray[Any]], Plan]:
    """Give the tensors of a source TensorFlow's names, and plan their conversion.

    Args:
        source: An open source of any format, or `NetworkTensors` of one.
        weights: As in `plan_conversion`.
        views: Whether the tensors of a state_dict may be views of the open source, whose axes
            `convert_tensors` moves back.

    Raises:
        UsageError: The source holds two networks.
        MappingError: The tensors are not those of this network.
        SourceError: A tensor is corrupt.
    """
    named = source if isinstance(source, NetworkTensors) else NetworkTensors(source)
    with named.naming_errors():
        is_viewed = views and named.naming == "pytorch"
        tensors = _tensorflow_views(named) if is_viewed else tensorflow_tensors(named)
        return tensors, plan_conversion(describe(tensors), weights=weights)


def to_tensorflow(
    state_dict: Mapping[str, Tensor] | Mapping[str, NDArray[Any]], *, variant: Network | None = None
) -> dict[str, NDArray[Any]]:
    """Turn a PyTorch state_dict back into TensorFlow tensors: the inverse of `to_pytorch`, bit for bit.

    Args:
        state_dict: Key to tensor or NumPy array: float32, float16, bfloat16 or float64. Batch counters are
            any one number, or absent. A prefix such as `module.` is taken off, as `find_prefix` says.
        variant: The network that `plan_conversion` finds in TensorFlow tensors. A state_dict does not state
            whether BatchNorm has a gamma, nor the scope of the Bottleneck. Without a variant, gammas are
            written if any BatchNorm weight differs from one, and the Bottleneck is in the network's scope.

    Returns:
        Variable name to C-contiguous array of the same dtype, which belongs to the caller. Batch counters
        have no variable and are dropped.

    Raises:
        UsageError: The keys of two networks stand under two prefixes.
        MappingError: The state_dict does not belong to this network.
    """
    views = _tensorflow_views(state_dict, variant)
    return {name: _detached(np.asarray(view, order="C"), view) for name, view in views.items()}


def _tensorflow_views(
    state_dict: Mapping[str, Tensor] | Mapping[str, NDArray[Any]], variant: Network | None = None
) -> dict[str, NDArray[Any]]:
    """Do the work of `to_tensorflow` without its copies: the arrays are views with moved axes."""
    arrays = _as_arrays(state_dict)
    if prefix := find_prefix(arrays, "pytorch"):
        arrays = {network_name(key, prefix): array for key, array in arrays.items()}
    info = describe(arrays)
    if variant is None:
        variant = find_network(info, "pytorch") or _infer_variant(arrays, info)
    rows = {row.key: row for row in rows_of(variant)}
    required = [key for key in rows if not key.endswith(COUNTER)]
    missing = [key for key in required if key not in info]
    problems = [Problem("missing", key) for key in missing]
    problems += [
        Problem("unexpected", key, f"{actual.dtype} {actual.shape}")
        for key, actual in info.items()
        if key not in rows
    ]
    for key, row in rows.items():
        if key not in info or (key.endswith(COUNTER) and info[key].size == 1):
            continue
        if info[key].shape != row.info.shape:
            problems.append(Problem("misshapen", key, f"{info[key].shape}, expected {row.info.shape}"))
        if not _may_stand_for(info[key].dtype, row):
            problems.append(Problem("wrong dtype", key, f"{info[key].dtype}, expected {row.info.dtype}"))
        if _is_other_scale(row, arrays, info):
            problems.append(Problem("unexpected", key, "a BatchNorm scale other than one, without a gamma"))
    if problems:
        bottleneck = [key for key in missing if key.startswith(("last_linear.", "last_bn."))]
        is_older = bottleneck == missing and len(missing) >= 4
        summary, hint = NO_BOTTLENECK if is_older else recognise_change(problems) or ("", "")
        raise MappingError(problems, len(info), len(required), hint, summary=summary, network=variant)
    return {
        row.variable: arrays[key].transpose(row.layout.inverse.permutation)
        for key, row in rows.items()
        if isinstance(row, ConvertedRow)
    }


def names_in_file(source: NetworkTensors, plan: Plan) -> dict[str, str]:
    """Map every variable of a plan to the name that its tensor has in the source's file."""
    if source.naming == "pytorch":
        return {row.variable: source.original(row.key) for row in plan.converted}
    keras = {keras_names().get(name, name): name for name in source.info} if source.naming == "keras" else {}
    return {variable: source.original(keras.get(name, name)) for variable, name in plan.sources.items()}


def tensorflow_tensors(source: TensorSource) -> Mapping[str, NDArray[Any]]:
    """Give the tensors of a source TensorFlow's names and layouts; a prefix has been taken off.

    A source with TensorFlow's names is returned unread. Keras has TensorFlow's layouts; a name that does not
    belong to this network stays unchanged, and `plan_conversion` reports it.

    Raises:
        MappingError: Two Keras weights are the same variable, or a state_dict is not of this network.
        SourceError: A tensor is corrupt.
    """
    if source.naming == "tensorflow":
        return source
    if source.naming == "pytorch":
        return to_tensorflow(source)
    origin: dict[str, str] = {}
    problems = []
    for name in source.info:
        variable = keras_names().get(name, name)
        if variable in origin:
            problems.append(Problem("duplicate", name, f"{origin[variable]} is the same variable {variable}"))
        else:
            origin[variable] = name
    if problems:
        info = {variable: source.info[name] for variable, name in origin.items()}
        try:
            plan_conversion(info)
        except MappingError as error:
            problems += error.problems
        raise MappingError(problems, len(source), len(keras_names()))
    return {variable: source[name] for variable, name in origin.items()}


@dataclass(frozen=True, slots=True)
class ConvertedTensor:
    """Entry of a state_dict.

    Attributes:
        row: Its row of the layer map.
        array: Its value, C-contiguous, which belongs to the caller.
        cast: Effect of the cast to float32; None if the source has no such tensor, or it was float32.
    """

    row: Row
    array: NDArray[Any]
    cast: Cast | None


def convert_tensors(tensors: Mapping[str, NDArray[Any]], plan: Plan) -> Iterator[ConvertedTensor]:
    """Carry out the plan for these tensors, one tensor at a time.

    Raises:
        MappingError: Finite values are beyond float32; raised at the end, it names every such tensor.
        SourceError: A tensor of an open source is corrupt.
    """
    problems: list[Problem] = []
    for row in plan.rows:
        if isinstance(row, SynthesisedRow):
            yield ConvertedTensor(row, synthesise(row), None)
            continue
        name = plan.sources[row.variable]
        array = tensors[name]
        try:
            single = to_float32(array)
        except OverflowError as error:
            problems.append(Problem("out of range", name, f"{error} (for {row.key})"))
            continue
        cast = measure_cast(array, single) if name in plan.casts else None
        yield ConvertedTensor(row, _detached(row.layout.apply(single), array), cast)
    if problems:
        hint = "float32 cannot hold these values: train or save the checkpoint in float32."
        raise MappingError(problems, len(tensors), len(plan.sources), hint)


def synthesise(row: SynthesisedRow) -> NDArray[Any]:
    """Make the value of a state_dict entry that TensorFlow does not have."""
    return np.full(row.shape, row.fill, row.dtype)


def with_counters(state_dict: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Add the batch counters that a state_dict of before PyTorch 0.4.1 does not have, as zeros."""
    info = describe(state_dict)
    rows = rows_of(find_network(info, "pytorch") or state_dict_variant(info))
    missing = (row for row in rows if row.key.endswith(COUNTER) and row.key not in state_dict)
    return {**state_dict, **{row.key: synthesise(row) for row in missing if isinstance(row, SynthesisedRow)}}


def _infer_variant(arrays: Mapping[str, NDArray[Any]], info: Mapping[str, TensorInfo]) -> Variant:
    """Infer the variant of a state_dict; it has gammas if any BatchNorm weight differs from one."""
    plain = state_dict_variant(info)
    gamma = any(_is_other_scale(row, arrays, info) for row in table(plain))
    return state_dict_variant(info, gamma=gamma)


def _is_other_scale(row: Row, state_dict: Mapping[str, NDArray[Any]], info: Mapping[str, TensorInfo]) -> bool:
    """Return whether a row without a variable is a BatchNorm scale, and the state_dict's scale is not one.

    A scale of another dtype or shape is a different problem and is not read.
    """
    return (
        isinstance(row, SynthesisedRow)
        and row.dtype == "float32"
        and row.key in info
        and info[row.key].shape == row.shape
        and _may_stand_for(info[row.key].dtype, row)
        and not np.array_equal(state_dict[row.key], synthesise(row))
    )


def _may_stand_for(dtype: np.dtype, row: Row) -> bool:
    """Return whether a row's tensor may have this dtype; a cast state_dict has cast its counters too."""
    return dtype == FLOAT32 or dtype in CASTABLE or (isinstance(row, SynthesisedRow) and dtype == row.dtype)


def _detached(result: NDArray[Any], origin: NDArray[Any]) -> NDArray[Any]:
    """Copy a result that shares memory with the array that it was made from."""
    return result.copy() if np.may_share_memory(result, origin) else result


def _as_arrays(state_dict: Mapping[str, Tensor] | Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Give the tensors of a state_dict as arrays, without reading an open source."""
    if isinstance(state_dict, TensorSource):
        return state_dict
    return {
        key: value if isinstance(value, np.ndarray) else _as_array(value) for key, value in state_dict.items()
    }


def _as_array(tensor: Tensor) -> NDArray[Any]:
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # NumPy has it only through ml_dtypes
        return np.asarray(tensor.contiguous().view(torch.int16).numpy()).view(BFLOAT16)
    return np.asarray(tensor.numpy())
