"""Gradients and training steps: the port against TensorFlow, and each judgement against a fault."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from checks.core import thresholds
from checks.core.judgement import Judgement
from checks.core.models import build_exact
from checks.gradients import __main__ as gradients
from checks.gradients.judge import judge_gradients, judge_steps
from checks.gradients.measure import (
    measure_gradient_distances,
    measure_gradients,
    measure_step_distances,
    measure_steps,
)
from checks.gradients.result import (
    INPUT,
    GradientMeasurement,
    GradientsResult,
    StepsMeasurement,
    TensorDistance,
)
from checks.gradients.running_statistics import judge_statistics
from checks.gradients.table import print_result
from checks.gradients.train_pytorch import PyTorchGradients, train_pytorch
from checks.gradients.train_tensorflow import TrainingReference, train_tensorflow
from checks.gradients.training_setup import LEARNING_RATE, MARGIN, MODES, TRAININGS, WEIGHT_DECAY, draw_batch
from converter.convert import to_numpy_state_dict
from converter.layer_map import ConvertedRow, Variant, table
from reference import InceptionResnetV1
from reference.adam import TensorFlowAdam
from reference.losses import decay_kernels

pytest.importorskip("tensorflow")

from facenet_tf import training as tensorflow_training
from facenet_tf.batch_norm_updates import VarianceUpdate, read_variance_updates
from facenet_tf.checkpoint import CheckpointFiles
from facenet_tf.graph_nodes import GraphError
from facenet_tf.own_graph import GraphKind, read_graph
from facenet_tf.session import legacy_graph, tf, tf1

pytestmark = pytest.mark.slow

CLASSES = 7
STEPS = 2
REAL_STEPS = 4
# Eight values a channel in the last maps: statistics of fewer are badly conditioned. One pool leaves out a
# column of its map.
SIZE = (107, 77)
SCOPE = "InceptionResnetV1/Conv2d_1a_3x3/BatchNorm"
VARIANT = Variant(num_classes=CLASSES)
SCOPES = [
    row.scope for row in table(VARIANT) if isinstance(row, ConvertedRow) and row.key.endswith("running_var")
]


@pytest.fixture(scope="module")
def train(tensors: dict[str, NDArray]) -> Iterator[Callable[..., TrainingReference]]:
    """`train_tensorflow` on one batch; all calls share the graph, which takes ten seconds to build."""
    batch = draw_batch(VARIANT, image_size=SIZE)
    with tensorflow_training.TrainingNetwork(tensors, batch.triplets, images=batch.images.shape) as network:

        def run(**options: Any) -> TrainingReference:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tensorflow_training, "TrainingNetwork", lambda *_, **__: nullcontext(network))
                return train_tensorflow(tensors, batch, **options)

        yield run


@pytest.fixture(scope="module")
def reference(train: Callable[..., TrainingReference]) -> TrainingReference:
    return train(steps=STEPS)


@pytest.fixture(scope="module")
def state_dict(tensors: dict[str, NDArray]) -> dict[str, NDArray]:
    return to_numpy_state_dict(tensors)


@pytest.fixture
def model(state_dict: dict[str, NDArray]) -> InceptionResnetV1:
    model = build_exact(state_dict, VARIANT)
    assert isinstance(model, InceptionResnetV1)
    return model


# The port


def test_every_gradient_and_every_step_is_tensorflows(
    model: InceptionResnetV1, reference: TrainingReference, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measured = tuple(measure_gradients(model, reference, mode) for mode in MODES)
    steps = tuple(measure_steps(model, reference, name) for name in TRAININGS)
    judged = (*map(judge_gradients, measured), *map(judge_steps, steps))
    assert all(judgement.passed and judgement.share * thresholds.MARGIN <= 1 for judgement in judged), judged

    parameters = [name for name, _ in model.named_parameters()]
    assert len(parameters) == 112 * 2 + 132 + 22 + 2
    for gradient in measured:
        assert sorted(t.key for t in gradient.gradients) == sorted([INPUT, *parameters])
        assert all(0 <= t.distance <= 1e-10 for t in gradient.gradients)
        assert all(t.scale == t.norm > 0 for t in gradient.gradients)  # none is judged by another scale
    for training in steps:
        assert {t.key for t in training.state} == {k for k, v in before.items() if v.is_floating_point()}
        assert all(0 <= t.distance <= 1e-9 for t in (*training.state, *training.change))
        still = {t.key for t in training.change if t.norm == 0}
        scales = {key for key in parameters if key.endswith("bn.weight")}  # not in the checkpoint
        unused = {key for key in parameters if training.training == "triplet" and key.startswith("logits.")}
        assert still == scales | unused
    # The model is left as it was.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

    statistics = Judgement("statistics", True, "assumed")
    result = GradientsResult(
        "here", VARIANT, "loss", (4, *SIZE, 3), (statistics, *judged), measured, steps, {}
    )
    print_result(result)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Training continues as in TensorFlow."
    assert sum(line.startswith("holds ") for line in shown) == 6
    assert len(shown) == 8
    print_result(result, verbose=True)
    assert "after 2 steps" in capsys.readouterr().out


def test_triplets_train_ten_steps_as_tensorflow_without_being_asked(
    model: InceptionResnetV1, train: Callable[..., TrainingReference]
) -> None:
    """The number that the pages promise; the other tests take fewer, to save time."""
    expected = train(modes=(), trainings=("triplet",))
    actual = train_pytorch(model, expected.batch, expected.trained, "triplet")
    assert len(expected.steps["triplet"].losses) == len(actual.losses) == 10
    measured = measure_step_distances(actual, expected, "triplet")
    assert measured.loss <= 1e-9
    assert all(0 <= t.distance <= 1e-9 for t in (*measured.state, *measured.change))


def test_a_result_in_which_everything_differs_fits_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    def distances(distance: float) -> tuple[TensorDistance, ...]:
        keys = ("conv2d_1a.conv.weight", "conv2d_1a.bn.weight", "last_bn.bias", "logits.bias")
        return tuple(TensorDistance(key, distance * 2**-n, 1.0, 1.0) for n, key in enumerate(keys))

    measured = tuple(GradientMeasurement(mode, 1.0, distances(1e-3)) for mode in MODES)
    steps = tuple(
        StepsMeasurement(name, 10, (3.0, 1.0), 1.0, distances(np.inf), distances(1e-5)) for name in TRAININGS
    )
    statistics = Judgement("statistics", False, "differ", ("a", "b", "c"))
    judgements = (statistics, *map(judge_gradients, measured), *map(judge_steps, steps))
    result = GradientsResult("[re]d", VARIANT, "loss", (4, *SIZE, 3), judgements, measured, steps, {})
    print_result(result)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Training differs from TensorFlow's."
    assert shown[1].startswith("[re]d: ")
    assert sum(line.startswith("FAILS ") for line in shown) == 6
    assert "worst: conv2d_1a.conv.weight (InceptionResnetV1/Conv2d_1a_3x3/weights)" in shown
    assert any("BatchNorm/gamma, which the checkpoint does not have)" in line for line in shown)
    assert "missing, misshapen or not finite" in "".join(shown)
    assert len(shown) <= 15
    print_result(result, verbose=True)
    assert "loss with Adam: 3 in the first step, 1 in the last" in capsys.readouterr().out


# Faults, each with the judgement that must fail

Fault = Callable[[InceptionResnetV1], object]


def failing(judgement: Judgement) -> set[str]:
    """The tensors in the details of a judgement that fails, and "the losses"; none fails by luck."""
    assert not judgement.passed
    assert judgement.share >= thresholds.MARGIN
    return {re.split(":| are ", detail)[0] for detail in judgement.details}


def test_another_momentum_and_the_biased_variance_are_seen_at_their_batch_norms(
    model: InceptionResnetV1, reference: TrainingReference
) -> None:
    model.repeat_2[4].branch1[1].bn.momentum = 0.1
    norm = model.last_bn

    def biased(self: nn.BatchNorm1d, x: Tensor) -> Tensor:
        old = self.running_var.clone()
        output = nn.BatchNorm1d.forward(self, x)
        kept = (1 - self.momentum) * old
        self.running_var = kept + (self.running_var - kept) * (len(x) - 1) / len(x)
        return output

    norm.forward = MethodType(biased, norm)
    statistics = {f"repeat_2.4.branch1.1.bn.running_{statistic}" for statistic in ("mean", "var")}
    wrong = failing(judge_steps(measure_steps(model, reference, "sgd")))
    assert wrong == statistics | {"last_bn.running_var"}


def test_another_dropout_is_seen_in_training_alone(
    model: InceptionResnetV1, reference: TrainingReference
) -> None:
    model.dropout.p = 0.4
    assert judge_gradients(measure_gradients(model, reference, "inference")).passed
    assert INPUT in failing(judge_gradients(measure_gradients(model, reference, "training")))


def test_a_detached_branch_is_seen(model: InceptionResnetV1, reference: TrainingReference) -> None:
    branch = model.repeat_3[2].branch1
    branch.forward = MethodType(lambda self, x: nn.Sequential.forward(self, x.detach()), branch)
    wrong = failing(judge_gradients(measure_gradients(model, reference, "inference")))
    assert INPUT in wrong
    assert "repeat_3.1.conv2d.weight" in wrong  # a layer before the branch
    assert not any(key.startswith("repeat_3.2.") for key in wrong)  # its own parameters still learn


def test_a_frozen_parameter_is_missing(model: InceptionResnetV1, reference: TrainingReference) -> None:
    model.conv2d_4a.bn.bias.requires_grad_(False)
    judged = judge_gradients(measure_gradients(model, reference, "training"))
    assert failing(judged) == {"conv2d_4a.bn.bias"}
    assert "missing" in judged.details[0]
    assert failing(judge_steps(measure_steps(model, reference, "sgd"))) > {"conv2d_4a.bn.bias"}


def test_pytorchs_own_adam_is_seen(model: InceptionResnetV1, reference: TrainingReference) -> None:
    def plain(name: str, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(decay_kernels(parameters, WEIGHT_DECAY), LEARNING_RATE, eps=0.1)

    wrong = failing(judge_steps(measure_steps(model, reference, "adam", make=plain)))
    assert {"conv2d_1a.conv.weight", "logits.bias"} <= wrong


def test_training_a_scale_that_the_checkpoint_does_not_have_is_seen(
    model: InceptionResnetV1, reference: TrainingReference
) -> None:
    def everything(name: str, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.0005)

    assert "conv2d_1a.bn.weight" in failing(
        judge_steps(measure_steps(model, reference, "sgd", make=everything))
    )


def test_an_l2_penalty_on_biases_is_seen(model: InceptionResnetV1, reference: TrainingReference) -> None:
    def on_all(name: str, parameters: Any) -> torch.optim.Optimizer:
        return TensorFlowAdam(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    wrong = failing(judge_steps(measure_steps(model, reference, "adam", make=on_all)))
    assert {"conv2d_1a.bn.bias", "repeat_1.0.conv2d.bias", "logits.bias"} <= wrong


def test_a_decoupled_decay_is_seen(model: InceptionResnetV1, reference: TrainingReference) -> None:
    """The rule of AdamW."""

    def decoupled(name: str, parameters: Any) -> torch.optim.Optimizer:
        def shrink(*_: object) -> None:
            with torch.no_grad():
                for parameter in parameters:
                    if parameter.ndim > 1:
                        parameter.mul_(1 - LEARNING_RATE * WEIGHT_DECAY)

        optimiser = TensorFlowAdam(parameters, LEARNING_RATE)
        optimiser.register_step_pre_hook(shrink)
        return optimiser

    wrong = failing(judge_steps(measure_steps(model, reference, "adam", make=decoupled)))
    assert {key for key, value in model.named_parameters() if value.ndim > 1} <= wrong


@pytest.mark.parametrize(
    ("power", "margin"),
    [
        pytest.param(1, MARGIN, id="distances-not-squared"),
        pytest.param(2, 0.3, id="another-margin"),
    ],
)
def test_another_triplet_loss_is_seen(
    model: InceptionResnetV1, reference: TrainingReference, power: float, margin: float
) -> None:
    def loss(model: InceptionResnetV1, images: Tensor, batch: Any) -> Tensor:
        model.classify = False
        embeddings = model(images)
        anchors, *others = (embeddings[column] for column in torch.from_numpy(batch.triplets).T)
        near, far = ((anchors - other).square().sum(dim=1) ** (power / 2) for other in others)
        return F.relu(near - far + margin).mean()

    wrong = failing(judge_steps(measure_steps(model, reference, "triplet", loss=loss)))
    assert "the losses" in wrong
    assert ("last_bn.bias" in wrong) == (margin == MARGIN)  # a margin changes no gradient within it


def test_a_summed_loss_is_seen(model: InceptionResnetV1, reference: TrainingReference) -> None:
    def summed(model: InceptionResnetV1, images: Tensor, batch: Any) -> Tensor:
        model.classify = True
        return F.cross_entropy(model(images), torch.from_numpy(batch.labels), reduction="sum")

    judged = judge_gradients(measure_gradients(model, reference, "inference", loss=summed))
    assert len(judged.details) == 1 + 381  # the loss and every gradient


def test_a_gradient_that_vanishes_is_judged_by_the_whole(reference: TrainingReference) -> None:
    """If exact arithmetic gives zero, the two sides hold unrelated rounding; anything more is a fault."""
    key, other = "block8.conv2d.bias", "conv2d_1a.bn.bias"
    rounding = {key: np.full(4, 1e-18), other: np.ones(4)}
    known = replace(reference, gradients={"training": rounding}, losses={"training": 1.0})
    actual = {key: np.full(4, -1e-18), other: np.ones(4)}
    judged = judge_gradients(measure_gradient_distances(PyTorchGradients(1.0, actual), known, "training"))
    assert judged.passed
    assert "1 near zero" in judged.statement

    small = replace(known, gradients={"training": {**rounding, key: np.full(4, 1e-12)}})
    lost = PyTorchGradients(1.0, {**actual, key: np.zeros(4)})
    assert failing(judge_gradients(measure_gradient_distances(lost, small, "training"))) == {key}
    nothing = PyTorchGradients(1.0, {**actual, key: None})
    assert failing(judge_gradients(measure_gradient_distances(nothing, known, "training"))) == {key}
    invalid = PyTorchGradients(float("nan"), {**actual, key: np.full(4, np.nan)})
    assert len(judge_gradients(measure_gradient_distances(invalid, known, "training")).details) == 2


# How a graph moves its variances


def variance_updates(path: Path, kind: GraphKind = "meta") -> dict[str, VarianceUpdate]:
    return read_variance_updates(path, read_graph(path, kind))


def test_a_training_graph_and_a_frozen_one_show_their_convention(
    checkpoint: CheckpointFiles, model: InceptionResnetV1
) -> None:
    assert checkpoint.frozen is not None
    from_meta = variance_updates(checkpoint.meta)
    assert variance_updates(checkpoint.frozen, "frozen") == from_meta
    assert len(from_meta) == 112
    for scope, update in from_meta.items():
        assert update == VarianceUpdate(scope, False, pytest.approx(0.995, abs=1e-9), "FusedBatchNormV3")
    judged = judge_statistics(from_meta, model, checkpoint.meta, VARIANT, 4)
    assert judged.passed
    assert "112 running variances move as PyTorch's do (FusedBatchNormV3 in" in judged.statement

    model.conv2d_1a.bn.momentum = 0.1
    judged = judge_statistics(from_meta, model, checkpoint.meta, VARIANT, 4)
    assert judged.details == ("Conv2d_1a_3x3/BatchNorm: decay 0.995, PyTorch's momentum is 0.1",)


def test_plain_moments_are_read_as_biased(tmp_path: Path, model: InceptionResnetV1) -> None:
    meta = write_graph(tmp_path, lambda net: tf.nn.moments(net, [0, 1, 2])[1], 0.9)
    (update,) = variance_updates(meta).values()
    assert update == VarianceUpdate(SCOPE, True, pytest.approx(0.9, abs=1e-7), "Mean")
    everywhere = {f"{scope}/BatchNorm": replace(update, decay=0.995) for scope in SCOPES}
    judged = judge_statistics(everywhere, model, meta, VARIANT, 4)
    assert not judged.passed
    assert "and 111 more: towards the biased variance" in judged.details[0]
    assert "1.33 times at the Bottleneck" in judged.details[0]


def test_the_moments_of_early_releases_are_read_as_biased(tmp_path: Path) -> None:
    def shifted(net: Any) -> Any:
        shift = tf.stop_gradient(net[0, 0, 0])
        mean = tf.reduce_mean(net - shift, [0, 1, 2])
        return tf.reduce_mean(tf.math.squared_difference(net, shift), [0, 1, 2]) - tf.square(mean)

    (update,) = variance_updates(write_graph(tmp_path, shifted)).values()
    assert update.biased


def test_a_variance_of_no_known_form_is_refused(tmp_path: Path) -> None:
    meta = write_graph(tmp_path, lambda net: 1.01 * tf.nn.moments(net, [0, 1, 2])[1])
    with pytest.raises(GraphError, match="neither a fused nor a plain variance"):
        variance_updates(meta)


def test_a_graph_that_updates_nothing_says_nothing(tmp_path: Path, model: InceptionResnetV1) -> None:
    with legacy_graph() as graph:
        tf1.get_variable(f"{SCOPE}/moving_variance", (32,), use_resource=False)
        (tmp_path / "frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())
    assert variance_updates(tmp_path / "frozen.pb", "frozen") == {}
    judged = judge_statistics({}, model, None, VARIANT, 4)
    assert judged.passed
    assert "assumed" in judged.statement


def write_graph(folder: Path, variance: Callable[[Any], Any], decay: float = 0.995) -> Path:
    """A .meta with one batch normalisation, updated as `tf.contrib.layers.batch_norm` does, not fused."""
    from tensorflow.python.training.moving_averages import assign_moving_average

    with legacy_graph() as graph:
        training = tf1.placeholder(tf.bool, (), name="phase_train")
        net = tf1.placeholder(tf.float32, (None, 8, 8, 32))
        with tf1.variable_scope(SCOPE):
            moving = tf1.get_variable("moving_variance", (32,), trainable=False, use_resource=False)
            batch = variance(net)

            def update() -> Any:
                with tf1.control_dependencies(
                    [assign_moving_average(moving, batch, decay, zero_debias=False)]
                ):
                    return tf.identity(batch)

            used = tf1.cond(training, update, lambda: moving)
            tf.identity(net * tf.math.rsqrt(used + 0.001), name="output")
        meta = tf1.train.export_meta_graph(graph=graph)
    path = folder / "model.meta"
    path.write_bytes(meta.SerializeToString())
    return path


# The command


def test_the_command_refuses_what_it_cannot_use(
    single_files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert gradients.main([str(single_files / "weights.pt")]) == 2
    assert "this is a PyTorch file; SOURCE has to be TensorFlow's" in capsys.readouterr().err
    assert gradients.main(["--archive", "x.zip"]) == 2
    assert gradients.main([str(tmp_path / "nothing")]) == 3


@pytest.mark.real
def test_training_goes_on_from_real_weights_as_in_tensorflow(
    keras: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checks.gradients.run.draw_batch", partial(draw_batch, image_size=SIZE))
    monkeypatch.delitem(TRAININGS, "sgd")  # to save its time
    for train in (train_tensorflow, train_pytorch):  # for the same reason
        monkeypatch.setattr(f"checks.gradients.run.{train.__name__}", partial(train, steps=REAL_STEPS))
    assert gradients.main([str(keras), "--json", str(tmp_path / "report.json")]) == 0
    assert capsys.readouterr().out.count("holds ") == 5
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    for measured in report["gradients"]:
        assert len(measured["gradients"]) == 1 + 378
        assert max(tensor["distance"] for tensor in measured["gradients"]) <= thresholds.GRADIENT
    for measured in report["steps"]:
        assert measured["steps"] == REAL_STEPS
        distances = [tensor["distance"] for tensor in measured["state"] + measured["change"]]
        assert max(distances) <= thresholds.TRAINING_STEPS
