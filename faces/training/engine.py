"""The loop of a training, which accelerate runs in one process or in many."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from converter.errors import DifferenceError, UsageError
from faces.model import Standardisation
from faces.training.config import FieldError, TrainConfig, with_option
from faces.training.data import Batches, TrainingData, epoch_batches, share_of
from faces.training.images import Faces, build_loader, read_batches
from faces.training.network import learning_rate_factor, make_optimiser, set_stage, stage_of
from faces.training.objectives import Batch, Objective
from faces.training.run_folder import RunFolder
from faces.training.signals import SignalError, deferred_signals
from faces.training.validation import Validation, embed_faces, validate

COLLAPSED = 0.01
"""A mean squared distance between people below which embeddings count as collapsed; unrelated ones have 2."""

_DRAWN = 3  # what a seed is for, beside those of `data`
_EMBEDDED = 64  # faces that are embedded at once

Report = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with the steps taken, those of the whole training, and the figures of the step."""

EpochReport = Callable[[Mapping[str, Any]], None]
"""Called after each epoch with its figures, a row of metrics.csv."""


@dataclass(slots=True)
class Progress:
    """The progress of a training.

    Attributes:
        epoch: Number of the epoch, from 0.
        batch: Batches of it that have been trained on.
        step: Steps of the optimiser, in all.
        rows: The figures of each finished epoch, as in metrics.csv.
        best: The rank of the best validation so far; empty before the first.
        best_epoch: The number of its epoch, from 1; 0 before the end of the first.
        sums: Sums over the batches of this epoch, by figure.
        warnings: Sentences on what went wrong without stopping the training.
        before: Embeddings before normalisation and logits of the faces to validate on before the training.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    best_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)


class Trainer:
    """Trains an objective on faces.

    Attributes:
        progress: How far the training is.
        validation: The latest validation.

    Args:
        config: The configuration.
        data: The faces.
        objective: The objective.
        standardisation: Of the images.
        folder: The folder of the run.
        accelerator: The `accelerate.Accelerator`.
        report: Progress callback.
        epoch_report: Callback after each epoch.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        objective: Objective,
        standardisation: Standardisation,
        folder: RunFolder,
        accelerator: Any,
        report: Report = lambda step, steps, figures: None,
        epoch_report: EpochReport = lambda row: None,
    ) -> None:
        self._epoch_report = epoch_report
        self._config, self._data, self._standardisation = config, data, standardisation
        self._folder, self._accelerator, self._report = folder, accelerator, report
        self.objective = objective.to(accelerator.device)
        self.objective.gather = self._gather
        self._optimiser = make_optimiser(self.objective, config)
        per_epoch = math.ceil(len(epoch_batches(config, data, 0)) / config.accumulate)
        self._steps = per_epoch * config.epochs
        if config.warmup_steps > self._steps:
            raise FieldError(
                "warmup_steps", f"{config.warmup_steps} of {self._steps} steps in all. Give fewer."
            )
        self._schedule = LambdaLR(self._optimiser, lambda step: learning_rate_factor(config, step, per_epoch))
        self._batches = Batches(config, data, accelerator.process_index, accelerator.num_processes)
        faces = Faces(data.training, standardisation, data.crop, config)
        self._loader = build_loader(faces, self._batches, config.workers)
        self._writer: Any = None
        self.progress = Progress()
        self.validation: Validation | None = None

    # Before and after

    def start(self, *, at_means: bool = True) -> None:
        """Start a classifier, and measure what is there.

        Args:
            at_means: Whether the classifier starts at the means of the people's embeddings. One that starts
                with random embeddings does not, except ArcFace's, which needs their norm.
        """
        config = self._config
        if self.objective.head and at_means and (not config.from_nothing or config.head == "arcface"):
            rows = self.embed(self._data.training)
            labels = torch.from_numpy(self._data.labels)
            device = self._accelerator.device
            self.objective.start_at_means(rows.to(device), labels.to(device))
        self.validate()
        self.progress.before = self._outputs

    @property
    def before(self) -> Validation:
        """The figures before the training."""
        return self._measure(self.progress.before)

    def embed(self, faces: tuple[Any, ...]) -> Tensor:
        """Compute the embeddings before normalisation of faces without augmentation: (N, E), on the CPU."""
        places = [(0, place) for place in range(len(faces))]
        rows = [places[start : start + _EMBEDDED] for start in range(0, len(places), _EMBEDDED)]
        loader = build_loader(
            Faces(faces, self._standardisation, self._data.crop), rows, self._config.workers
        )
        return embed_faces(self.objective, read_batches(loader), self._accelerator.device)

    def validate(self) -> Validation:
        """Measure the faces to validate on."""
        prelogits = self.embed(self._data.validation)
        with torch.no_grad():
            logits = self.objective.logits(prelogits.to(self._accelerator.device))
        self._outputs = [prelogits] if logits is None else [prelogits, logits.cpu()]
        self.validation = self._measure(self._outputs)
        return self.validation

    def _measure(self, outputs: list[Tensor]) -> Validation:
        prelogits, *logits = outputs
        owners = [face.person for face in self._data.validation]
        return validate(prelogits, logits[0] if logits else None, owners, self._data.people)

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "objective": self.objective.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._accelerator.scaler.state_dict() if self._accelerator.scaler else {},
            "progress": {name: getattr(self.progress, name) for name in Progress.__dataclass_fields__},
            "random": torch.get_rng_state(),
        }
        self._folder.save_checkpoint(self.progress.step, state)
        if self._writer is not None:
            self._writer.flush()

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.objective.load_state_dict(state["objective"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        if self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random"])

    # The loop

    def run(self) -> None:
        """Train to the end.

        Raises:
            UsageError: The processes go on from different checkpoints.
            DifferenceError: The loss is no longer a number; the checkpoint before it is left.
            KeyboardInterrupt: A signal has stopped the training; a checkpoint of the last step is written.
        """
        self._check_same_step()
        try:
            with deferred_signals() as received:
                while self.progress.epoch < self._config.epochs:
                    self._train_epoch(received)
                    self._finish_epoch()
                    self._stop_if_signalled(received)
        finally:
            del self._loader  # ends the processes that read images
            if self._writer is not None:
                self._writer.close()

    def _check_same_step(self) -> None:
        """Refuse processes that go on from different checkpoints, each from its own disk."""
        if self._accelerator.num_processes > 1:
            step = torch.tensor([self.progress.step], device=self._accelerator.device)
            if len(set(self._accelerator.gather(step).tolist())) > 1:
                raise UsageError(
                    f"{self._folder.path}: the processes find different checkpoints. Give a folder that all "
                    "of them share."
                )

    def _train_epoch(self, received: list[int]) -> None:
        progress, config = self.progress, self._config
        set_stage(self.objective, config, stage_of(config, progress.epoch))
        model, optimiser = self._accelerator.prepare(self.objective, self._optimiser)
        self._batches.epoch, self._batches.start = progress.epoch, progress.batch
        whole = epoch_batches(config, self._data, progress.epoch)
        begun = time.monotonic()
        for images, _ in read_batches(self._loader):
            figures = {"waited": time.monotonic() - begun}
            last = progress.batch + 1 == len(whole)
            full = (progress.batch + 1) % config.accumulate == 0 or last
            batch = self._describe(whole[progress.batch])
            with self._accelerator.autocast(), _without_sync(self._accelerator, model, not full):
                outcome = model(images.to(self._accelerator.device), batch)
            figures |= self._add_up(outcome)
            if not math.isfinite(figures["loss"]):
                raise self._diverged(f"the loss is {figures['loss']}")
            group = min(
                config.accumulate, len(whole) - progress.batch // config.accumulate * config.accumulate
            )
            with _without_sync(self._accelerator, model, not full):
                self._accelerator.backward(outcome.loss * batch.processes / group)
            progress.batch += 1
            now = time.monotonic()
            figures |= {"faces": float(len(batch.labels)), "seconds": now - begun}
            self._count(figures)
            begun = now
            if full:
                self._step(optimiser, figures, len(whole), received)
        # The next epoch may train other parameters, for which the model is prepared again.
        self._accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self._accelerator.free_memory()

    def _step(self, optimiser: Any, figures: Mapping[str, float], batches: int, received: list[int]) -> None:
        """Take a step of the optimiser, write a checkpoint if one is due, and stop if a signal has come."""
        progress = self.progress
        if self._config.clip_norm:
            self._accelerator.clip_grad_norm_(self.objective.parameters(), self._config.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rates = [group["lr"] for group in self._optimiser.param_groups]
        self._schedule.step()
        progress.step += 1
        self._log({"loss": figures["loss"], "score": figures["score"], "learning_rate": rates[0]})
        self._report(progress.step, self._steps, figures)
        if progress.step % self._config.checkpoint_steps == 0 and progress.batch < batches:
            self.save()
        if progress.batch < batches:  # at its end the epoch is finished first
            self._stop_if_signalled(received)

    def _describe(self, places: Any) -> Batch:
        labels = torch.from_numpy(self._data.labels[places]).to(self._accelerator.device)
        count = self._accelerator.num_processes
        share = share_of(len(labels), self._accelerator.process_index, count)
        seed = (self._config.seed, _DRAWN, self.progress.epoch, self.progress.batch)
        return Batch(labels, share, count, seed)

    def _gather(self, rows: Tensor, batch: Batch) -> Tensor:
        """Give the rows of all processes, which may differ in number by one."""
        if batch.processes == 1:
            return rows
        padded = self._accelerator.gather(self._accelerator.pad_across_processes(rows.contiguous()))
        parts = padded.chunk(batch.processes)
        count = len(batch.labels)
        shares = (share_of(count, process, batch.processes) for process in range(batch.processes))
        return torch.cat(
            [part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)]
        )

    def _add_up(self, outcome: Any) -> dict[str, float]:
        """Add up the shares of all processes in the figures of a batch."""
        shares = [outcome.value, outcome.score, outcome.spread]
        if self._accelerator.num_processes > 1:  # not on an Apple GPU, which has no float64
            own = torch.tensor(shares, device=self._accelerator.device, dtype=torch.float64)
            shares = self._accelerator.reduce(own, "sum").tolist()
        return dict(zip(("loss", "score", "spread"), shares, strict=True))

    def _count(self, figures: Mapping[str, float]) -> None:
        """Add the figures of a batch to the sums of its epoch, weighted by its faces."""
        sums, faces = self.progress.sums, figures["faces"]
        for name, value in (
            ("loss", figures["loss"]),
            ("score", figures["score"]),
            ("spread", figures["spread"]),
        ):
            sums[name] = sums.get(name, 0.0) + value * faces
        for name in ("faces", "seconds", "waited"):
            sums[name] = sums.get(name, 0.0) + figures[name]

    def _finish_epoch(self) -> None:
        """Validate, write the metrics, the weights and a checkpoint, and go on to the next epoch."""
        progress, config = self.progress, self._config
        sums, faces = progress.sums, progress.sums["faces"]
        score_name = "accuracy" if config.task == "classifier" else "active_triplets"
        row: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "stage": stage_of(config, progress.epoch),
            "loss": sums["loss"] / faces,
            score_name: sums["score"] / faces,
            **({"spread": sums["spread"] / faces} if config.task == "triplet" else {}),
            "faces_per_second": faces / sums["seconds"],
            "waited_for_data": sums["waited"] / sums["seconds"],
        }
        if config.task == "triplet" and sums["spread"] / faces < COLLAPSED:
            self._warn_of_collapse(progress.epoch + 1, sums["spread"] / faces)
        validation = self.validate()
        if not all(torch.isfinite(values).all() for values in self._outputs):
            raise self._diverged("the embeddings are no numbers")
        row |= {f"val_{name}": value for name, value in validation.figures.items()}
        progress.rows.append(row)
        self._log({name: value for name, value in row.items() if isinstance(value, float)})
        self._epoch_report(row)
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, {}
        rank = validation.rank
        folders = []
        if not progress.best or rank is None or list(rank) < progress.best:
            progress.best, progress.best_epoch = list(rank or (math.inf,)), progress.epoch
            folders.append("best")
        if progress.epoch == config.epochs:
            folders.append("last")
        data = self._data
        self._folder.write_weights(folders, self.objective, data.people, self._standardisation, data.crop)
        self._folder.write_metrics(progress.rows)
        self.save()

    def _warn_of_collapse(self, epoch: int, spread: float) -> None:
        self.progress.warnings.append(
            f"epoch {epoch}: the embeddings have collapsed to a point: the mean squared distance between "
            f"people is {spread:.2g}, and that of unrelated embeddings 2. Start again with a smaller "
            f"{with_option('learning_rate')}, or with {with_option('selection')} semi-hard."
        )

    def _diverged(self, problem: str) -> DifferenceError:
        """Remove a checkpoint of the step that has broken the weights, and describe what has happened."""
        step = self.progress.step
        left = self._folder.remove_checkpoint(step)
        return DifferenceError(
            f"step {step + 1}: {problem}, so step {step} has broken the weights. "
            + (f"The checkpoint before it is left: {left}. " if left else "No checkpoint is before it. ")
            + f"Start again with a smaller {with_option('learning_rate')}, or with "
            + f"{with_option('clip_norm')} 1."
        )

    def _log(self, figures: Mapping[str, float]) -> None:
        """Write figures for TensorBoard."""
        if not self._accelerator.is_main_process:
            return
        if self._writer is None:
            # Without this name TensorBoard imports TensorFlow, which takes seconds, to write a file.
            sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
            from torch.utils.tensorboard import SummaryWriter

            step = self.progress.step
            self._writer = SummaryWriter(
                self._folder.path / "tensorboard", purge_step=step if step > 1 else None
            )
        for name, value in figures.items():
            self._writer.add_scalar(name, value, self.progress.step)

    def _stop_if_signalled(self, received: list[int]) -> None:
        """Write a checkpoint and let the signal stop the process, if one has come to any process."""
        number = torch.tensor(received[0] if received else 0, device=self._accelerator.device)
        if self._accelerator.num_processes > 1:
            number = self._accelerator.gather(number[None]).max()
        if not number:
            return
        self.save()
        raise SignalError(int(number))


@contextmanager
def _without_sync(accelerator: Any, model: Any, skip: bool) -> Iterator[None]:
    """Leave the gradients of a batch in this process, if more batches of the step follow."""
    if skip and accelerator.num_processes > 1:
        with accelerator.no_sync(model):
            yield
    else:
        yield
