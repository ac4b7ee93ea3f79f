"""The result of an audit, as plain data: the tensors, the run of a graph, and the judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from checks.core import thresholds
from checks.core.judgement import Judgement
from converter.errors import SourceError

_SEVEN_BITS = 64

if TYPE_CHECKING:  # a result is read without NumPy
    from checks.core.rounding import LayerRounding
    from checks.core.source_tensors import BrokenSource

Status = Literal[
    "equal", "folded", "rounded", "quantised", "approximate", "differs", "missing", "extra", "not judged"
]  # fmt: skip
"""The status of one tensor of a port.

equal: every bit is the source's.
folded: a BatchNorm or another factor is folded in, by a formula that gives every bit.
rounded: stored in half precision, and every bit is that of the nearest value.
quantised: stored as integers, each of which is the nearest to the source's value in the steps of its scale.
approximate: within rounding of the float64 result; no known formula, or more than one, gives every last bit.
differs: the values or the shape are not the source's.
missing: the port lacks the tensor.
extra: the network has no such tensor.
not judged: the source has no such tensor, for example because it has no classifier.
"""

FAITHFUL: frozenset[Status] = frozenset(
    {"equal", "folded", "rounded", "quantised", "approximate", "not judged"}
)
"""Statuses that count as faithful."""


WEAKER = 5
"""Exit code: either the embeddings or the weights are the source's, and the others could not be compared."""


@dataclass(frozen=True, slots=True)
class TensorQuantisation:
    """The integers of a tensor against the source's values in the steps of its scale.

    Attributes:
        scales: The number of its scales, 1 or one for each channel.
        is_symmetric: Whether every zero point is the middle of the integers.
        largest: The largest integer that it uses, as a distance from the zero point: 127 of 8 bits.
        ties: Integers that are the second nearest, of values that lie in the middle of two as far as float32
            can tell.
        excess: The largest distance of a value from its integer beyond half a step, over what the rounding of
            the value explains; at most 1 in a tensor that is quantised rightly.
        clipped: Values that lie beyond the integers by more than half a step.
        lost: The bits that the channel with the largest scale for its values loses: log2 of a scale over the
            smallest that holds the channel's weights and bias. None of other tensors.
        is_one_scale: Whether it has a scale for each channel, and all of them are equal.
        bias_scale: Of a bias, the largest distance of a scale from the product of the scales of the input and
            the weights, relative to it; None of other tensors.
    """

    scales: int
    is_symmetric: bool
    largest: int
    ties: int
    excess: float
    clipped: int
    lost: float | None = None
    is_one_scale: bool = False
    bias_scale: float | None = None

    @property
    def bits(self) -> int:
        """The bits that weights use: 7 if no integer is beyond 64, as by onnxruntime's `reduce_range`."""
        return 7 if self.largest <= _SEVEN_BITS else 8


@dataclass(frozen=True, slots=True)
class TensorResult:
    """The result for one tensor of a port.

    Attributes:
        name: Its name in the port; for a missing tensor, its expected name.
        variable: The source's variable, or the scope of several variables; empty where there is none.
        stage: The stage of the network that it belongs to (`Repeat/block35_1`); empty where unknown.
        layout: The source's order of axes to the port's (`HWIO->OIHW`); empty where nothing is compared.
        dtype: The dtype that it is stored in.
        shape: Its shape in the port.
        status: Its status.
        values: The number of its elements.
        differing: The number of elements that differ from the expected ones.
        not_finite: The number of those that are NaN or infinite on one side; they have no distance.
        max_abs: Largest absolute difference; infinite if a value is NaN or infinite on one side alone.
        max_ulp: Largest difference from the expected value, in units in the last place of `dtype`: the
            number of steps from one value of the dtype to the next.
        ulp_histogram: The number of elements that are 0, 1, 2, 3-4, 5-8, 9-16, ... such units away, counted
            by `checks.core.metrics.ulp_histogram`; empty where no values were compared.
        detail: A remark, such as the cause of a difference; empty where there is none.
        key: Its key in the published state_dicts, or the module of several keys; empty where there is none.
        index: The index of the element with the difference `max_abs`, in the port's tensor; None where no
            element differs or no values were compared.
        actual: The port's value at `index`.
        expected: The expected value at `index`.
        quantisation: Of a tensor of integers, its scales and their steps; None of others. `actual` and
            `expected` are then integers.
    """

    name: str
    variable: str
    stage: str
    layout: str
    dtype: str
    shape: tuple[int, ...]
    status: Status
    values: int = 0
    differing: int = 0
    not_finite: int = 0
    max_abs: float = 0.0
    max_ulp: int = 0
    ulp_histogram: tuple[int, ...] = ()
    detail: str = ""
    key: str = ""
    index: tuple[int, ...] | None = None
    actual: float | None = None
    expected: float | None = None
    quantisation: TensorQuantisation | None = None

    @property
    def is_faithful(self) -> bool:
        """True if its status counts as faithful."""
        return self.status in FAITHFUL


@dataclass(frozen=True, slots=True)
class InputRun:
    """A graph run on one batch of images.

    Attributes:
        name: The name of the input.
        few_values: Whether the images have few distinct values, as in `InputBatch`.
        error: Relative L2 of the graph's embeddings from those of the float64 network with the graph's own
            weights.
        floor: The error of PyTorch in the graph's precision.
        distance: Frobenius distance of the graph's normalised embeddings from the source's in float64.
        row_distance: The largest distance of a single embedding.
        layers: The rounding of each layer on its own input, for the first image, in the order of evaluation.
    """

    name: str
    few_values: bool
    error: float
    floor: float
    distance: float
    row_distance: float
    layers: tuple[LayerRounding, ...]

    @property
    def runtime_factor(self) -> float:
        """The largest error of the embeddings, as the runtime computes them by default, over `floor`."""
        return thresholds.RUNTIME * (2 if self.few_values else 1)

    @property
    def diverging(self) -> tuple[LayerRounding, ...]:
        """The layers with a larger error than rounding allows, in the order of evaluation."""
        return tuple(layer for layer in self.layers if layer.exceeds)


@dataclass(frozen=True, slots=True)
class GraphRun:
    """The run of a graph.

    Attributes:
        runtime: Name and version of the runtime.
        weights: The dtype of the weights, `float32` or `float16`.
        arithmetic: The dtype in which the convolutions compute.
        preprocessing: A clause on the graph's operations before its first layer.
        baked: The standardisation that is built into the graph, as the catalog names it; None where there
            is none or it is not known.
        is_prepared_exactly: Whether the prepared images are within rounding of those that `preprocessing`
            describes.
        feed: A clause on the graph's input and outputs.
        inputs: The run on each input.
        resized: A clause on the sizes, if the graph resizes its images, such as "from 224x224 to 160x160".
        prepared: Relative L2 of the prepared images from those that `preprocessing` describes; None where
            only embeddings are compared.
        order: The order of the channels that it takes, RGB or BGR.
        gives: A clause on its outputs.
        sizes: The size of its embeddings and that of the source's, if they differ; None if they are equal.
    """

    runtime: str
    weights: str
    arithmetic: str
    preprocessing: str
    baked: str | None
    is_prepared_exactly: bool
    feed: str
    inputs: tuple[InputRun, ...]
    resized: str = ""
    prepared: float | None = None
    order: str = "RGB"
    gives: str = ""
    sizes: tuple[int, int] | None = None

    @property
    def first_divergence(self) -> str | None:
        """The first layer with a larger error than rounding allows; None where there is none."""
        return next((layer.activation for run in self.inputs for layer in run.diverging), None)


@dataclass(frozen=True, slots=True)
class QuantiserRun:
    """A node that quantises an activation, on every input, against the float64 result of its own integers.

    Attributes:
        tensor: The tensor that it quantises.
        layer: The layer of the network that gives the tensor; empty for another one.
        values: The number of integers.
        other: Integers that are not the nearest to the float64 result, because of its rounding in float32.
        excess: The largest distance of an integer from the float64 result beyond half a step, in steps.
        clipped: The share of values beyond the integers, without those that a ReLU makes zero. Of the faces,
            if any were given, otherwise of all inputs.
    """

    tensor: str
    layer: str
    values: int
    other: int
    excess: float
    clipped: float


@dataclass(frozen=True, slots=True)
class InputRange:
    """The numbers that the first quantisation holds, against those of standardised images.

    Attributes:
        lowest: The lowest number that it holds.
        highest: The highest.
        standardisation: The standardisation of the training.
        basis: The pixels of which the larger share is beyond the interval, a clause: those of the faces that
            were given, or those that the standardisation allows.
        clipped: The share of these pixels beyond the interval.
        unused: The share of the interval that none of the two reaches.
    """

    lowest: float
    highest: float
    standardisation: str
    basis: str
    clipped: float
    unused: float


@dataclass(frozen=True, slots=True)
class FacesRun:
    """The embeddings of faces by the port and by the source's network in float32.

    Attributes:
        images: The number of faces.
        cosine: The least cosine of the two embeddings of a face.
        mean_cosine: The mean cosine.
        people: The number of people, by the names of the folders; 0 if no pair of faces shows one person.
        pairs: The number of pairs.
        otherwise: The pairs that the port decides otherwise than the source.
        threshold: The squared distance that decides: the one that sorts the source's pairs best.
        accuracy: The share of pairs that the port decides rightly, and the source.
    """

    images: int
    cosine: float
    mean_cosine: float
    people: int = 0
    pairs: int = 0
    otherwise: int = 0
    threshold: float = 0.0
    accuracy: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class QuantisedRun:
    """The run of a graph of integers.

    Attributes:
        inputs: The names of the inputs.
        quantisers: Every node that quantises an activation, in the order of the graph.
        embedding: The largest distance of an embedding from the float64 result of the last integers.
        input_range: The range of the first quantisation; None if the first layer is not quantised, or the
            standardisation of the training is not known.
        faces: The embeddings of faces; None if none were given, or the source's have another size.
        is_dynamic: Whether the runtime quantises activations by scales that change with each image. Then the
            arithmetic is not judged: there are no quantisers.
        cosine: The least cosine with the source's of an embedding of the inputs of many values; None if the
            source's have another size.
    """

    inputs: tuple[str, ...]
    quantisers: tuple[QuantiserRun, ...]
    embedding: float
    input_range: InputRange | None
    faces: FacesRun | None
    is_dynamic: bool = False
    cosine: float | None = None


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The result of an audit.

    Attributes:
        port: The path of the port.
        format: The format of the port.
        source: The path of the source.
        network: A description of the network and its variant.
        names: Sentences on how the tensors were found: a prefix that was taken off, tensors left out by
            --ignore, the entry of a training file; with extra tensors, advice on --ignore.
        recognised: A sentence on the published port with this SHA-256; empty where there is none.
        tensors: The result for each tensor, in the order of the network. Tensors that belong to no layer
            come last.
        run: The run of the graph; None for weights without a graph.
        judgements: The judgements.
        verdict: The verdict, a sentence or two.
        files: The path of every file of the port and the source, to its SHA-256.
        seed: The seed of the inputs.
        environment: The result of `checks.core.environment.environment`, with the runtimes of graphs.
        broken: What is broken in the source, so that no graph is run; None for a sound source.
        not_understood: The place where a graph is not understood, so that only its embeddings were compared;
            empty if every tensor was compared.
        quantised: The run of a graph of integers; `run` then says how it takes its images.
        not_run: The reason why a TensorFlow graph was not run, so that only its weights were compared; empty
            if it was run or there is none.
    """

    port: str
    format: str
    source: str
    network: str
    names: tuple[str, ...]
    recognised: str
    tensors: tuple[TensorResult, ...]
    run: GraphRun | None
    judgements: tuple[Judgement, ...]
    verdict: str
    files: Mapping[str, str]
    seed: int
    environment: Mapping[str, Any]
    broken: BrokenSource | None = None
    not_understood: str = ""
    not_run: str = ""
    quantised: QuantisedRun | None = None

    @property
    def passed(self) -> bool:
        """True if all tensors were compared, a graph was run, all judgements hold and the source is sound."""
        return self.exit_code == 0

    @property
    def differs(self) -> bool:
        """True if a judgement fails."""
        return not all(judgement.passed for judgement in self.judgements)

    @property
    def exit_code(self) -> int:
        """0 faithful; 1 the port differs; 3 it does not, but its source is broken; or `WEAKER`."""
        if self.differs:
            return 1
        if self.broken is not None:
            return SourceError.exit_code
        is_dynamic = self.quantised is not None and self.quantised.is_dynamic
        return WEAKER if self.not_understood or self.not_run or is_dynamic else 0
