"""The expected side of a comparison: all that a port is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from checks.core.inputs import InputBatch
from checks.core.judgement import Judgement
from checks.core.source_tensors import BrokenSource
from checks.core.tensorflow_side import Activations
from checks.core.types import Array, Arrays
from converter.mtcnn_layer_map import Network
from converter.network_names import NetworkTensors
from converter.plan import Plan

DIAGNOSED_IMAGES = 2  # of an input: one image shows a wrong layer, the second rules out luck


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The checkpoint that a port is compared with.

    Attributes:
        path: Its path as the user gave it.
        source: The open file, under the network's names.
        tensors: TensorFlow name to array.
        plan: The plan of its conversion.
    """

    path: Path
    source: NetworkTensors
    tensors: Arrays
    plan: Plan

    @property
    def names(self) -> tuple[str, ...]:
        """Sentences on how its tensors were found, as in `CompareResult`."""
        return tuple(f"{self.source.path.name}: {said}" for said in self.source.statements)


@dataclass(frozen=True, slots=True)
class DiagnosisReference:
    """The input of a diagnosis.

    Attributes:
        activations: Activation to float64 array, at every layer.
        images: (N, H, W, 3), float32, the input of `activations`.
        source: state_dict key to the expected tensor.
        averages: state_dict key to the moving average; empty without averages.
    """

    activations: Arrays
    images: Array
    source: Arrays
    averages: Arrays


@dataclass(frozen=True, slots=True)
class Facts:
    """The attributes of `CompareResult` that do not depend on the port."""

    source: str
    own_graph: str | None
    files: tuple[str, ...]
    seed: int
    variant: Network
    broken: BrokenSource | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExpectedInput:
    """An input of a comparison, on which TensorFlow may still be at work.

    Attributes:
        batch: The input.
        names: The activations to compare.
        wait: Waits for TensorFlow's activations.
    """

    batch: InputBatch
    names: tuple[str, ...]
    wait: Callable[[], Activations]

    @classmethod
    def of(cls, activations: Activations) -> Self:
        """The input of activations that are known."""
        return cls(activations.batch, tuple(activations.float64), lambda: activations)


class Expected(ABC):
    """TensorFlow's side of a comparison, which runs now or was stored before."""

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """The attributes of the result that do not depend on the port."""

    @abstractmethod
    def judge_tensors(self, state_dict: Arrays) -> Judgement:
        """Judge every tensor of a state_dict."""

    @abstractmethod
    def inputs(self) -> Iterator[ExpectedInput]:
        """Give input by input, on some of which TensorFlow is at work. It can be called again."""

    @abstractmethod
    def diagnosis_reference(self) -> DiagnosisReference | str:
        """Give the input of a diagnosis; or a message that says why there is none, and what to run."""
