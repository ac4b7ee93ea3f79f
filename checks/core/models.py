"""The PyTorch side of a comparison: the state_dict as a user loads it, and the models that load it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from checks.core.activations import Model
from checks.core.types import Arrays
from converter.atomic import DISK_FULL, HiddenFolder
from converter.convert import with_counters
from converter.convert_file import convert_file
from converter.counts import counted
from converter.errors import RequirementError, SourceError, UsageError
from converter.formats.detect import open_source
from converter.layer_map import Variant, table
from converter.mtcnn_layer_map import Network
from converter.network_names import COUNTER, NetworkTensors
from converter.plan import NO_BOTTLENECK, Weights
from reference.weights import build_network

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Port:
    """A state_dict loaded into two models, in evaluation mode."""

    float32: Model
    float64: Model


@dataclass(frozen=True, slots=True)
class LoadedPort:
    """The state_dict to judge, under the network's keys.

    Attributes:
        arrays: Key to array, with batch counters of zero if the file has none. A key outside the prefix of
            the others, or not of the network, is among them.
        source: The file; None if the state_dict was converted.
    """

    arrays: Arrays
    source: NetworkTensors | None = None


def load_state_dict(
    state_dict: str | Path | None, source: str | Path, weights: Weights, ignore: Sequence[str] = ()
) -> LoadedPort:
    """Load the port's tensors as a user would.

    Args:
        state_dict: A .pt or .safetensors file; None converts `source` and loads the result.
        source: The checkpoint.
        weights: As in `plan.plan_conversion`.
        ignore: As in `convert_file`.

    Raises:
        UsageError: `state_dict` is not a state_dict, or `NetworkTensors` refuses it.
        SourceError: It is unreadable or corrupt, or the network of before February 2017.
        RequirementError: The folder for temporary files has no room for the converted source.
    """
    if state_dict is not None:
        with open_source(Path(state_dict)) as opened:
            if opened.naming != "pytorch":
                raise UsageError(f"--state-dict {state_dict}: this is a {opened.format}, not a state_dict.")
            named = NetworkTensors(opened, ignore)
            arrays = {key: np.array(named[key]) for key in named}
        _refuse_without_bottleneck(Path(state_dict), arrays)
        return LoadedPort(with_counters(arrays), named)
    with HiddenFolder(Path(tempfile.gettempdir())) as folder:
        path = folder / "converted.pt"
        try:
            convert_file(Path(source), path, weights=weights, ignore=ignore)
        except RequirementError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in DISK_FULL:
                raise
            raise RequirementError(
                f"{folder.parent}: the converted file does not fit on the disk. Make room there, or set "
                "TMPDIR to a folder on another one."
            ) from error
        loaded = torch.load(path, weights_only=True)
        return LoadedPort({key: tensor.numpy() for key, tensor in loaded.items()})


def _refuse_without_bottleneck(path: Path, arrays: Arrays) -> None:
    """Refuse a state_dict that lacks the Bottleneck, all of it and nothing else."""
    missing = {row.key for row in table(Variant()) if not row.key.endswith(COUNTER)} - set(arrays)
    if len(missing) >= 4 and all(key.startswith(("last_linear.", "last_bn.")) for key in missing):
        raise SourceError(path, NO_BOTTLENECK[0], next_step=NO_BOTTLENECK[1].removesuffix("."))


def build_port(arrays: Arrays, variant: Network, device: str = "cpu") -> Port | str:
    """Load a state_dict strictly into two models; if it does not load, return the reason.

    Args:
        arrays: Key to array.
        variant: The network.
        device: Where the float32 model runs; the float64 model always runs on the CPU.
    """
    model = _empty(variant)
    misfits = _misfits(arrays, model)
    if any(misfits.values()):
        return "; ".join(
            f"{counted(len(keys), 'key')} {problem}, {keys[0]!r} first"
            for problem, keys in misfits.items()
            if keys
        )
    return Port(load_copies(model, arrays, torch.float32).to(device), build_exact(arrays, variant))


def build_exact(arrays: Arrays, variant: Network) -> Model:
    """Load a state_dict that fits into a float64 model."""
    return load_copies(_empty(variant), arrays, torch.float64)


def load_copies(model: _Model, arrays: Arrays, dtype: torch.dtype, *, shared: bool = False) -> _Model:
    """Load copies of a state_dict's weights into a model, in evaluation mode.

    Args:
        model: A model on the device "meta", whose tensors have neither memory nor values.
        arrays: Key to array; they fit.
        dtype: The dtype of the arithmetic.
        shared: Whether weights of this dtype share the memory of their arrays, which then nobody may change.
    """
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    copies = {
        key: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=not shared)
        for key, tensor in tensors.items()
    }
    model.load_state_dict(copies, assign=True)
    return model.eval()


def build_misshapen(arrays: Arrays, variant: Network) -> Model | None:
    """Load weights with exchanged axes, which do not fit, into a float64 model to diagnose.

    Return None if anything else does not fit.
    """
    model = _empty(variant)
    misfits = _misfits(arrays, model)
    misshapen = misfits.pop(_MISSHAPEN)
    if any(misfits.values()):
        return None
    expected = model.state_dict()
    for key in misshapen:
        array, tensor = arrays[key], expected[key]
        if array.dtype != np.float32 or sorted(array.shape) != sorted(tensor.shape) or tensor.ndim < 2:
            return None
    fitting = {key: torch.from_numpy(array) for key, array in arrays.items() if key not in misshapen}
    model.load_state_dict(fitting, strict=False, assign=True)
    for key in misshapen:
        module, _, name = key.rpartition(".")
        setattr(model.get_submodule(module), name, nn.Parameter(torch.from_numpy(arrays[key])))
    return model.double().eval()


def unexpected_keys(arrays: Arrays, variant: Network) -> list[str]:
    """List the keys without which a state_dict would load strictly; empty if there is another misfit."""
    misfits = _misfits(arrays, _empty(variant))
    unexpected = misfits.pop("unexpected")
    return [] if any(misfits.values()) else unexpected


def _empty(variant: Network) -> Model:
    """A model of a variant, whose tensors have neither memory nor values."""
    with torch.device("meta"):
        return build_network(variant)


_MISSHAPEN = "of another shape or dtype"
_DTYPES = {torch.float32: np.dtype(np.float32), torch.int64: np.dtype(np.int64)}


def _misfits(arrays: Arrays, model: Model) -> dict[str, list[str]]:
    """The keys that keep a state_dict from loading strictly, by problem."""
    expected = model.state_dict()
    return {
        "missing": [key for key in expected if key not in arrays],
        "unexpected": [key for key in arrays if key not in expected],
        _MISSHAPEN: [
            key
            for key, tensor in expected.items()
            if key in arrays
            and (tuple(tensor.shape), _DTYPES[tensor.dtype]) != (arrays[key].shape, arrays[key].dtype)
        ],
    }
