"""The documented function: train both sides from one checkpoint on one batch, and judge differences."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from torch import Tensor

from checks.core.activations import one_thread
from checks.core.builtin_checkpoint import built_in_checkpoint
from checks.core.environment import environment
from checks.core.models import build_exact
from checks.core.source_tensors import (
    expected_state_dict,
    find_broken_source,
    float32_variables,
    plan_source,
    refuse_broken_source,
    refuse_mtcnn,
)
from checks.core.tensorflow_side import require_tensorflow
from checks.core.types import Array, Arrays, Say
from checks.gradients.judge import judge_gradients, judge_steps
from checks.gradients.measure import measure_gradient_distances, measure_step_distances
from checks.gradients.result import (
    GradientMeasurement,
    GradientsResult,
    StepsMeasurement,
)
from checks.gradients.running_statistics import judge_statistics, read_updates
from checks.gradients.train_pytorch import (
    Loss,
    PyTorchGradients,
    PyTorchTraining,
    loss_of,
    take_gradients,
    train_pytorch,
    training_loss,
)
from checks.gradients.train_tensorflow import train_tensorflow
from checks.gradients.training_setup import MODES, TRAININGS, TrainingBatch, draw_batch, trained_keys
from converter.formats.detect import open_source
from converter.formats.source import TensorSource
from converter.hub.locate import locate
from converter.layer_map import Variant
from converter.network_names import NetworkTensors
from converter.plan import Weights
from reference import InceptionResnetV1


def compare_gradients(
    source: str | Path | None = None,
    *,
    weights: Weights = "variable",
    step: int | None = None,
    seed: int = 0,
    say: Say = lambda _: None,
) -> GradientsResult:
    """Compare training in PyTorch with training in TensorFlow, both from one checkpoint.

    A test for pytest:

        from checks.gradients.run import compare_gradients

        def test_fine_tuning_starts_where_tensorflow_stopped():
            result = compare_gradients("models/20180402-114759")
            assert result.passed, result.judgements

    Args:
        source: Any TensorFlow checkpoint that `open_source` takes, or the name of a published model; None is
            the built-in checkpoint.
        weights: As in `converter.plan.plan_conversion`.
        step: As in `open_source`.
        seed: Seed of the batch.
        say: Progress callback.

    Returns:
        The result; its `passed` is the verdict.

    Raises:
        PortError: A subclass of it says why the comparison could not be made. A difference is not an error.
    """
    require_tensorflow("to train with")
    if source is None:
        say("opening the built-in checkpoint")
        source = built_in_checkpoint()
    say("converting")
    with open_source(locate(source), step=step) as opened:
        named = NetworkTensors(opened)
        variant, tensors, model = _both_sides(named, weights)
        say("reading the checkpoint's own graph")
        updates, graph = read_updates(named, weights)
        files = (*opened.files, *(() if graph is None else (graph,)))
    batch = draw_batch(variant, seed=seed)
    gradients, steps = _measure(tensors, model, variant, batch, say)
    statistics = judge_statistics(updates, model, graph, variant, len(batch.images))
    return GradientsResult(
        source=str(source),
        variant=variant,
        loss=batch.loss_name,
        batch_shape=batch.images.shape,
        judgements=(statistics, *map(judge_gradients, gradients), *map(judge_steps, steps)),
        gradients=gradients,
        steps=steps,
        environment=environment(),
        files=tuple(dict.fromkeys(map(str, files))),
        seed=seed,
    )


def _both_sides(
    source: TensorSource, weights: Weights
) -> tuple[Variant, dict[str, Array], InceptionResnetV1]:
    """The variant, the float32 variables for TensorFlow, and the port in float64."""
    tensors, plan = plan_source(source, weights)
    refuse_mtcnn(source, plan)
    variant, variables = plan.variant, float32_variables(source, tensors, plan)
    refuse_broken_source(source.path, find_broken_source(variables, plan))
    model = build_exact(expected_state_dict(tensors, plan), variant)
    assert isinstance(model, InceptionResnetV1)  # `refuse_mtcnn` refuses the others
    return variant, variables, model


def _measure(
    tensors: Arrays, model: InceptionResnetV1, variant: Variant, batch: TrainingBatch, say: Say
) -> tuple[tuple[GradientMeasurement, ...], tuple[StepsMeasurement, ...]]:
    """Run both sides at once, and measure the gradients of each mode and the steps of each training."""
    trained, stopped = trained_keys(variant), threading.Event()

    def stopping(loss: Loss) -> Loss:
        def compute(model: InceptionResnetV1, images: Tensor, batch: TrainingBatch) -> Tensor:
            if stopped.is_set():  # after Ctrl-C, between two steps
                raise CancelledError
            return loss(model, images, batch)

        return compute

    def run_pytorch() -> tuple[list[PyTorchGradients], list[PyTorchTraining]]:
        gradients = [take_gradients(model, batch, mode, stopping(training_loss)) for mode in MODES]
        return gradients, [
            train_pytorch(model, batch, trained, name, loss=stopping(loss_of(name))) for name in TRAININGS
        ]

    with one_thread(), ThreadPoolExecutor(1) as pool:
        try:
            running = pool.submit(run_pytorch)
            reference = train_tensorflow(tensors, batch, trainings=tuple(TRAININGS), say=say)
            say("waiting for PyTorch")
            gradients, trainings = running.result()
        finally:
            stopped.set()
    return (
        tuple(map(measure_gradient_distances, gradients, repeat(reference), MODES)),
        tuple(map(measure_step_distances, trainings, repeat(reference), TRAININGS)),
    )
