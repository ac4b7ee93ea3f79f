"""Verified weights: of a state_dict file, by the manifest beside it, or of a model with several networks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converter.broken_values import NEXT_STEP, BrokenValues, count_broken_values, state_broken_values
from converter.convert import convert_tensors, plan_tensors, to_pytorch
from converter.errors import SourceError, UsageError
from converter.formats.detect import open_source
from converter.free_names import free_name, quoted
from converter.hub import catalog
from converter.hub.locate import Progress, local_files
from converter.layer_map import ConvertedRow
from converter.manifest import file_digest, manifest_path, read_manifest
from converter.mtcnn_layer_map import Network
from converter.network_names import COUNTER, NetworkTensors, check_ignore


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The weights of a file.

    Attributes:
        state_dict: Key to tensor on the CPU, which belongs to the caller: every key of the network, without a
            prefix, in float32. Batch counters that the file does not have are zero.
        network: The network that they belong to.
    """

    state_dict: dict[str, torch.Tensor]
    network: Network


def load_weights_file(path: Path | str, *, ignore: Sequence[str] = ()) -> WeightsFile:
    """Load the state_dict of a .pt or .safetensors file, as the converter reads it.

    Args:
        path: The file. If its manifest stands beside it, its SHA-256 must be the one in the manifest.
        ignore: Shell patterns of tensors to leave out.

    A warning counts and names the tensors with values that are not finite.

    Raises:
        UsageError: The file is not a state_dict, holds two networks, or a pattern matches nothing or a tensor
            that the network needs.
        SourceError: The file is unreadable, corrupt or not the one of its manifest.
        MappingError: The tensors are not those of this network.
    """
    if not Path(path).exists() and catalog.find_entry(str(path)) is not None:
        raise UsageError(
            f"{path} is the name of a model, not a file. Load it with "
            f"InceptionResnetV1(pretrained={str(path)!r})."
        )
    with open_source(path) as source:
        if source.naming != "pytorch":
            raise UsageError(
                f"{path}: this is a {source.format}, not a state_dict. Convert it first: "
                f"facenet-port convert {quoted(path)} -o {free_name('weights.pt')}"
            )
        _verify(source.files[0])
        named = NetworkTensors(source, ignore)
        check_ignore(ignore, named)
        tensors, plan = plan_tensors(named, views=True)
        arrays: dict[str, NDArray[Any]] = {}
        broken: dict[str, BrokenValues] = {}
        with named.naming_errors():
            for tensor in convert_tensors(tensors, plan):
                arrays[tensor.row.key] = tensor.array
                if isinstance(tensor.row, ConvertedRow):
                    values = count_broken_values(tensor.row, tensor.array)
                    broken |= {} if values is None else {named.original(tensor.row.key): values}
        arrays |= {key: np.array(named[key], np.int64) for key in named if key.endswith(COUNTER)}
    if broken:
        warnings.warn(f"{path}: {state_broken_values(broken, len(plan.sources))}. {NEXT_STEP}.", stacklevel=3)
    state_dict = {key: torch.from_numpy(array) for key, array in arrays.items()}
    return WeightsFile(state_dict, plan.network)


def _verify(path: Path) -> None:
    """Check the SHA-256 of a file against the manifest beside it, if there is one."""
    beside = manifest_path(path)
    if not beside.exists():
        return
    try:
        manifest = read_manifest(beside)
    except SourceError as error:
        raise SourceError(
            beside,
            f"it has the name of the manifest of {path.name}, but is not a manifest of this converter, or is "
            "damaged",
            next_step=f"Move it away to load {path.name} unverified, or convert the checkpoint again",
        ) from error
    digest = file_digest(path)
    if digest not in manifest.output.values():
        raise SourceError(
            path,
            f"its SHA-256 is {digest}, not the one in {beside.name}: it is not the file that was converted",
            next_step="Convert the checkpoint again, or remove the manifest if it belongs to another file",
        )


def load_published_networks(
    name: str, *, offline: bool = False, progress: Progress | None = None
) -> list[dict[str, torch.Tensor]]:
    """Load the networks of a published model that has several, such as `mtcnn`.

    Args:
        name: A name or alias of the catalog.
        offline: Never download.
        progress: Progress callback of a download.

    Returns:
        The state_dict of each network, in the order of the names of their files.

    Raises:
        UsageError: The catalog has no such name.
        RequirementError: The model is not in the cache and cannot be downloaded.
        SourceError: The cached files or the user's catalog are damaged.
    """
    state_dicts = []
    for path in local_files(name, offline=offline, progress=progress).values():
        with open_source(path) as source:
            state_dicts.append(to_pytorch(source))
    return state_dicts
