"""Audit a port that somebody made: compare it with the checkpoint that it was made from."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from checks.audit.audit_graph import (
    Findings,
    audit_graph,
    build_network,
    find_source_overflow,
    remarks_on,
    source_network,
)
from checks.audit.audit_mtcnn_graph import audit_mtcnn_graph
from checks.audit.compare_mtcnn import compare_mtcnn
from checks.audit.compare_tensors import compare_tensors
from checks.audit.faces import Faces, read_faces
from checks.audit.find_named_layers import find_named_layers, holds_averages_only
from checks.audit.graphs.graph import Graph
from checks.audit.graphs.graph_formats import find_graph_format, format_of
from checks.audit.graphs.quantisation import is_quantised, refuse_quantised
from checks.audit.graphs.run_graph import (
    Networks,
    audited_batches,
    round_network,
    run_graph,
)
from checks.audit.graphs.tensorflow_session import TensorFlowSession
from checks.audit.judge import (
    judge_run,
    judge_tensors,
    warn_of_interface,
    write_embeddings_verdict,
    write_verdict,
)
from checks.audit.judge_quantised import (
    write_quantised_verdict,
)
from checks.audit.published_ports import (
    find_port,
    find_published_port,
    find_source,
    training_standardisation,
)
from checks.audit.result import AuditResult, GraphRun
from checks.audit.source_weights import SourceWeights, source_weights
from checks.core.environment import environment
from checks.core.network import describe_network
from checks.core.source_tensors import (
    alternative_state_dict,
    expected_state_dict,
    find_broken_source,
    float32_variables,
)
from checks.core.tensorflow_side import open_own_graph
from checks.core.types import Say
from checks.diagnosis.explain_tensor import SourceTensors
from converter.convert import plan_tensors
from converter.errors import SourceError, UsageError
from converter.formats.detect import open_source
from converter.hub.locate import locate
from converter.manifest import file_digest
from converter.mtcnn_layer_map import find_network
from converter.network_names import NetworkTensors, advise_to_ignore, check_ignore
from converter.plan import MappingError, Weights

_LONGEST_MESSAGE = 300  # characters of an error that TensorFlow raises


def audit(
    port: str | Path,
    against: str | Path | None = None,
    *,
    weights: Weights = "variable",
    step: int | None = None,
    ignore: Sequence[str] = (),
    seed: int = 0,
    faces: str | Path | Faces | None = None,
    standardisation: str | None = None,
    say: Say = lambda _: None,
) -> AuditResult:
    """Audit a port: compare every tensor with the source's, and run the port if it is a graph.

    A project that ships a port can test it, with the checkpoint's files beside it:

        from checks.audit.run import audit

        def test_port_is_the_checkpoints():
            result = audit("facenet.onnx", against="20180402-114759/")
            assert result.passed, result.verdict

    Args:
        port: A state_dict (.pt, .safetensors), a Keras .h5 or .keras, a TensorFlow checkpoint or .pb, an ONNX
            or a TFLite file, or weights of MTCNN; or a published name such as "vggface2", for the state_dict
            in the cache of torch.hub.
        against: The checkpoint that the port was made from: any source of the converter, a published name,
            or MTCNN's det1.npy, det2.npy or det3.npy. None finds the checkpoint of a published port.
        weights: The weights of the source: the variables, or their moving averages ("average").
        step: As in `open_source`, for the source.
        ignore: Shell patterns of tensors to leave out, of the port and of the source.
        seed: The seed of the inputs for a graph.
        faces: A folder of crops, as `facenet-port align` writes them, that a graph of integers embeds; or
            the crops themselves.
        standardisation: The standardisation of images in the training of the source, as the catalog names it.
            None takes that of a published source.
        say: Progress callback.

    Returns:
        The result; `passed` is the verdict.

    Raises:
        UsageError: The source is not known or is the port, `ignore` does not fit, a file has two networks, or
            faces are given of which the standardisation is not known, or for a port that is no graph of
            integers.
        SourceError: The port or the source is unreadable, corrupt or another network.
        RequirementError: A package that reads or runs a graph is not installed, or a published checkpoint
            cannot be downloaded.
    """
    port_path = find_port(Path(port))
    graph_format = find_graph_format(port_path)
    source_path = locate(find_source(port_path) if against is None else against)
    _refuse_itself(port_path, source_path)
    with ExitStack() as closing:
        say("reading the port")
        opened = (
            NetworkTensors(closing.enter_context(open_source(port_path)), ignore)
            if graph_format is None
            else graph_format.read(port_path)
        )
        say("reading the source")
        source = NetworkTensors(closing.enter_context(open_source(source_path, step=step)), ignore)
        named = (source,) if isinstance(opened, Graph) else (opened, source)
        check_ignore(ignore, *named)
        digests = {file: file_digest(file) for file in (*opened.files, *source.files)}
        trained = standardisation or training_standardisation(
            source.path, {file.name: digests[file] for file in source.files}
        )
        crops = _read_faces(Path(faces), opened, trained) if isinstance(faces, str | Path) else faces
        findings = _find(opened, source, weights, trained, seed, say, crops)
    files = {str(file): digest for file, digest in digests.items()}
    return _make_result(findings, opened, str(source_path), named, files, seed)


def _refuse_itself(port: Path, source: Path) -> None:
    """Refuse a source that is the port, or equal to it byte for byte: a comparison would prove nothing."""
    problem = "a port cannot judge itself"
    if port.resolve() != source.resolve():
        same_size = port.is_file() and source.is_file() and port.stat().st_size == source.stat().st_size
        if not same_size or file_digest(port) != file_digest(source):
            return
        problem = f"{problem}, and {source} is the same file, byte for byte"
    raise UsageError(f"{port}: {problem}. Give its checkpoint with --against.")


def _make_result(
    findings: Findings,
    port: Graph | NetworkTensors,
    source: str,
    named: Sequence[NetworkTensors],
    files: dict[str, str],
    seed: int,
) -> AuditResult:
    published = find_published_port(files[str(port.files[0])])
    names = tuple(f"{each.path.name}: {said}" for each in named for said in each.statements)
    extra = [tensor.name for tensor in findings.tensors if tensor.status == "extra"]
    is_whole = all(tensor.status != "missing" for tensor in findings.tensors)
    if extra and is_whole and isinstance(port, NetworkTensors):  # else a name may be wrong, not too many
        names += (advise_to_ignore(extra, port.source.info, port.naming),)
    runtimes = format_of(port).versions() if isinstance(port, Graph) else {}
    if findings.not_understood:
        verdict = write_embeddings_verdict(findings.judgements)
    elif findings.quantised is not None and all(judgement.passed for judgement in findings.judgements):
        verdict = write_quantised_verdict(findings.tensors, findings.quantised)
    else:
        verdict = write_verdict(
            findings.tensors,
            findings.judgements,
            findings.run,
            findings.broken,
            is_not_run=bool(findings.not_run),
        )
    holds = not findings.broken and all(judgement.passed for judgement in findings.judgements)
    if isinstance(port, Graph) and findings.run is not None and holds:
        verdict += "".join(f" {sentence}" for sentence in warn_of_interface(findings.run))
    return AuditResult(
        port=str(port.path),
        format=port.format,
        source=source,
        network=findings.network,
        names=names,
        recognised="" if published is None else published.statement,
        tensors=findings.tensors,
        run=findings.run,
        judgements=findings.judgements,
        verdict=verdict,
        files=files,
        seed=seed,
        environment=environment() | runtimes,
        broken=findings.broken,
        not_understood=findings.not_understood,
        not_run=findings.not_run,
        quantised=findings.quantised,
    )


def _read_faces(folder: Path, port: Graph | NetworkTensors, trained: str | None) -> Faces:
    """Read the faces that a graph of integers embeds.

    Raises:
        UsageError: The port is no such graph, or the standardisation of the source is not known.
        SourceError: As for `read_faces`.
    """
    if not (isinstance(port, Graph) and is_quantised(port)):
        raise UsageError(f"{port.path} is no graph of integers. Leave out --faces.")
    if trained is None:
        raise UsageError(
            "How the images of the checkpoint are standardised is not known. Give --standardise fixed, "
            "(x - 127.5) / 128, or --standardise per-image."
        )
    return read_faces(folder, trained)


def _find(
    port: Graph | NetworkTensors,
    source: NetworkTensors,
    weights: Weights,
    trained: str | None,
    seed: int,
    say: Say,
    faces: Faces | None,
) -> Findings:
    """Compare an open port with its open source, by the network and the format of the port."""
    mtcnn = find_network(source, source.naming)
    if mtcnn is not None:
        if isinstance(port, Graph):
            refuse_quantised(port)
            if is_quantised(port):
                problem = "it is quantised, and quantised graphs of MTCNN are not audited"
                raise SourceError(port.path, problem, next_step="Give the float32 graph")
            return audit_mtcnn_graph(port, source, mtcnn, seed, say)
        results = compare_mtcnn(port, source)
        return Findings(f"{mtcnn.name} of MTCNN", results, (judge_tensors(results),))
    if isinstance(port, NetworkTensors) and (mtcnn := find_network(port, port.naming)) is not None:
        raise SourceError(
            port.path,
            f"{mtcnn}, but {source.path} is another network",
            next_step="Give det1.npy, det2.npy or det3.npy with --against",
        )
    expected = _read_source(source, weights)
    if isinstance(port, Graph):
        return audit_graph(port, expected, trained, seed, say, faces)
    return _audit_weights(port, expected, _weights_of(port, weights), trained, seed, say)


def _read_source(source: NetworkTensors, weights: Weights) -> SourceWeights:
    tensors, plan = plan_tensors(source, weights)
    state_dict = SourceTensors(expected_state_dict(tensors, plan), alternative_state_dict(tensors, weights))
    variables = float32_variables(source, tensors, plan)
    return source_weights(variables, plan.variant, state_dict, find_broken_source(variables, plan))


def _weights_of(port: NetworkTensors, weights: Weights) -> Weights:
    """The weights of a port: its variables, or its averages if it has nothing else and they were asked for.

    Raises:
        SourceError: It holds only averages, and they were not asked for.
    """
    if not holds_averages_only(port):
        return "variable"
    if weights == "variable":
        problem = "it holds only moving averages: the variables themselves are not there"
        raise SourceError(port.path, problem, next_step="Take the averages: --weights average")
    return "average"


def _audit_weights(
    port: NetworkTensors,
    source: SourceWeights,
    port_weights: Weights,
    trained: str | None,
    seed: int,
    say: Say,
) -> Findings:
    """Compare named weights, and run the graph of a TensorFlow checkpoint."""
    weights = find_named_layers(port, averages=port_weights == "average")
    say("comparing")
    results = compare_tensors(weights, source)
    remarks = list(remarks_on(weights, source))
    run, not_run = None, ""
    broken = source.broken
    if port.naming == "tensorflow":
        broken = broken or find_source_overflow(source, seed)
    can_run = port.naming == "tensorflow" and broken is None and weights.is_finite
    if can_run and importlib.util.find_spec("tensorflow") is None:
        remarks.append(
            "its graph was not run, which needs TensorFlow: pip install 'facenet-port[tensorflow]'"
        )
    elif can_run:
        try:
            run = _run_own_graph(port, source, port_weights, seed, say)
        except OSError:  # the machine's, not the port's
            raise
        except Exception as error:  # TensorFlow raises anything on a foreign graph
            problem = getattr(error.__cause__ or error, "problem", str(error))
            not_run = " ".join(problem.split())[:_LONGEST_MESSAGE].removesuffix(".")
    judgements = (
        judge_tensors(results, remarks),
        *(() if run is None else judge_run(run, trained)),
    )
    network = describe_network(source.variant)
    return Findings(network, results, judgements, run, broken=broken, not_run=not_run)


def _run_own_graph(
    port: NetworkTensors, source: SourceWeights, port_weights: Weights, seed: int, say: Say
) -> GraphRun | None:
    """Run a checkpoint's own graph; return None if it has no graph, or not the weights of the network."""
    try:
        tensors, plan = plan_tensors(port, port_weights)
    except MappingError:
        return None  # the judgement of the tensors names the fault
    say("starting TensorFlow")
    graph = open_own_graph(port, port_weights)
    if graph is None:
        return None
    with graph:
        session = TensorFlowSession(graph)
        own = build_network(expected_state_dict(tensors, plan), plan.variant, torch.float64)
        networks = Networks(own, round_network(own), source_network(source))
        return run_graph(session, networks, audited_batches(seed), say)
