"""A source's tensors: planned, cast to float32, converted to a state_dict, and its averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checks.core.network import short_name
from checks.core.types import Array, Arrays
from converter.broken_values import NEXT_STEP, BrokenValues, count_broken_values, state_broken_values
from converter.casting import to_float32
from converter.convert import convert_tensors, plan_tensors
from converter.errors import SourceError, UsageError
from converter.formats.source import TensorSource
from converter.mtcnn_layer_map import MtcnnNetwork, find_network
from converter.plan import MappingError, Plan, Weights, describe, plan_conversion


def plan_source(opened: TensorSource, weights: Weights) -> tuple[Arrays, Plan]:
    """Read the tensors of a TensorFlow source, and plan their conversion.

    Raises:
        UsageError: The source is a state_dict.
        MappingError: The tensors are not those of this network.
    """
    if opened.naming == "pytorch":
        network = find_network(opened, opened.naming)
        checkpoint = (
            "its checkpoint (a folder, .index, .meta, .pb or Keras .h5) or a name of `facenet-port list`"
        )
        raise UsageError(
            f"{opened.path}: this is a PyTorch file; SOURCE has to be TensorFlow's, which is the judge. Give "
            f"{checkpoint if network is None else network.npy_name}. "
            f"`facenet-port compare SOURCE --state-dict {opened.path}` judges this file; "
            f"`facenet-port audit PORT --against {opened.path}` compares another PyTorch file with it."
        )
    return plan_tensors(opened, weights)


def refuse_mtcnn(opened: TensorSource, plan: Plan) -> None:
    """Refuse a network of MTCNN, in a check that is for Inception-ResNet-v1 only.

    Raises:
        SourceError: The source is one.
    """
    if isinstance(plan.network, MtcnnNetwork):
        raise SourceError(
            opened.path,
            f"this is {plan.network}, and this command is for Inception-ResNet-v1",
            next_step="`facenet-port compare`, `audit` and `convert` take it",
        )


def float32_variables(opened: TensorSource, tensors: Arrays, plan: Plan) -> dict[str, Array]:
    """Cast the converted variables to float32, as the conversion does.

    Raises:
        SourceError: A finite value is outside the range of float32.
    """
    used = {}
    for row in plan.converted:
        name = plan.sources[row.variable]
        try:
            used[row.variable] = to_float32(tensors[name])
        except OverflowError as error:
            raise SourceError(opened.path, str(error), tensor=name) from error
    return used


@dataclass(frozen=True, slots=True)
class BrokenSource:
    """A source that no port can be proven against: its own values, or those that it computes, are broken.

    Attributes:
        statement: What is broken, a clause.
        tensors: Name of each tensor with broken values to their numbers; empty if the weights are sound, and
            TensorFlow computes values from them that are not finite.
    """

    statement: str
    tensors: Mapping[str, BrokenValues]

    @property
    def next_step(self) -> str:
        """Advice to the user, a clause."""
        return NEXT_STEP if self.tensors else "The training diverged: take an earlier checkpoint"


def find_broken_source(variables: Arrays, plan: Plan) -> BrokenSource | None:
    """Find NaNs, infinities and negative variances in a source; None if there are none.

    Args:
        variables: Variable to float32 array, as `float32_variables` gives them.
        plan: The plan of the source's conversion.
    """
    broken = {
        plan.sources[row.variable]: values
        for row in plan.converted
        if (values := count_broken_values(row, variables[row.variable])) is not None
    }
    return BrokenSource(state_broken_values(broken, len(plan.sources)), broken) if broken else None


def find_overflow(activations: Arrays, whose: str, images: str) -> BrokenSource | None:
    """Find the first activation of a source with finite weights that is not finite; None without one.

    Args:
        activations: Activation to array, in the order of evaluation.
        whose: The side that computes them, such as "TensorFlow's".
        images: The name of the input.
    """
    for name, array in activations.items():
        if not np.isfinite(array).all():
            place = f"{whose} own values are not finite from {short_name(name)} on, on {images} images"
            return BrokenSource(f"{place}, though every weight is finite", {})
    return None


def refuse_broken_source(path: Path, broken: BrokenSource | None) -> None:
    """Refuse a broken source, if it is one.

    Raises:
        SourceError: `broken` says why nothing can be computed with the source.
    """
    if broken is not None:
        raise SourceError(path, f"the source is broken: {broken.statement}", next_step=broken.next_step)


def expected_state_dict(tensors: Arrays, plan: Plan) -> dict[str, Array]:
    """Convert the source's tensors to a state_dict."""
    return {tensor.row.key: tensor.array for tensor in convert_tensors(tensors, plan)}


def alternative_state_dict(tensors: Arrays, weights: Weights) -> dict[str, Array]:
    """Convert the other set of weights: the averages if the variables are judged, or the reverse.

    Empty if the source has no other set.
    """
    try:
        other = plan_conversion(describe(tensors), weights="average" if weights == "variable" else "variable")
    except MappingError:
        return {}
    return expected_state_dict(tensors, other)
