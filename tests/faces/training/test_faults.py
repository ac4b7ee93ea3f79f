"""Faults that a training may have: each is planted and found by its name, and a right training has none."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from faces.training import engine, network
from faces.training.config import TrainConfig
from faces.training.data import TrainingData, find_data
from faces.training.engine import Report, Trainer
from faces.training.images import Faces
from faces.training.network import build_network
from faces.training.objectives import Objective, make_objective
from faces.training.run import _make_accelerator
from faces.training.run_folder import RunFolder
from faces.training.signals import SignalError
from reference import InceptionResnetV1

pytestmark = pytest.mark.slow


class Memory(RunFolder):
    """A run whose checkpoints stay in memory, and that writes nothing else."""

    state: Mapping[str, Any]

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        self.state = copy.deepcopy(state)


@dataclass
class Observer:
    """Sees a training by hooks of PyTorch, not by what the training says of itself."""

    data: TrainingData
    norms: list[dict[str, torch.Tensor]] = field(default_factory=list)
    validates_in_training_mode: bool = False
    trained: list[tuple[int | None, int]] = field(default_factory=list)
    rates: list[tuple[float, float]] = field(default_factory=list)
    decayed: set[str] = field(default_factory=set)

    def watch(self, objective: Objective, optimiser: torch.optim.Optimizer) -> None:
        faces = Faces(self.data.training, "fixed")
        self.places = {faces[0, place][0].numpy().tobytes(): place for place in range(len(faces))}
        objective.register_forward_pre_hook(self._see_batch)
        objective.network.dropout.register_forward_pre_hook(self._see_mode)
        optimiser.register_step_pre_hook(lambda optimiser, *_: self._see_step(objective, optimiser))
        self._see_norms(objective)

    def _see_batch(self, objective: Objective, inputs: Any) -> None:
        images, batch = inputs
        for image, label in zip(images, batch.labels[batch.share].tolist(), strict=True):
            self.trained.append((self.places.get(image.numpy().tobytes()), label))

    def _see_mode(self, dropout: Any, inputs: Any) -> None:
        self.validates_in_training_mode |= torch.is_inference_mode_enabled() and dropout.training

    def _see_step(self, objective: Objective, optimiser: torch.optim.Optimizer) -> None:
        heads = set(objective.head)
        names = {parameter: name for name, parameter in objective.named_parameters()}
        rates = {group["params"][0] in heads: group["lr"] for group in optimiser.param_groups}
        self.rates.append((rates[False], rates[True]))
        for group in optimiser.param_groups:
            self.decayed |= {names[parameter] for parameter in group["params"] if group["weight_decay"]}
        self._see_norms(objective)

    def _see_norms(self, objective: Objective) -> None:
        state = objective.network.state_dict()
        self.norms.append({key: value.clone() for key, value in state.items() if "bn." in key})

    def faults(self, config: TrainConfig, steps: int) -> set[str]:
        """The faults, held against the configuration by closed forms."""
        found = set()
        if any(not torch.equal(self.norms[0][key], norm[key]) for norm in self.norms for key in norm):
            found.add("BatchNorm moves")
        if self.validates_in_training_mode:
            found.add("validation in training mode")
        labels = self.data.labels.tolist()
        if any(place is not None and labels[place] != label for place, label in self.trained):
            found.add("labels are shifted")
        if any(place is None for place, _ in self.trained):
            found.add("faces to validate on are trained on")
        counts = Counter(place for place, _ in self.trained if place is not None)
        if counts != Counter(dict.fromkeys(range(len(labels)), config.epochs)):
            found.add("faces are not seen once an epoch")
        if any(not name.endswith(("weight", "W")) for name in self.decayed):
            found.add("biases decay")
        expected = [1 - step / steps for step in range(steps)]  # with a cosine of two steps: 1 and 1/2
        network = [rate / config.learning_rate for rate, _ in self.rates]
        head = [rate / config.head_learning_rate for _, rate in self.rates]
        if head != pytest.approx(expected):
            found.add("learning rates do not follow the schedule")
        if network != pytest.approx(head):
            found.add("the network has another learning rate")
        return found


@pytest.fixture(scope="module")
def tuned(small_crops: Path, single_files: Path) -> TrainConfig:
    """Two steps of the last blocks."""
    return TrainConfig(
        data=str(small_crops), weights=str(single_files / "weights.pt"), standardisation="fixed",
        batch_size=6, epochs=1, head_epochs=0, last_epochs=1, optimiser="sgd", device="cpu", mirror=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tuned: TrainConfig) -> InceptionResnetV1:
    """The network at the start; each training takes a copy."""
    return build_network(tuned, 3, offline=True)[0]


def build_trainer(
    config: TrainConfig, data: TrainingData, loaded: InceptionResnetV1, folder: Memory, report: Report
) -> Trainer:
    objective = make_objective(copy.deepcopy(loaded), config)
    return Trainer(config, data, objective, "fixed", folder, _make_accelerator(config), report)


def observe(
    config: TrainConfig,
    data: TrainingData,
    loaded: InceptionResnetV1,
    folder: Memory,
    observer: Observer,
    stop: int | None = None,
) -> None:
    """Train, or go on from the folder's checkpoint, and stop as after a signal."""
    received: list[int] = []

    def report(step: int, steps: int, figures: Any) -> None:
        received.extend([15] if step == stop else [])

    trainer = build_trainer(config, data, loaded, folder, report)
    if hasattr(folder, "state"):
        trainer.load(folder.state)
    observer.watch(trainer.objective, trainer._optimiser)
    try:
        while trainer.progress.epoch < config.epochs:
            trainer._train_epoch(received)
            trainer._finish_epoch()
    except SignalError:
        assert stop is not None


def faults(
    config: TrainConfig, loaded: InceptionResnetV1, tmp_path: Path, *, stop: int | None = None
) -> set[str]:
    observer = Observer(find_data(config))
    data, folder = engine_data(config), Memory(tmp_path, writes=False)
    observe(config, data, loaded, folder, observer, stop)
    if stop is not None:
        observe(config, data, loaded, folder, observer)
    return observer.faults(config, steps=2)


engine_data: Callable[[TrainConfig], TrainingData] = find_data


@pytest.mark.parametrize("stop", [None, 1])
def test_a_right_training_has_no_fault(tuned, loaded, tmp_path, stop):
    assert faults(tuned, loaded, tmp_path, stop=stop) == set()


def test_the_gradients_of_small_batches_add_up_to_those_of_a_large_one(tuned, loaded, tmp_path):
    """Without dropout and augmentation, which are drawn for each batch."""
    plain = replace(tuned, dropout=0.0, learning_rate=1e-5, head_learning_rate=1e-3)
    weights = []
    for changes in ({"batch_size": 6}, {"batch_size": 3, "accumulate": 2}, {"batch_size": 3}):
        config = replace(plain, **changes)
        folder = Memory(tmp_path, writes=False)
        trainer = build_trainer(config, find_data(config), loaded, folder, lambda step, steps, figures: None)
        trainer.run()
        weights.append(trainer.objective.network.logits.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-7, rtol=0)
    assert not torch.allclose(weights[0], weights[2], atol=1e-4)


def leave_batch_norm_trained(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "freezes_batch_norm", lambda config: False)


def validate_in_training_mode(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Objective, "eval", lambda self: self)


def shift_labels(patch: pytest.MonkeyPatch) -> None:
    whole = Trainer._describe

    def shifted(self: Trainer, places: Any) -> Any:
        batch = whole(self, places)
        return replace(batch, labels=(batch.labels + 1) % 3)

    patch.setattr(Trainer, "_describe", shifted)


def decay_everything(patch: pytest.MonkeyPatch) -> None:
    make = engine.make_optimiser

    def decaying(*arguments: Any) -> torch.optim.Optimizer:
        optimiser = make(*arguments)
        for group in optimiser.param_groups:
            group["weight_decay"] = 5e-4
        return optimiser

    patch.setattr(engine, "make_optimiser", decaying)


def train_on_validation(patch: pytest.MonkeyPatch) -> None:
    def leak(config: TrainConfig) -> TrainingData:
        data = find_data(config)
        return replace(data, training=(*data.validation[:1], *data.training[1:]))

    patch.setitem(globals(), "engine_data", leak)


def use_the_heads_learning_rate(patch: pytest.MonkeyPatch) -> None:
    make = engine.make_optimiser

    def same(objective: Objective, config: TrainConfig) -> torch.optim.Optimizer:
        return make(objective, replace(config, learning_rate=config.head_learning_rate))

    patch.setattr(engine, "make_optimiser", same)


def step_the_schedule_twice(patch: pytest.MonkeyPatch) -> None:
    step = LambdaLR.step

    def twice(self: LambdaLR) -> None:
        step(self)
        step(self)

    patch.setattr(Trainer, "_log", lambda self, figures: None)
    patch.setattr(engine, "LambdaLR", type("Twice", (LambdaLR,), {"step": twice}))


def repeat_data_after_a_resume(patch: pytest.MonkeyPatch) -> None:
    load = Trainer.load

    def from_the_start(self: Trainer, state: Mapping[str, Any]) -> None:
        load(self, state)
        self.progress.batch = 0

    patch.setattr(Trainer, "load", from_the_start)


@pytest.mark.parametrize(
    ("plant", "names"),
    [
        (leave_batch_norm_trained, {"BatchNorm moves"}),
        (validate_in_training_mode, {"validation in training mode"}),
        (shift_labels, {"labels are shifted"}),
        (decay_everything, {"biases decay"}),
        (train_on_validation, {"faces to validate on are trained on", "faces are not seen once an epoch"}),
        (use_the_heads_learning_rate, {"the network has another learning rate"}),
        (step_the_schedule_twice, {"learning rates do not follow the schedule"}),
        (
            repeat_data_after_a_resume,
            {"faces are not seen once an epoch", "learning rates do not follow the schedule"},
        ),
    ],
)  # fmt: skip
def test_a_fault_is_found_by_its_name(tuned, loaded, tmp_path, monkeypatch, plant, names):
    plant(monkeypatch)
    stop = 1 if plant is repeat_data_after_a_resume else None
    assert faults(tuned, loaded, tmp_path, stop=stop) == names
