"""The judgements of an audit, each a pure function of what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from checks.audit.result import GraphRun, Status, TensorResult
from checks.core import thresholds
from checks.core.activations import short_name
from checks.core.inputs import NOISE
from checks.core.judgement import Judgement

_WORDS: Mapping[Status, str] = {
    "equal": "equal bit for bit",
    "folded": "as folding makes them, bit for bit",
    "rounded": "the source's rounded to half precision, bit for bit",
    "approximate": "within rounding, where no formula tells every last bit",
    "not judged": "not judged",
}


def judge_tensors(results: Sequence[TensorResult], remarks: Sequence[str] = ()) -> Judgement:
    """Every tensor of a port.

    Args:
        results: What became of each.
        remarks: What else is to be said where it holds, clauses.
    """
    bad = [result for result in results if not result.is_faithful]
    if bad:
        statement = f"{len(bad)} of {len(results)} tensors: " + ", ".join(
            f"{count} {'differ' if status == 'differs' else status}"
            for status, count in Counter(result.status for result in bad).items()
        )
        return Judgement("tensors", False, statement, tuple(describe(result) for result in bad))
    counts = Counter(result.status for result in results)
    parts = [f"{counts[status]} {words}" for status, words in _WORDS.items() if counts[status]]
    return Judgement("tensors", True, "; ".join([f"{len(results)}: " + ", ".join(parts), *remarks]))


def describe(result: TensorResult) -> str:
    """One line on a tensor that is not as it should be."""
    variable = short_name(result.variable)
    if result.status == "missing":
        return f"{result.name}: missing" + (f", for {variable}" if variable else "")
    line = f"{result.name}: "
    if result.ulp_histogram:
        line += f"{result.differing} of {result.values} values differ from {variable or 'what is right'}, "
        line += f"by up to {result.max_ulp} {result.dtype} {'step' if result.max_ulp == 1 else 'steps'}"
        return f"{line} ({result.detail})" if result.detail else line
    return line + result.detail + (f" (for {variable})" if variable else "")


def judge_structure(remarks: Sequence[str], layers: int) -> Judgement:
    """How a graph is built: branches, windows, ReLUs, epsilons.

    Args:
        remarks: Where it is built otherwise than the network.
        layers: How many layers with weights it has.
    """
    statement = f"{layers} layers with weights, branches, strides, padding and ReLUs as in the network"
    if remarks:
        statement = f"built otherwise than the network at {len(remarks)} places"
    return Judgement("structure", not remarks, statement, tuple(remarks))


def judge_preprocessing(run: GraphRun, trained: str | None) -> Judgement:
    """What is baked in; it holds if it is known, computed right, and what the checkpoint was trained with.

    Args:
        run: The run.
        trained: How the checkpoint's own training standardised images; None where that is not known.
    """
    statement = run.preprocessing
    if trained is not None:
        statement += f"; in training it was {trained}"
    right = run.is_prepared_right and (None in (trained, run.baked) or run.baked == trained)
    return Judgement("preprocessing", right, statement)


def judge_arithmetic(run: GraphRun) -> Judgement:
    """A graph's errors, with its own weights, against PyTorch's."""
    details = []
    for batch in run.inputs:
        wrong = [layer for layer in batch.layers if not layer.error <= batch.factor * layer.floor]
        if wrong:
            others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            details.append(
                f"{batch.name}: {short_name(wrong[0].activation)}{others}: {wrong[0].error:.1e} from float64, PyTorch "
                f"{wrong[0].floor:.1e}"
            )
        if not batch.error <= batch.runtime_factor * batch.floor:
            details.append(
                f"{batch.name}: embeddings: {batch.error:.1e} from float64, PyTorch {batch.floor:.1e}"
            )
    layers = max(layer.error / layer.floor for batch in run.inputs for layer in batch.layers)
    whole = max(batch.error / batch.floor for batch in run.inputs)
    statement = (
        f"{run.arithmetic}, with its own weights: error over PyTorch's, worst layer {layers:.2f} (at most "
        f"{thresholds.ROUNDING:g}, on few values {thresholds.ROUNDING_FEW_VALUES:g}), embeddings as run by "
        f"default {whole:.2f} (at most {thresholds.RUNTIME:g}, {2 * thresholds.RUNTIME:g})"
    )
    return Judgement("arithmetic", not details, statement, tuple(details))


def judge_distance(run: GraphRun) -> Judgement:
    """How far a graph's embeddings are from the source's in float64, on the field's five images."""
    batch = next(batch for batch in run.inputs if batch.name == NOISE)
    precision = "float32" if (run.weights, run.arithmetic) == ("float32", "float32") else "float16"
    limit = thresholds.GRAPH_DISTANCE[precision]
    statement = (
        f"embeddings {batch.distance:.2e} from the source's in float64 (at most {limit:.0e} in {precision}), "
        f"largest row {batch.row_distance:.1e}"
    )
    return Judgement("distance", batch.distance <= limit, statement)


def verdict(results: Sequence[TensorResult], judgements: Sequence[Judgement], run: GraphRun | None) -> str:
    """The finding in one sentence."""
    bad = [result for result in results if not result.is_faithful]
    if bad:
        words = {"missing": "is missing", "extra": "is not of this network"}
        what = words.get(bad[0].status, "is not the source's")
        if len(bad) > 1:
            what = f"and {len(bad) - 1} more tensors are not as they should be"
        return f"The port differs: {bad[0].name} {what}."
    failed = [judgement.name for judgement in judgements if not judgement.passed]
    if failed and run is not None and run.first_divergence is not None:
        place = short_name(run.first_divergence)
        return f"The port differs: its weights are right, but it computes otherwise from {place} on."
    if failed:
        return f"The port differs: its weights are right, its {' and '.join(failed)} not."
    sentence = _good_verdict({result.status for result in results}, run)
    unjudged = sum(result.status == "not judged" for result in results)
    if unjudged:
        return f"{sentence} {unjudged} of its tensors are not in the source and were not judged."
    return sentence


def _good_verdict(statuses: set[Status], run: GraphRun | None) -> str:
    ways = []
    if statuses & {"folded", "approximate"}:
        ways.append("with factors folded in")
    if "rounded" in statuses or (run is not None and run.weights == "float16"):
        ways.append("rounded to half precision")
    exactly = "within rounding" if "approximate" in statuses else "bit for bit"
    tail = "" if run is None else ", and its graph computes what the network does"
    if ways:
        return f"The port is faithful: its weights are the source's {' and '.join(ways)}, {exactly}{tail}."
    return f"The port is exact: every tensor is the source's, bit for bit{tail}."
