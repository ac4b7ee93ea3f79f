"""Train a network on faces."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checks.core.environment import environment
from checks.core.options import check_device
from converter.errors import RequirementError, UsageError
from faces.processes import read_processes
from faces.training.config import FieldError, TrainConfig, with_option
from faces.training.data import TrainingData, check_shares, find_data
from faces.training.engine import EpochReport, Report, Trainer
from faces.training.network import build_network, freezes_batch_norm
from faces.training.objectives import make_objective
from faces.training.result import TrainResult
from faces.training.run_folder import PEOPLE, RunFolder, read_people
from faces.training.validation import MOST_PAIRS


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    evaluate_only: bool = False,
    offline: bool = False,
    report: Report = lambda step, steps, figures: None,
    epoch_report: EpochReport = lambda row: None,
) -> TrainResult:
    """Train a network as a configuration says.

    Everything that is random is drawn from the seed and the number of the epoch, batch or face. So a run is
    the same with any number of processes and after any interruption, but for rounding.

    Args:
        config: The configuration.
        resume: Go on from the latest checkpoint in the folder of the run, or start if there is none.
        evaluate_only: Measure the weights on the faces to validate on, and train nothing. The classifier is
            that of the weights if they are of a training, or else the nearest mean of the faces to train on.
        offline: Never download.
        report: Progress callback, after each step.
        epoch_report: Callback after each epoch.

    Raises:
        UsageError: The data do not fit the configuration, or the folder of the run is that of another.
        SourceError, MappingError: Data, weights or a checkpoint cannot be read.
        DifferenceError: The loss is no longer a number.
        RequirementError: A package, a device or weights are missing.
    """
    require_training()
    if evaluate_only and resume:
        raise UsageError("--evaluate-only: nothing goes on. Give --weights run/last, without --resume.")
    data = find_data(config)
    people = _trained_people(config, data) if evaluate_only else None
    if people is not None:
        data = replace(data, people=people, labels=np.empty(0, np.int64))
    accelerator = _make_accelerator(config)
    check_shares(config, data, accelerator.num_processes, trains_batch_norm=not freezes_batch_norm(config))
    with _deterministic(), RunFolder(config.output, writes=accelerator.is_main_process) as folder:
        facts = {"data_sha256": data.digest, "seed": config.seed, "processes": accelerator.num_processes}
        facts |= {"environment": environment(), "people": list(data.people)}
        network, standardisation, weights = build_network(
            config, len(data.people), keep_classifier=people is not None, offline=offline
        )
        facts["weights_sha256"] = weights
        # The classifier of a training is a linear one, whatever loss it was trained with.
        objective = make_objective(network, config if people is None else replace(config, head="softmax"))
        if not evaluate_only:
            folder.begin(config, facts, resume=resume)
        trainer = Trainer(config, data, objective, standardisation, folder, accelerator, report, epoch_report)
        _start(trainer, folder, resume=resume, at_means=people is None)
        if not evaluate_only:
            with read_processes().explain_lost("Start all of them again with --resume."):
                trainer.run()
        after = trainer.validation or trainer.validate()  # a finished run that goes on has nothing to do
    return TrainResult(
        folder=None if evaluate_only else folder.path,
        config=config,
        standardisation=standardisation,
        people=data.people,
        trained_faces=len(data.training),
        validated_faces=data.validation,
        frozen_batch_norm=freezes_batch_norm(config),
        before=None if evaluate_only else trainer.before,
        after=after,
        rows=tuple(trainer.progress.rows),
        best_epoch=trainer.progress.best_epoch,
        notes=(*data.notes, *_notes(config, data, nearest_mean=evaluate_only and people is None)),
        warnings=tuple(trainer.progress.warnings),
        environment=facts["environment"],
    )


@contextmanager
def _deterministic() -> Iterator[None]:
    """Have PyTorch give the same bits in every run, or warn, while open."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # without importing TorchInductor, which takes a second
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _start(trainer: Trainer, folder: RunFolder, *, resume: bool, at_means: bool) -> None:
    """Load the latest checkpoint, or start anew if there is none or the run is not resumed."""
    state = folder.load_checkpoint() if resume else None
    if state is None:
        trainer.start(at_means=at_means)
        return
    with folder.explain_other_state():
        trainer.load(state)


def _trained_people(config: TrainConfig, data: TrainingData) -> tuple[str, ...] | None:
    """The people of the classifier in the weights, or None if they are not of a training.

    Raises:
        UsageError: Faces to validate on are of somebody else.
        SourceError: people.json is damaged.
    """
    weights = Path(config.weights)
    folder = weights.parent if weights.is_file() else weights
    if config.task != "classifier" or not (folder / PEOPLE).is_file():
        return None
    people, _ = read_people(weights)
    strangers = sorted({face.person for face in data.validation} - set(people))
    if strangers:
        raise UsageError(
            f"{config.weights}: its classifier does not know {strangers[0]}. Validate on its people."
        )
    return people or None


def _notes(config: TrainConfig, data: TrainingData, *, nearest_mean: bool) -> list[str]:
    notes, faces = [], len(data.validation)
    if faces * (faces - 1) // 2 > MOST_PAIRS:
        notes.append(f"Verification is measured on {MOST_PAIRS:,} pairs, drawn of {faces:,} faces.")
    if nearest_mean and config.task == "classifier":
        notes.append("The classifier is the nearest mean of the faces to train on.")
    elif config.task == "classifier" and not config.from_nothing and config.epochs <= config.head_epochs:
        notes.append("The head alone is trained: there are no more epochs than head_epochs.")
    if config.unused:
        task = with_option("task")
        names = ", ".join(map(with_option, config.unused))
        notes.append(f"With {task} {config.task} these fields have no effect: {names}.")
    return notes


def require_training() -> None:
    """Refuse to start without the packages of the extra `training`.

    Raises:
        RequirementError: Some are not installed.
    """
    names = {"accelerate": "accelerate", "pytorch_metric_learning": "pytorch-metric-learning"}
    names |= {"tensorboard": "tensorboard", "sklearn": "scikit-learn", "cv2": "opencv-python-headless"}
    missing = [package for module, package in names.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RequirementError(
            f"train needs {' and '.join(missing)}, not installed here: pip install 'facenet-port[training]'."
        )


def _make_accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if config.device != "auto":
        check_device(config.device)
    # accelerate keeps device and precision of the first training of a process, and refuses others.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", config.precision)
    if launched != config.precision:
        raise FieldError(
            "precision",
            f"it is {config.precision}, and accelerate was launched with {launched}. Give both the same.",
        )
    if config.precision == "fp16" and (config.device == "cpu" or not accelerated):
        raise FieldError("precision", "fp16 needs a GPU. Give bf16, or no.")
    return Accelerator(cpu=config.device == "cpu", mixed_precision=config.precision)
