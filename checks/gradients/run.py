"""The check of training: both sides from the same checkpoint on the same batch, and five judgements."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from checks.core.activations import short_name
from checks.core.builtin_checkpoint import built_in_checkpoint
from checks.core.judgement import Judgement
from checks.core.source_tensors import expected_state_dict, float32_variables, plan_source
from checks.core.tensorflow_side import find_meta, require_tensorflow
from checks.gradients.judge import (
    GradientMeasurement,
    Mode,
    OptimiserName,
    StepsMeasurement,
    judge_gradients,
    judge_steps,
)
from checks.gradients.measure import (
    MODES,
    OPTIMISERS,
    Gradients,
    Trained,
    TrainingBatch,
    compare_gradients,
    compare_steps,
    take_gradients,
    train,
    trained_keys,
    training_batch,
    training_loss,
    training_reference,
)
from converter.errors import SourceError, UsageError
from converter.formats.detect import open_source
from converter.formats.source import TensorSource
from converter.hub.locate import locate
from converter.layer_map import Converted, Variant, table
from converter.plan import Weights
from reference import InceptionResnetV1

if TYPE_CHECKING:
    from facenet_tf.batch_norm_updates import MovingVariance

STATISTICS = "statistics"
"""The name of the judgement on how running statistics move."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """The result of a check of training.

    Attributes:
        source: What was checked.
        variant: The variant of the network.
        loss: What was differentiated, in words.
        batch_shape: (N, H, W, 3) of the images.
        judgements: statistics, inference, training, sgd, adam.
        gradients: In inference and in training.
        steps: With either optimiser.
        files: Every file that was read.
        seed: Of the batch.
    """

    source: str
    variant: Variant
    loss: str
    batch_shape: tuple[int, ...]
    judgements: tuple[Judgement, ...]
    gradients: tuple[GradientMeasurement, ...]
    steps: tuple[StepsMeasurement, ...]
    files: tuple[str, ...] = ()
    seed: int = 0

    @property
    def passed(self) -> bool:
        """Whether every judgement holds."""
        return all(judgement.passed for judgement in self.judgements)


def compare_training(
    source: Path | None = None,
    *,
    weights: Weights = "variable",
    step: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> TrainingReport:
    """Hold training in PyTorch, from the converted checkpoint on, against training in TensorFlow.

    Args:
        source: Any TensorFlow checkpoint that `open_source` takes, or the name of a published model; None is
            the built-in one.
        weights: As in `plan.plan_conversion`.
        step: As in `open_source`.
        seed: Of the batch.
        say: Told what is going on.

    Returns:
        The report; its `passed` is the verdict.

    Raises:
        PortError: As its subclasses say; a difference is no error but a verdict.
    """
    require_tensorflow("to train with")
    if seed < 0:
        raise UsageError(f"--seed {seed}: a seed is not negative.")
    if source is None:
        say("looking for the built-in checkpoint")
        source = built_in_checkpoint()
    say("converting")
    with open_source(locate(source), step=step) as opened:
        variant, tensors, model = _both_sides(opened, weights)
        say("reading the checkpoint's own graph")
        moving, origin = _moving_variances(opened)
        read = (*opened.files, *(() if origin is None else (origin,)))
    batch = training_batch(variant, seed=seed)
    with _pytorch_side(model, variant, batch) as (taken, trained):
        reference = training_reference(tensors, batch, say=say)
        say("waiting for PyTorch")
        gradients = tuple(compare_gradients(taken[mode].result(), reference, mode) for mode in MODES)
        steps = tuple(compare_steps(trained[name].result(), reference, name) for name in OPTIMISERS)
    return TrainingReport(
        source=str(source),
        variant=variant,
        loss=(
            "mean linear functional of the embeddings"
            if batch.labels is None
            else "mean softmax cross-entropy of the logits"
        ),
        batch_shape=batch.images.shape,
        judgements=(
            judge_statistics(moving, model, origin, variant, len(batch.images)),
            *map(judge_gradients, gradients),
            *map(judge_steps, steps),
        ),
        gradients=gradients,
        steps=steps,
        files=tuple(dict.fromkeys(map(str, read))),
        seed=seed,
    )


def _both_sides(
    opened: TensorSource, weights: Weights
) -> tuple[Variant, dict[str, NDArray[Any]], InceptionResnetV1]:
    """The variant, the float32 variables for TensorFlow, and the port in float64."""
    tensors, plan = plan_source(opened, weights)
    variant = plan.variant
    model = InceptionResnetV1(num_classes=variant.num_classes, embedding_size=variant.embedding_size)
    state_dict = expected_state_dict(tensors, plan)
    model.load_state_dict({key: torch.from_numpy(array) for key, array in state_dict.items()})
    return variant, float32_variables(opened, tensors, plan), model.double()


@contextmanager
def _pytorch_side(
    model: InceptionResnetV1, variant: Variant, batch: TrainingBatch
) -> Iterator[tuple[dict[Mode, Future[Gradients]], dict[OptimiserName, Future[Trained]]]]:
    """All that PyTorch has to do, one after another on one thread, while TensorFlow does the same."""
    trained = trained_keys(variant)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(1)
    stopped = threading.Event()

    def loss(model: InceptionResnetV1, images: Tensor, batch: TrainingBatch) -> Tensor:
        if stopped.is_set():  # after Ctrl-C, between two steps
            raise CancelledError
        return training_loss(model, images, batch)

    try:
        gradients = {mode: pool.submit(take_gradients, model, batch, mode, loss) for mode in MODES}
        yield (
            gradients,
            {name: pool.submit(train, model, batch, trained, name, loss=loss) for name in OPTIMISERS},
        )
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _moving_variances(opened: TensorSource) -> tuple[Mapping[str, MovingVariance], Path | None]:
    """How the checkpoint's own graph moves its variances, and its file; nothing and None without one."""
    from converter.formats.tensorflow.bundle import TensorBundle
    from converter.formats.tensorflow.frozen_graph import FrozenGraph
    from facenet_tf.batch_norm_updates import read_moving_variances
    from facenet_tf.own_graph import GraphError

    frozen = isinstance(opened, FrozenGraph)
    path = opened.path if frozen else find_meta(opened.path) if isinstance(opened, TensorBundle) else None
    if path is None:
        return {}, None
    try:
        return read_moving_variances(path, frozen=frozen), path
    except GraphError as error:
        raise SourceError(
            path,
            f"how it moves the running variances cannot be told ({error})",
            next_step="Move the .meta away to check against slim's fused BatchNorm",
        ) from error


def judge_statistics(
    moving: Mapping[str, MovingVariance],
    model: InceptionResnetV1,
    origin: Path | None,
    variant: Variant,
    images: int,
) -> Judgement:
    """Whether PyTorch's BatchNorms move their running statistics as the checkpoint's own graph does.

    Args:
        moving: By scope what the graph's operations say; empty where they say nothing.
        model: The port.
        origin: The file of the graph, or None.
        variant: The variant of the network.
        images: How many images a batch has, to tell what a difference comes to.
    """
    norms: dict[str, nn.BatchNorm1d] = {
        row.variable.rpartition("/")[0]: model.get_submodule(row.key.rpartition(".")[0])  # type: ignore[misc]
        for row in table(variant)
        if isinstance(row, Converted) and row.key.endswith(".running_var")
    }
    if not moving:
        where = "no training graph in this file" if origin is None else f"{origin.name} was frozen without it"
        statement = f"{where}; slim's fused BatchNorm is assumed: n/(n-1) of the variance, decay 0.995"
        return Judgement(STATISTICS, True, statement)
    assert origin is not None
    details = [f"{scope}: {origin.name} does not update it" for scope in norms if scope not in moving]
    for scope, update in moving.items():
        if scope not in norms:
            details.append(f"{scope}: in {origin.name}, not in the network")
            continue
        momentum = norms[scope].momentum
        # The graph holds 1 - decay in float32.
        if momentum is None or not math.isclose(1 - update.decay, momentum, rel_tol=2**-23):
            details.append(f"{short_name(scope)}: decay {update.decay:.6g}, PyTorch's momentum is {momentum}")
    biased = [scope for scope, update in moving.items() if update.biased]
    if biased:
        others = f" and {len(biased) - 1} more" if len(biased) > 1 else ""
        details.append(
            f"{short_name(biased[0])}{others}: towards the biased variance (tf.nn.moments); PyTorch's BatchNorm "
            f"towards n/(n-1) of it, n the values of a channel: {images / (images - 1):.2f} times at "
            f"the Bottleneck, of {images} images"
        )
    operations = " and ".join(sorted({update.operation for update in moving.values()}))
    if details:
        statement = f"{origin.name} moves its running statistics otherwise than PyTorch's BatchNorm does"
    else:
        statement = (
            f"{len(moving)} running variances move towards n/(n-1) of the batch's, as PyTorch's do, at its "
            f"momentum ({operations} in {origin.name})"
        )
    return Judgement(STATISTICS, not details, statement, tuple(details))
