"""Run a graph whose layers are not understood, and compare its embeddings with the source's.

This proves less than the comparison of every weight: it shows what the graph computes on a few images.
"""

from __future__ import annotations

from checks.audit.graphs.find_layers import GraphLayers
from checks.audit.graphs.graph import Graph
from checks.audit.graphs.onnx_tflite_session import OnnxTfliteSession
from checks.audit.graphs.preprocessing import detect_preprocessing, to_pixels
from checks.audit.graphs.run_graph import (
    Networks,
    audited_batches,
    describe_run,
    normalise,
    round_network,
    run_batch,
)
from checks.audit.graphs.runtime_process import RuntimeProcess
from checks.audit.port_layers import PortWeights
from checks.audit.result import GraphRun
from checks.core.activations import run_pytorch
from checks.core.network import EMBEDDINGS
from checks.core.types import Say
from converter.errors import SourceError
from reference import InceptionResnetV1


def run_whole(
    graph: Graph, process: RuntimeProcess, source: InceptionResnetV1, seed: int, say: Say
) -> GraphRun:
    """Run a graph on the seeded inputs, as its runtime does by default.

    The preprocessing is the known one with which the embeddings of an image are nearest to the source's.

    Args:
        graph: The graph.
        process: The process that runs it.
        source: The network with the source's weights, in float64.
        seed: The seed of the inputs.
        say: Progress callback.

    Raises:
        SourceError: The graph does not take images, gives no embeddings of the source's size, or does not
            run.
    """
    session = _open(graph, process, source.last_linear.out_features)
    batches = audited_batches(seed)
    say("detecting the preprocessing")
    preprocessing = detect_preprocessing(
        to_pixels(session.fit_images(batches[min(1, len(batches) - 1)].images[:1])),
        lambda images: normalise(session.run(images)[0]),
        session.input_dtype,
        lambda images: run_pytorch(source, images, (EMBEDDINGS,))[EMBEDDINGS],
    )
    networks = Networks(source, round_network(source), source)
    runs = []
    for batch in batches:
        say(f"running: {batch.name}")
        runs.append(run_batch(session, networks, preprocessing, batch))
    return describe_run(session, preprocessing, preprocessing.is_known, runs)


def _open(graph: Graph, process: RuntimeProcess, size: int) -> OnnxTfliteSession:
    """Open a graph with its first output that has an embedding for each image."""
    problems = []
    for output in graph.outputs:
        if output.shape and output.shape[-1] not in (None, size):
            problems.append(f"{output.name!r} has rows of {output.shape[-1]}")
            continue
        layers = GraphLayers(PortWeights({}), {}, graph.inputs[0].name, (output.name,), (), False, ())
        session = OnnxTfliteSession(graph, layers, process)
        (rows,) = session.run(session.fit_images(audited_batches(0)[0].images[:1]))
        if rows.shape[1] == size:
            return session
        problems.append(f"{output.name!r} has rows of {rows.shape[1]}")
    raise SourceError(
        graph.path,
        f"no output is an embedding of {size} numbers ({'; '.join(problems)})",
        next_step="Export it with its embeddings as an output, or give its own checkpoint with --against",
    )
