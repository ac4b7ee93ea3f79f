"""Faults in the modules are named and placed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any

import pytest
from numpy.typing import NDArray

from checks.diagnosis import diagnose
from tests.checks.diagnosis.faulty_ports import (
    BLOCK17,
    IMAGES,
    MODULES,
    UNIT,
    UNIT_ACTIVATION,
    UNITS,
    Arrays,
    module_in,
    port_of,
    unit_of,
)

pytestmark = pytest.mark.slow


OF_A_UNIT = [name for name, (_, _, activation, _) in MODULES.items() if activation == UNIT_ACTIVATION]
AT_THE_END = ["no L2", "L1", "logits of embeddings", "dropout"]
"""Faults of which a port has one at most, but for the last two."""


@pytest.mark.parametrize(
    "names",
    [
        [*OF_A_UNIT[:7], "no L2"],
        [*OF_A_UNIT[7:], *(name for name in MODULES if name not in (*OF_A_UNIT, *AT_THE_END)), "L1"],
        AT_THE_END[2:],
    ],
)
def test_faults_in_modules_are_named_and_placed_each_by_itself(
    names: list[str], clean: Arrays, reference: Mapping[str, NDArray[Any]]
) -> None:
    """Those of one unit, and of one block, each in a unit or block of its own."""
    port = port_of(clean)
    units, blocks = iter(UNITS.items()), iter(range(1, 10))
    planted = []
    for name in names:
        fault, cause, activation, text = MODULES[name]
        if name in OF_A_UNIT:
            unit, activation = next(units)
            fault = module_in(UNIT, unit, fault)
        elif "block17_4" in activation:
            block = next(blocks)
            fault = module_in(BLOCK17, f"repeat_2.{block}", fault)
            activation = activation.replace("block17_4", f"block17_{block + 1}")
        fault(port)
        planted.append((activation, cause, text))
    findings = diagnose(port, reference, IMAGES, source=clean).findings
    for activation, cause, text in planted:
        (finding,) = (each for each in findings if each.activation.endswith(activation))
        assert finding.cause == cause
        assert text in finding.statement
        assert not finding.repair
        assert not finding.in_weights
    assert len(findings) == len(planted)


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
