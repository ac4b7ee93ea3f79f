"""The expected side of a comparison from a file of stored activations, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checks.compare.activation_file import ActivationFile
from checks.compare.expected import (
    DIAGNOSED_IMAGES,
    Checkpoint,
    DiagnosisReference,
    Expected,
    ExpectedInput,
    Facts,
)
from checks.compare.judge import judge_stored_tensors, judge_tensors
from checks.core import thresholds
from checks.core.activations import activations_of, run_pytorch
from checks.core.environment import machine, versions
from checks.core.inputs import input_names
from checks.core.judgement import Judgement
from checks.core.metrics import relative_l2
from checks.core.models import Port, build_port
from checks.core.network import short_name
from checks.core.source_tensors import alternative_state_dict, expected_state_dict
from checks.core.types import Array, Arrays, Say
from converter.convert import convert_tensors
from converter.errors import SourceError, UsageError
from converter.layer_map import Variant
from converter.manifest import tensor_digest
from converter.mtcnn_layer_map import MtcnnNetwork, Network
from converter.plan import Weights


def provenance(
    checkpoint: Checkpoint, own_graph: str | None, seed: int, names: Sequence[str]
) -> dict[str, Any]:
    """Describe the stored activations: source, variant, fingerprints of the tensors, names."""
    plan = checkpoint.plan
    return {
        "source": checkpoint.source.path.name,
        "format": checkpoint.source.format,
        "own_graph": own_graph,
        "variant": asdict(plan.network),
        "weights": plan.weights,
        "seed": seed,
        "environment": machine() | versions(),  # without the date: the same input gives the same bytes
        "tensors": _fingerprints(checkpoint),
        "activations": list(names),
    }


def _fingerprint(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)} {tensor_digest(array)}"


def _fingerprints(checkpoint: Checkpoint) -> dict[str, str]:
    tensors = convert_tensors(checkpoint.tensors, checkpoint.plan)
    return {tensor.row.key: _fingerprint(tensor.array) for tensor in tensors}


@dataclass(frozen=True, slots=True)
class ExpectedFromFile(Expected):
    """TensorFlow's side of a comparison, from a file.

    Attributes:
        path: The file of stored activations.
        stored: The same file, open.
        checkpoint: The checkpoint that they were computed from; None if only the file is given.
        say: Progress callback.
    """

    path: Path
    stored: ActivationFile
    checkpoint: Checkpoint | None
    say: Say

    def check(self, weights: Weights) -> None:
        """Refuse a file that does not belong to this comparison.

        Args:
            weights: As in `plan.plan_conversion`.

        Raises:
            SourceError: Inputs or activations of a comparison are missing.
            UsageError: The activations were computed from other weights.
        """
        known = [list(self._names(every_layer=every_layer)) for every_layer in (False, True)]
        stored = self.stored.provenance
        seeded = input_names(self._network)
        if self.stored.inputs[: len(seeded)] != seeded or list(stored["activations"]) not in known:
            raise SourceError(
                self.path,
                "the stored comparison is incomplete",
                next_step="Store it again with --save-activations",
            )
        if stored["weights"] != weights:
            raise UsageError(
                f"{self.path}: computed from the {stored['weights']}s, not the {weights}s. Give --weights "
                f"{stored['weights']}."
            )
        if self.checkpoint is not None and _fingerprints(self.checkpoint) != stored["tensors"]:
            raise UsageError(
                f"{self.path}: computed from {stored['source']!r} ({stored['weights']}s). "
                f"{self.checkpoint.path} has other tensors. Store its activations with --save-activations."
            )

    @property
    def facts(self) -> Facts:
        """The attributes of the result that do not depend on the port."""
        stored = self.stored.provenance
        files = () if self.checkpoint is None else self.checkpoint.source.files
        return Facts(
            source=stored["source"] if self.checkpoint is None else str(self.checkpoint.path),
            own_graph=stored["own_graph"],
            files=tuple(map(str, (*files, self.path))),
            seed=stored["seed"],
            variant=self._network,
            names=() if self.checkpoint is None else self.checkpoint.names,
        )

    def judge_tensors(self, state_dict: Arrays) -> Judgement:
        """Judge against the checkpoint's tensors; without a checkpoint, against their stored fingerprints."""
        if self.checkpoint is not None:
            return judge_tensors(state_dict, self.checkpoint.tensors, self.checkpoint.plan, {})
        digests = {key: _fingerprint(array) for key, array in state_dict.items()}
        return judge_stored_tensors(digests, self.stored.provenance["tensors"])

    def inputs(self) -> Iterator[ExpectedInput]:
        """Read one input after another."""
        for activations in self.stored:
            self.say(f"comparing: {activations.batch.name}")
            yield ExpectedInput.of(activations)

    def diagnosis_reference(self) -> DiagnosisReference | str:
        """Take the first images of the first input; without a checkpoint, say what to run."""
        if self.checkpoint is None:
            return (
                "stored activations alone say where a port differs. To learn why, give the checkpoint as "
                f"well: facenet-port compare SOURCE --activations {self.path} --state-dict FILE"
            )
        expected = expected_state_dict(self.checkpoint.tensors, self.checkpoint.plan)
        first = next(iter(self.stored))
        activations: Arrays = {name: array[:DIAGNOSED_IMAGES] for name, array in first.float64.items()}
        images = first.batch.images[:DIAGNOSED_IMAGES]
        names = self._names(every_layer=True)
        if len(activations) < len(names):
            # Only stages were stored: compute the layers between them with the converted checkpoint.
            port = build_port(expected, self.checkpoint.plan.network)
            assert isinstance(port, Port)  # a converted checkpoint loads
            computed = run_pytorch(port.float64, images, names)
            for name, array in activations.items():
                if not relative_l2(computed[name], array) <= thresholds.MAPPING:
                    place = short_name(name)
                    return f"the converted checkpoint itself differs from the stored activations at {place}"
            activations = computed
        averages = alternative_state_dict(self.checkpoint.tensors, self.checkpoint.plan.weights)
        return DiagnosisReference(activations, images, expected, averages)

    @property
    def _network(self) -> Network:
        stored = self.stored.provenance["variant"]
        return MtcnnNetwork(**stored) if "name" in stored else Variant(**stored)

    def _names(self, *, every_layer: bool) -> tuple[str, ...]:
        return activations_of(self._network, every_layer=every_layer)
