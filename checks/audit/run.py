"""An audit: a port that somebody made, held against the checkpoint that it was made from."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from checks.audit import mtcnn
from checks.audit import published_ports as known
from checks.audit.compare_tensors import InputFold, Source, audit_tensors, find_input_fold, source_tensors
from checks.audit.find_named_layers import find_named_layers
from checks.audit.graphs import onnx_file, tflite_file
from checks.audit.graphs.find_layers import GraphLayers, find_layers
from checks.audit.graphs.graph import Graph
from checks.audit.graphs.network_from_graph import network_from_graph
from checks.audit.graphs.onnx_tflite_session import OnnxTfliteSession
from checks.audit.graphs.run_graph import run_graph
from checks.audit.graphs.runtime_process import RuntimeProcess
from checks.audit.graphs.tensorflow_session import TensorFlowSession
from checks.audit.judge import (
    judge_arithmetic,
    judge_distance,
    judge_preprocessing,
    judge_structure,
    judge_tensors,
    verdict,
)
from checks.audit.port_layers import PortWeights
from checks.audit.result import AuditResult, GraphRun, TensorResult
from checks.core.environment import environment
from checks.core.judgement import Judgement
from checks.core.source_tensors import (
    alternative_state_dict,
    expected_state_dict,
    float32_variables,
    plan_tensors,
)
from checks.core.tensorflow_side import open_own_graph
from checks.core.types import Arrays, Say
from checks.diagnosis.explain_tensor import SourceTensors
from converter.errors import RequirementError, SourceError, UsageError
from converter.formats.detect import open_source
from converter.formats.source import TensorSource
from converter.hub import catalog
from converter.hub.cache import hub_checkpoints
from converter.hub.locate import locate
from converter.layer_map import LOGITS_SCOPE, Variant
from converter.manifest import file_digest
from converter.plan import MappingError, Weights
from reference import InceptionResnetV1

_PACKAGES = {
    "ONNX": {"onnx": "onnx>=1.16", "onnxruntime": "onnxruntime>=1.18"},
    "TFLite": {"ai_edge_litert": "ai-edge-litert>=1.2"},
}


def find_port(port: Path) -> Path:
    """The file of a port: the path itself, or of a published name the state_dict in the cache of torch.hub.

    Raises:
        RequirementError: It is a name, and the cache does not hold its file.
    """
    checkpoint = None if port.exists() else catalog.find_entry(str(port))
    if checkpoint is None:
        return port
    path = hub_checkpoints() / checkpoint.state_dict_name
    if not path.is_file():
        raise RequirementError(
            f"{port}: {path} is not there. Download it, or give the port as a file; `python -m converter "
            f"{port}` makes one."
        )
    return path


def find_source(port: Path) -> str:
    """The name of the checkpoint that a known port was made from: by its SHA-256, else by a published name.

    Raises:
        UsageError: Nothing is known of it.
    """
    found = known.recognise(file_digest(port)) if port.is_file() else None
    if found is not None and found.source is not None:
        return found.source
    checkpoint = known.named(port)
    if checkpoint is not None:
        return checkpoint.name
    told = f" {found.statement}" if found is not None else ""
    raise UsageError(
        f"{port}: nothing tells what it was made from.{told} Give the checkpoint with --against SOURCE."
    )


def audit(
    port: Path,
    against: Path,
    *,
    weights: Weights = "variable",
    step: int | None = None,
    seed: int = 0,
    say: Say = lambda _: None,
) -> AuditResult:
    """Hold a port against its source.

    Args:
        port: A state_dict (.pt, .safetensors), a Keras .h5, a TensorFlow checkpoint or .pb, an ONNX or a
            TFLite file; or MTCNN's weights.
        against: What it was made from: anything that `open_source` takes, and MTCNN's det1-3.npy.
        weights: As in `plan.plan_conversion`, of the source.
        step: As in `open_source`, of the source.
        seed: Of the inputs that a graph is run on.
        say: Told what is going on.

    Returns:
        The report; its `passed` is the verdict.

    Raises:
        UsageError: The port is the source.
        SourceError: One of them is unreadable, corrupt or another network.
        RequirementError: A package that reads or runs a graph is not installed.
    """
    if port.exists() and against.exists() and port.resolve() == against.resolve():
        raise UsageError(f"{port}: a port cannot judge itself. Give what it was made from with --against.")
    say("reading the port")
    read = graph_reader(port)
    graph = None if read is None else read(port)
    with ExitStack() as closing:
        opened = None if graph is not None else closing.enter_context(open_source(port))
        say("reading the source")
        source = closing.enter_context(open_source(locate(against), step=step))
        pair = _Audit(str(port), str(against), graph, opened, source, seed, say)
        return pair.of_mtcnn() if mtcnn.network(source) is not None else pair.of_facenet(weights)


def graph_reader(path: Path) -> Callable[[Path], Graph] | None:
    """What reads a file as a graph, or None where it is neither ONNX nor TFLite.

    Raises:
        RequirementError: It is one, and a package that reads or runs it is not installed.
    """
    if not path.is_file():
        return None
    for kind, module in (("ONNX", onnx_file), ("TFLite", tflite_file)):
        if module.is_ours(path):
            packages = _PACKAGES[kind].items()
            missing = [f"'{wanted}'" for name, wanted in packages if importlib.util.find_spec(name) is None]
            if missing:
                raise RequirementError(f"{path}: to audit {kind} files: pip install {' '.join(missing)}.")
            reader: Callable[[Path], Graph] = module.read
            return reader
    return None


@dataclass(frozen=True, slots=True)
class _Audit:
    """A port and its source, both open; the port is a graph or named weights."""

    port: str
    against: str
    graph: Graph | None
    weights: TensorSource | None
    source: TensorSource
    seed: int
    say: Say

    def of_mtcnn(self) -> AuditResult:
        """Hold one of MTCNN's networks against another file of it."""
        if self.weights is None:
            raise SourceError(
                self.port, "a graph, and the source is a network of MTCNN; its graphs are not audited"
            )
        name, results = mtcnn.audit_tensors(self.weights, self.source)
        return self._report(f"{name} of MTCNN", results, (judge_tensors(results),), None)

    def of_facenet(self, weights: Weights) -> AuditResult:
        """Hold an Inception-ResNet-v1 against its checkpoint."""
        if self.weights is not None and (name := mtcnn.network(self.weights)) is not None:
            raise SourceError(
                self.weights.path,
                f"the {name} of MTCNN, and {self.against} is not",
                next_step="Give det1.npy, det2.npy or det3.npy with --against",
            )
        tensors, plan = plan_tensors(self.source, weights)
        right = expected_state_dict(tensors, plan)
        variant = plan.variant
        expected = source_tensors(
            float32_variables(self.source, tensors, plan),
            variant,
            SourceTensors(right, alternative_state_dict(tensors, weights)),
        )
        if self.graph is None:
            assert self.weights is not None
            return self._of_weights(self.weights, expected, right)
        layers = find_layers(self.graph)
        _refuse_quantised(self.graph, layers)
        self.say("comparing")
        results = audit_tensors(layers.weights, expected)
        self.say("starting the graph's runtime")
        with RuntimeProcess(self.graph) as process:
            runner = OnnxTfliteSession(self.graph, layers, process)
            own = partial(network_from_graph, layers)
            fold = find_input_fold(layers.weights, expected)
            run = run_graph(runner, own, _network_of(right, variant), fold, self.seed, self.say)
        judgements = (
            judge_tensors(results, _remarks(layers.weights, expected)),
            judge_structure(layers.remarks, len(layers.weights.layers)),
            *self._judge_run(run),
        )
        return self._report(_described(variant), results, judgements, run)

    def _of_weights(self, weights: TensorSource, expected: Source, right: Arrays) -> AuditResult:
        """Hold named weights against the source's, and run the graph that comes with them, if one does."""
        found = find_named_layers(weights)
        self.say("comparing")
        results = audit_tensors(found, expected)
        remarks = list(_remarks(found, expected))
        judgements: list[Judgement] = []
        run: GraphRun | None = None
        if weights.naming == "tensorflow":
            if importlib.util.find_spec("tensorflow") is None:
                remarks.append("its graph was not run, for want of TensorFlow")
            else:
                ran = self._run_own_graph(weights, _network_of(right, expected.variant))
                if isinstance(ran, str):
                    judgements.append(Judgement("arithmetic", False, f"its own graph: {ran}"))
                elif ran is not None:
                    run = ran
                    judgements += self._judge_run(run)
        judgements.insert(0, judge_tensors(results, remarks))
        return self._report(_described(expected.variant), results, tuple(judgements), run)

    def _run_own_graph(self, weights: TensorSource, source: InceptionResnetV1) -> GraphRun | str | None:
        """Run a checkpoint's own graph; None where it has none, and in words why it does not run."""
        try:
            tensors, plan = plan_tensors(weights, "variable")
        except MappingError:
            return None  # the tensors say what is wrong
        self.say("starting TensorFlow")
        try:
            graph = open_own_graph(weights, "variable")
            if graph is None:
                return None
            with graph:
                state_dict = expected_state_dict(tensors, plan)

                def own(dtype: torch.dtype) -> InceptionResnetV1:
                    return _network_of(state_dict, plan.variant, dtype)

                return run_graph(TensorFlowSession(graph), own, source, InputFold(), self.seed, self.say)
        except Exception as error:  # whatever TensorFlow meets a foreign graph with
            return " ".join(str(error).split())[:300]

    def _judge_run(self, run: GraphRun) -> tuple[Judgement, ...]:
        return (
            judge_preprocessing(run, known.standardisation(self.source.files)),
            judge_arithmetic(run),
            judge_distance(run),
        )

    def _runtimes(self) -> dict[str, str]:
        """The versions of what read and ran the graph."""
        if self.graph is None:
            return {}
        lines = _PACKAGES[self.graph.format.partition(" ")[0]].values()
        names = [line.partition(">")[0] for line in lines]
        return {name: importlib.metadata.version(name) for name in names}

    def _report(
        self,
        network: str,
        results: tuple[TensorResult, ...],
        judgements: tuple[Judgement, ...],
        run: GraphRun | None,
    ) -> AuditResult:
        holder = self.graph or self.weights
        assert holder is not None
        files = {str(file): file_digest(file) for file in (*holder.files, *self.source.files)}
        recognised = known.recognise(files[str(holder.files[0])])
        return AuditResult(
            port=self.port,
            format=holder.format,
            source=self.against,
            network=network,
            recognised="" if recognised is None else recognised.statement,
            tensors=results,
            run=run,
            judgements=judgements,
            verdict=verdict(results, judgements, run),
            files=files,
            seed=self.seed,
            environment=environment() | self._runtimes(),
        )


def _refuse_quantised(graph: Graph, layers: GraphLayers) -> None:
    """Refuse weights that are no floating-point numbers.

    Raises:
        SourceError: They are integers.
    """
    for tensors in layers.weights.layers.values():
        for tensor in tensors.values():
            if tensor.array.dtype.kind in "iub":
                raise SourceError(
                    graph.path,
                    f"quantised to {tensor.array.dtype}, which is not audited",
                    tensor=tensor.name,
                    next_step="Give the port as it was before it was quantised",
                )


def _described(variant: Variant) -> str:
    head = "no classifier" if variant.num_classes is None else f"{variant.num_classes} classes"
    return f"Inception-ResNet-v1, {variant.embedding_size}-d embedding, {head}"


def _remarks(found: PortWeights, expected: Source) -> tuple[str, ...]:
    """What a port does otherwise than the published files and is no fault."""
    remarks = []
    if found.prefix:
        remarks.append(f"every name begins with {found.prefix!r}")
    if expected.variant.num_classes is not None and LOGITS_SCOPE not in found.layers:
        remarks.append("without the source's classifier")
    return tuple(remarks)


def _network_of(
    state_dict: Arrays, variant: Variant, dtype: torch.dtype = torch.float64
) -> InceptionResnetV1:
    """The network with the weights of a state_dict, in evaluation mode."""
    model = InceptionResnetV1(num_classes=variant.num_classes, embedding_size=variant.embedding_size)
    model.load_state_dict({key: torch.from_numpy(array) for key, array in state_dict.items()})
    return model.to(dtype).eval()
