"""Explains a difference in a few lines: its place, its causes, the first wrong value, its extent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checks.compare.result import CompareResult
from checks.core.metrics import exact_value
from checks.core.network import short_name

if TYPE_CHECKING:
    from checks.core.source_tensors import BrokenSource
    from checks.diagnosis.result import Finding

Line = tuple[str, str]
"""A label and a sentence."""

_MOST_CAUSES = 3


def explain(result: CompareResult) -> list[Line]:
    """Explain why a port failed, in at most eight lines; give none for an exact port."""
    if result.passed:
        return []
    if result.broken is not None:
        return [*_broken(result.broken), *_where(result)]
    return [*_where(result), *_causes(result), *_extent(result)]


def verdict(result: CompareResult) -> str:
    """The verdict, a clause."""
    if result.broken is None:
        return "The port is exact" if result.passed else "The port differs"
    return "The port differs, and the source is broken" if result.differs else "The source is broken"


def _broken(broken: BrokenSource) -> list[Line]:
    return [("Source", broken.statement), ("Next", f"{broken.next_step}.")]


def _where(result: CompareResult) -> list[Line]:
    batch = result.diverging
    if batch is not None and batch.first_divergence is not None:
        place = short_name(batch.first_divergence)
        return [("Where", f"{place} is the first activation that differs, on {batch.name} images")]
    failed = (judgement for judgement in result.judgements if not judgement.passed)
    # If the state_dict does not load, the last details say why.
    details = [judgement.details[0] for judgement in failed if judgement.details]
    if not details:
        return []
    loads = result.inputs or result.broken
    return [("Where", details[0] if loads else details[-1])]


def _causes(result: CompareResult) -> list[Line]:
    if result.undiagnosed:
        return [("No cause", result.undiagnosed)]
    if result.diagnosis is None:
        return []
    if not result.diagnosis.findings:
        return [("No cause", "every layer agrees on TensorFlow's own input")]
    summary = result.diagnosis.summary
    first, *others = [("Cause", line) for line in summary[:_MOST_CAUSES]]
    if len(summary) > _MOST_CAUSES:
        others[-1] = ("Cause", f"{others[-1][1]} (and {len(summary) - _MOST_CAUSES} more causes)")
    return [first, *_first_value(result.diagnosis.findings), *others]


def _first_value(findings: tuple[Finding, ...]) -> list[Line]:
    """The tensor of the first finding in the weights, and its first value that differs."""
    finding = next((finding for finding in findings if finding.key is not None), None)
    if finding is None:
        return []
    variable = finding.variable or "none"
    lines = [("Tensor", f"{finding.key} (TensorFlow variable: {variable})")]
    if finding.index is not None:
        index = ", ".join(map(str, finding.index))
        assert finding.expected is not None and finding.actual is not None  # as `index` is not None
        expected, actual = exact_value(finding.expected), exact_value(finding.actual)
        values = f"{finding.count} {'value differs' if finding.count == 1 else 'values differ'}"
        lines.append(("Value", f"[{index}] expected {expected}, actual {actual}; {values}"))
    return lines


def _extent(result: CompareResult) -> list[Line]:
    """The numbers of activations, inputs and tensors that differ."""
    counted = []
    diverging = [batch for batch in result.inputs if batch.first_divergence is not None]
    if diverging:
        activations = sum(measured.diverges for measured in diverging[0].activations)
        verb = "differs" if activations == 1 else "differ"
        counted.append(
            f"{activations} of {len(diverging[0].activations)} activations {verb}, on {len(diverging)} of "
            f"{len(result.inputs)} inputs"
        )
    tensors = next(judgement for judgement in result.judgements if judgement.name == "tensors")
    if tensors.details:
        count = len(tensors.details)
        counted.append(f"{count} {'tensor differs' if count == 1 else 'tensors differ'} from the source")
    return [("In all", "; ".join(counted))] if counted else []
