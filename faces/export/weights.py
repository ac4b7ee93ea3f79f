"""The weights that are exported: from any source of the converter, with what is known about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from checks.audit.port_layers import printable
from checks.core.source_tensors import (
    expected_state_dict,
    find_broken_source,
    float32_variables,
    refuse_broken_source,
)
from checks.core.types import Arrays
from converter.convert import plan_tensors
from converter.formats.detect import open_source
from converter.hub.identify import find_published
from converter.manifest import file_digest, stated_standardisation
from converter.mtcnn_layer_map import Network
from converter.network_names import NetworkTensors, check_ignore
from converter.plan import Weights
from reference import InceptionResnetV1
from reference.mtcnn import ONet, PNet, RNet
from reference.weights import build_network


@dataclass(frozen=True, slots=True)
class ExportWeights:
    """The weights of a network.

    Attributes:
        path: The file, folder or prefix that they were read from.
        name: The name of the published model, or that of the file.
        network: The network that they belong to.
        variables: TensorFlow variable to float32 array.
        state_dict: The same under PyTorch's keys, complete.
        files: Name of each file that was read to its SHA-256.
        taken: Which weights of the source they are, as `export` names them.
        standardisation: The standardisation of images that the catalog or a manifest states; None without.
        licence: The licence of the weights; None if the catalog does not state it.
    """

    path: Path
    name: str
    network: Network
    variables: Arrays
    state_dict: Arrays
    files: Mapping[str, str]
    taken: Weights
    standardisation: str | None
    licence: str | None

    def build(self) -> InceptionResnetV1 | PNet | RNet | ONet:
        """Build the network in PyTorch, float32, in evaluation mode."""
        with torch.device("meta"):  # no memory and no initial values, which the weights replace
            module = build_network(self.network)
        module.load_state_dict({k: torch.from_numpy(v) for k, v in self.state_dict.items()}, assign=True)
        return module.eval()


def read_weights(
    path: Path, *, weights: Weights = "variable", step: int | None = None, ignore: Sequence[str] = ()
) -> ExportWeights:
    """Read the weights of a source.

    Args:
        path: As in `open_source`.
        weights: The variables, or their moving averages ("average").
        step: As in `open_source`.
        ignore: Shell patterns of tensors to leave out.

    Raises:
        UsageError: `ignore` does not fit, or the source has two networks.
        SourceError: The source is unreadable or corrupt, or has values that are not finite.
        MappingError: It is another network.
    """
    with open_source(path, step=step) as opened:
        named = NetworkTensors(opened, ignore)
        check_ignore(ignore, named)
        tensors, plan = plan_tensors(named, weights)
        state_dict = expected_state_dict(tensors, plan)
        variables = float32_variables(named, tensors, plan)
        refuse_broken_source(opened.path, find_broken_source(variables, plan))
        files = {file.name: file_digest(file) for file in opened.files}
        entry = find_published(opened.path, files)
        stated = stated_standardisation(opened.path, files)
    return ExportWeights(
        path=path,
        name=printable(opened.path.name) if entry is None else entry.name,
        network=plan.network,
        variables=variables,
        state_dict=state_dict,
        files=files,
        taken=weights,
        standardisation=stated or (entry.standardisation if entry else None),
        licence=entry.licence if entry else None,
    )
