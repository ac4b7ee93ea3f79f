"""Several faults at once, no fault, and ports and references that a diagnosis leaves as they were."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from checks.compare.measure import measure
from checks.core.inputs import SEEDED, InputBatch
from checks.core.network import EMBEDDINGS
from checks.core.tensorflow_side import Activations
from checks.diagnosis import diagnose
from checks.diagnosis.causes import Cause
from tests.checks.diagnosis.faulty_ports import (
    IMAGES,
    KERNEL,
    MODULES,
    ONE_BY_SEVEN,
    UNIT_ACTIVATION,
    WEIGHTS,
    Arrays,
    computing,
    port_of,
)

pytestmark = pytest.mark.slow


def test_several_faults_are_all_found_in_one_pass(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    state_dict = dict(clean)
    WEIGHTS["inputs and outputs"][0](state_dict)
    WEIGHTS["two kernels"][0](state_dict)
    port = port_of(state_dict)
    for module in port.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e-5
    port.repeat_1[1].scale = 0.1
    port.block8.relu = True
    diagnosis = diagnose(port, reference, IMAGES, source=clean)
    count = {cause: sum(finding.cause == cause for finding in diagnosis.findings) for cause in Cause}
    assert {cause: number for cause, number in count.items() if number} == {
        Cause.EPSILON: 112,
        Cause.RESIDUAL_SCALE: 1,
        Cause.IN_OUT: 1,
        Cause.OTHER_TENSOR: 2,
        Cause.RELU: 1,
    }
    assert len(diagnosis.summary) == 5
    assert diagnosis.summary[0].startswith("another epsilon at Conv2d_1a_3x3 (and at Conv2d_2a_3x3, ")
    assert "and 107 more" in diagnosis.summary[0]
    assert set(diagnosis.repair) == {KERNEL, *ONE_BY_SEVEN}


def test_a_clean_port_has_no_findings_and_is_left_as_it_was(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = port_of(clean)
    before = {key: tensor.clone() for key, tensor in port.state_dict().items()}
    assert diagnose(port, reference, IMAGES, source=clean).findings == ()
    port.train()  # BatchNorm would move its statistics
    diagnosis = diagnose(port, reference, IMAGES, source=clean)
    assert {finding.cause for finding in diagnosis.findings} == {Cause.BATCH_STATISTICS, Cause.DROPOUT}
    assert all(torch.equal(tensor, before[key]) for key, tensor in port.state_dict().items())
    for module in port.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_port_that_works_in_place_is_no_fault_and_leaves_the_reference_alone(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    def in_place(self: Any, x: Tensor) -> Tensor:
        mixed = torch.cat([self.branch0(x), self.branch1(x), self.branch2(x)], 1)
        x += self.scale * self.conv2d(mixed)
        return x.relu_()

    port = port_of(clean)
    computing("repeat_1.2", in_place)(port)
    before = {activation: array.copy() for activation, array in reference.items()}
    assert diagnose(port, reference, IMAGES, source=clean).findings == ()
    assert all(np.array_equal(array, before[activation]) for activation, array in reference.items())


def test_a_source_that_was_read_by_a_wrong_table_is_not_taken_for_the_cause(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    wrong = {**clean, KERNEL: np.ascontiguousarray(clean[KERNEL].swapaxes(2, 3))}
    (finding,) = diagnose(port_of(wrong), reference, IMAGES, source=wrong).findings
    assert finding.cause is None
    assert finding.activation.endswith(UNIT_ACTIVATION)
    assert "the source's own tensors" in finding.statement
    assert not finding.repair


def test_ports_are_diagnosed_in_several_threads_at_once(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    names = ["epsilon", "dropout", "residual scale", "L1"]

    def run(name: str) -> Cause | None:
        port = port_of(clean)
        MODULES[name][0](port)
        return diagnose(port, reference, IMAGES, source=clean).findings[0].cause

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, names)) == [MODULES[name][1] for name in names]


def test_an_array_of_another_shape_is_infinitely_far() -> None:
    exact = {EMBEDDINGS: np.eye(5)}
    other = {EMBEDDINGS: np.eye(5, 4)}
    batch = InputBatch(SEEDED[0], np.zeros((5, 2, 2, 3), np.float32))
    single = {EMBEDDINGS: exact[EMBEDDINGS].astype(np.float32)}
    measured = measure(Activations(batch, exact, single, False, {}, ()), other, other)
    assert measured.first_divergence == EMBEDDINGS
    assert measured.distance64 == measured.distance32 == np.inf
