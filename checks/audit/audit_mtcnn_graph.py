"""Audit a graph of one of MTCNN's networks: its tensors, its structure, and the results of its runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from checks.audit.audit_graph import NOT_FINITE, Findings
from checks.audit.compare_mtcnn import compare_tensor
from checks.audit.graphs.find_mtcnn_layers import MtcnnLayers, find_mtcnn_layers
from checks.audit.graphs.graph import Graph
from checks.audit.graphs.preprocessing import fit_size
from checks.audit.graphs.runtime_process import RuntimeProcess
from checks.audit.graphs.wiring import plain_name
from checks.audit.judge import judge_structure, judge_tensors
from checks.audit.metadata import (
    INPUT,
    MTCNN_OUTPUTS,
    OUTPUT,
    STANDARDISATION,
    WEIGHTS,
    describe_input,
    describe_output,
    judge_metadata,
)
from checks.core import thresholds
from checks.core.activations import MtcnnModel, run_pytorch
from checks.core.inputs import inputs_of
from checks.core.judgement import Judgement
from checks.core.metrics import figure, relative_l2
from checks.core.models import load_copies
from checks.core.mtcnn_network import layers_of, outputs_among
from checks.core.source_tensors import expected_state_dict, find_broken_source, float32_variables
from checks.core.types import Array, Arrays, Say
from checks.core.weights_digest import weights_digest
from checks.diagnosis.explain_tensor import SourceTensors
from converter.casting import HALVES
from converter.convert import plan_tensors
from converter.errors import SourceError
from converter.hub.catalog_entry import FIXED
from converter.mtcnn_layer_map import MtcnnNetwork
from converter.network_names import NetworkTensors
from reference import InceptionResnetV1
from reference.weights import build_network


def audit_mtcnn_graph(
    graph: Graph, source: NetworkTensors, network: MtcnnNetwork, seed: int, say: Say
) -> Findings:
    """Compare the weights of a graph with the source's, judge its structure, and run it.

    Args:
        graph: The graph.
        source: The source.
        network: The source's network.
        seed: The seed of the inputs.
        say: Progress callback.

    Raises:
        NotUnderstoodError: The graph's layers are not found.
        SourceError: The runtime refuses the graph.
        MappingError: The source is not whole.
    """
    tensors, plan = plan_tensors(source)
    state_dict = expected_state_dict(tensors, plan)
    layers = find_mtcnn_layers(graph, network)
    say("comparing")
    known = SourceTensors(state_dict, {}, layers_of(network))
    results = tuple(compare_tensor(row, layers.tensors[row.key], tensors, known) for row in plan.converted)
    judgements = [judge_tensors(results), judge_structure(layers.remarks, len(layers_of(network)))]
    broken = find_broken_source(float32_variables(source, tensors, plan), plan)
    is_finite = all(np.isfinite(tensor.array).all() for tensor in layers.tensors.values())
    if is_finite and broken is None:
        say("starting the graph's runtime")
        judgements.append(_judge_run(graph, layers, state_dict, network, seed, say))
    stated = judge_metadata(graph, lambda: _find_facts(graph, layers, state_dict))
    judged = (*judgements, *(() if stated is None else (stated,)))
    not_run = "" if is_finite or broken is not None else NOT_FINITE
    return Findings(f"{network.name} of MTCNN", results, judged, broken=broken, not_run=not_run)


def _find_facts(graph: Graph, layers: MtcnnLayers, state_dict: Arrays) -> Mapping[str, str]:
    """Find what the metadata of a graph should state; the layer behind an output says what it gives."""
    gives = {output: MTCNN_OUTPUTS.get(layer, layer) for layer, output in layers.outputs.items()}
    outputs = []
    for value in graph.outputs:
        name, content = plain_name(value.name), gives.get(value.name, "none of the network's outputs")
        named = "" if name == content else f", named {name!r}"
        outputs.append(f"{describe_output(value.shape, content)}{named}")
    taken = graph.inputs[0]
    return {
        WEIGHTS: weights_digest(state_dict),
        STANDARDISATION: FIXED,  # every network of the detector was trained so
        INPUT: describe_input(taken.shape, taken.dtype, baked=False),
        OUTPUT: "; ".join(outputs),
    }


def _judge_run(
    graph: Graph, layers: MtcnnLayers, state_dict: Arrays, network: MtcnnNetwork, seed: int, say: Say
) -> Judgement:
    """Judge the outputs on every input of the network, by the float64 result of the graph's own weights."""
    own = {
        row.key: row.layout.apply(tensor.layout.inverse.apply(tensor.array)).astype(np.float64)
        for row in network.rows
        for tensor in (layers.tensors[row.key],)
    }
    exact, rounded = (_build(network, own, dtype) for dtype in (torch.float64, torch.float32))
    source = _build(network, state_dict, torch.float64)
    halved = any(tensor.array.dtype in HALVES for tensor in layers.tensors.values())
    limit = thresholds.GRAPH_DISTANCE["float16" if halved else "float32"]
    details, ratios, distances = [], [0.0], [0.0]
    with RuntimeProcess(graph) as process:
        for batch in inputs_of(network, seed):
            say(f"running: {batch.name}")
            images, actual = _run(graph, process, layers, batch.images)
            expected, single, sources = (
                run_pytorch(model, images, tuple(actual)) for model in (exact, rounded, source)
            )
            factor = thresholds.RUNTIME * (2 if batch.few_values else 1)
            for name, array in actual.items():
                floor = max(relative_l2(single[name], expected[name]), thresholds.UNIT_ROUNDOFF)
                error = _error(array, expected[name])
                distance = _error(array, sources[name])
                ratios.append(error / (factor * floor))
                distances.append(distance)
                if not error <= factor * floor or not distance <= limit:
                    details.append(
                        f"{batch.name}: {name}: {figure(error)} from float64 with its own weights, PyTorch "
                        f"{floor:.1e}; {figure(distance)} from the source's"
                    )
    missing = [name for name in outputs_among(layers_of(network)) if name not in layers.outputs]
    details += [f"it does not output {name}" for name in missing]
    statement = (
        f"its outputs have {max(ratios):.2f} of the error that they may have, and are {max(distances):.1e} "
        f"from the source's in float64 (limit {limit:.0e})"
    )
    share = max(*ratios, max(distances) / limit)
    return Judgement("arithmetic", not details, statement, tuple(details), share)


def _build(network: MtcnnNetwork, state_dict: Arrays, dtype: torch.dtype) -> MtcnnModel:
    with torch.device("meta"):  # no memory and no initial values, which the weights replace
        module = build_network(network)
    assert not isinstance(module, InceptionResnetV1)
    return load_copies(module, state_dict, dtype)


def _error(actual: Array, expected: Array) -> float:
    return relative_l2(actual, expected) if actual.shape == expected.shape else np.inf


def _run(
    graph: Graph, process: RuntimeProcess, layers: MtcnnLayers, images: Array
) -> tuple[Array, dict[str, Array]]:
    """Run a graph in its layout, size and batch; return the images that it took and each output, NHWC."""
    shape, dtype = graph.inputs[0].shape, graph.inputs[0].dtype
    channels_first = len(shape) == 4 and shape[1] == 3
    if len(graph.inputs) != 1 or len(shape) != 4 or dtype != "float32" or 3 not in (shape[1], shape[3]):
        raise SourceError(graph.path, f"it does not take images of three channels ({graph.description()})")
    size = shape[2:] if channels_first else shape[1:3]
    images = fit_size(images, *size)
    ordered = np.ascontiguousarray(images.transpose(0, 3, 1, 2) if channels_first else images)
    arrays = process.run_in_batches(ordered, list(layers.outputs.values()), shape[0], as_written=False)
    last = [a.transpose(0, 2, 3, 1) if channels_first and a.ndim == 4 else a for a in arrays]
    return images, dict(zip(layers.outputs, last, strict=True))
