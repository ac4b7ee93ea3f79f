"""The expected side of a comparison from TensorFlow, which runs now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from checks.compare.activation_file import activation_writer
from checks.compare.expected import (
    DIAGNOSED_IMAGES,
    Checkpoint,
    DiagnosisReference,
    Expected,
    ExpectedInput,
    Facts,
)
from checks.compare.expected_from_file import provenance
from checks.compare.judge import judge_tensors
from checks.core.activations import activations_of
from checks.core.inputs import inputs_of, photograph_inputs
from checks.core.judgement import Judgement
from checks.core.source_tensors import BrokenSource, alternative_state_dict, expected_state_dict
from checks.core.tensorflow_side import Activations, TensorFlowSide
from checks.core.types import Array, Arrays, Say


@dataclass(slots=True)
class ExpectedFromTensorFlow(Expected):
    """TensorFlow's side of a comparison, which runs now.

    Attributes:
        checkpoint: The checkpoint.
        tensorflow: Its graphs. Of a broken source, the reason: nothing is run, and only tensors are compared.
        every_layer: Whether to compare every convolution as well as the stages.
        seed: Seed of the built-in inputs.
        photographs: As `read_photographs` gives them, to compare on as well.
        save: File to store the activations in when they are first computed; None stores nothing.
        say: Progress callback.
    """

    checkpoint: Checkpoint
    tensorflow: TensorFlowSide | BrokenSource
    every_layer: bool
    seed: int
    photographs: Sequence[Array]
    save: Path | None
    say: Say

    @property
    def facts(self) -> Facts:
        """The attributes of the result that do not depend on the port."""
        side, files = self.tensorflow, self.checkpoint.source.files
        graph = side.own_graph if isinstance(side, TensorFlowSide) else None
        return Facts(
            source=str(self.checkpoint.path),
            own_graph=None if graph is None else graph.name,
            files=tuple(map(str, files if graph is None else (*files, graph))),
            seed=self.seed,
            variant=self.checkpoint.plan.network,
            broken=side if isinstance(side, BrokenSource) else None,
            names=self.checkpoint.names,
        )

    def judge_tensors(self, state_dict: Arrays) -> Judgement:
        """Judge against the checkpoint's tensors, and against TensorFlow's own reading of them."""
        own = self.tensorflow.own_tensors if isinstance(self.tensorflow, TensorFlowSide) else {}
        return judge_tensors(state_dict, self.checkpoint.tensors, self.checkpoint.plan, own)

    def inputs(self) -> Iterator[ExpectedInput]:
        """Begin an input before the one before it is given; the first time, store activations in `save`."""
        assert isinstance(self.tensorflow, TensorFlowSide)  # nothing is run on a broken source
        network = self.checkpoint.plan.network
        names = activations_of(network, every_layer=self.every_layer)
        batches = chain(inputs_of(network, self.seed), photograph_inputs(self.photographs, network))
        begun = (ExpectedInput(batch, names, self.tensorflow.begin(batch, names)) for batch in batches)
        given = next(begun)
        save, self.save = self.save, None
        store: Callable[[Activations], None] | None = None
        with ExitStack() as stack:
            for following in chain(begun, [None]):
                self.say(f"comparing: {given.batch.name}")
                if save is not None:
                    activations = given.wait()
                    if store is None:  # TensorFlow has stated its version
                        stated = provenance(self.checkpoint, self.facts.own_graph, self.seed, names)
                        store = stack.enter_context(activation_writer(save, stated))
                    store(activations)
                    given = ExpectedInput.of(activations)
                yield given
                if following is not None:
                    given = following

    def diagnosis_reference(self) -> DiagnosisReference:
        """Run every layer on the first images of the first input."""
        assert isinstance(self.tensorflow, TensorFlowSide)  # nothing is diagnosed on a broken source
        network = self.checkpoint.plan.network
        images = inputs_of(network, self.seed)[0].images[:DIAGNOSED_IMAGES]
        names = activations_of(network, every_layer=True)
        return DiagnosisReference(
            self.tensorflow.run_exact(images, names),
            images,
            expected_state_dict(self.checkpoint.tensors, self.checkpoint.plan),
            alternative_state_dict(self.checkpoint.tensors, self.checkpoint.plan.weights),
        )
