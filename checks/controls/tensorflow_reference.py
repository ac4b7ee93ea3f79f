"""TensorFlow's side of the controls, computed once, and the clean ports to plant faults in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from checks.controls.port_pipeline import Pipeline, Standardisation
from checks.core.activations import activation_names
from checks.core.inputs import NOISE, InputBatch, prewhiten, seeded_inputs, standardise
from checks.core.models import build_port
from checks.core.network import EMBEDDINGS
from checks.core.source_tensors import (
    alternative_state_dict,
    expected_state_dict,
    find_broken_source,
    float32_variables,
    plan_source,
    refuse_broken_source,
    refuse_mtcnn,
)
from checks.core.tensorflow_side import Activations, TensorFlowSide
from checks.core.types import Array
from checks.gradients.train_tensorflow import TrainingReference, train_tensorflow
from checks.gradients.training_setup import draw_batch
from converter.formats.source import TensorSource
from converter.plan import AVERAGE
from reference import InceptionResnetV1

ODD_SIZE = (149, 125)
"""Height and width, in pixels, at which no pool of the network divides its map evenly."""

_SQUARED_FLOOR = 1e-10  # under the squared norm: tf.nn.l2_normalize(prelogits, 1, 1e-10) in facenet
_TINY_NORMS = (
    1e-3,
    1e-5,
    3e-6,
    1e-8,
    1e-13,
)  # of embeddings before normalisation, around the root of the floor
_AVERAGE_SHIFT = 1e-3  # relative; about the distance of a moving average at the end of a training


@dataclass(frozen=True, slots=True)
class ControlInput:
    """An input of the controls, with TensorFlow's activations.

    Attributes:
        activations: TensorFlow's side, with its images.
        pixels: (N, H, W, 3), uint8, if the port preprocesses them itself; else None.
        standardisation: The preprocessing of the pixels.
    """

    activations: Activations
    pixels: Array | None = None
    standardisation: Standardisation = "fixed"

    def given(self, port: Pipeline) -> Array:
        """The images for the port's network: (N, H, W, 3), float32."""
        if self.pixels is None:
            return self.activations.batch.images
        return port.prepare[self.standardisation](self.pixels)


@dataclass(frozen=True, slots=True)
class ControlReference:
    """TensorFlow's side, by which faulty ports are judged.

    Attributes:
        inference: The inputs at 160x160, in the order in which they are run.
        odd: An input of an odd size.
        tiny: Embeddings near the floor of their normalisation, which is the only activation. Its batch holds
            them before it, (N, size), float32.
        training: Gradients and one step of each optimiser; None if no fault needs them. After one step, the
            running statistics still show the first layer whose forward pass differs.
    """

    inference: tuple[ControlInput, ...]
    odd: ControlInput
    tiny: Activations
    training: TrainingReference | None


class ControlSource:
    """A checkpoint's tensors, its clean ports and TensorFlow's graphs of it. A context manager.

    Args:
        opened: The open source.

    Attributes:
        plan: The plan of its conversion.
        tensors: Variable to float32 array.
        arrays: The clean state_dict.
        averages: The state_dict of the moving averages.
        own_averages: Whether the averages are the checkpoint's; else they are its weights, moved by about
            1e-3.
        activations: The names of all activations.

    Raises:
        UsageError: The source is a state_dict.
        MappingError, SourceError: The tensors are not those of this network.
    """

    def __init__(self, opened: TensorSource) -> None:
        tensors, self.plan = plan_source(opened, "variable")
        refuse_mtcnn(opened, self.plan)
        self.tensors = float32_variables(opened, tensors, self.plan)
        self._path = opened.path
        refuse_broken_source(self._path, find_broken_source(self.tensors, self.plan))
        averages = alternative_state_dict(tensors, "variable")
        self.own_averages = bool(averages)
        self.arrays = expected_state_dict(self.tensors, self.plan)
        self.averages = averages or _stand_ins(self.arrays)
        self.activations = activation_names(
            every_layer=True, logits=self.plan.variant.num_classes is not None
        )
        self._tensorflow = TensorFlowSide(opened, self.tensors, "variable", own_graph=False)

    def port(self) -> Pipeline:
        """Build a clean port, with networks of its own."""
        built = build_port(self.arrays, self.plan.variant)
        assert not isinstance(built, str)  # a state_dict made by the table loads
        single, double = built.float32, built.float64
        assert isinstance(single, InceptionResnetV1) and isinstance(double, InceptionResnetV1)
        return Pipeline(single, double, self.plan, self._source)

    @cached_property
    def _source(self) -> dict[str, Array]:
        """The tensors and their averages by TensorFlow name."""
        averages = {
            f"{row.variable}/{AVERAGE}": row.layout.inverse.apply(self.averages[row.key])
            for row in self.plan.converted
        }
        return {**self.tensors, **averages}

    def inputs(self, seed: int) -> tuple[ControlInput, ...]:
        """Run TensorFlow on the inputs at 160x160; the same seed gives the same inputs."""
        noise, smooth, constant, near_black, _ = seeded_inputs(seed)
        random = np.random.default_rng([seed, 1])
        pixels = random.integers(0, 256, noise.images[:2].shape, np.uint8)
        darker = pixels[:1] // 2 + np.uint8(20)
        images: tuple[tuple[str, Array, Array | None, Standardisation], ...] = (
            (NOISE, noise.images[:2], None, "fixed"),
            ("pixels", standardise(pixels), pixels, "fixed"),
            ("pixels, prewhitened", prewhiten(darker), darker, "per image"),
            *((batch.name, batch.images[:1], None, "fixed") for batch in (smooth, constant, near_black)),
        )
        return tuple(
            ControlInput(self._run(InputBatch(name, given)), raw, kind) for name, given, raw, kind in images
        )

    def reference(self, seed: int, *, training: bool, say: Callable[[str], None]) -> ControlReference:
        """Run TensorFlow on all inputs of the controls.

        Args:
            seed: Seed of the inputs.
            training: Whether a fault needs the training graph.
            say: Progress callback.
        """
        say("TensorFlow: activations")
        random = np.random.default_rng([seed, 2])
        odd = InputBatch(
            f"odd size {ODD_SIZE[0]}x{ODD_SIZE[1]}",
            random.standard_normal((1, *ODD_SIZE, 3)).astype(np.float32),
        )
        trained = None
        if training:
            batch = draw_batch(self.plan.variant, seed=seed)
            trained = train_tensorflow(
                self.tensors, batch, modes=("training",), trainings=("sgd", "adam"), steps=1, say=say
            )
        return ControlReference(
            self.inputs(seed),
            ControlInput(self._run(odd)),
            _tiny(random, self.plan.variant.embedding_size),
            trained,
        )

    def _run(self, batch: InputBatch) -> Activations:
        activations = self._tensorflow.run(batch, self.activations)
        refuse_broken_source(self._path, activations.broken)
        return activations

    def close(self) -> None:
        """Release TensorFlow's sessions."""
        self._tensorflow.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _tiny(random: np.random.Generator, size: int) -> Activations:
    """Normalise vectors near the floor by the formula of tf.math.l2_normalize, in float64."""
    directions = random.standard_normal((len(_TINY_NORMS), size))
    directions /= np.sqrt(np.square(directions).sum(axis=1, keepdims=True))
    # Rounded to float32, so that both arithmetics are given the same.
    prelogits = (directions * np.array(_TINY_NORMS)[:, None]).astype(np.float32)
    squares = np.square(prelogits, dtype=np.float64).sum(axis=1, keepdims=True)
    embeddings = prelogits.astype(np.float64) / np.sqrt(np.maximum(squares, _SQUARED_FLOOR))
    single = {EMBEDDINGS: embeddings.astype(np.float32)}
    batch = InputBatch("tiny embeddings", prelogits)
    return Activations(batch, {EMBEDDINGS: embeddings}, single, False, {}, ())


def _stand_ins(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """A state_dict near another, in the place of averages that a checkpoint does not have."""
    random = np.random.default_rng(0)
    return {
        key: (array * (1 + _AVERAGE_SHIFT * random.standard_normal(array.shape))).astype(array.dtype)
        for key, array in arrays.items()
    }
