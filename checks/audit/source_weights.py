"""The weights of the source: the tensors that a port is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from checks.audit.folding_formulas import BatchNorm
from checks.audit.port_layers import BATCH_NORM, Role
from checks.core.network import stage_of
from checks.core.source_tensors import BrokenSource
from checks.core.types import Array
from checks.diagnosis.explain_tensor import SourceTensors
from converter.layer_map import BOTTLENECK_SCOPES, ConvertedRow, Variant, table


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """The place of a tensor in the network, with its names; a side without the tensor has an empty name.

    Attributes:
        stage: The stage of the network (`Repeat/block35_1`).
        variable: The TensorFlow variable, or the scope of several variables.
        key: The key in the published state_dicts, or the module of several keys.
    """

    stage: str
    variable: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class SourceWeights:
    """The weights of the source.

    Attributes:
        variant: The variant of the network.
        tensors: Variable to float32 array in TensorFlow's layout. The Bottleneck is under its newer scope.
        state_dict: The same tensors under the keys of the state_dict, with the moving averages.
        broken: The broken values among them; None without any.
    """

    variant: Variant
    tensors: Mapping[str, Array]
    state_dict: SourceTensors
    broken: BrokenSource | None = None

    def tensor(self, scope: str, role: Role) -> Array | None:
        """Return a tensor of a layer; a gamma that the source lacks is all ones."""
        name = variable_name(scope, role)
        if name not in self.tensors and role == "gamma":
            return np.ones_like(self.tensors[variable_name(scope, "beta")])
        return self.tensors.get(name)

    def batch_norm(self, scope: str) -> BatchNorm:
        """Return the BatchNorm of a layer."""
        gamma, beta, mean, variance = (self.tensor(scope, role) for role in BATCH_NORM)
        assert gamma is not None and beta is not None and mean is not None and variance is not None
        return BatchNorm(gamma, beta, mean, variance)

    def place(self, scope: str, role: Role) -> TensorPlace:
        """Return the place of a tensor of a layer."""
        name = variable_name(scope, role)
        return TensorPlace(stage_of(scope), name, state_dict_keys(self.variant).get(name, ""))

    def place_of_batch_norm(self, scope: str) -> TensorPlace:
        """Return the place of a tensor that combines a whole BatchNorm."""
        module, _, _ = self.place(scope, "beta").key.rpartition(".")
        return TensorPlace(stage_of(scope), f"{scope}/BatchNorm", module)


def source_weights(
    variables: Mapping[str, Array],
    variant: Variant,
    state_dict: SourceTensors,
    broken: BrokenSource | None = None,
) -> SourceWeights:
    """Make the weights of a source from its float32 variables."""
    new, old = BOTTLENECK_SCOPES
    if variant.bottleneck_scope == old:
        variables = {
            f"{new}{name.removeprefix(old)}" if name.startswith(f"{old}/") else name: array
            for name, array in variables.items()
        }
    return SourceWeights(variant, variables, state_dict, broken)


def variable_name(scope: str, role: Role) -> str:
    """Return the name of a TensorFlow variable."""
    return f"{scope}/BatchNorm/{role}" if role in BATCH_NORM else f"{scope}/{role}"


@cache
def state_dict_keys(variant: Variant) -> Mapping[str, str]:
    """Map variables to state_dict keys, for every tensor that a port may have."""
    full = Variant(variant.embedding_size, variant.num_classes or 1, gamma=True)
    return {row.variable: row.key for row in table(full) if isinstance(row, ConvertedRow)}
