"""A training: what it writes, that it is the same however it is run, and that nothing is lost."""

from __future__ import annotations

import csv
import gc
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

import reference
from converter.errors import RequirementError, SourceError, UsageError
from converter.manifest import read_manifest
from faces.training.__main__ import main
from faces.training.config import TrainConfig, format_config, read_config
from faces.training.engine import Trainer
from faces.training.run import train
from faces.training.run_folder import RunFolder, read_people
from tests.faces.conftest import LIMIT, torchrun
from tests.faces.training.conftest import PEOPLE, take_crops_of, write_faces

pytestmark = pytest.mark.slow

STEPS = 4


@pytest.fixture(scope="module")
def settings(small_crops: Path, single_files: Path) -> Iterator[TrainConfig]:
    """Four steps of the whole network, with everything that is random."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the threads of OpenMP would not be there in a fork
    yield TrainConfig(
        data=str(small_crops), weights=str(single_files / "weights.pt"), standardisation="fixed",
        batch_size=3, epochs=1, head_epochs=0, last_epochs=0, device="cpu", checkpoint_steps=1,
        optimiser="sgd", learning_rate=1e-5, rotation=10.0,
    )  # fmt: skip
    torch.set_num_threads(threads)


def weights(folder: Path, name: str = "last") -> bytes:
    return (folder / name / "weights.pt").read_bytes()


@pytest.fixture(scope="module")
def losses() -> list[float]:
    """The loss of each step of `run`."""
    return []


@pytest.fixture(scope="module")
def run(settings: TrainConfig, losses: list[float], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(
        replace(settings, output=str(folder)),
        report=lambda step, steps, figures: losses.append(figures["loss"]),
    )
    gc.freeze()  # what a training imports: a fork need not search it for garbage, and copy it
    return folder


def losses_of(config: TrainConfig, steps: int) -> list[float]:
    """Train, stop in a step before its checkpoint, and return the loss of each."""
    seen = []

    def stop(step: int, total: int, figures: Mapping[str, float]) -> None:
        seen.append(figures["loss"])
        if step == steps:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, report=stop)
    return seen


def start_program(folder: Path, work: Callable[[], int], **environment: str) -> int:
    """Start work as a program, in a session of its own; return its process id.

    It is a fork of this process, which has imported what a training needs. What it prints stands in the
    files `stdout` and `stderr` of the folder. If it takes longer than the limit, SIGALRM ends it.
    """
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setsid()
            signal.alarm(LIMIT)
            os.environ |= environment
            sys.stdout, sys.stderr = ((folder / name).open("w") for name in ("stdout", "stderr"))
            code = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    """Wait for the end of a program; return its exit code, minus the signal if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start_two(folder: Path, work: Callable[[int], int]) -> list[tuple[int, Path]]:
    """Start two programs with the environment that torchrun gives; return the id of each and its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    programs = []
    for rank in range(2):
        own = folder / f"rank-{rank}"
        own.mkdir(parents=True)
        pid = start_program(own, partial(work, rank), **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        programs.append((pid, own))
    return programs


def test_a_run_leaves_its_configuration_facts_figures_and_weights(settings, run):
    config = replace(settings, output=str(run))
    assert read_config(run / "config.toml") == config
    facts = json.loads((run / "run.json").read_text())
    assert facts["people"] == list(PEOPLE)
    assert facts["seed"] == 0
    assert len(facts["data_sha256"]) == len(facts["weights_sha256"]) == 64
    assert facts["environment"].keys() >= {"python", "torch"}
    (row,) = csv.DictReader((run / "metrics.csv").open())
    assert (row["epoch"], row["step"], row["stage"]) == ("1", str(STEPS), "all")
    assert 0 <= float(row["val_accuracy"]) <= 1
    assert 0 <= float(row["waited_for_data"]) < 1
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000003.pt", "step-00000004.pt",
    ]  # fmt: skip
    assert list((run / "tensorboard").iterdir())
    network = reference.load(run / "best" / "weights.pt")
    assert network.logits.out_features == 3
    assert read_people(run / "best") == (PEOPLE, "scaled")
    assert read_manifest(run / "best" / "weights.pt.json").standardisation == "(x - 127.5) / 128"
    for name in ("people.json", "weights.pt", "weights.pt.json"):  # the one epoch is the best and the last
        assert (run / "last" / name).read_bytes() == (run / "best" / name).read_bytes()
    assert not list(run.glob(".*"))


def test_another_seed_trains_otherwise(settings, run, losses, tmp_path):
    """The network starts the same, and the first batch is another or is augmented otherwise."""
    torch.set_deterministic_debug_mode("error")
    (first,) = losses_of(replace(settings, output=str(tmp_path / "other"), seed=1), steps=1)
    assert torch.get_deterministic_debug_mode() == 2  # it was left as it had been
    torch.set_deterministic_debug_mode("default")
    assert abs(first - losses[0]) > 1e-4


def test_a_training_that_is_stopped_again_and_again_ends_as_if_nothing_had_happened(
    settings, run, losses, tmp_path, capsys, monkeypatch
):
    """It is killed, its disk is full, and signals come in its epoch and at the end of it.

    Signals come to the process that reads images as well, as from a launcher or a terminal. The weights at
    the end are those of a training without such a process that was never stopped.
    """
    config = replace(settings, output=str(tmp_path / "run"), workers=1)
    path, checkpoints = tmp_path / "config.toml", tmp_path / "run" / "checkpoints"
    path.write_text(format_config(config))
    message = "ended by SIGTERM; no file was left half written\n"

    def stopped(step: int, stop: Callable[[], object]) -> Callable[[], int]:
        """Give the program that `stop` stops after a step of the optimiser."""

        def report(bar: object, done: int, total: int) -> None:
            print(f"step {done}", file=sys.stderr)
            if done == step:
                stop()

        def work() -> int:
            monkeypatch.setattr("converter.progress.ProgressBar.__call__", report)
            return main([str(path), "--resume", "--checkpoint-steps", "1" if step == 2 else "100"])

        return work

    def left() -> list[int]:
        return sorted(int(each.stem.removeprefix("step-")) for each in checkpoints.iterdir())

    killed = start_program(tmp_path, stopped(2, lambda: os.killpg(0, signal.SIGKILL)))
    assert exit_code(killed) == -signal.SIGKILL
    assert left() == [1]

    assert fill_the_disk(config, at=3) == losses[1:3]
    assert left() == [1, 2]

    def signal_twice() -> None:  # as torchrun does when its whole group is stopped
        os.killpg(0, signal.SIGTERM)
        os.killpg(0, signal.SIGTERM)

    assert exit_code(start_program(tmp_path, stopped(3, signal_twice))) == 143
    printed = (tmp_path / "stderr").read_text()
    assert re.findall(r"step \d", printed) == ["step 3"]
    assert printed.endswith(message)
    assert left() == [2, 3]

    assert stopped(STEPS, lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)])() == 143
    printed = capsys.readouterr().err
    assert re.findall(r"step \d", printed) == ["step 4"]
    assert printed.endswith(message)
    monkeypatch.undo()
    assert main([str(path), "--resume"]) == 0
    assert " (before: " in capsys.readouterr().out
    assert multiprocessing.active_children() == []
    assert weights(tmp_path / "run") == weights(run)
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 2


def fill_the_disk(config: TrainConfig, at: int) -> list[float]:
    """Go on with a training whose disk is full after a step; return the loss of each step."""
    before, seen = resource.getrlimit(resource.RLIMIT_FSIZE), []
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(step: int, steps: int, figures: Mapping[str, float]) -> None:
        seen.append(figures["loss"])
        if step == at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))

    try:
        with pytest.raises(RequirementError, match=r"run: cannot be written to .* Make room on the disk"):
            train(config, resume=True, report=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    return seen


def fork_two(folder: Path, path: Path) -> str:
    """Train in two processes that are forks; return what the first prints, and the second prints nothing."""
    programs = start_two(folder, lambda rank: main([str(path)]))
    assert [exit_code(pid) for pid, _ in programs] == [0, 0]
    first, second = ((own / "stdout").read_text() for _, own in programs)
    assert second == ""
    return first


def launch_two(folder: Path, path: Path) -> str:
    """Train by the command of the documentation; return what it prints."""
    done = torchrun("faces.training", path)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("head", "beside", "start_both", "changes"),
    [
        # The centre loss comes on top of softmax. Of 5 and 2 faces the processes have 3 and 2, and 1 and 1.
        ("centre", "centres", fork_two, {"batch_size": 5, "centre_factor": 1.0, "centre_rate": 0.5}),
        # Of batches of 4 and 2 faces the processes have 2 and 2, and 1 and 1.
        ("arcface", "arcface.W", launch_two, {"batch_size": 4, "last_epochs": 1}),
    ],
)
def test_two_processes_give_the_weights_of_one(
    settings, tmp_path, monkeypatch, head, beside, start_both, changes
):
    """Those of the network, and those that the centre loss and ArcFace have beside it."""
    faces = 12
    if start_both is launch_two:  # whose processes take crops of 160 pixels: half of the faces will do
        take_crops_of(160, monkeypatch)
        faces = 6
        changes = {**changes, "data": str(write_faces(tmp_path / "crops", trained=2, validated=1))}
    settings = replace(settings, head=head, checkpoint_steps=100, **changes)  # and a checkpoint at the end
    first, start = [], Trainer.start

    def start_and_look(trainer: Trainer, **options: object) -> None:
        start(trainer, **options)
        first.append(trainer.objective.state_dict()[beside].clone())

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "start", start_and_look)
        train(replace(settings, output=str(tmp_path / "one")))
    path = tmp_path / "config.toml"
    path.write_text(format_config(replace(settings, output=str(tmp_path / "two"))))
    assert start_both(tmp_path, path).count(f"Trained on {faces} faces of 3 people") == 1
    one, two = (
        torch.load(path, weights_only=True)["objective"]
        for each in ("one", "two")
        for path in (tmp_path / each / "checkpoints").iterdir()
    )
    assert one.keys() == two.keys()
    apart = {key: float((one[key] - two[key]).abs().max()) for key in one}
    assert max(apart.values()) <= 1e-5, max(apart, key=apart.get)
    assert (one[beside] - first[0]).abs().max() > 1e-3  # what is compared has been trained
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("ends", "code", "message"),
    [
        (
            True,
            4,
            "another process has ended before its work was done. Start all of them again with --resume.",
        ),
        (False, 2, "the processes find different checkpoints. Give a folder that all of them share."),
    ],
)
def test_a_resume_that_another_process_does_not_join_says_why(
    run, tmp_path, monkeypatch, ends, code, message
):
    def work(rank: int) -> int:
        if rank == 1:
            monkeypatch.setattr(Trainer, "load", lambda trainer, state: os._exit(0) if ends else None)
        return main([str(run / "config.toml"), "--resume"])

    (first, folder), (other, _) = start_two(tmp_path, work)
    assert exit_code(first) == code
    assert exit_code(other) == (0 if ends else code)
    assert message in (folder / "stderr").read_text()


def test_a_loss_that_is_no_number_stops_the_training(settings, tmp_path, capsys, monkeypatch):
    """The checkpoint of the step that broke the weights is removed, and the one before it is left."""
    path = tmp_path / "config.toml"
    path.write_text(format_config(replace(settings, output=str(tmp_path / "run"))))
    add_up = Trainer._add_up
    monkeypatch.setattr(
        Trainer,
        "_add_up",
        lambda self, outcome: add_up(self, outcome) | ({"loss": math.nan} if self.progress.step == 2 else {}),
    )
    assert main([str(path)]) == 1
    left = tmp_path / "run" / "checkpoints" / "step-00000001.pt"
    message = "step 3: the loss is nan, so step 2 has broken the weights. The checkpoint before it is left"
    assert f"error: {message}: {left}. " in capsys.readouterr().err
    assert list(left.parent.iterdir()) == [left]


def test_weights_that_the_last_step_breaks_are_not_written(settings, tmp_path, capsys):
    config = replace(settings, output=str(tmp_path / "run"), batch_size=12, learning_rate=1e30)
    path = tmp_path / "config.toml"
    path.write_text(format_config(config))
    assert main([str(path)]) == 1
    message = "step 2: the embeddings are no numbers, so step 1 has broken the weights. No checkpoint"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "best").exists()


def test_a_trained_classifier_is_measured_as_it_is(settings, run, tmp_path, capsys):
    (row,) = csv.DictReader((run / "metrics.csv").open())
    config = replace(settings, weights=str(run / "last"), output=str(tmp_path / "no"), standardisation="")
    note = "With task (--task) classifier these fields have no effect: margin (--margin)."
    for head, margin, notes in (("softmax", 0.2, ()), ("arcface", 0.3, (note,))):
        result = train(replace(config, head=head, margin=margin), evaluate_only=True)
        assert result.after.figures["loss"] == pytest.approx(float(row["val_loss"]), rel=1e-4)
        assert result.notes == notes
    with pytest.raises(UsageError, match="nothing goes on"):
        train(config, evaluate_only=True, resume=True)


def test_a_folder_of_another_run_is_refused(settings, run, tmp_path):
    with pytest.raises(UsageError, match=r"it exists and is not empty. Give --resume to go on"):
        train(replace(settings, output=str(run)))
    with pytest.raises(UsageError, match=r"the run has learning_rate \(--learning-rate\) = 1e-05, not 0.5"):
        train(replace(settings, output=str(run), learning_rate=0.5), resume=True)
    begun = tmp_path / "begun"  # and ended before its configuration or a checkpoint was written
    begun.mkdir()
    (begun / "run.json").write_text("{")
    for seed in (1, 2):
        config = replace(settings, output=str(begun), seed=seed)
        with RunFolder(begun) as folder:
            folder.begin(config, {}, resume=seed == 1)
        assert read_config(begun / "config.toml") == config
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"it exists and is not empty. Give a new folder"):
        train(replace(settings, output=str(tmp_path)))


def test_two_trainings_do_not_share_a_folder(settings, run, tmp_path):
    program = "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX)"
    program += "; print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(run / "run.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UsageError, match=r"run: another training runs in it. Wait for its end"):
            train(replace(settings, output=str(run)), resume=True)
    program = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    other = [sys.executable, "-c", program]
    facts = json.loads((run / "run.json").read_text())
    begun = replace(settings, output=str(tmp_path / "begun"))
    for folder, config, resume in (
        (run, replace(settings, output=str(run)), True),
        (tmp_path / "begun", begun, False),
        (tmp_path / "begun", begun, False),  # it holds no checkpoint, so it begins anew
    ):
        with RunFolder(folder) as locked:
            locked.begin(config, facts, resume=resume)
            refused = subprocess.run([*other, str(folder / "run.json")], capture_output=True, text=True)
            assert "BlockingIOError" in refused.stderr
        subprocess.run([*other, str(folder / "run.json")], check=True)


def test_a_damaged_checkpoint_is_named(settings, run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000007.pt").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(SourceError, match=r"step-00000007.pt: this checkpoint is damaged. Remove this file"):
        RunFolder(tmp_path).load_checkpoint()


@pytest.mark.parametrize("what", ["faces", "weights"])
def test_faces_and_weights_that_have_changed_are_refused(settings, run, what):
    changed = {"data_sha256" if what == "faces" else "weights_sha256": "0" * 64}
    facts = json.loads((run / "run.json").read_text()) | changed
    config = replace(settings, output=str(run))
    with pytest.raises(UsageError, match=f"the {what} have changed since the run began. Restore them"):
        RunFolder(run).begin(config, facts, resume=True)


def test_a_run_of_another_version_is_named(settings, run, tmp_path):
    folder = tmp_path / "run"
    config = replace(settings, output=str(folder))
    *_, latest = sorted((run / "checkpoints").iterdir())
    (folder / "checkpoints").mkdir(parents=True)
    for path in (run / "config.toml", run / "run.json", latest):
        shutil.copy(path, folder / path.relative_to(run))
    latest = folder / latest.relative_to(run)
    state = torch.load(latest, weights_only=True)
    del state["objective"]["network.last_linear.weight"]
    torch.save(state, latest)
    advice = "If another version began this run, go on with that one, or start another run in a new folder"
    with pytest.raises(SourceError, match=rf"{latest.name}: its contents are not those of .*\. {advice}"):
        train(config, resume=True)
    with pytest.raises(torch.OutOfMemoryError), RunFolder(folder).explain_other_state():
        raise torch.OutOfMemoryError  # not the fault of the checkpoint
    complete = (folder / "config.toml").read_text()
    for other, problem in (
        (complete + "keep_probability = 0.4\n", "there is no field keep_probability"),
        (re.sub(r"(?m)^trained_blocks = .*\n", "", complete), "the field trained_blocks is missing"),
    ):
        assert other != complete
        (folder / "config.toml").write_text(other)
        with pytest.raises(UsageError, match=rf"{problem}\..* {advice}"):
            train(config, resume=True)


def test_weights_are_measured_without_training(settings, run, tmp_path, capsys):
    config = replace(settings, output=str(tmp_path / "nothing"))
    path = tmp_path / "config.toml"
    path.write_text(format_config(config))
    assert main([str(path), "--evaluate-only", "--json", str(tmp_path / "figures.json")]) == 0
    expected = "Validated on 6 faces of 3 people; 3 of these people were trained on\n"
    assert capsys.readouterr().out.startswith(expected)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["folder"] is None
    assert figures["config"] == asdict(config)
    assert figures["after"].keys() >= {"accuracy", "precision", "recall", "f1", "eer", "auc"}
    assert not (tmp_path / "nothing").exists()


def test_mixed_precision_rounds_the_loss_and_keeps_the_weights_in_float32(run, losses, settings, tmp_path):
    config = replace(settings, output=str(tmp_path / "run"), checkpoint_steps=100, precision="bf16")
    rounded: list[float] = []
    train(config, report=lambda step, steps, figures: rounded.append(figures["loss"]))
    assert len(rounded) == len(losses) == 4
    # bfloat16 has 8 bits, and the statistics of a batch of 3 enlarge their rounding: 0.11 of the loss.
    assert 1e-4 < abs(rounded[0] / losses[0] - 1) < 0.25
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    weights = torch.load(path, weights_only=True)["objective"]["network.last_linear.weight"]
    assert weights.dtype == torch.float32
    assert torch.isfinite(weights).all()
