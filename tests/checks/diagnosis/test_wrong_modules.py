"""Faults in the modules are named and placed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any

import pytest
from numpy.typing import NDArray

from checks.diagnosis import diagnose
from tests.checks.diagnosis.faulty_ports import (
    IMAGES,
    MODULES,
    UNIT_ACTIVATION,
    Arrays,
    port_of,
    unit_of,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", MODULES)
def test_a_fault_in_a_module_is_named_and_placed(
    name: str, clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    fault, cause, activation, text = MODULES[name]
    port = port_of(clean)
    fault(port)
    (finding,) = diagnose(port, reference, IMAGES, source=clean).findings
    assert finding.cause == cause
    assert finding.activation.endswith(activation)
    assert text in finding.statement
    assert not finding.repair
    assert not finding.in_weights


def test_a_module_that_nobody_knows_is_placed_without_a_cause(
    clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    port = port_of(clean)
    unit_of(port).forward = MethodType(lambda self, x: self.bn(self.conv(x)).relu().sqrt(), unit_of(port))
    (finding,) = diagnose(port, reference, IMAGES, source=clean).findings
    assert finding.cause is None
    assert finding.activation.endswith(UNIT_ACTIVATION)
    unit_of(port).forward = MethodType(lambda self, x: 1 / 0, unit_of(port))
    (finding,) = diagnose(port, reference, IMAGES, source=clean).findings
    assert finding.cause is None
    assert "ZeroDivisionError" in finding.statement
