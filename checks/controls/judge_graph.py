"""Judges ports and files of graphs as an audit judges a graph: preprocessing, arithmetic, distance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from checks.audit.folded_standardisation import find_folded_standardisation
from checks.audit.graphs.find_layers import GraphLayers, find_layers
from checks.audit.graphs.graph import Graph
from checks.audit.graphs.graph_formats import find_graph_format
from checks.audit.graphs.network_from_graph import network_from_graph
from checks.audit.graphs.onnx_tflite_session import OnnxTfliteSession
from checks.audit.graphs.run_graph import (
    GraphSession,
    Networks,
    Outputs,
    audited_batches,
    find_preprocessing,
    round_network,
    run_batches,
    run_graph,
)
from checks.audit.graphs.runtime_process import RuntimeProcess
from checks.audit.judge import judge_preprocessing, judge_run
from checks.audit.source_weights import source_weights
from checks.controls.margins import shares_of
from checks.controls.port_pipeline import Pipeline
from checks.controls.result import CleanRun
from checks.controls.tensorflow_reference import ControlSource
from checks.core.activations import activation_names, run_pytorch
from checks.core.inputs import InputBatch
from checks.core.judgement import Judgement
from checks.core.network import EMBEDDINGS
from checks.core.types import Array, Arrays, Say
from checks.diagnosis.explain_tensor import SourceTensors
from converter.errors import UsageError
from converter.hub.catalog_entry import FIXED

_LAYERS = activation_names(every_layer=True, logits=False)[:-1]  # without the embeddings


class PortSession(GraphSession):
    """A port from its pixels on, as a graph that is open in its runtime.

    Args:
        port: The port.
    """

    runtime = "PyTorch"
    input_description = "NHWC uint8"
    input_dtype = "uint8"
    activations = _LAYERS

    def __init__(self, port: Pipeline) -> None:
        self._port = port
        self._last: tuple[Array, Arrays] | None = None

    def run(self, images: Array) -> list[Array]:
        """Run the network; return the embeddings."""
        prepared = self.prepare(images)
        if self._last is not None and np.array_equal(prepared, self._last[0]):  # one image alone
            return [self._last[1][EMBEDDINGS]]
        return [run_pytorch(self._port.float32, prepared, self.outputs)[EMBEDDINGS]]

    def run_layers(self, images: Array) -> list[Array]:
        """Run the network; return every activation."""
        prepared = self.prepare(images)
        outputs = run_pytorch(self._port.float32, prepared, (*self.activations, EMBEDDINGS))
        self._last = prepared, outputs
        return [outputs[name] for name in self.activations]

    def prepare(self, images: Array) -> Array:
        """Return the network's input."""
        return self._port.prepare["fixed"](images.astype(np.uint8))


@dataclass(frozen=True)
class _CleanNetworks(Networks):
    """A clean port's networks. They remember their outputs: most faulty ports give them equal images."""

    known: dict[tuple[object, ...], Outputs] = field(default_factory=dict)

    def run(self, images: Array, names: tuple[str, ...]) -> Outputs:
        """Run the networks, or return what they gave on these images."""
        key = images.shape, images.dtype, images.tobytes()
        if key not in self.known:
            self.known[key] = super().run(images, names)
        return self.known[key]


class PortJudge:
    """Judges ports as graphs, against a clean port. Several threads may call it at once.

    Args:
        clean: A clean port, which must stay clean.
    """

    def __init__(self, clean: Pipeline) -> None:
        self._networks = _CleanNetworks(clean.float64, clean.float32, clean.float64)
        self._lock = Lock()  # hooks on the clean networks record what every thread runs

    def judge(self, port: Pipeline, batches: Sequence[InputBatch]) -> tuple[Judgement, ...]:
        """Run a port on some inputs, of which one is noise, and judge it."""
        session = PortSession(port)
        preprocessing = find_preprocessing(session, self._networks.fold, batches)
        with self._lock:
            run = run_batches(session, self._networks, preprocessing, batches)
        return judge_run(run, FIXED)

    def judge_preprocessing(self, port: Pipeline, batches: Sequence[InputBatch]) -> Judgement:
        """Judge the preprocessing of a port alone, which needs no network."""
        session = PortSession(port)
        preprocessing = find_preprocessing(session, self._networks.fold, batches)
        return judge_preprocessing(run_batches(session, self._networks, preprocessing, ()), FIXED)


def clean_inputs(seed: int) -> list[InputBatch]:
    """The inputs of an audit: the noise whole, which the distance needs, and one image of the others."""
    noise, *others = audited_batches(seed)
    return [noise, *(InputBatch(batch.name, batch.images[:1]) for batch in others)]


def read_graphs(paths: Sequence[Path]) -> list[tuple[Graph, GraphLayers]]:
    """Read files of graphs and find their layers.

    Raises:
        UsageError: A file is not a graph.
        SourceError: A file is unreadable, corrupt or another network.
        RequirementError: A package that reads or runs a file is not installed.
    """
    graphs = []
    for path in paths:
        graph_format = find_graph_format(path)
        if graph_format is None:
            raise UsageError(f"--graph {path}: not an ONNX or a TFLite file.")
        graph = graph_format.read(path)
        graphs.append((graph, find_layers(graph)))
    return graphs


def judge_graphs(
    graphs: Sequence[tuple[Graph, GraphLayers]], checkpoint: ControlSource, seeds: Sequence[int], say: Say
) -> Iterator[CleanRun]:
    """Judge graphs that were made from the checkpoint, on the inputs of several seeds."""
    state_dict = SourceTensors(checkpoint.arrays, checkpoint.averages)
    weights = source_weights(checkpoint.tensors, checkpoint.plan.variant, state_dict)
    source = checkpoint.port().float64
    for graph, layers in graphs:
        own = network_from_graph(layers)
        rounded = round_network(own, to_half=layers.computes_in_half)
        networks = Networks(own, rounded, source, find_folded_standardisation(layers.weights, weights))
        with RuntimeProcess(graph) as process:
            session = OnnxTfliteSession(graph, layers, process)
            for seed in seeds:
                judgements = judge_run(run_graph(session, networks, clean_inputs(seed)), None)
                alarms = (f"{each.name}: {each.statement}" for each in judgements if not each.passed)
                say(f"judged {graph.path} on the inputs of seed {seed}")
                yield CleanRun(seed, tuple(alarms), shares_of(judgements), str(graph.path))
