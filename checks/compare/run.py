"""A comparison: TensorFlow and PyTorch on the same inputs, activation by activation, and four judgements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from checks.compare.activation_file import ActivationWriter
from checks.compare.judge import Report, judge_tensors
from checks.compare.repair import refuse_output
from checks.compare.verdict import DIAGNOSED_IMAGES, Comparison, Reference
from checks.compare.without_tensorflow import StoredComparison, provenance
from checks.core.activations import activation_names
from checks.core.builtin_checkpoint import built_in_checkpoint
from checks.core.inputs import InputBatch, find_photographs, photograph_inputs, seeded_inputs
from checks.core.judgement import Judgement
from checks.core.models import Port, build_port, load_state_dict
from checks.core.source_tensors import (
    alternative_state_dict,
    expected_state_dict,
    float32_variables,
    plan_source,
)
from checks.core.tensorflow_side import Activations, TensorFlowSide, require_tensorflow
from checks.core.types import Arrays, Say
from converter.errors import UsageError
from converter.formats.detect import open_source
from converter.hub.locate import locate
from converter.plan import Plan, Weights

__all__ = ["Report", "compare"]


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
    repair: Path | None = None,
    say: Say = lambda _: None,
) -> Report:
    """Hold a PyTorch port against a TensorFlow checkpoint.

    Args:
        source: Anything that `open_source` takes, or the name of a published model; None is the built-in
            checkpoint, or with `activations` and `state_dict` the checkpoint that the activations were stored
            of.
        state_dict: A .pt or .safetensors file to judge; None converts the source and judges the result.
        weights: As in `plan.plan_conversion`.
        step: As in `open_source`.
        every_layer: Whether to compare every one of the 132 convolutions besides the stages.
        seed: Of the built-in inputs.
        images: A folder of photographs to compare on as well.
        save_activations: Where to store TensorFlow's side.
        activations: TensorFlow's side as stored before; TensorFlow is then not needed.
        repair: Where to write the state_dict with its tensors put right, if it fails, the cause is in the
            weights, and what comes of it passes the same comparison.
        say: Told what is going on.

    Returns:
        The report; its `passed` is the verdict on the port as it was given. Where it failed, `diagnosis`
        says why.

    Raises:
        PortError: As its subclasses say; a difference is no error but a verdict.
    """
    if repair is not None:
        refuse_output(repair)
    if activations is not None:
        return StoredComparison(activations, source, state_dict, weights, step, say, repair).report()
    require_tensorflow(
        "to compare with", "A comparison with stored activations (--activations FILE) works without it."
    )
    if seed < 0:
        raise UsageError(f"--seed {seed}: a seed is not negative.")
    photographs = [] if images is None else find_photographs(images)
    if save_activations is not None:
        _refuse_activations(save_activations)
    if source is None:
        say("looking for the built-in checkpoint")
        source = built_in_checkpoint()
    with ExitStack() as closing:
        opened = closing.enter_context(open_source(locate(source), step=step))
        tensors, plan = plan_source(opened, weights)
        say("converting")
        arrays = load_state_dict(state_dict, opened.path, weights)
        say("starting TensorFlow")
        used = float32_variables(opened, tensors, plan)
        tensorflow = closing.enter_context(TensorFlowSide(opened, used, weights, own_graph=not plan.casts))
        graph = tensorflow.own_graph
        own_graph = None if graph is None else graph.name
        read = (*opened.files, graph, state_dict)
        files = tuple(dict.fromkeys(str(file) for file in read if file is not None))
        port = build_port(arrays, plan.variant)
        names = activation_names(every_layer=every_layer, logits=plan.variant.num_classes is not None)
        side = _Side(tensorflow, tensors, plan, names, seed, photographs, say)
        if save_activations is not None and isinstance(port, Port):
            stated = provenance(opened, tensors, plan, own_graph, seed) | {"activations": names}
            side.writers.append(closing.enter_context(ActivationWriter(save_activations, stated)))
        comparison = Comparison(
            source=str(source),
            state_dict=state_dict,
            own_graph=own_graph,
            files=files,
            seed=seed,
            variant=plan.variant,
            judge_tensors=side.judge,
            activations=side.run,
            reference=side.reference,
            say=say,
        )
        return comparison.report(arrays, port, repair)


@dataclass(frozen=True, slots=True)
class _Side:
    """TensorFlow's side as it is run, and what the source says.

    Attributes:
        writers: Takes what is run first; empty where nothing is stored.
    """

    tensorflow: TensorFlowSide
    tensors: Mapping[str, NDArray[Any]]
    plan: Plan
    activations: tuple[str, ...]
    seed: int
    photographs: list[Path]
    say: Say
    writers: list[ActivationWriter] = field(default_factory=list)

    def judge(self, arrays: Arrays) -> Judgement:
        """The first judgement."""
        return judge_tensors(arrays, self.tensors, self.plan, self.tensorflow.own_tensors)

    def run(self) -> Iterator[Activations]:
        """Run every input; the first time what comes of it is stored."""
        writers, self.writers[:] = tuple(self.writers), ()
        for batch in chain(seeded_inputs(self.seed), photograph_inputs(self.photographs)):
            self.say(f"comparing: {batch.name}")
            found = self.tensorflow.run(batch, self.activations)
            for writer in writers:
                writer.add(found)
            yield found

    def reference(self) -> Reference:
        """What a port is diagnosed with: a few images at every layer."""
        logits = self.plan.variant.num_classes is not None
        images = seeded_inputs(self.seed)[0].images[:DIAGNOSED_IMAGES]
        found = self.tensorflow.run(
            InputBatch("diagnosis", images), activation_names(every_layer=True, logits=logits)
        )
        return Reference(
            found.float64,
            images,
            expected_state_dict(self.tensors, self.plan),
            alternative_state_dict(self.tensors, self.plan.weights),
        )


def _refuse_activations(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} exists. Give another name to --save-activations.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
