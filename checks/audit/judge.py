"""The judgements of an audit, computed from its results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from checks.audit.metadata import EMBEDDINGS
from checks.audit.result import GraphRun, Status, TensorResult
from checks.core import thresholds
from checks.core.inputs import NOISE
from checks.core.judgement import Judgement
from checks.core.metrics import exact_value, figure
from checks.core.network import short_name
from checks.core.rounding import describe_worst, worst_share
from checks.core.source_tensors import BrokenSource
from converter.counts import counted

_FAITHFUL_STATUS: Mapping[Status, str] = {
    "equal": "equal bit for bit",
    "folded": "folded, bit for bit",
    "rounded": "rounded to half precision, bit for bit",
    "quantised": "quantised to the nearest integers",
    "approximate": "within rounding",
    "not judged": "not judged",
}

_OTHER_MAGNITUDE = 1 << 23  # float32 steps from a value to twice the value


def judge_tensors(results: Sequence[TensorResult], remarks: Sequence[str] = ()) -> Judgement:
    """Judge every tensor of a port.

    Args:
        results: The result for each tensor.
        remarks: Clauses that the statement ends with if the judgement holds.
    """
    faults = [result for result in results if not result.is_faithful]
    if faults:
        counts = Counter(result.status for result in faults)
        parts = [
            f"{count} {'differ' if status == 'differs' and count > 1 else status}"
            for status, count in counts.items()
        ]
        statement = f"{len(faults)} of {len(results)} tensors: {', '.join(parts)}"
        return Judgement("tensors", False, statement, tuple(map(describe_fault, faults)))
    counts = Counter(result.status for result in results)
    parts = [f"{counts[status]} {meaning}" for status, meaning in _FAITHFUL_STATUS.items() if counts[status]]
    ties = sum(result.quantisation.ties for result in results if result.quantisation is not None)
    if ties:
        remarks = (*remarks, f"{counted(ties, 'integer')} the second nearest, of values in the middle of two")
    return Judgement("tensors", True, "; ".join([", ".join(parts), *remarks]))


def describe_fault(result: TensorResult) -> str:
    """Describe a tensor that is not faithful, in one line."""
    variable = short_name(result.variable)
    if result.status == "missing":
        return f"{result.name}: missing" + (f", for {variable}" if variable else "")
    if result.index is None:
        return f"{result.name}: {result.detail}" + (f" (for {variable})" if variable else "")
    line = f"{result.name}: {describe_difference(result)}"
    return f"{line} ({result.detail})" if result.detail else line


def describe_difference(result: TensorResult) -> str:
    """Say how many values of a tensor differ, and by how much."""
    differ = (
        f"{result.differing} of {result.values} values {'differs' if result.differing == 1 else 'differ'}"
    )
    if result.not_finite:
        return f"{differ}, {result.not_finite} of them not finite"
    if result.max_ulp > _OTHER_MAGNITUDE:
        return f"{differ}, some in sign or in magnitude"
    steps = "1 step" if result.max_ulp == 1 else f"{result.max_ulp:,} steps"
    return f"{differ}, by up to {steps} from one {result.dtype} to the next"


def describe_largest(result: TensorResult) -> str:
    """Show the largest difference, as "3.7e-09 at [0, 1]: expected 1, actual 2"; empty without one."""
    if result.index is None:
        return ""
    assert result.actual is not None and result.expected is not None  # as `index` is not None
    index = ", ".join(map(str, result.index))
    actual, expected = exact_value(result.actual), exact_value(result.expected)
    size = f"{result.max_abs:.1e}" if math.isfinite(result.max_abs) else "not finite"
    expected = "other bits" if actual == expected == "NaN" else expected
    return f"{size} at [{index}]: expected {expected}, actual {actual}"


def describe_tensor(result: TensorResult) -> list[tuple[str, str]]:
    """Describe a tensor that is not faithful in labelled lines: names, largest difference, cause."""
    stored = f", {result.dtype} {list(result.shape)}" if result.dtype else ""
    differs = result.index is not None
    rows = {
        "tensor": f"{result.name}{stored}",
        "PyTorch": "" if result.key == result.name else result.key,
        "TensorFlow": result.variable,
        "largest": describe_largest(result),
        "in all": describe_difference(result) if differs else "",
        "cause": result.detail or ("" if differs else result.status),
    }
    return [(label, text) for label, text in rows.items() if text]


def _name(result: TensorResult) -> str:
    """Name a tensor; by its key as well if PyTorch's exporter has numbered it, such as onnx::Conv_1514."""
    is_numbered = result.name.startswith("onnx::") and result.key
    return f"{result.key} ({result.name})" if is_numbered else result.name


def judge_structure(remarks: Sequence[str], layers: int) -> Judgement:
    """Judge the structure of a graph: its branches, windows, ReLUs and epsilons.

    Args:
        remarks: The deviations from the network.
        layers: The number of layers with weights.
    """
    statement = f"{layers} layers with the branches, strides, padding and ReLUs of the network"
    if remarks:
        statement = f"deviates from the network at {counted(len(remarks), 'place')}"
    return Judgement("structure", not remarks, statement, tuple(remarks))


def judge_preprocessing(run: GraphRun, trained: str | None) -> Judgement:
    """Judge the preprocessing of a graph: it must be known, exact, and that of the training.

    Args:
        run: The run.
        trained: The standardisation in the training of the checkpoint; None where it is not known.
    """
    statement = run.preprocessing
    if trained is not None:
        statement += f"; in training it was {trained}"
    matches_training = trained is None or run.baked is None or run.baked == trained
    share = None if run.prepared is None else run.prepared / thresholds.PREPARED[run.arithmetic]
    passed = run.is_prepared_exactly and matches_training
    return Judgement("preprocessing", passed, statement, share=share)


def judge_arithmetic(run: GraphRun) -> Judgement:
    """Judge the arithmetic of a graph with its own weights.

    Every layer, run as written and measured on its own input, errs by no more than rounding allows; and so do
    the embeddings that the runtime computes by default, in multiples of PyTorch's error.
    """
    details = []
    for batch in run.inputs:
        if batch.diverging:
            first = batch.diverging[0]
            others = f" and {len(batch.diverging) - 1} more" if len(batch.diverging) > 1 else ""
            details.append(
                f"{batch.name}: {short_name(first.activation)}{others}: {figure(first.error)} from the "
                f"float64 result of the same input; rounding allows {first.bound:.1e}"
            )
        if not batch.error <= batch.runtime_factor * batch.floor:
            details.append(
                f"{batch.name}: embeddings: {figure(batch.error)} from float64, PyTorch {batch.floor:.1e}"
            )
    layer = max(worst_share(batch.layers) for batch in run.inputs)
    whole, limit = max(
        ((batch.error / batch.floor, batch.runtime_factor) for batch in run.inputs),
        key=lambda pair: pair[0] / pair[1],
    )
    embeddings = "are not finite"
    if math.isfinite(whole):
        embeddings = f"have {whole:.2f} times PyTorch's error (limit {limit:g})"
    statement = f"{run.arithmetic}: the worst layer has {describe_worst(layer)}; the embeddings {embeddings}"
    return Judgement("arithmetic", not details, statement, tuple(details), max(layer, whole / limit))


def judge_run(run: GraphRun, trained: str | None) -> tuple[Judgement, ...]:
    """Judge the run of a graph; `trained` is as in `judge_preprocessing`."""
    return judge_preprocessing(run, trained), judge_arithmetic(run), judge_distance(run)


def judge_distance(run: GraphRun) -> Judgement:
    """Judge the distance of a graph's embeddings from the source's in float64, on five images of noise."""
    if run.sizes is not None:
        return Judgement("distance", False, f"not computed: {describe_sizes(run.sizes)}")
    batch = next(batch for batch in run.inputs if batch.name == NOISE)
    limit = _distance_limit(run)
    statement = (
        f"five embeddings {figure(batch.distance, '.2e')} from the source's in float64 (limit {limit:.0e}), "
        f"the farthest single one {figure(batch.row_distance)}"
    )
    return Judgement("distance", batch.distance <= limit, statement, share=batch.distance / limit)


def describe_sizes(sizes: tuple[int, int]) -> str:
    """Describe embeddings of another size than the source's in a clause; `sizes` is that of `GraphRun`."""
    own, source = sizes
    return f"its embeddings have {own} numbers, the source's {source}"


def judge_embeddings(run: GraphRun) -> Judgement:
    """Judge the distance of a graph's embeddings, on every input of many values."""
    limit = _distance_limit(run)
    batches = [batch for batch in run.inputs if not batch.few_values]
    worst = max(batch.distance for batch in batches)
    statement = (
        f"{figure(worst, '.2e')} from the source's in float64 on "
        f"{' and '.join(batch.name for batch in batches)} inputs (limit {limit:.0e})"
    )
    details = tuple(
        f"{batch.name}: {figure(batch.distance, '.2e')} from the source's"
        for batch in batches
        if not batch.distance <= limit
    )
    return Judgement("embeddings", not details, statement, details, worst / limit)


def _distance_limit(run: GraphRun) -> float:
    is_single = (run.weights, run.arithmetic) == ("float32", "float32")
    return thresholds.GRAPH_DISTANCE["float32" if is_single else "float16"]


def warn_of_interface(run: GraphRun) -> list[str]:
    """Say in sentences what the user of a right port must know: channels in another order, another output."""
    sentences = []
    if run.order == "BGR":
        sentences.append("It takes BGR images.")
    if EMBEDDINGS not in run.gives:
        sentences.append(f"It gives {run.gives}.")
    return sentences


def write_embeddings_verdict(judgements: Sequence[Judgement]) -> str:
    """Write the verdict on a graph of which only the embeddings were compared."""
    reason = "Its weights were not compared, because its graph is not understood."
    failed = [judgement.name for judgement in judgements if not judgement.passed]
    if failed:
        return f"The port differs in its {' and its '.join(failed)}. {reason}"
    return f"Weaker proof: the port gives the source's embeddings on a few images. {reason}"


def write_verdict(
    results: Sequence[TensorResult],
    judgements: Sequence[Judgement],
    run: GraphRun | None,
    broken: BrokenSource | None = None,
    *,
    is_not_run: bool = False,
) -> str:
    """Write the verdict, a sentence or two; `is_not_run` if the port has a graph that could not be run."""
    port = _write_port_verdict(results, judgements, run, is_not_run)
    if broken is not None:
        return f"The source is broken: {broken.statement}. {port} {broken.next_step}."
    return port


def _write_port_verdict(
    results: Sequence[TensorResult], judgements: Sequence[Judgement], run: GraphRun | None, is_not_run: bool
) -> str:
    if run is not None and run.sizes is not None:
        return f"The port differs: {describe_sizes(run.sizes)}."
    faults = [result for result in results if not result.is_faithful]
    if len(faults) > 1:
        others = counted(len(faults) - 1, "more tensor")
        return f"The port differs: {_name(faults[0])} and {others} are not faithful."
    if faults:
        problems = {"missing": "is missing", "extra": "is not a tensor of this network"}
        problem = problems.get(faults[0].status, "is not the source's")
        return f"The port differs: {_name(faults[0])} {problem}."
    failed = [judgement.name for judgement in judgements if not judgement.passed]
    if failed and run is not None and run.first_divergence is not None:
        return (
            "The port differs: its weights are faithful, but its graph computes another result from "
            f"{short_name(run.first_divergence)} on."
        )
    if failed:
        return f"The port differs: its weights are faithful, but {' and '.join(failed)} failed."
    is_run = any(judgement.name == "arithmetic" for judgement in judgements)
    sentence = _faithful_verdict({result.status for result in results}, run, is_run, is_not_run)
    unjudged = sum(result.status == "not judged" for result in results)
    if unjudged:
        return f"{sentence} {counted(unjudged, 'tensor')} could not be judged: not in the source."
    return sentence


def _faithful_verdict(statuses: set[Status], run: GraphRun | None, is_run: bool, is_not_run: bool) -> str:
    changes = []
    if statuses & {"folded", "approximate"}:
        changes.append("with factors folded in")
    if "rounded" in statuses or (run is not None and run.weights == "float16"):
        changes.append("rounded to half precision")
    graph = ", and its graph computes what the network does" if is_run else ""
    if run is not None and run.resized:
        graph += f" with the images that it resizes {run.resized}"
    exactness = "within rounding" if "approximate" in statuses else "bit for bit"
    claim = f"its weights are the source's {' and '.join(changes)}, {exactness}"
    if not changes:
        claim = "every tensor is the source's, bit for bit"
    if is_not_run:
        return f"Weaker proof: {claim}, but its graph was not run."
    return f"The port is {'faithful' if changes else 'exact'}: {claim}{graph}."
