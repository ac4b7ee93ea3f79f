"""A comparison: TensorFlow and PyTorch on the same inputs, tap by tap, and four judgements."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from checks.activation_file import ActivationFile, ActivationWriter
from checks.builtin import built_in_checkpoint
from checks.judgements import (
    Judgement,
    ProbeMeasurement,
    Report,
    judge_headline,
    judge_mapping,
    judge_rounding,
    judge_stored_tensors,
    judge_tensors,
    measure,
)
from checks.probes import SEEDED, find_photographs, photograph_probes, seeded_probes
from checks.taps import run_pytorch, tap_names
from checks.tensorflow_side import Activations, TensorFlowSide, require_tensorflow
from converter.casting import to_float32
from converter.convert import MappingError, Plan, Weights, convert_rows, describe, plan
from converter.convert_file import convert_file
from converter.errors import SourceError, UsageError
from converter.layer_map import Variant
from converter.manifest import tensor_digest
from converter.naming import tensorflow_tensors
from converter.sources import open_source
from converter.tensor_source import TensorSource
from reference import InceptionResnetV1

Say = Callable[[str], None]
"""Told what is going on."""


@dataclass(frozen=True, slots=True)
class _Port:
    """The PyTorch side: the two models made of what a user loads."""

    float32: InceptionResnetV1
    float64: InceptionResnetV1


def compare(
    source: Path | None = None,
    *,
    state_dict: Path | None = None,
    weights: Weights = "variable",
    step: int | None = None,
    every_layer: bool = False,
    seed: int = 0,
    images: Path | None = None,
    save_activations: Path | None = None,
    activations: Path | None = None,
    say: Say = lambda _: None,
) -> Report:
    """Hold a PyTorch port against a TensorFlow checkpoint.

    Args:
        source: Anything that `open_source` takes; None is the built-in checkpoint, or with `activations` and
            `state_dict` the checkpoint that the activations were stored of.
        state_dict: A .pt or .safetensors file to judge; None converts the source and judges the result.
        weights: As in `convert.plan`.
        step: As in `open_source`.
        every_layer: Whether to compare every one of the 132 convolutions besides the stages.
        seed: Of the built-in inputs.
        images: A folder of photographs to compare on as well.
        save_activations: Where to store TensorFlow's side.
        activations: TensorFlow's side as stored before; TensorFlow is then not needed.
        say: Told what is going on.

    Returns:
        The report; its `passed` is the verdict.

    Raises:
        PortError: As its subclasses say; a difference is no error but a verdict.
    """
    if activations is not None:
        stored = _StoredComparison(activations, source, state_dict, weights, step, say)
        return stored.report()
    require_tensorflow("to compare with")
    if seed < 0:
        raise UsageError(f"--seed {seed}: a seed is not negative.")
    photographs = [] if images is None else find_photographs(images)
    if save_activations is not None:
        _refuse_activations(save_activations)
    if source is None:
        say("looking for the built-in checkpoint")
        source = built_in_checkpoint()
    with ExitStack() as closing:
        opened = closing.enter_context(open_source(source, step=step))
        tensors, decided = _plan(opened, weights)
        say("converting")
        arrays = _load_state_dict(state_dict, opened.path, weights)
        say("starting TensorFlow")
        used = _single_precision(opened, tensors, decided)
        tensorflow = closing.enter_context(TensorFlowSide(opened, used, weights, own_graph=not decided.casts))
        first = judge_tensors(arrays, tensors, decided, tensorflow.own_tensors)
        own_graph = None if tensorflow.own_graph is None else tensorflow.own_graph.name
        taps = tap_names(every_layer=every_layer, logits=decided.variant.num_classes is not None)
        port = _build_port(arrays, decided.variant)
        writer = None
        if save_activations is not None and isinstance(port, _Port):
            provenance = _provenance(opened, tensors, decided, own_graph, seed) | {"taps": taps}
            writer = closing.enter_context(ActivationWriter(save_activations, provenance))

        def run_tensorflow() -> Iterator[Activations]:
            for probe in chain(seeded_probes(seed), photograph_probes(photographs)):
                say(f"comparing: {probe.name}")
                found = tensorflow.run(probe, taps)
                if writer is not None:
                    writer.add(found)
                yield found

        return _judge(str(source), state_dict, own_graph, decided.variant, first, port, run_tensorflow())


def _plan(opened: TensorSource, weights: Weights) -> tuple[Mapping[str, NDArray[Any]], Plan]:
    if opened.naming == "pytorch":
        raise UsageError(
            f"{opened.path}: a state_dict cannot judge itself. Give the checkpoint as SOURCE and this file "
            "with --state-dict."
        )
    try:
        tensors = tensorflow_tensors(opened)
        return tensors, plan(describe(tensors), weights=weights)
    except MappingError as error:
        raise error.named(opened.path) from None


def _single_precision(
    opened: TensorSource, tensors: Mapping[str, NDArray[Any]], decided: Plan
) -> dict[str, NDArray[Any]]:
    """The variables that are converted, cast to float32 as the conversion casts them."""
    used = {}
    for row in decided.converted:
        name = decided.sources[row.variable]
        try:
            used[row.variable] = to_float32(tensors[name])
        except OverflowError as error:
            raise SourceError(opened.path, str(error), tensor=name) from error
    return used


def _refuse_activations(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} exists. Give another name to --save-activations.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")


def _load_state_dict(state_dict: Path | None, source: Path, weights: Weights) -> Mapping[str, NDArray[Any]]:
    """The port's tensors as a user would have them: from the file, or converted to a file and loaded."""
    if state_dict is not None:
        with open_source(state_dict) as opened:
            if opened.naming != "pytorch":
                raise UsageError(f"--state-dict {state_dict}: this is a {opened.format}, not a state_dict.")
            return {key: np.array(opened[key]) for key in opened}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "converted.pt"
        convert_file(source, path, weights=weights)
        loaded = torch.load(path, weights_only=True)
        return {key: tensor.numpy() for key, tensor in loaded.items()}


def _build_port(arrays: Mapping[str, NDArray[Any]], variant: Variant) -> _Port | str:
    """The two models of this variant, or in words why the state_dict does not load strictly into them."""
    single, double = (
        InceptionResnetV1(num_classes=variant.num_classes, embedding_size=variant.embedding_size)
        for _ in range(2)
    )
    expected = single.state_dict()
    wrong = {
        "missing": [key for key in expected if key not in arrays],
        "unexpected": [key for key in arrays if key not in expected],
        "of another shape or dtype": [
            key
            for key, tensor in expected.items()
            if key in arrays
            and (tuple(tensor.shape), tensor.numpy().dtype) != (arrays[key].shape, arrays[key].dtype)
        ],
    }
    if any(wrong.values()):
        return "; ".join(
            f"{len(keys)} keys {what}, {keys[0]!r} first" for what, keys in wrong.items() if keys
        )
    loaded = {key: torch.from_numpy(array) for key, array in arrays.items()}
    single.load_state_dict(loaded)
    double.load_state_dict(loaded)
    return _Port(single.eval(), double.double().eval())


def _judge(
    source: str,
    state_dict: Path | None,
    own_graph: str | None,
    variant: Variant,
    tensors: Judgement,
    port: _Port | str,
    activations: Iterator[Activations],
) -> Report:
    probes: tuple[ProbeMeasurement, ...] = ()
    judgements = [tensors]
    if isinstance(port, str):
        judgements.append(
            Judgement("mapping", False, "not judged: the state_dict does not load strictly", (port,))
        )
        judgements += [Judgement(name, False, "not judged") for name in ("rounding", "headline")]
    else:
        probes = tuple(_measure(port, found) for found in activations)
        judgements += [judge_mapping(probes), judge_rounding(probes), judge_headline(probes)]
    return Report(
        source=source,
        state_dict=None if state_dict is None else str(state_dict),
        own_graph=own_graph,
        variant=variant,
        judgements=tuple(judgements),
        probes=probes,
        environment=_environment(),
    )


def _measure(port: _Port, found: Activations) -> ProbeMeasurement:
    taps = tuple(found.float64)
    return measure(
        found,
        run_pytorch(port.float32, found.probe.images, taps),
        run_pytorch(port.float64, found.probe.images, taps),
    )


def _environment() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None:
        versions["tensorflow"] = tensorflow.__version__
    return {**versions, "machine": platform.machine()}


def _fingerprint(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)} {tensor_digest(array)}"


def _fingerprints(tensors: Mapping[str, NDArray[Any]], decided: Plan) -> dict[str, str]:
    return {row.key: _fingerprint(array) for row, array in convert_rows(tensors, decided)}


def _provenance(
    opened: TensorSource,
    tensors: Mapping[str, NDArray[Any]],
    decided: Plan,
    own_graph: str | None,
    seed: int,
) -> dict[str, Any]:
    return {
        "source": opened.path.name,
        "format": opened.format,
        "own_graph": own_graph,
        "variant": asdict(decided.variant),
        "weights": decided.weights,
        "seed": seed,
        "environment": _environment(),
        "tensors": _fingerprints(tensors, decided),
    }


@dataclass(frozen=True, slots=True)
class _StoredComparison:
    """A comparison with stored activations, where TensorFlow is not needed."""

    activations: Path
    source: Path | None
    state_dict: Path | None
    weights: Weights
    step: int | None
    say: Say

    def report(self) -> Report:
        """Convert, and compare with what was stored."""
        with ActivationFile(self.activations) as stored:
            source = self.source
            if source is None and self.state_dict is None:
                source = built_in_checkpoint()
            provenance = stored.provenance
            variant = Variant(**provenance["variant"])
            self._check(stored, variant)
            first, arrays = self._tensors(stored, source)
            return _judge(
                str(source or provenance["source"]),
                self.state_dict,
                provenance["own_graph"],
                variant,
                first,
                _build_port(arrays, variant),
                self._announced(stored),
            )

    def _check(self, stored: ActivationFile, variant: Variant) -> None:
        """See to it that nothing that belongs to a comparison was left out of the stored one."""
        whole = [
            list(tap_names(every_layer=every_layer, logits=variant.num_classes is not None))
            for every_layer in (False, True)
        ]
        if stored.probes[: len(SEEDED)] != SEEDED or list(stored.provenance["taps"]) not in whole:
            raise SourceError(
                self.activations, "not a whole comparison", next_step="Store it again with --save-activations"
            )
        weights = stored.provenance["weights"]
        if weights != self.weights:
            raise UsageError(
                f"{self.activations}: stored of the {weights}s, not the {self.weights}s. Give --weights "
                f"{weights}."
            )

    def _tensors(
        self, stored: ActivationFile, source: Path | None
    ) -> tuple[Judgement, Mapping[str, NDArray[Any]]]:
        expected: Mapping[str, str] = stored.provenance["tensors"]
        if source is None:
            assert self.state_dict is not None  # `report` sees to it
            arrays = _load_state_dict(self.state_dict, self.state_dict, self.weights)
            found = {key: _fingerprint(array) for key, array in arrays.items()}
            return judge_stored_tensors(found, expected), arrays
        self.say("converting")
        with open_source(source, step=self.step) as opened:
            tensors, decided = _plan(opened, self.weights)
            if _fingerprints(tensors, decided) != expected:
                raise UsageError(
                    f"{self.activations}: stored of {stored.provenance['source']!r} "
                    f"({stored.provenance['weights']}s), and {source} has other tensors. Store its own with "
                    "--save-activations."
                )
            arrays = _load_state_dict(self.state_dict, opened.path, self.weights)
            return judge_tensors(arrays, tensors, decided, {}), arrays

    def _announced(self, stored: ActivationFile) -> Iterator[Activations]:
        for found in stored:
            self.say(f"comparing: {found.probe.name}")
            yield found
