"""The four judgements: each on figures just inside its threshold and just outside."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from checks.compare.judge import (
    judge_headline,
    judge_mapping,
    judge_rounding,
    judge_stored_tensors,
    judge_tensors,
)
from checks.compare.measure import measure
from checks.compare.result import InputMeasurement
from checks.core import thresholds
from checks.core.inputs import NOISE, InputBatch
from checks.core.rounding import LayerRounding
from checks.core.tensorflow_side import Activations
from converter.layer_map import Variant, table
from converter.plan import Plan

ACTIVATIONS = ("first", "second", "embeddings")
ROW = np.array([[0.6, 0.8]])  # of unit length, and so is any float64 rounding of it


def _exact() -> dict[str, NDArray]:
    return {activation: np.repeat(ROW, 5, axis=0) for activation in ACTIVATIONS}


def _moved(distance: float, activation: str = "second") -> dict[str, NDArray]:
    """The exact activations with a relative L2 error of `distance` at one activation."""
    arrays = _exact()
    arrays[activation] = arrays[activation] * (1 + distance)
    return arrays


def _measured(
    pytorch: Mapping[str, NDArray] | None = None,
    tensorflow: Mapping[str, NDArray] | None = None,
    pytorch64: Mapping[str, NDArray] | None = None,
) -> InputMeasurement:
    # float32 activations are kept in float64 here, so that errors far below a float32 step can be set.
    batch = InputBatch(NOISE, np.zeros((5, 4, 4, 3)))
    expected = Activations(batch, _exact(), tensorflow or _exact(), False, {}, ())
    return measure(expected, pytorch or _exact(), pytorch64 or _exact())


def test_mapping_holds_below_its_threshold_and_names_the_first_activation_above() -> None:
    assert judge_mapping([_measured(pytorch64=_moved(0.9e-13))]).passed
    measured = _measured(
        pytorch64={**_moved(1.2e-13), "embeddings": _moved(1e-9, "embeddings")["embeddings"]}
    )
    judgement = judge_mapping([measured])
    assert not judgement.passed
    assert measured.first_divergence == "second"
    assert any("first at second" in detail for detail in judgement.details)
    assert any("embeddings are" in detail for detail in judgement.details)


def test_mapping_fails_on_nan() -> None:
    poisoned = _exact()
    poisoned["first"][0, 0] = np.nan
    measured = _measured(pytorch64=poisoned)
    assert measured.first_divergence == "first"
    assert not judge_mapping([measured]).passed


def _layer(share: float) -> tuple[LayerRounding, ...]:
    return (LayerRounding("InceptionResnetV1/Conv2d_1a_3x3", share * 2e-6, 2e-6),)


@pytest.mark.parametrize("field", ["rounding", "own_rounding"])
def test_rounding_bounds_every_layer_of_pytorch_and_of_the_own_graph(field: str) -> None:
    inside = replace(_measured(), **{field: _layer(0.99)})
    assert judge_rounding([inside]).passed
    assert judge_rounding([inside]).share == pytest.approx(0.99)
    judgement = judge_rounding([inside, replace(_measured(), **{field: _layer(1.01)})])
    assert not judgement.passed
    subject = "PyTorch" if field == "rounding" else "the checkpoint's own graph"
    assert judgement.details == (
        f"standard normal: Conv2d_1a_3x3: {subject} is 2.0e-06 from the float64 result of the same input; "
        "rounding allows 2.0e-06",
    )


def test_headline_bounds_the_distance_and_the_largest_row() -> None:
    five_rows = thresholds.HEADLINE / 5**0.5
    assert judge_headline([_measured(_moved(0.99 * five_rows, "embeddings"))]).passed
    assert not judge_headline([_measured(_moved(1.01 * five_rows, "embeddings"))]).passed
    one_row = _exact()
    one_row["embeddings"][3] *= 1 + 1.01 * thresholds.HEADLINE_ROW
    measured = _measured(one_row)
    assert measured.distance32 < thresholds.HEADLINE
    assert not judge_headline([measured]).passed


SMALL = {
    "InceptionResnetV1/Conv2d_1a_3x3/weights": np.arange(864, dtype=np.float32).reshape(3, 3, 3, 32),
    "InceptionResnetV1/Conv2d_1a_3x3/BatchNorm/beta": np.linspace(-1, 1, 32, dtype=np.float32),
}


def _small_plan() -> Plan:
    """A plan of three rows: a kernel, an offset and a scale that is synthesised."""
    wanted = ("conv2d_1a.conv.weight", "conv2d_1a.bn.bias", "conv2d_1a.bn.weight")
    rows = tuple(row for row in table(Variant()) if row.key in wanted)
    return Plan(Variant(), "variable", rows, {name: name for name in SMALL}, (), {})


def _small_state_dict() -> dict[str, NDArray[Any]]:
    return {
        "conv2d_1a.conv.weight": SMALL["InceptionResnetV1/Conv2d_1a_3x3/weights"]
        .transpose(3, 2, 0, 1)
        .copy(),
        "conv2d_1a.bn.weight": np.ones(32, np.float32),
        "conv2d_1a.bn.bias": SMALL["InceptionResnetV1/Conv2d_1a_3x3/BatchNorm/beta"].copy(),
    }


def _faulty(change: str) -> dict[str, NDArray[Any]]:
    state_dict = _small_state_dict()
    if change == "one bit":
        state_dict["conv2d_1a.bn.bias"].view(np.uint32)[7] ^= 1
    elif change == "minus zero":
        state_dict["conv2d_1a.conv.weight"][0, 0, 0, 0] *= -1
    elif change == "not a number":
        state_dict["conv2d_1a.bn.bias"][7] = np.nan
    elif change == "flipped":
        state_dict["conv2d_1a.conv.weight"] = state_dict["conv2d_1a.conv.weight"][:, :, ::-1].copy()
    elif change == "scale":
        state_dict["conv2d_1a.bn.weight"][3] = np.nextafter(np.float32(1), np.float32(2))
    elif change == "dtype":
        state_dict["conv2d_1a.bn.bias"] = state_dict["conv2d_1a.bn.bias"].astype(np.float64)
    elif change == "missing":
        del state_dict["conv2d_1a.bn.bias"]
    else:
        state_dict["extra"] = np.zeros(1, np.float32)
    return state_dict


def test_tensors_hold_where_every_bit_agrees() -> None:
    judgement = judge_tensors(_small_state_dict(), SMALL, _small_plan(), SMALL)
    assert judgement.passed
    assert judgement.statement.endswith("TensorFlow's own reader gives the same 2 of 2")


@pytest.mark.parametrize("change", ["one bit", "minus zero", "flipped", "scale", "dtype", "missing", "extra"])
def test_tensors_fail_on_any_change_of_the_state_dict(change: str) -> None:
    judgement = judge_tensors(_faulty(change), SMALL, _small_plan(), {})
    assert not judgement.passed
    assert len(judgement.details) == 1


@pytest.mark.parametrize(
    ("change", "statement", "detail"),
    [
        ("one bit", "1 tensor differs from the source", "1 of 32 values differs from"),
        ("minus zero", "1 tensor differs from the source", "1 of 864 values differs from"),
        ("not a number", "1 tensor differs from the source", "1 of 32 values differs (1 is not finite) from"),
    ],
)
def test_counts_are_of_bits_and_agree_with_their_nouns(change: str, statement: str, detail: str) -> None:
    judgement = judge_tensors(_faulty(change), SMALL, _small_plan(), {})
    assert judgement.statement == statement
    assert detail in judgement.details[0]


def test_a_scale_of_ones_in_half_precision_is_of_another_dtype() -> None:
    halves = {
        key: array.astype(np.float16) if array.dtype == np.float32 else array
        for key, array in _small_state_dict().items()
    }
    details = judge_tensors(halves, SMALL, _small_plan(), {}).details
    assert any(".bn.weight: float16 " in detail and "expected float32" in detail for detail in details)
    assert not any("throughout" in detail for detail in details)


def test_tensors_fail_where_the_two_readers_differ() -> None:
    names = list(SMALL)
    other = {**SMALL, names[1]: np.nextafter(SMALL[names[1]], np.float32(9))}
    for own, name in (
        (other, names[1]),
        ({names[0]: SMALL[names[0]]}, names[1]),
        ({**SMALL, "alien": SMALL[names[1]]}, "alien"),
    ):
        judgement = judge_tensors(_small_state_dict(), SMALL, _small_plan(), own)
        assert not judgement.passed
        assert judgement.details[0].startswith(f"{name}:")


def test_stored_tensors_name_each_kind_of_difference() -> None:
    stored = {"same": "0a", "other": "0b", "gone": "0c"}
    assert judge_stored_tensors(stored, stored).passed
    judgement = judge_stored_tensors({"same": "0a", "other": "ff", "new": "0d"}, stored)
    assert not judgement.passed
    assert [detail.split(":")[0] for detail in judgement.details] == ["gone", "new", "other"]
