"""The judgements of an audit of a graph of integers, and its verdict."""

from __future__ import annotations

from collections.abc import Sequence

from checks.audit.result import QuantisedRun, TensorResult
from checks.core import thresholds
from checks.core.judgement import Judgement
from checks.core.metrics import figure
from checks.core.network import short_name
from converter.counts import counted


def judge_scales(results: Sequence[TensorResult]) -> Judgement:
    """Judge the scales of the weights and biases: the smallest that hold each channel."""
    details, shares, larger, per_channel, weights, biases = [], [0.0], 0, 0, 0, ""
    for result in results:
        found = result.quantisation
        if found is None:
            continue
        if found.bias_scale is not None:
            biases = "; of biases the input's times the weights'"
            shares.append(found.bias_scale / thresholds.BIAS_SCALE)
            if shares[-1] > 1:
                details.append(f"{result.name}: its scale is not that of the input times that of the weights")
        if found.clipped:
            details.append(f"{result.name}: {counted(found.clipped, 'value')} beyond its scale")
        if found.lost is None:
            continue
        weights += 1
        per_channel += found.scales > 1
        shares.append(found.lost / thresholds.LOST_BITS)
        if shares[-1] > 1:
            scale = "it has too large a scale"
            if found.is_one_scale:
                scale = f"each of its {found.scales} channels has the same scale, that of the whole tensor"
            elif found.scales > 1:
                scale = f"of its {found.scales} channels at least one has too large a scale"
            details.append(f"{result.name}: {scale}: up to {found.lost:.2f} bits are lost")
        larger += found.lost > 0.01 * thresholds.LOST_BITS
    kind = "a scale for each channel" if per_channel == weights else "a scale for each tensor"
    if 0 < per_channel < weights:
        kind = f"scales for each channel of {per_channel} of {weights} tensors"
    holds = "the smallest that holds its weights"
    if larger:
        holds += f", but larger in {counted(larger, 'tensor')}"
    coarser = "".join(f"; {clause}" for clause in _coarser_parts(results))
    statement = f"{kind}, {holds}{biases}{coarser}"
    if details:
        statement = f"{counted(len(details), 'tensor')} with scales that do not suit it"
    return Judgement("scales", not details, statement, tuple(details), max(shares))


def _coarser_parts(results: Sequence[TensorResult]) -> list[str]:
    """Describe the weights that have other than 8 bits."""
    weights = [result for result in results if len(result.shape) > 1 and result.values > 1]
    found = [result.quantisation for result in weights]
    seven = sum(each is not None and each.bits == 7 for each in found)
    single = found.count(None)
    clauses = []
    if seven:
        clauses.append(f"weights of 7 bits in {seven} of {len(weights)} layers")
    if single:
        clauses.append(f"weights of float32 in {single} of {len(weights)} layers")
    return clauses


def judge_quantised(run: QuantisedRun) -> tuple[Judgement, ...]:
    """Judge the run of a graph of integers: its arithmetic, the range of its images, and its embeddings."""
    arithmetic = None if run.is_dynamic else judge_integers(run)
    judgements = arithmetic, judge_range(run), judge_faces(run), judge_cosine(run)
    return tuple(judgement for judgement in judgements if judgement is not None)


def judge_integers(run: QuantisedRun) -> Judgement:
    """Judge the arithmetic of a graph of integers: every one is the nearest to the float64 result."""
    limit = thresholds.INTEGER_STEP
    details = [
        f"{short_name(each.layer) or each.tensor}: {figure(each.excess + 0.5, '.2f')} steps from the float64 "
        "result of its own integers"
        for each in run.quantisers
        if not each.excess <= limit
    ]
    distance_limit = thresholds.GRAPH_DISTANCE["float32"]
    if not run.embedding <= distance_limit:
        details.append(f"embeddings: {figure(run.embedding)} from the float64 result of the last integers")
    worst = max((each.excess for each in run.quantisers), default=0.0)
    values, other = (sum(getattr(each, name) for each in run.quantisers) for name in ("values", "other"))
    statement = (
        f"{values:,} integers of {len(run.quantisers)} tensors, each within half a step of the float64 "
        f"result and {figure(max(worst, 0.0))} of a step (limit {limit:g}); {other:,} ties fall otherwise"
    )
    if details:
        statement = f"other integers than the float64 result at {counted(len(details), 'place')}"
    share = max(worst / limit, run.embedding / distance_limit)
    return Judgement("arithmetic", not details, statement, tuple(details), share)


def judge_range(run: QuantisedRun) -> Judgement | None:
    """Judge the range of the first quantisation; None if it or the standardisation is not known."""
    found = run.input_range
    if found is None:
        return None
    statement = (
        f"images from {found.lowest:.3g} to {found.highest:.3g}, standardised {found.standardisation}: "
        f"{found.clipped:.1%} of {found.basis} beyond, {found.unused:.1%} of the range unused"
    )
    clipped, unused = found.clipped / thresholds.INPUT_CLIPPED, found.unused / thresholds.INPUT_UNUSED
    share = max(clipped, unused)
    cause = (
        "it was calibrated on images of another standardisation than the network was trained on, or on "
        "images that are all dark, pale or without contrast"
    )
    return Judgement("range", share <= 1, statement, () if share <= 1 else (cause,), share)


def judge_faces(run: QuantisedRun) -> Judgement | None:
    """Judge the embeddings of faces, by cosine and by what they decide; None without faces."""
    faces = run.faces
    if faces is None:
        return None
    statement = (
        f"{counted(faces.images, 'face')}: least cosine with the source's {faces.cosine:.4f}, "
        f"mean {faces.mean_cosine:.4f} (limit {1 - thresholds.QUANTISED_COSINE:g})"
    )
    shares = [(1 - faces.cosine) / thresholds.QUANTISED_COSINE]
    if faces.pairs:
        ours, theirs = faces.accuracy
        statement += (
            f"; {faces.pairs - faces.otherwise:,} of {faces.pairs:,} pairs decided as by the source, "
            f"{ours:.2%} rightly and by the source {theirs:.2%}"
        )
        shares.append(faces.otherwise / max(thresholds.QUANTISED_DECISIONS * faces.pairs, 2))
    return Judgement("faces", all(share <= 1 for share in shares), statement, share=max(shares))


def judge_cosine(run: QuantisedRun) -> Judgement | None:
    """Judge the embeddings of seeded images; None if they cannot be compared."""
    if run.cosine is None:
        return None
    limit = thresholds.SEEDED_COSINE
    statement = (
        "standard normal and smooth images: least cosine of an embedding with the source's "
        f"{run.cosine:.4f} (limit {1 - limit:g})"
    )
    cause = "an activation is clipped or rounded coarsely, as by a scale that does not suit it"
    share = (1 - run.cosine) / limit
    return Judgement("embeddings", share <= 1, statement, () if share <= 1 else (cause,), share)


def write_quantised_verdict(results: Sequence[TensorResult], run: QuantisedRun) -> str:
    """Write the verdict on a graph of integers that holds, a few sentences."""
    integers = sum(result.values for result in results if result.status == "quantised")
    claim = f"{integers:,} integers are the nearest to the source's weights"
    verdict = f"The port is faithfully quantised: {claim}, and its graph computes what they say."
    if run.is_dynamic:
        verdict = (
            f"Weaker proof: {claim}, but the arithmetic was not judged: its runtime quantises activations by "
            "scales that change with the images."
        )
    verdict += "".join(f" It has {clause}." for clause in _coarser_parts(results))
    if run.faces is None:
        verdict += " Its embeddings were compared on seeded images alone: give crops with --faces."
    return verdict
