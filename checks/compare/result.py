"""The result of a comparison, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from checks.core import thresholds
from checks.core.judgement import Judgement
from converter.counts import counted
from converter.errors import SourceError

if TYPE_CHECKING:  # a result is read without NumPy and PyTorch
    from checks.core.metrics import Difference
    from checks.core.rounding import LayerRounding
    from checks.core.source_tensors import BrokenSource
    from checks.diagnosis.result import Diagnosis
    from converter.mtcnn_layer_map import Network


@dataclass(frozen=True, slots=True)
class ActivationMeasurement:
    """The figures of one activation on one input.

    Attributes:
        activation: TensorFlow scope.
        float32: PyTorch from TensorFlow, both in float32.
        float64: PyTorch from TensorFlow, both in float64.
        pytorch_error: Relative L2 of PyTorch's float32 from TensorFlow's float64.
        tensorflow_error: Relative L2 of TensorFlow's float32 from TensorFlow's float64.
    """

    activation: str
    float32: Difference
    float64: Difference
    pytorch_error: float
    tensorflow_error: float

    @property
    def diverges(self) -> bool:
        """True if the float64 results differ by more than rounding; NaN differs."""
        return not self.float64.relative_l2 <= thresholds.MAPPING


@dataclass(frozen=True, slots=True)
class InputMeasurement:
    """The figures of one input.

    Attributes:
        name: The input.
        images: The number of its images.
        own_graph: As in `Activations`.
        activations: In the order of evaluation.
        distance64: Frobenius distance of the embeddings in float64; of a network of MTCNN the largest
            distance of one window's outputs.
        distance32: The same in float32.
        row_distance32: Largest distance of a single embedding, or of one window's outputs, in float32.
        rebuilt: As in `Activations`.
        own_rounding: As in `Activations`.
        rounding: The rounding of every layer of PyTorch's float32 network, on the first image.
    """

    name: str
    images: int
    own_graph: bool
    activations: tuple[ActivationMeasurement, ...]
    distance64: float
    distance32: float
    row_distance32: float
    rebuilt: Mapping[str, float]
    own_rounding: tuple[LayerRounding, ...]
    rounding: tuple[LayerRounding, ...]

    @property
    def label(self) -> str:
        """The input and the number of its images, such as "standard normal, 5 images"."""
        return f"{self.name}, {counted(self.images, 'image')}"

    @property
    def outputs(self) -> str:
        """The plural noun for the outputs that the distances are of."""
        is_mtcnn = all(measured.activation != "embeddings" for measured in self.activations)
        return "outputs" if is_mtcnn else "embeddings"

    @property
    def first_divergence(self) -> str | None:
        """The first activation that diverges in float64, or None."""
        return next((measured.activation for measured in self.activations if measured.diverges), None)

    @property
    def rounding_shares(self) -> Mapping[str, float]:
        """Activation to its rounding as a share of the bound."""
        return {layer.activation: layer.share for layer in self.rounding}


@dataclass(frozen=True, slots=True)
class Repair:
    """The outcome of `--repair`.

    Attributes:
        path: The file that was written, or None.
        keys: The corrected tensors in the state_dict's order; if nothing was written, the ones tried.
        statement: One sentence on the outcome, or on the reason why nothing was written.
    """

    path: str | None
    keys: tuple[str, ...]
    statement: str


@dataclass(frozen=True, slots=True)
class SavedActivations:
    """The file that `--save-activations` wrote: its path, its size in bytes, and its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CompareResult:
    """The result of a comparison.

    Attributes:
        source: The checkpoint that the port was compared with.
        state_dict: The file that was judged; None if the source was converted and the result judged.
        own_graph: The file of the checkpoint's own graph; None if only the rebuilt graph ran.
        variant: The network.
        judgements: tensors, mapping, rounding, headline; of a network of MTCNN, the first three; of a broken
            source, tensors alone.
        inputs: The figures of each input; empty if the state_dict does not load or the source is broken.
        environment: As `checks.core.environment.environment` gives it.
        diagnosis: The wrong layers and their causes; None if every judgement holds or nothing was diagnosed.
        undiagnosed: The reason why nothing was diagnosed, and what to run; empty otherwise.
        repair: The outcome of `--repair`; None without it.
        saved: The file of stored activations; None if none was asked for, or the state_dict does not load.
        files: Every file that was read, except photographs.
        names: Sentences on how the tensors of the files were found: a prefix that was taken off, tensors left
            out by --ignore, the entry of a training file.
        seed: Seed of the inputs.
        broken: What is broken in the source, so that only the tensors are judged; None for a sound source.
        device: Where PyTorch's float32 network ran, such as "cpu" or "cuda (NVIDIA H100)".
    """

    source: str
    state_dict: str | None
    own_graph: str | None
    variant: Network
    judgements: tuple[Judgement, ...]
    inputs: tuple[InputMeasurement, ...]
    environment: Mapping[str, Any]
    diagnosis: Diagnosis | None = None
    undiagnosed: str = ""
    repair: Repair | None = None
    saved: SavedActivations | None = None
    files: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    seed: int = 0
    broken: BrokenSource | None = None
    device: str = "cpu"

    @property
    def passed(self) -> bool:
        """True if every judgement holds and the source is sound."""
        return self.broken is None and not self.differs

    @property
    def differs(self) -> bool:
        """True if a judgement fails."""
        return not all(judgement.passed for judgement in self.judgements)

    @property
    def exit_code(self) -> int:
        """0 proven; 1 the port differs; 3 it does not, but its source is broken."""
        return 1 if self.differs else 0 if self.passed else SourceError.exit_code

    @property
    def diverging(self) -> InputMeasurement | None:
        """The first input on which an activation diverges, or None."""
        return next((batch for batch in self.inputs if batch.first_divergence is not None), None)
