"""The result of a diagnosis, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from checks.core.network import short_name
from checks.core.types import Array
from checks.diagnosis.causes import Cause

_MOST_NAMES = 4  # activations named in a line of the summary


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault at one activation.

    A finding in the weights describes the first of its tensors that differs from the source. If the shape
    of that tensor differs, there are no values to compare, and the last four attributes are None.

    Attributes:
        activation: TensorFlow scope.
        distance: Relative L2 of the layer's output on the reference's own input; infinite if the shape
            differs or the layer cannot be run. At most `thresholds.MAPPING` if this input does not show the
            fault.
        cause: The known cause that explains it, or None.
        statement: A plain sentence, with values.
        repair: state_dict key to the corrected tensor (float32); empty if the fault is not in the weights.
        in_weights: Whether the fault is in the tensors.
        key: state_dict key of the tensor; None if the fault is not in the weights.
        variable: Its TensorFlow variable; None if TensorFlow has none, as for BatchNorm's scale.
        index: Index of the first value that differs, in the PyTorch tensor.
        expected: The source's value at this index.
        actual: The port's value at this index.
        count: Number of values of the tensor that differ.
    """

    activation: str
    distance: float
    cause: Cause | None
    statement: str
    repair: Mapping[str, Array] = field(default_factory=dict)
    in_weights: bool = False
    key: str | None = None
    variable: str | None = None
    index: tuple[int, ...] | None = None
    expected: float | None = None
    actual: float | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All faults of a port.

    Attributes:
        findings: In the order of evaluation; empty for a clean port.
    """

    findings: tuple[Finding, ...]

    @property
    def summary(self) -> tuple[str, ...]:
        """A line for each cause: its layers, and the statement of the first."""
        groups: dict[tuple[Cause | None, bool], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.cause, finding.in_weights), []).append(finding)
        lines = []
        for (cause, _), findings in groups.items():
            first, *others = dict.fromkeys(short_name(finding.activation) for finding in findings)
            also = f" (and at {_listed(others)})" if others else ""
            lines.append(f"{cause or 'unknown cause'} at {first}{also}: {findings[0].statement}")
        return tuple(lines)

    @property
    def repair(self) -> dict[str, Array]:
        """state_dict key to corrected tensor, of all findings."""
        return {key: array for finding in self.findings for key, array in finding.repair.items()}

    def as_json(self) -> list[dict[str, Any]]:
        """The findings without the corrected tensors themselves."""
        names = [each.name for each in fields(Finding) if each.name not in ("repair", "in_weights")]
        return [
            {**{name: getattr(finding, name) for name in names}, "repaired_by": sorted(finding.repair)}
            for finding in self.findings
        ]


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES} more"
