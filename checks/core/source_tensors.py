"""What a source says the tensors are: planned, cast, converted, and the averages beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from converter.casting import to_float32
from converter.convert import convert_tensors, tensorflow_tensors
from converter.errors import SourceError, UsageError
from converter.formats.source import TensorSource
from converter.plan import MappingError, Plan, Weights, describe, plan_conversion


def plan_tensors(opened: TensorSource, weights: Weights) -> tuple[Mapping[str, NDArray[Any]], Plan]:
    """The tensors of any source, a state_dict too, under TensorFlow's names, and their plan.

    Raises:
        MappingError: The tensors are not those of this network.
    """
    try:
        tensors = tensorflow_tensors(opened)
        return tensors, plan_conversion(describe(tensors), weights=weights)
    except MappingError as error:
        raise error.named(opened.path) from None


def plan_source(opened: TensorSource, weights: Weights) -> tuple[Mapping[str, NDArray[Any]], Plan]:
    """The tensors of a source under TensorFlow's names, and the plan of their conversion.

    Raises:
        UsageError: The source is a state_dict.
        MappingError: The tensors are not those of this network.
    """
    if opened.naming == "pytorch":
        raise UsageError(
            f"{opened.path}: a state_dict cannot judge itself. Give the checkpoint as SOURCE; checks.compare "
            "takes this file with --state-dict."
        )
    return plan_tensors(opened, weights)


def float32_variables(
    opened: TensorSource, tensors: Mapping[str, NDArray[Any]], plan: Plan
) -> dict[str, NDArray[Any]]:
    """The variables that are converted, cast to float32 as the conversion casts them.

    Raises:
        SourceError: A finite value is beyond float32.
    """
    used = {}
    for row in plan.converted:
        name = plan.sources[row.variable]
        try:
            used[row.variable] = to_float32(tensors[name])
        except OverflowError as error:
            raise SourceError(opened.path, str(error), tensor=name) from error
    return used


def expected_state_dict(tensors: Mapping[str, NDArray[Any]], plan: Plan) -> dict[str, NDArray[Any]]:
    """The state_dict that the source becomes."""
    return {tensor.row.key: tensor.array for tensor in convert_tensors(tensors, plan)}


def alternative_state_dict(tensors: Mapping[str, NDArray[Any]], weights: Weights) -> dict[str, NDArray[Any]]:
    """The state_dict of the averages where the variables are judged, or the reverse; empty without any."""
    try:
        other = plan_conversion(describe(tensors), weights="average" if weights == "variable" else "variable")
    except MappingError:
        return {}
    return expected_state_dict(tensors, other)
