"""A whole port, from pixels to the optimiser, in which faults are planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from checks.core.inputs import prewhiten, standardise
from checks.core.types import Array, Arrays
from checks.gradients.train_pytorch import Loss, MakeOptimiser, make_optimiser, training_loss
from converter.layer_map import NETWORK_SCOPE, ConvertedRow
from converter.plan import Plan
from reference import InceptionResnetV1

Standardisation = Literal["fixed", "per image"]

Prepare = Callable[[Array], Array]
"""Pixels (N, H, W, 3), uint8, to the network's input: (N, H, W, 3), float32."""


@dataclass(slots=True, eq=False)
class Pipeline:
    """A whole port, from pixels to the optimiser.

    Attributes:
        float32: The network as a user runs it, in evaluation mode.
        float64: The same with its float32 weights widened.
        plan: The plan that its tensors were converted by.
        source: TensorFlow name to array, of the variables and of their moving averages.
        prepare: The port's preprocessing, for each standardisation.
        loss: The loss of training.
        make_optimiser: Makes the optimiser of the training steps.
    """

    float32: InceptionResnetV1
    float64: InceptionResnetV1
    plan: Plan
    source: Arrays
    prepare: dict[Standardisation, Prepare] = field(
        default_factory=lambda: {"fixed": standardise, "per image": prewhiten}
    )
    loss: Loss = training_loss
    make_optimiser: MakeOptimiser = make_optimiser

    @property
    def models(self) -> tuple[InceptionResnetV1, InceptionResnetV1]:
        """The network in float32 and in float64."""
        return self.float32, self.float64

    def row(self, variable: str) -> ConvertedRow:
        """The row of the layer map for a variable, named without the network's scope."""
        names = f"{NETWORK_SCOPE}/{variable}", variable  # Logits, and an old Bottleneck, stand outside it
        return next(row for row in self.plan.converted if row.variable in names)

    def tensor(self, variable: str) -> Array:
        """The port's tensor for a variable: float32, in PyTorch's layout, a copy."""
        return np.array(self.state(self.row(variable).key))

    def state(self, key: str) -> Array:
        """The tensor of the float32 network under a state_dict key, sharing its memory."""
        module, _, name = key.rpartition(".")
        array: Array = getattr(self.float32.get_submodule(module), name).detach().numpy()
        return array
