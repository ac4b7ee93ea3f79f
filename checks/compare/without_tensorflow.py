"""A comparison with stored activations, where TensorFlow is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from checks.compare.activation_file import ActivationFile
from checks.compare.judge import Report, judge_stored_tensors, judge_tensors
from checks.compare.verdict import DIAGNOSED_IMAGES, Comparison, Reference
from checks.core.activations import activation_names
from checks.core.builtin_checkpoint import built_in_checkpoint
from checks.core.environment import machine, versions
from checks.core.inputs import SEEDED
from checks.core.judgement import Judgement
from checks.core.models import build_port, load_state_dict
from checks.core.source_tensors import alternative_state_dict, expected_state_dict, plan_source
from checks.core.tensorflow_side import Activations
from checks.core.types import Arrays, Say
from converter.convert import convert_tensors
from converter.errors import SourceError, UsageError
from converter.formats.detect import open_source
from converter.formats.source import TensorSource
from converter.hub.locate import locate
from converter.layer_map import Variant
from converter.manifest import tensor_digest
from converter.plan import Plan, Weights


def provenance(
    opened: TensorSource,
    tensors: Mapping[str, NDArray[Any]],
    plan: Plan,
    own_graph: str | None,
    seed: int,
) -> dict[str, Any]:
    """What activations are stored with: their source, its variant, and a fingerprint of every tensor."""
    return {
        "source": opened.path.name,
        "format": opened.format,
        "own_graph": own_graph,
        "variant": asdict(plan.variant),
        "weights": plan.weights,
        "seed": seed,
        "environment": machine() | versions(),  # no date: the same input gives the same bytes
        "tensors": _fingerprints(tensors, plan),
    }


def _fingerprint(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)} {tensor_digest(array)}"


def _fingerprints(tensors: Mapping[str, NDArray[Any]], plan: Plan) -> dict[str, str]:
    return {tensor.row.key: _fingerprint(tensor.array) for tensor in convert_tensors(tensors, plan)}


@dataclass(frozen=True, slots=True)
class StoredComparison:
    """A comparison with stored activations; the attributes are the arguments of `compare`."""

    activations: Path
    source: Path | None
    state_dict: Path | None
    weights: Weights
    step: int | None
    say: Say
    repair: Path | None = None

    def report(self) -> Report:
        """Convert, and compare with what was stored."""
        with ActivationFile(self.activations) as stored:
            source = self.source
            if source is None and self.state_dict is None:
                source = built_in_checkpoint()
            self._check(stored)
            if source is None:
                return self._without_source(stored)
            return self._with_source(stored, source)

    def _check(self, stored: ActivationFile) -> None:
        """See to it that nothing that belongs to a comparison was left out of the stored one."""
        logits = Variant(**stored.provenance["variant"]).num_classes is not None
        whole = [
            list(activation_names(every_layer=every_layer, logits=logits)) for every_layer in (False, True)
        ]
        if stored.inputs[: len(SEEDED)] != SEEDED or list(stored.provenance["activations"]) not in whole:
            raise SourceError(
                self.activations, "not a whole comparison", next_step="Store it again with --save-activations"
            )
        weights = stored.provenance["weights"]
        if weights != self.weights:
            raise UsageError(
                f"{self.activations}: stored of the {weights}s, not the {self.weights}s. Give --weights "
                f"{weights}."
            )

    def _without_source(self, stored: ActivationFile) -> Report:
        assert self.state_dict is not None  # `report` sees to it
        expected: Mapping[str, str] = stored.provenance["tensors"]

        def judge(arrays: Arrays) -> Judgement:
            found = {key: _fingerprint(array) for key, array in arrays.items()}
            return judge_stored_tensors(found, expected)

        def reference() -> Reference | str:
            return self._reference(stored, None, {})

        arrays = load_state_dict(self.state_dict, self.state_dict, self.weights)
        comparison = self._comparison(stored, stored.provenance["source"], (), judge, reference)
        return comparison.report(arrays, build_port(arrays, comparison.variant), self.repair)

    def _with_source(self, stored: ActivationFile, source: Path) -> Report:
        self.say("converting")
        with open_source(locate(source), step=self.step) as opened:
            tensors, plan = plan_source(opened, self.weights)
            if _fingerprints(tensors, plan) != stored.provenance["tensors"]:
                raise UsageError(
                    f"{self.activations}: stored of {stored.provenance['source']!r} "
                    f"({stored.provenance['weights']}s), and {source} has other tensors. Store its own with "
                    "--save-activations."
                )

            def judge(arrays: Arrays) -> Judgement:
                return judge_tensors(arrays, tensors, plan, {})

            def reference() -> Reference | str:
                right, others = (
                    expected_state_dict(tensors, plan),
                    alternative_state_dict(tensors, self.weights),
                )
                return self._reference(stored, right, others)

            arrays = load_state_dict(self.state_dict, opened.path, self.weights)
            comparison = self._comparison(stored, str(source), opened.files, judge, reference)
            return comparison.report(arrays, build_port(arrays, comparison.variant), self.repair)

    def _comparison(
        self,
        stored: ActivationFile,
        source: str,
        read: tuple[Path, ...],
        judge: Callable[[Arrays], Judgement],
        reference: Callable[[], Reference | str],
    ) -> Comparison:
        judged = () if self.state_dict is None else (self.state_dict,)
        return Comparison(
            source=source,
            state_dict=self.state_dict,
            own_graph=stored.provenance["own_graph"],
            files=tuple(dict.fromkeys(map(str, (*read, self.activations, *judged)))),
            seed=stored.provenance["seed"],
            variant=Variant(**stored.provenance["variant"]),
            judge_tensors=judge,
            activations=lambda: self._announced(stored),
            reference=reference,
            say=self.say,
        )

    def _reference(self, stored: ActivationFile, source: Arrays | None, averages: Arrays) -> Reference | str:
        logits = Variant(**stored.provenance["variant"]).num_classes is not None
        if list(stored.provenance["activations"]) != list(activation_names(every_layer=True, logits=logits)):
            return "the cause is sought layer by layer, and the activations were stored without --every-layer"
        first = next(iter(stored))
        activations = {activation: array[:DIAGNOSED_IMAGES] for activation, array in first.float64.items()}
        return Reference(activations, first.batch.images[:DIAGNOSED_IMAGES], source, averages)

    def _announced(self, stored: ActivationFile) -> Iterator[Activations]:
        for found in stored:
            self.say(f"comparing: {found.batch.name}")
            yield found
