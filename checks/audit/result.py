"""What an audit finds: a result for each tensor, what came of running a graph, and the judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from checks.core import thresholds
from checks.core.judgement import Judgement

Status = Literal["equal", "folded", "rounded", "approximate", "differs", "missing", "extra", "not judged"]
"""What an audit says of one tensor.

equal: every bit is the source's. folded: BatchNorm, or another factor, is folded into it, by a formula that
gives every bit of it. rounded: stored in half precision, every bit that of the source's nearest value.
approximate: within rounding of the float64 result, where no formula that is known here tells every last bit,
or more than one could have been used. differs: none of these. missing: the port lacks it. extra: the port has
it and the network does not. not judged: what the source does not say, such as a classifier that it lacks.
"""

FAITHFUL: frozenset[Status] = frozenset({"equal", "folded", "rounded", "approximate", "not judged"})
"""With these a tensor is no fault of the port."""


@dataclass(frozen=True, slots=True)
class TensorResult:
    """What became of one tensor of a port.

    Attributes:
        name: As the port calls it; of a missing one, as it should be called.
        variable: The source's variable, or variables, that it has to be; empty where there is none.
        stage: The stage of the network that it belongs to (`Repeat/block35_1`); empty where unknown.
        layout: The source's order of axes to the port's (`HWIO->OIHW`); empty where nothing is compared.
        dtype: What it is stored as.
        shape: Its shape in the port.
        status: The finding.
        values: How many elements it has.
        differing: How many of them are not what they should be.
        max_ulp: Largest difference from what it should be, in units in the last place of `dtype`.
        ulp_histogram: How many elements are 0, 1, 2, 3-4, 5-8, 9-16, ... such units away, as
            `checks.core.metrics.ulp_histogram` counts them; empty where nothing could be compared.
        detail: What else is to be said, in words.
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
    max_ulp: int = 0
    ulp_histogram: tuple[int, ...] = ()
    detail: str = ""

    @property
    def is_faithful(self) -> bool:
        """Whether it is no fault of the port."""
        return self.status in FAITHFUL


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a graph is from float64 after one layer, both with the graph's own weights.

    Attributes:
        activation: TensorFlow scope of the layer, as in `checks.core.activations`.
        error: Relative L2 of the graph's activations from the float64 ones.
        floor: The same of PyTorch in float32.
    """

    activation: str
    error: float
    floor: float


@dataclass(frozen=True, slots=True)
class InputRun:
    """A graph run on one batch.

    Attributes:
        name: The input.
        few_values: As in `InputBatch`.
        error: Relative L2 of the graph's embeddings from those of the float64 network with the graph's own
            weights.
        floor: The same of PyTorch in float32.
        distance: Frobenius distance of the graph's embeddings, brought to unit length, from those of the
            source's weights in float64.
        row_distance: Largest distance of a single embedding among them.
        layers: In the order of evaluation.
    """

    name: str
    few_values: bool
    error: float
    floor: float
    distance: float
    row_distance: float
    layers: tuple[LayerError, ...]

    @property
    def factor(self) -> float:
        """How many times further from float64 than PyTorch a layer may be."""
        return thresholds.ROUNDING_FEW_VALUES if self.few_values else thresholds.ROUNDING

    @property
    def runtime_factor(self) -> float:
        """The same of the embeddings, as the runtime runs the graph by default."""
        return thresholds.RUNTIME * (2 if self.few_values else 1)


@dataclass(frozen=True, slots=True)
class GraphRun:
    """What came of running a graph file.

    Attributes:
        runtime: What ran it, with its version.
        weights: What the weights are stored as, `float32` or `float16`.
        arithmetic: What the convolutions compute in.
        preprocessing: What the graph does to an image itself, a clause.
        baked: How it standardises images itself, as the catalog says it; None where it does not, or nothing
            is known.
        is_prepared_right: Whether its images are within rounding of what `preprocessing` says.
        feed: What it takes, a clause.
        inputs: On each input.
    """

    runtime: str
    weights: str
    arithmetic: str
    preprocessing: str
    baked: str | None
    is_prepared_right: bool
    feed: str
    inputs: tuple[InputRun, ...]

    @property
    def first_divergence(self) -> str | None:
        """The first layer that is further from float64 than its precision allows; None where none is."""
        return next(
            (
                layer.activation
                for run in self.inputs
                for layer in run.layers
                if not layer.error <= run.factor * layer.floor
            ),
            None,
        )


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The result of an audit.

    Attributes:
        port: The file that was audited.
        format: What it is, in words.
        source: What it was held against.
        network: What network it is, in words.
        recognised: What is known of a file of this SHA-256, a sentence; empty where nothing is.
        tensors: In the order of the network; what does not belong to it comes last.
        run: What came of running it; None for weights without a graph.
        judgements: Each verdict.
        verdict: The finding in one sentence.
        files: Every file that was read, of the port and of the source, to its SHA-256.
        seed: Of the inputs.
        environment: Versions and machine.
    """

    port: str
    format: str
    source: str
    network: str
    recognised: str
    tensors: tuple[TensorResult, ...]
    run: GraphRun | None
    judgements: tuple[Judgement, ...]
    verdict: str
    files: Mapping[str, str]
    seed: int
    environment: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every judgement holds."""
        return all(judgement.passed for judgement in self.judgements)
