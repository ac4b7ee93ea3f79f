"""Faults in the weights are named, placed and put right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
from reference import InceptionResnetV1
from tests.checks.diagnosis.faulty_ports import (
    CLASSES,
    IMAGES,
    KERNEL,
    UNIT,
    UNIT_ACTIVATION,
    WEIGHTS,
    Arrays,
    port_of,
    same_bytes,
)
from tests.support.package_index import KERAS_FACENET, IndexUnreachableError, download, extract


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_fault_in_the_weights_is_named_placed_and_put_right(
    name: str, right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    fault, cause, activation = WEIGHTS[name]
    state_dict = dict(right)
    fault(state_dict)
    found = diagnose(port_of(state_dict), reference, IMAGES, source=right)
    assert found.findings[0].cause == cause, found.findings
    assert found.findings[0].activation.endswith(activation)
    assert found.findings[0].in_weights
    assert {finding.cause for finding in found.findings} == {cause}
    assert {str(cause) in line for line in found.summary} == {True}
    repaired = {**state_dict, **found.repair}
    assert all(same_bytes(repaired[key], right[key]) for key in right)


@pytest.mark.parametrize(
    ("axes", "statement"),
    [(2, "along height"), (3, "along width"), ((2, 3), "along height and width")],
)
def test_a_flip_is_named_with_its_axes(axes: Any, statement: str, right: Arrays) -> None:
    actual = np.ascontiguousarray(np.flip(right[KERNEL], axes))
    explanation = explain(KERNEL, actual, SourceTensors(right, {}))
    assert explanation == (Cause.FLIPPED, f"is flipped {statement}")


@pytest.mark.parametrize("only", [None, KERNEL])
def test_averages_for_weights_are_named(
    only: str | None, right: Arrays, averages: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = port_of({**right, **{key: averages[key] for key in averages if only in (None, key)}})
    found = diagnose(port, reference, IMAGES, source=right, averages=averages)
    assert {finding.cause for finding in found.findings} == {Cause.AVERAGES}
    assert set(found.repair) == ({only} if only else set(averages))


def test_a_finding_names_the_tensor_and_its_first_value_that_differs(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    kernel = right[KERNEL].copy()
    kernel[3, 1, 2, 0], kernel[30, 0, 0, 0] = 0.5, np.nan
    port = port_of({**right, KERNEL: kernel})
    (found,) = diagnose(port, reference, IMAGES, source=right).findings
    assert (found.cause, found.key, found.count) == (Cause.VALUES, KERNEL, 2)
    assert found.variable == f"InceptionResnetV1/{UNIT_ACTIVATION}/weights"
    assert (found.index, found.expected, found.actual) == ((3, 1, 2, 0), right[KERNEL][3, 1, 2, 0], 0.5)
    (stated,) = diagnose(port, reference, IMAGES, source=right).as_json()
    assert (stated["key"], stated["variable"], stated["index"]) == (KERNEL, found.variable, (3, 1, 2, 0))
    gamma = f"{UNIT}.bn.weight"
    port = port_of({**right, gamma: 2 * right[gamma]})
    (found,) = diagnose(port, reference, IMAGES, source=right).findings
    assert (found.key, found.variable, found.index, found.expected, found.actual) == (gamma, None, (0,), 1, 2)
    assert found.count == 32
    old = Variant(128, CLASSES, bottleneck_scope="Bottleneck")
    port = port_of({**right, "last_linear.weight": right["last_linear.weight"] * np.float32(2)})
    (found,) = diagnose(port, reference, IMAGES, source=right, variant=old).findings
    assert found.variable == "Bottleneck/weights"


def test_the_first_wrong_layers_alone_may_be_asked_for(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = port_of(right)
    for module in port.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e-5
    found = diagnose(port, reference, IMAGES, source=right, most_layers=2)
    assert [finding.activation.partition("/")[2] for finding in found.findings] == [
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
    ]


def test_a_difference_that_does_not_show_is_found(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    hidden = right[KERNEL].copy()
    smallest = np.abs(hidden).argmin()
    hidden.reshape(-1)[smallest] = np.nextafter(hidden.reshape(-1)[smallest], np.float32(9))
    port = port_of({**right, KERNEL: hidden})
    (found,) = diagnose(port, reference, IMAGES, source=right).findings
    assert found.cause == Cause.VALUES
    assert found.activation.endswith(UNIT_ACTIVATION)
    assert "the layer agrees all the same" in found.statement
    assert same_bytes(found.repair[KERNEL], right[KERNEL])


def test_a_kernel_of_another_shape_is_diagnosed_as_well(
    right: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    """All 1x7 and 7x1 kernels turned, with the modules that go with them."""
    port = port_of(right)
    for block in port.repeat_2:
        for number, padding in ((1, (3, 0)), (2, (0, 3))):
            conv = block.branch1[number].conv
            conv.weight = nn.Parameter(conv.weight.mT.contiguous())
            conv.padding = padding
    found = diagnose(port, reference, IMAGES, source=right)
    assert [finding.cause for finding in found.findings] == [Cause.HEIGHT_WIDTH] * 20
    assert all(same_bytes(array, right[key]) for key, array in found.repair.items())
    assert len(found.summary) == 1
    assert "block17_1/Branch_1/Conv2d_0b_1x7" in found.summary[0]


# Real weights


@pytest.mark.real
def test_real_weights_are_clean_and_a_fault_in_them_is_found(tmp_path: Path) -> None:
    try:
        archive = download(KERAS_FACENET)
    except IndexUnreachableError as error:
        pytest.skip(f"no package index serves {KERAS_FACENET.requirement}: {error}")
    (path,) = extract(archive, tmp_path, "/model/facenet_keras.h5")
    with open_source(path) as source:
        tensors = {name: np.array(array) for name, array in tensorflow_tensors(source).items()}
    with RebuiltNetwork(tensors, "float64") as network:
        reference = network.run(IMAGES, activation_names(every_layer=True, logits=False))
    right = to_numpy_state_dict(tensors)

    def port(state_dict: Arrays) -> InceptionResnetV1:
        model = InceptionResnetV1(embedding_size=128)
        model.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in state_dict.items()})
        return model.double().eval()

    assert diagnose(port(right), reference, IMAGES, source=right).findings == ()
    for name in ("height and width", "two kernels", "beta and mean", "inputs reversed", "folded", "one step"):
        fault, cause, activation = WEIGHTS[name]
        state_dict = dict(right)
        fault(state_dict)
        found = diagnose(port(state_dict), reference, IMAGES, source=right)
        assert {finding.cause for finding in found.findings} == {cause}, name
        assert found.findings[0].activation.endswith(activation)
