"""The verdict on a state_dict: four judgements, and where one fails, the causes and a repair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from checks.compare import repair as repairing
from checks.compare.judge import (
    InputMeasurement,
    Report,
    judge_headline,
    judge_mapping,
    judge_rounding,
    measure,
)
from checks.compare.repair import Repair
from checks.core.activations import run_pytorch
from checks.core.environment import environment
from checks.core.judgement import Judgement
from checks.core.models import Port, build_misshapen, build_port
from checks.core.tensorflow_side import Activations
from checks.core.types import Arrays, Say
from checks.diagnosis.diagnose import Diagnosis, diagnose
from converter.layer_map import Variant

DIAGNOSED_IMAGES = 2  # of an input; what one layer does wrong shows on one, and a second rules out luck


@dataclass(frozen=True, slots=True)
class Reference:
    """What a port is diagnosed with.

    Attributes:
        activations: Activation to float64 activations, at every layer.
        images: (N, H, W, 3), float32, that they are of.
        source: state_dict key to the right tensor, or None where the source is not at hand.
        averages: The same of the averages beside them; empty where there are none.
    """

    activations: Arrays
    images: NDArray[Any]
    source: Arrays | None
    averages: Arrays


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that a state_dict is held against.

    Attributes:
        source: As in `Report`.
        state_dict: As in `Report`.
        own_graph: As in `Report`.
        files: As in `Report`.
        seed: As in `Report`.
        variant: As in `Report`.
        judge_tensors: Gives the first judgement on a state_dict.
        activations: Gives TensorFlow's side, input by input; may be asked for again.
        reference: Gives what a port is diagnosed with, or in words why there is none.
        say: Told what is going on.
    """

    source: str
    state_dict: Path | None
    own_graph: str | None
    files: tuple[str, ...]
    seed: int
    variant: Variant
    judge_tensors: Callable[[Arrays], Judgement]
    activations: Callable[[], Iterator[Activations]]
    reference: Callable[[], Reference | str]
    say: Say

    def report(self, arrays: Arrays, port: Port | str, repair: Path | None = None) -> Report:
        """Judge a state_dict; where it fails, find the causes, and write a repaired one if that is asked for.

        Args:
            arrays: The state_dict.
            port: What `build_port` made of it.
            repair: Where to write the repaired state_dict.
        """
        judged = self._judge(arrays, port)
        if judged.passed:
            nothing = Repair(None, (), "nothing to repair: the port is exact. Nothing was written.")
            return judged if repair is None else replace(judged, repair=nothing)
        self.say("looking for the cause")
        diagnosis = self._diagnose(arrays, port)
        if isinstance(diagnosis, str):
            judged = replace(judged, undiagnosed=diagnosis)
        else:
            judged = replace(judged, diagnosis=diagnosis)
        return judged if repair is None else replace(judged, repair=self._repair(arrays, diagnosis, repair))

    def _judge(self, arrays: Arrays, port: Port | str) -> Report:
        inputs: tuple[InputMeasurement, ...] = ()
        judgements = [self.judge_tensors(arrays)]
        if isinstance(port, str):
            judgements.append(
                Judgement("mapping", False, "not judged: the state_dict does not load strictly", (port,))
            )
            judgements += [Judgement(name, False, "not judged") for name in ("rounding", "headline")]
        else:
            inputs = tuple(_measure(port, found) for found in self.activations())
            judgements += [judge_mapping(inputs), judge_rounding(inputs), judge_headline(inputs)]
        return Report(
            source=self.source,
            state_dict=None if self.state_dict is None else str(self.state_dict),
            own_graph=self.own_graph,
            variant=self.variant,
            judgements=tuple(judgements),
            inputs=inputs,
            environment=environment(),
            files=self.files,
            seed=self.seed,
        )

    def _diagnose(self, arrays: Arrays, port: Port | str) -> Diagnosis | str:
        model = port.float64 if isinstance(port, Port) else build_misshapen(arrays, self.variant)
        if model is None:
            return "the state_dict does not load: its keys, dtypes or sizes are not those of this network"
        reference = self.reference()
        if isinstance(reference, str):
            return reference
        return diagnose(
            model,
            reference.activations,
            reference.images,
            source=reference.source,
            averages=reference.averages,
        )

    def _repair(self, arrays: Arrays, diagnosis: Diagnosis | str, path: Path) -> Repair:
        if isinstance(diagnosis, str):
            return Repair(None, (), f"nothing was repaired: {diagnosis}. Nothing was written.")
        repaired = repairing.corrected(arrays, diagnosis)
        if isinstance(repaired, str):
            return Repair(None, (), f"nothing was repaired: {repaired}. Nothing was written.")
        keys = tuple(key for key in arrays if key in diagnosis.repair)
        self.say("judging the repaired state_dict")
        again = self._judge(repaired, build_port(repaired, self.variant))
        if not again.passed:
            failed = ", ".join(judgement.name for judgement in again.judgements if not judgement.passed)
            words = (
                f"with {len(keys)} tensors put right the port still fails ({failed}). Nothing was written."
            )
            return Repair(None, keys, words)
        repairing.write(path, repaired)
        words = f"{len(keys)} tensors put right; all four judgements hold on the result: {path}"
        return Repair(str(path), keys, words)


def _measure(port: Port, found: Activations) -> InputMeasurement:
    activations = tuple(found.float64)
    return measure(
        found,
        run_pytorch(port.float32, found.batch.images, activations),
        run_pytorch(port.float64, found.batch.images, activations),
    )
