"""Faults in the weights are named, placed and corrected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from checks.core.activations import activation_names
from checks.diagnosis import diagnose
from checks.diagnosis.causes import Cause
from checks.diagnosis.explain_tensor import SourceTensors, explain
from converter.convert import tensorflow_tensors, to_numpy_state_dict
from converter.formats.detect import open_source
from converter.layer_map import Variant
from facenet_tf.rebuilt_network import RebuiltNetwork
from tests.checks.diagnosis.faulty_ports import (
    CLASSES,
    IMAGES,
    KERNEL,
    UNIT,
    UNIT_ACTIVATION,
    UNITS,
    WEIGHTS,
    Arrays,
    port_of,
    same_bytes,
    weights_in,
)

pytestmark = pytest.mark.slow


OF_A_UNIT = [name for name, (_, _, activation) in WEIGHTS.items() if activation == UNIT_ACTIVATION]
"""The faults of one unit; of each kind there are units enough for half of them in one port."""


@pytest.mark.parametrize(
    "names",
    [
        [*OF_A_UNIT[: len(UNITS)], *(name for name in WEIGHTS if name not in (*OF_A_UNIT, "two blocks"))],
        [*OF_A_UNIT[len(UNITS) :], "two blocks"],  # whose blocks have no other fault
    ],
)
def test_faults_in_the_weights_are_named_placed_and_put_right_each_by_itself(
    names: list[str], clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    state_dict, units = dict(clean), iter(UNITS.items())
    planted = []
    for name in names:
        fault, cause, activation = WEIGHTS[name]
        if name in OF_A_UNIT:
            unit, activation = next(units)
            fault = weights_in(unit, fault)
        before = dict(state_dict)
        fault(state_dict)
        planted.append((activation, cause, {key for key in clean if state_dict[key] is not before[key]}))
    diagnosis = diagnose(port_of(state_dict), reference, IMAGES, source=clean)
    explained = 0
    for activation, cause, keys in planted:
        findings = [finding for finding in diagnosis.findings if keys & set(finding.repair)]
        assert {finding.cause for finding in findings} == {cause}, activation
        assert findings[0].activation.endswith(activation)
        assert all(finding.in_weights for finding in findings)
        explained += len(findings)
    assert explained == len(diagnosis.findings)
    assert {line.partition(" at ")[0] for line in diagnosis.summary} == {str(each[1]) for each in planted}
    repaired = {**state_dict, **diagnosis.repair}
    assert all(same_bytes(repaired[key], clean[key]) for key in clean)


@pytest.mark.parametrize(
    ("axes", "statement"),
    [(2, "along height"), (3, "along width"), ((2, 3), "along height and width")],
)
def test_a_flip_is_named_with_its_axes(axes: Any, statement: str, clean: Arrays) -> None:
    actual = np.ascontiguousarray(np.flip(clean[KERNEL], axes))
    explanation = explain(KERNEL, actual, SourceTensors(clean, {}))
    assert explanation == (Cause.FLIPPED, f"is flipped {statement}")


@pytest.mark.parametrize("only", [None, KERNEL])
def test_averages_for_weights_are_named(
    only: str | None, clean: Arrays, averages: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = port_of({**clean, **{key: averages[key] for key in averages if only in (None, key)}})
    diagnosis = diagnose(port, reference, IMAGES, source=clean, averages=averages)
    assert {finding.cause for finding in diagnosis.findings} == {Cause.AVERAGES}
    assert set(diagnosis.repair) == ({only} if only else set(averages))


def test_a_finding_names_the_tensor_and_its_first_value_that_differs(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    kernel = clean[KERNEL].copy()
    kernel[3, 1, 2, 0], kernel[30, 0, 0, 0] = 0.5, np.nan
    port = port_of({**clean, KERNEL: kernel})
    (finding,) = diagnose(port, reference, IMAGES, source=clean).findings
    assert (finding.cause, finding.key, finding.count) == (Cause.VALUES, KERNEL, 2)
    assert finding.variable == f"InceptionResnetV1/{UNIT_ACTIVATION}/weights"
    assert (finding.index, finding.expected, finding.actual) == ((3, 1, 2, 0), clean[KERNEL][3, 1, 2, 0], 0.5)
    (stated,) = diagnose(port, reference, IMAGES, source=clean).as_json()
    assert (stated["key"], stated["variable"], stated["index"]) == (KERNEL, finding.variable, (3, 1, 2, 0))
    gamma = f"{UNIT}.bn.weight"
    port = port_of({**clean, gamma: 2 * clean[gamma]})
    (finding,) = diagnose(port, reference, IMAGES, source=clean).findings
    assert (finding.key, finding.variable, finding.index, finding.expected, finding.actual) == (
        gamma,
        None,
        (0,),
        1,
        2,
    )
    assert finding.count == 32
    old = Variant(128, CLASSES, bottleneck_scope="Bottleneck")
    port = port_of({**clean, "last_linear.weight": clean["last_linear.weight"] * np.float32(2)})
    (finding,) = diagnose(port, reference, IMAGES, source=clean, variant=old).findings
    assert finding.variable == "Bottleneck/weights"


def test_the_first_wrong_layers_alone_may_be_asked_for(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = port_of(clean)
    for module in port.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e-5
    diagnosis = diagnose(port, reference, IMAGES, source=clean, most_layers=2)
    assert [finding.activation.partition("/")[2] for finding in diagnosis.findings] == [
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
    ]


def test_a_difference_that_does_not_show_is_found(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    hidden = clean[KERNEL].copy()
    smallest = np.abs(hidden).argmin()
    hidden.reshape(-1)[smallest] = np.nextafter(hidden.reshape(-1)[smallest], np.float32(9))
    port = port_of({**clean, KERNEL: hidden})
    (finding,) = diagnose(port, reference, IMAGES, source=clean).findings
    assert finding.cause == Cause.VALUES
    assert finding.activation.endswith(UNIT_ACTIVATION)
    assert "on the images of the diagnosis this does not show" in finding.statement
    assert same_bytes(finding.repair[KERNEL], clean[KERNEL])


def test_a_kernel_of_another_shape_is_diagnosed_as_well(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    """All 1x7 and 7x1 kernels turned, with the modules that go with them."""
    port = port_of(clean)
    for block in port.repeat_2:
        for number, padding in ((1, (3, 0)), (2, (0, 3))):
            conv = block.branch1[number].conv
            conv.weight = nn.Parameter(conv.weight.mT.contiguous())
            conv.padding = padding
    diagnosis = diagnose(port, reference, IMAGES, source=clean)
    assert [finding.cause for finding in diagnosis.findings] == [Cause.HEIGHT_WIDTH] * 20
    assert all(same_bytes(array, clean[key]) for key, array in diagnosis.repair.items())
    assert len(diagnosis.summary) == 1
    assert "block17_1/Branch_1/Conv2d_0b_1x7" in diagnosis.summary[0]


# Real weights


@pytest.mark.real
def test_real_weights_are_clean_and_a_fault_in_them_is_found(keras: Path) -> None:
    with open_source(keras) as source:
        tensors = {name: np.array(array) for name, array in tensorflow_tensors(source).items()}
    with RebuiltNetwork(tensors, "float64") as network:
        reference = network.run(IMAGES, activation_names(every_layer=True, logits=False))
    clean = to_numpy_state_dict(tensors)

    assert diagnose(port_of(clean), reference, IMAGES, source=clean).findings == ()
    for name in ("height and width", "two kernels", "beta and mean", "inputs reversed", "folded", "one step"):
        fault, cause, activation = WEIGHTS[name]
        state_dict = dict(clean)
        fault(state_dict)
        diagnosis = diagnose(port_of(state_dict), reference, IMAGES, source=clean)
        assert {finding.cause for finding in diagnosis.findings} == {cause}, name
        assert diagnosis.findings[0].activation.endswith(activation)
