"""The documented function: compare TensorFlow and PyTorch on the same inputs, with four judgements."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from checks.compare import repair as repairing
from checks.compare.activation_file import ActivationFile
from checks.compare.expected import Checkpoint, Expected
from checks.compare.expected_from_file import ExpectedFromFile
from checks.compare.expected_from_tensorflow import ExpectedFromTensorFlow
from checks.compare.judge import judge_headline, judge_mapping, judge_rounding
from checks.compare.measure import run_and_measure
from checks.compare.result import CompareResult, InputMeasurement, Repair, SavedActivations
from checks.core.builtin_checkpoint import built_in_checkpoint
from checks.core.environment import describe_device, environment
from checks.core.inputs import inputs_of, read_photographs
from checks.core.judgement import Judgement
from checks.core.models import LoadedPort, Port, build_misshapen, build_port, load_state_dict, unexpected_keys
from checks.core.options import check_device
from checks.core.photographs import find_photographs
from checks.core.source_tensors import (
    BrokenSource,
    find_broken_source,
    float32_variables,
    plan_source,
)
from checks.core.tensorflow_process import start_tensorflow
from checks.core.tensorflow_side import TensorFlowSide, require_tensorflow
from checks.core.types import Arrays, Say
from checks.diagnosis.diagnose import diagnose
from checks.diagnosis.explain_products import explain_products
from checks.diagnosis.result import Diagnosis
from converter.counts import counted
from converter.errors import SourceError, UsageError
from converter.formats.detect import open_source
from converter.home_folder import from_home
from converter.hub.locate import locate
from converter.layer_map import Variant
from converter.manifest import file_digest
from converter.mtcnn_layer_map import MtcnnNetwork, find_network
from converter.network_names import NetworkTensors, advise_to_ignore, check_ignore
from converter.plan import Weights

__all__ = ["CompareResult", "compare"]


def compare(
    source: str | Path | None = None,
    *,
    state_dict: str | Path | None = None,
    weights: Weights = "variable",
    step: int | None = None,
    ignore: Sequence[str] = (),
    every_layer: bool = False,
    seed: int = 0,
    images: str | Path | None = None,
    save_activations: str | Path | None = None,
    activations: str | Path | None = None,
    repair: str | Path | None = None,
    device: str = "cpu",
    say: Say = lambda _: None,
) -> CompareResult:
    """Compare a PyTorch port with a TensorFlow checkpoint.

    A test that proves a port:

        from checks.compare.run import compare

        def test_the_port_is_exact():
            result = compare("20180402-114759/", state_dict="weights.pt")
            assert result.passed, result.judgements

    Args:
        source: A checkpoint in any format that `open_source` reads, or the name of a published model. None is
            the built-in checkpoint; with `activations` and `state_dict`, no checkpoint is read.
        state_dict: The .pt or .safetensors file to judge. None converts the source and judges the result.
        weights: As in `plan.plan_conversion`.
        step: As in `open_source`.
        ignore: Shell patterns of tensors to leave out, of the checkpoint and of the state_dict.
        every_layer: Compare each of the 132 convolutions as well as the stages.
        seed: Seed of the built-in inputs.
        images: A folder of photographs to compare on as well.
        save_activations: The file to store TensorFlow's side in; `activation_file` says where to keep it.
        activations: A file of stored activations, which replaces TensorFlow.
        repair: The file to write a corrected state_dict to. It is written if the port fails, the cause is in
            the weights, and the corrected state_dict passes.
        device: Where PyTorch's float32 network runs: "cpu", "cuda" or "mps". The bounds are the same.
        say: Progress callback.

    Returns:
        The result. `passed` is the verdict, `diagnosis` says why the port fails.

    Raises:
        PortError: A subclass of it says why the comparison could not be made. A difference is not an error.
    """
    check_device(device)
    out = _path(repair)
    if out is not None:
        repairing.check_output(out)
    files = _Files(_path(source), _path(state_dict), weights, step, ignore)
    with ExitStack() as stack:
        if activations is not None:
            expected, port = _open_stored(stack, Path(activations), files, say)
        else:
            tensorflow = _TensorFlowOptions(every_layer, seed, _path(images), _path(save_activations))
            expected, port = _start_tensorflow(stack, tensorflow, files, say)
        result = _Comparison(expected, files.state_dict, port.source, device, say).result(port.arrays, out)
    return result if save_activations is None else replace(result, saved=_saved(Path(save_activations)))


def _saved(path: Path) -> SavedActivations | None:
    if not path.exists():  # the state_dict does not load, and nothing was run
        return None
    return SavedActivations(str(path), path.stat().st_size, file_digest(path))


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


@dataclass(frozen=True, slots=True)
class _Files:
    """The arguments of `compare` that say what is read; `source` is its path."""

    source: Path | None
    state_dict: Path | None
    weights: Weights
    step: int | None
    ignore: Sequence[str]

    def open_checkpoint(self, stack: ExitStack, path: Path) -> Checkpoint:
        """Open the checkpoint at this path."""
        opened = stack.enter_context(open_source(locate(path), step=self.step))
        named = NetworkTensors(opened, self.ignore)
        tensors, plan = plan_source(named, self.weights)
        return Checkpoint(path, named, tensors, plan)

    def load_port(self, checkpoint: Checkpoint | None) -> LoadedPort:
        """Load the state_dict to judge, or the converted checkpoint without one; check the patterns."""
        converted = self.state_dict if checkpoint is None else checkpoint.source.path
        assert converted is not None  # one of the two is given
        port = load_state_dict(self.state_dict, converted, self.weights, self.ignore)
        if port.source is not None and checkpoint is not None:
            _refuse_another_network(port.source, checkpoint)
        sources = (None if checkpoint is None else checkpoint.source, port.source)
        check_ignore(self.ignore, *(source for source in sources if source is not None))
        return port


@dataclass(frozen=True, slots=True)
class _TensorFlowOptions:
    """The arguments of `compare` that TensorFlow's side takes."""

    every_layer: bool
    seed: int
    images: Path | None
    save: Path | None


def _start_tensorflow(
    stack: ExitStack,
    options: _TensorFlowOptions,
    files: _Files,
    say: Say,
) -> tuple[Expected, LoadedPort]:
    """Open the checkpoint, load the port and start TensorFlow."""
    require_tensorflow(
        "to compare with", "A comparison with stored activations (--activations FILE) works without it."
    )
    start_tensorflow()
    photographs = [] if options.images is None else read_photographs(find_photographs(options.images))
    if options.save is not None:
        _refuse_activations(options.save)
    path = files.source
    if path is None:
        say("looking for the built-in checkpoint")
        path = built_in_checkpoint()
    checkpoint = files.open_checkpoint(stack, path)
    opened, plan = checkpoint.source, checkpoint.plan
    say("converting")
    port = files.load_port(checkpoint)
    variables = float32_variables(opened, checkpoint.tensors, plan)
    tensorflow: TensorFlowSide | BrokenSource | None = find_broken_source(variables, plan)
    if tensorflow is None:
        say("starting TensorFlow")
        mtcnn = plan.network if isinstance(plan.network, MtcnnNetwork) else None
        side = TensorFlowSide(opened, variables, files.weights, own_graph=not plan.casts, network=mtcnn)
        tensorflow = stack.enter_context(side)
    expected = ExpectedFromTensorFlow(
        checkpoint, tensorflow, options.every_layer, options.seed, photographs, options.save, say
    )
    return expected, port


def _open_stored(
    stack: ExitStack,
    activations: Path,
    files: _Files,
    say: Say,
) -> tuple[Expected, LoadedPort]:
    """Open the stored activations, open the checkpoint if there is one, and load the port."""
    stored = stack.enter_context(ActivationFile(activations))
    path = files.source
    if path is None and files.state_dict is None:
        path = built_in_checkpoint()
    say("converting")
    checkpoint = None if path is None else files.open_checkpoint(stack, path)
    expected = ExpectedFromFile(activations, stored, checkpoint, say)
    expected.check(files.weights)
    return expected, files.load_port(checkpoint)


def _statements(source: NetworkTensors | None) -> tuple[str, ...]:
    return () if source is None else tuple(f"{source.path.name}: {said}" for said in source.statements)


def _refuse_another_network(port: NetworkTensors, checkpoint: Checkpoint) -> None:
    """Refuse a network of MTCNN that is not the source's, and another network for one of MTCNN."""
    actual, expected = find_network(port, port.naming), checkpoint.plan.network
    if actual == expected or (actual is None and isinstance(expected, Variant)):
        return
    raise SourceError(
        port.path,
        f"this is {actual or 'not a network of MTCNN'}, but {checkpoint.path} is "
        f"{expected if isinstance(expected, MtcnnNetwork) else 'an Inception-ResNet-v1'}",
        next_step="Give the state_dict of the same network",
    )


def _refuse_activations(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} exists. Give another name to --save-activations.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Judges a port against the expected side, and finds the cause of a difference."""

    expected: Expected
    state_dict: Path | None
    source: NetworkTensors | None  # of the state_dict
    device: str
    say: Say

    def result(self, arrays: Arrays, repair: Path | None) -> CompareResult:
        """Judge a state_dict; if it fails, find the causes, and write a corrected one to `repair`."""
        port = build_port(arrays, self.expected.facts.variant, self.device)
        result = self._judge(arrays, port)
        if result.broken is not None:
            kept = Repair(None, (), "the source is broken, so nothing can be repaired. Nothing was written.")
            return result if repair is None else replace(result, repair=kept)
        if result.passed:
            unneeded = Repair(None, (), "nothing to repair: the port is exact. Nothing was written.")
            return result if repair is None else replace(result, repair=unneeded)
        self.say("looking for the cause")
        diagnosis = self._explain_products(result, port) or self._diagnose(arrays, port)
        if isinstance(diagnosis, str):
            result = replace(result, undiagnosed=diagnosis)
        else:
            result = replace(result, diagnosis=diagnosis)
        return result if repair is None else replace(result, repair=self._repair(arrays, diagnosis, repair))

    def _judge(self, arrays: Arrays, port: Port | str) -> CompareResult:
        facts = self.expected.facts
        inputs: tuple[InputMeasurement, ...] = ()
        broken = facts.broken
        if broken is None and isinstance(port, Port):
            inputs, broken = self._measure(port)
        # After the inputs: TensorFlow reads the source while PyTorch is run.
        judgements = [self.expected.judge_tensors(arrays)]
        if broken is not None:
            inputs = ()
        elif isinstance(port, str):
            judgements.append(
                Judgement("mapping", False, "not judged: the state_dict does not load strictly", (port,))
            )
            judgements.append(Judgement("rounding", False, "not judged"))
            if isinstance(facts.variant, Variant):
                judgements.append(Judgement("headline", False, "not judged"))
        else:
            judgements += [judge_mapping(inputs), judge_rounding(inputs)]
            if isinstance(facts.variant, Variant):  # no other port quotes a distance of MTCNN's networks
                judgements.append(judge_headline(inputs))
        judged = () if self.state_dict is None else (str(self.state_dict),)
        return CompareResult(
            source=facts.source,
            state_dict=None if self.state_dict is None else str(self.state_dict),
            own_graph=facts.own_graph,
            variant=facts.variant,
            judgements=tuple(judgements),
            inputs=inputs,
            names=(*facts.names, *_statements(self.source)),
            environment=environment(),
            files=tuple(dict.fromkeys((*facts.files, *judged))),
            seed=facts.seed,
            broken=broken,
            device=describe_device(self.device),
        )

    def _measure(self, port: Port) -> tuple[tuple[InputMeasurement, ...], BrokenSource | None]:
        """Run the port on every input; stop where TensorFlow's own activations are not finite."""
        measured = run_and_measure(port, self.expected.inputs())
        return ((), measured) if isinstance(measured, BrokenSource) else (measured, None)

    def _explain_products(self, result: CompareResult, port: Port | str) -> Diagnosis | None:
        """Explain that only the rounding fails, by the bits of PyTorch's products."""
        failed = {judgement.name for judgement in result.judgements if not judgement.passed}
        if isinstance(port, str) or not failed <= {"rounding", "headline"}:
            return None
        facts = self.expected.facts
        finding = explain_products(port, facts.variant, inputs_of(facts.variant, facts.seed)[0].images[:1])
        return None if finding is None else Diagnosis((finding,))

    def _diagnose(self, arrays: Arrays, port: Port | str) -> Diagnosis | str:
        variant = self.expected.facts.variant
        model = port.float64 if isinstance(port, Port) else build_misshapen(arrays, variant)
        if model is None and self.source is not None and (extra := unexpected_keys(arrays, variant)):
            keys = [self.source.original(key) for key in extra]
            return (
                f"the state_dict holds {len(keys)} {'tensor' if len(keys) == 1 else 'tensors'} that the "
                "network does not have. "
                f"{advise_to_ignore(keys, self.source.source.info, 'pytorch')}"
            )
        if model is None:
            return (
                "the state_dict does not load. To list every tensor that differs: facenet-port audit "
                f"{self.state_dict} --against {self.expected.facts.source}"
            )
        reference = self.expected.diagnosis_reference()
        if isinstance(reference, str):
            return reference
        return diagnose(
            model,
            reference.activations,
            reference.images,
            source=reference.source,
            averages=reference.averages,
            variant=variant,
        )

    def _repair(self, arrays: Arrays, diagnosis: Diagnosis | str, path: Path) -> Repair:
        if isinstance(diagnosis, str):
            return Repair(None, (), f"nothing was repaired: {diagnosis}. Nothing was written.")
        repaired = repairing.correct_tensors(arrays, diagnosis)
        if isinstance(repaired, str):
            return Repair(None, (), f"nothing was repaired: {repaired}. Nothing was written.")
        keys = tuple(key for key in arrays if key in diagnosis.repair)
        self.say("judging the repaired state_dict")
        again = self._judge(repaired, build_port(repaired, self.expected.facts.variant, self.device))
        if not again.passed:
            failed = ", ".join(judgement.name for judgement in again.judgements if not judgement.passed)
            corrected = counted(len(keys), "tensor")
            message = f"with {corrected} corrected the port still fails ({failed}). Nothing was written."
            return Repair(None, keys, message)
        repairing.write_state_dict_file(path, repaired)
        message = f"{counted(len(keys), 'tensor')} corrected; all judgements hold on the result: "
        message += from_home(str(path))
        if self.source is not None and self.source.prefix:
            message += f" (its keys are without {self.source.prefix!r})"
        return Repair(str(path), keys, message)
