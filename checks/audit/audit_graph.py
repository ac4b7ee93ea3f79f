"""Audit a graph of an ONNX or TFLite file, or of a frozen graph whose BatchNorms were folded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from checks.audit.compare_tensors import compare_tensors
from checks.audit.faces import Faces
from checks.audit.folded_standardisation import find_folded_standardisation
from checks.audit.graphs.find_layers import GraphLayers, find_layers
from checks.audit.graphs.graph import Graph, NotUnderstoodError
from checks.audit.graphs.network_from_graph import embedding_size_of, network_from_graph
from checks.audit.graphs.onnx_tflite_session import OnnxTfliteSession
from checks.audit.graphs.quantisation import (
    dequantise_ends,
    is_quantised,
    refuse_quantised,
    remarks_on_pairs,
)
from checks.audit.graphs.run_graph import (
    Networks,
    audited_batches,
    find_preprocessing,
    round_network,
    run_batches,
    run_graph,
)
from checks.audit.graphs.run_quantised import QuantisedGraph
from checks.audit.graphs.run_whole import run_whole
from checks.audit.graphs.runtime_process import RuntimeProcess
from checks.audit.judge import (
    judge_distance,
    judge_embeddings,
    judge_preprocessing,
    judge_run,
    judge_structure,
    judge_tensors,
)
from checks.audit.judge_quantised import judge_quantised, judge_scales
from checks.audit.metadata import find_facts, judge_metadata
from checks.audit.port_layers import PortWeights
from checks.audit.result import GraphRun, QuantisedRun, TensorResult
from checks.audit.source_weights import SourceWeights
from checks.core.activations import activation_names, run_pytorch
from checks.core.inputs import seeded_inputs
from checks.core.judgement import Judgement
from checks.core.models import load_copies
from checks.core.network import LOGITS, describe_network
from checks.core.source_tensors import BrokenSource, find_overflow
from checks.core.types import Arrays, Say
from converter.errors import SourceError
from converter.layer_map import Variant
from reference import InceptionResnetV1

NOT_FINITE = "it has weights that are not finite"
"""The reason why a graph is not run, in `Findings.not_run`."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings on a port; the attributes are those of `AuditResult`."""

    network: str
    tensors: tuple[TensorResult, ...]
    judgements: tuple[Judgement, ...]
    run: GraphRun | None = None
    quantised: QuantisedRun | None = None
    broken: BrokenSource | None = None
    not_understood: str = ""
    not_run: str = ""


def audit_graph(
    graph: Graph, source: SourceWeights, trained: str | None, seed: int, say: Say, faces: Faces | None = None
) -> Findings:
    """Compare the weights of an ONNX or TFLite graph, judge its structure, and run it.

    Args:
        graph: The graph.
        source: The source.
        trained: The standardisation in the training of the source; None where it is not known.
        seed: The seed of the inputs.
        say: Progress callback.
        faces: Faces that a graph of integers embeds, or None.

    Raises:
        SourceError: The graph is quantised in a way that is not audited, or does not run.
    """
    refuse_quantised(graph)
    graph = dequantise_ends(graph)
    try:
        layers = find_layers(graph)
    except NotUnderstoodError as error:
        if is_quantised(graph):  # embeddings on a few images would prove nothing
            raise
        return _compare_embeddings(graph, source, trained, seed, say, error)
    say("comparing")
    results = compare_tensors(layers.weights, source)
    judgements: tuple[Judgement, ...] = (
        judge_tensors(results, remarks_on(layers.weights, source)),
        judge_structure((*layers.remarks, *remarks_on_pairs(graph)), len(layers.weights.layers)),
    )
    if is_quantised(graph):
        judgements = (*judgements, judge_scales(results))
    network = describe_network(source.variant)
    broken = source.broken or find_source_overflow(source, seed)
    if broken is not None or not layers.weights.is_finite:  # a run would show nothing
        not_run = NOT_FINITE if broken is None else ""
        return Findings(network, results, judgements, broken=broken, not_run=not_run)
    say("starting the graph's runtime")
    with RuntimeProcess(graph) as process:
        session = OnnxTfliteSession(graph, layers, process)
        if is_quantised(graph):
            run, quantised = _run_quantised(graph, layers, session, source, trained, seed, say, faces)
            judged = (
                judge_preprocessing(run, trained),
                *judge_quantised(quantised),
                *(() if run.sizes is None else (judge_distance(run),)),
                *_judge_statements(graph, run, trained, source),
            )
            return Findings(network, results, (*judgements, *judged), run, quantised)
        own = network_from_graph(layers)
        rounded = round_network(own, to_half=layers.computes_in_half)
        fold = find_folded_standardisation(layers.weights, source)
        networks = Networks(own, rounded, source_network(source), fold)
        run = run_graph(session, networks, audited_batches(seed), say)
    judged = (*judge_run(run, trained), *_judge_statements(graph, run, trained, source))
    return Findings(network, results, (*judgements, *judged), run)


def _judge_statements(
    graph: Graph, run: GraphRun, trained: str | None, source: SourceWeights
) -> tuple[Judgement, ...]:
    """Judge what a file states about itself, if it states anything."""
    stated = judge_metadata(graph, lambda: find_facts(graph, run, trained, source.state_dict.tensors))
    return () if stated is None else (stated,)


def _run_quantised(
    graph: Graph,
    layers: GraphLayers,
    session: OnnxTfliteSession,
    source: SourceWeights,
    trained: str | None,
    seed: int,
    say: Say,
    faces: Faces | None,
) -> tuple[GraphRun, QuantisedRun]:
    """Run and simulate a graph of integers."""
    batches = audited_batches(seed)
    network = build_network(source.state_dict.tensors, source.variant, torch.float32)
    say("detecting the preprocessing")
    fold = find_folded_standardisation(layers.weights, source)
    preprocessing = find_preprocessing(session, fold, batches)
    described = run_batches(session, Networks(network, network, network), preprocessing, ())
    own, expected = embedding_size_of(layers), source.variant.embedding_size
    sizes = None if own == expected else (own, expected)
    run = replace(described, weights="int8", arithmetic="int8", sizes=sizes)
    opened = QuantisedGraph(graph, layers, session, preprocessing, fold)
    return run, opened.run(batches, network, trained, faces, say)


def _compare_embeddings(
    graph: Graph,
    source: SourceWeights,
    trained: str | None,
    seed: int,
    say: Say,
    problem: NotUnderstoodError,
) -> Findings:
    """Run a graph whose layers are not found, and compare its embeddings alone."""
    without = f"its graph is not understood: {problem.place}. Nor can its embeddings be compared: "
    broken = source.broken or find_source_overflow(source, seed)
    if broken is not None:
        reason = f"the source is broken: {broken.statement}"
        raise SourceError(graph.path, f"{without}{reason}", next_step=broken.next_step)
    say("starting the graph's runtime")
    with RuntimeProcess(graph) as process:
        try:
            run = run_whole(graph, process, source_network(source), seed, say)
        except SourceError as error:
            reason = error.statement.removesuffix(".")
            raise SourceError(graph.path, f"{without}{reason}") from error
    judgements = judge_preprocessing(run, trained), judge_embeddings(run)
    network = describe_network(source.variant)
    return Findings(network, (), judgements, run, not_understood=problem.place)


def remarks_on(port: PortWeights, source: SourceWeights) -> tuple[str, ...]:
    """Describe deviations from the published files that are no faults."""
    remarks = []
    if source.variant.num_classes is not None and LOGITS not in port.layers:
        remarks.append("without the source's classifier")
    return tuple(remarks)


def find_source_overflow(source: SourceWeights, seed: int) -> BrokenSource | None:
    """Run the source in float32 on an image of noise; find the first activation that is not finite."""
    network = build_network(source.state_dict.tensors, source.variant, torch.float32)
    noise = seeded_inputs(seed)[0]
    names = activation_names(every_layer=False, logits=source.variant.num_classes is not None)
    return find_overflow(run_pytorch(network, noise.images[:1], names), "the source's", noise.name)


def source_network(source: SourceWeights) -> InceptionResnetV1:
    """Build the network with the source's weights, in float64."""
    return build_network(source.state_dict.tensors, source.variant, torch.float64)


def build_network(state_dict: Arrays, variant: Variant, dtype: torch.dtype) -> InceptionResnetV1:
    """Build the network with the weights of a state_dict, in evaluation mode; it may share their memory."""
    with torch.device("meta"):
        model = InceptionResnetV1(num_classes=variant.num_classes, embedding_size=variant.embedding_size)
    return load_copies(model, state_dict, dtype, shared=True)
