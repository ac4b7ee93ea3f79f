"""TensorFlow's process: it is kept, and each of its ends is one message."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from checks.compare.__main__ import main
from checks.core import tensorflow_process
from checks.core.inputs import InputBatch
from checks.core.source_tensors import float32_variables, plan_source
from checks.core.tensorflow_process import OwnGraphFile, start_tensorflow
from checks.core.tensorflow_side import TensorFlowSide
from converter.child_process import ChildProcess
from converter.errors import RequirementError, SourceError
from converter.formats.detect import open_source
from converter.mtcnn_layer_map import MtcnnNetwork

NOISE = InputBatch("noise", np.random.default_rng(0).standard_normal((2, 24, 24, 3)).astype(np.float32))
FAKE = """
import os, sys
from converter.child_process import AnswerError, serve

def answer(message, arrays):
    if message["do"] == "open" and sys.argv[1] != "opening":
        return {"version": "0", "own_tensors": []}, ()
    if sys.argv[2] == "memory":
        raise AnswerError("OOM when allocating", of_tensorflow=True)
    if sys.argv[2] == "nonsense":
        raise AnswerError("KeyError")
    os.kill(os.getpid(), int(sys.argv[2]))

serve(answer, shared=True)
"""


def open_side(source: Path) -> TensorFlowSide:
    opened = open_source(source)
    tensors, plan = plan_source(opened, "variable")
    network = plan.network if isinstance(plan.network, MtcnnNetwork) else None
    return TensorFlowSide(opened, float32_variables(opened, tensors, plan), "variable", network=network)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A function that puts a process without TensorFlow in the place of the one with it."""
    (tmp_path / "fake_tensorflow.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    started: list[ChildProcess] = []

    def start(*arguments: object) -> None:
        started.append(ChildProcess("fake_tensorflow", *map(str, arguments), seconds=20, shared=True))
        monkeypatch.setattr("checks.core.tensorflow_side.start_tensorflow", lambda: started[-1])

    yield start
    for child in started:
        child.close()


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (signal.SIGKILL, r"TensorFlow crashes \(SIGKILL\) with its weights: .*run out of memory"),
        (
            signal.SIGABRT,
            r"TensorFlow crashes \(SIGABRT\) with its weights\. Try `python -c 'import tensorflow'`",
        ),
        ("memory", r"TensorFlow cannot compute with its weights: OOM when allocating\. .*run out of memory"),
    ],
)
@pytest.mark.parametrize("place", ["opening", "running"])
def test_the_end_of_tensorflow_is_one_message(fake, small_source, place, end, message):
    fake(place, end if isinstance(end, str) else int(end))
    with open_side(small_source) as side, pytest.raises(RequirementError, match=message) as caught:
        side.run(NOISE, ("conv1",))
    assert str(caught.value).startswith(f"{small_source}: ")


def test_a_crash_on_the_own_graph_says_how_to_leave_it_out(fake, small_source, tmp_path, monkeypatch):
    fake("opening", int(signal.SIGSEGV))
    file = OwnGraphFile(tmp_path / "model.meta", "meta", tmp_path / "model.ckpt-1", "variable", "")
    monkeypatch.setattr("checks.core.tensorflow_side.find_own_graph_file", lambda *_: file)
    with open_source(small_source) as opened, TensorFlowSide(opened, {}, "variable") as side:
        assert side.own_graph == file.path
        with pytest.raises(SourceError) as caught:
            _ = side.own_tensors
    assert str(caught.value) == (
        f"{file.path}: the checkpoint's own graph cannot be run: TensorFlow crashes (SIGSEGV). "
        "Move the .meta away to compare with the rebuilt graph alone."
    )


def test_a_command_whose_tensorflow_crashes_loses_nothing(fake, small_source, tmp_path, capsys):
    fake("running", int(signal.SIGKILL))
    stored = tmp_path / "kept" / "activations.h5"
    stored.parent.mkdir()
    assert main([str(small_source), "--save-activations", str(stored), "--quiet"]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "TensorFlow crashes (SIGKILL)" in captured.err
    assert list(stored.parent.iterdir()) == []


def test_a_bug_in_its_process_is_no_fault_of_the_user(fake, small_source):
    fake("running", "nonsense")
    with open_side(small_source) as side, pytest.raises(Exception, match="KeyError") as caught:
        side.run(NOISE, ("conv1",))
    assert not isinstance(caught.value, RequirementError | SourceError)


def test_the_process_is_kept_and_started_anew_after_its_end(monkeypatch):
    """Nothing waits for it: TensorFlow is not imported."""
    monkeypatch.setattr(tensorflow_process, "_child", None)
    first = start_tensorflow()
    try:
        assert start_tensorflow() is first
        monkeypatch.setattr(tensorflow_process, "_parent", os.getppid())  # as in a process that was forked
        other = start_tensorflow()
        assert other is not first
        assert first.is_open
        tensorflow_process.stop_tensorflow()
        assert not other.is_open
        another = start_tensorflow()
        assert another.is_open
        another.close()
    finally:
        first.close()


def test_a_relative_file_is_found_from_another_folder(tmp_path, monkeypatch):
    """The process that is kept may have been started in another one."""
    monkeypatch.chdir(tmp_path)
    given = OwnGraphFile(Path("model.meta"), "meta", Path("model.ckpt-1"), "variable", "")
    sent = given.as_json()
    assert OwnGraphFile.from_json(sent).checkpoint == tmp_path / "model.ckpt-1"
    assert [given.as_given(sent[name]) for name in ("path", "checkpoint")] == [given.path, given.checkpoint]
    assert given.as_given("/another") == Path("/another")


def test_a_device_that_is_not_here_is_named(small_source, capsys):
    assert main([str(small_source), "--device", "mps"]) == 4
    assert "--device mps: PyTorch finds no such device here. Give cpu" in capsys.readouterr().err
