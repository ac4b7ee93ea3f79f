"""A training: what it writes, that it is the same however it is run, and that nothing is lost."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
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
from tests.faces.training.conftest import PEOPLE

pytestmark = pytest.mark.slow

STEPS = 4


@pytest.fixture(scope="module")
def settings(crops: Path, single_files: Path) -> TrainConfig:
    """Four steps of the whole network, with everything that is random."""
    return TrainConfig(
        data=str(crops), weights=str(single_files / "weights.pt"), standardisation="fixed", batch_size=3,
        epochs=1, head_epochs=0, last_epochs=0, device="cpu", checkpoint_steps=1, optimiser="sgd",
        learning_rate=1e-5, rotation=10.0,
    )  # fmt: skip


def weights(folder: Path, name: str = "last") -> bytes:
    return (folder / name / "weights.pt").read_bytes()


@pytest.fixture(scope="module")
def run(settings: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(replace(settings, output=str(folder)))
    return folder


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
    assert not list(run.glob(".*"))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(settings, run, tmp_path):
    """With a process that reads images as without; none of them is left."""
    settings = replace(settings, checkpoint_steps=100)
    train(replace(settings, output=str(tmp_path / "again"), workers=1))
    assert multiprocessing.active_children() == []
    assert weights(tmp_path / "again") == weights(run)
    train(replace(settings, output=str(tmp_path / "other"), seed=1))
    assert weights(tmp_path / "other") != weights(run)


@pytest.mark.parametrize("stopped", [2, STEPS])
def test_a_run_that_a_signal_stops_goes_on_as_if_nothing_had_happened(
    settings, run, tmp_path, capsys, stopped
):
    path = tmp_path / "config.toml"
    path.write_text(format_config(replace(settings, output=str(tmp_path / "run"), checkpoint_steps=100)))

    steps = []

    def report(bar: object, step: int, total: int) -> None:
        steps.append(step)
        if step == stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does when its whole group is stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("converter.progress.ProgressBar.__call__", report)
        assert main([str(path)]) == 143
    assert capsys.readouterr().err.endswith("ended by SIGTERM; no file was left half written\n")
    assert steps[-1] == stopped
    assert main([str(path), "--resume"]) == 0
    assert " (before: " in capsys.readouterr().out
    assert weights(tmp_path / "run") == weights(run)
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_a_program_that_is_stopped_goes_on_as_if_nothing_had_happened(settings, run, tmp_path, number, code):
    """The signal comes to the process that reads images as well, as from a launcher or a terminal."""
    path = tmp_path / "config.toml"
    path.write_text(format_config(replace(settings, output=str(tmp_path / "run"), workers=1)))
    command = [sys.executable, "-m", "faces.training", str(path)]
    process = subprocess.Popen(command, start_new_session=True)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002.pt"
    until = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == code
    assert checkpoint.exists()
    assert main([str(path), "--resume", "--quiet"]) == 0
    assert weights(tmp_path / "run") == weights(run)


def test_a_full_disk_loses_nothing(settings, run, tmp_path):
    config = replace(settings, output=str(tmp_path / "run"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(step: int, steps: int, figures: object) -> None:
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))

    try:
        with pytest.raises(RequirementError, match=r"run: cannot be written to .* Make room on the disk"):
            train(config, report=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*")] == ["step-00000001.pt"]
    train(config, resume=True)
    assert weights(tmp_path / "run") == weights(run)


def test_two_processes_give_the_weights_of_one(settings, run, tmp_path):
    """Those of the network, and those that the centre loss and ArcFace have beside it."""
    beside = {"centre": "centres", "arcface": "arcface.W"}
    settings = replace(settings, output="one/softmax")
    changes = {"last_epochs": 1, "batch_size": 6, "centre_factor": 1.0, "centre_rate": 0.5}
    configs = [settings, *(replace(settings, head=head, output=f"one/{head}", **changes) for head in beside)]
    paths = []
    for config in configs:
        folder = tmp_path / config.output.replace("one", "two")
        two = replace(config, output=str(folder), checkpoint_steps=100)  # and one at the end
        paths.append(tmp_path / f"{config.head}.toml")
        paths[-1].write_text(format_config(two))
        if config is not settings:
            train(replace(config, output=str(tmp_path / config.output)))
    program = tmp_path / "trainings.py"
    program.write_text(
        "import sys; from faces.training.__main__ import main; sys.exit(sum(main([p]) for p in sys.argv[1:]))"
    )
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", str(program), *map(str, paths)]
    ended = subprocess.run(
        [sys.executable, *command],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert ended.stdout.count("Trained on 12 faces of 3 people") == len(configs)
    for head, one in {"softmax": run, **{head: tmp_path / "one" / head for head in beside}}.items():
        first, one_last, two_last = (
            torch.load(path, weights_only=True)["objective"]
            for path in (
                *sorted((one / "checkpoints").iterdir()),
                sorted((tmp_path / "two" / head / "checkpoints").iterdir())[-1],
            )
        )
        assert one_last.keys() == two_last.keys()
        apart = {key: float((one_last[key] - two_last[key]).abs().max()) for key in one_last}
        assert max(apart.values()) <= 1e-5, max(apart, key=apart.get)
        if head in beside:  # what is compared has been trained
            assert (one_last[beside[head]] - first[beside[head]]).abs().max() > 1e-3
    assert json.loads((tmp_path / "two" / "softmax" / "run.json").read_text())["processes"] == 2


RESUMES = """
import os, socket, sys
from faces.training.__main__ import main
from faces.training.engine import Trainer
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
ends, *arguments = sys.argv[1:]
os.environ["RANK"] = "0" if os.fork() else "1"
if os.environ["RANK"] == "1":
    Trainer.load = lambda self, state: os._exit(0) if ends else None
sys.exit(main([*arguments, "--resume"]))
"""


@pytest.mark.parametrize(
    ("ends", "code", "message"),
    [
        (
            "ends",
            4,
            "another process has ended before its work was done. Start all of them again with --resume.",
        ),
        ("", 2, "the processes find different checkpoints. Give a folder that all of them share."),
    ],
)
def test_a_resume_that_another_process_does_not_join_says_why(run, ends, code, message):
    ended = subprocess.run(
        [sys.executable, "-c", RESUMES, ends, str(run / "config.toml")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == code
    assert message in ended.stderr


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
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    config = replace(settings, output=str(folder))
    *_, latest = sorted((folder / "checkpoints").iterdir())
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


def last_blocks(config: TrainConfig, tmp_path: Path, **changes: object) -> TrainConfig:
    """A cheap training without what differs between batches."""
    plain = {"last_epochs": 1, "dropout": 0.0, "mirror": False, "rotation": 0.0, "optimiser": "sgd"}
    plain |= {
        "label_smoothing": 0.5,
        "head_learning_rate": 0.1,
    }  # the head starts where it has little to learn
    return replace(config, output=str(tmp_path / "run"), **(plain | changes))


def test_the_gradients_of_small_batches_add_up_to_those_of_a_large_one(settings, tmp_path):
    """Without dropout and augmentation, which are drawn for each batch."""
    weights = []
    for number, changes in enumerate(
        ({"batch_size": 6}, {"batch_size": 3, "accumulate": 2}, {"batch_size": 3})
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        train(last_blocks(settings, folder, **changes))
        weights.append(torch.load(folder / "run" / "last" / "weights.pt", weights_only=True))
    key = "logits.weight"
    assert torch.allclose(weights[0][key], weights[1][key], atol=1e-5)
    assert not torch.allclose(weights[0][key], weights[2][key], atol=1e-4)


def test_mixed_precision_trains_as_full_precision_but_for_its_rounding(settings, tmp_path):
    result = train(last_blocks(settings, tmp_path, precision="bf16", epochs=2, last_epochs=2))
    assert [row["step"] for row in result.rows] == [4, 8]
    weights = torch.load(tmp_path / "run" / "last" / "weights.pt", weights_only=True)
    assert weights["last_linear.weight"].dtype == torch.float32
    assert torch.isfinite(weights["last_linear.weight"]).all()
