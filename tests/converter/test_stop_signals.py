"""SIGINT, SIGTERM and SIGHUP: one line, the exit code of shells, and nothing left behind."""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from converter.stop_signals import StopSignals
from tests.fuzz.sandbox import ROOT
from tests.support import google_drive_server
from tests.support.google_drive_server import held_file

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
MESSAGES = {
    signal.SIGINT: "interrupted; no file was left half written",
    signal.SIGTERM: "ended by SIGTERM; no file was left half written",
    signal.SIGHUP: "ended by SIGHUP; no file was left half written",
}

PROGRAM = """
import os, signal, sys

def stop(number=int(sys.argv.pop(1))):
    os.kill(os.getpid(), number)

def stop_at(owner, name, before=lambda *_: True):
    original = getattr(owner, name)
    def stopped(*arguments, **options):
        result = original(*arguments, **options)
        stop()
        return result
    setattr(owner, name, stopped)

{place}
from facenet_port import main
sys.exit(main())
"""

PLACES = {
    "while it converts": "from converter import convert_file; stop_at(convert_file, 'convert_tensors')",
    "while it writes": "from converter.write_output import Output; stop_at(Output, 'write')",
    "while it reads back": "from converter.write_output import Output; stop_at(Output, 'read_back')",
    "while the first file appears": "from converter import atomic; stop_at(atomic, '_rename_new')",
    "while it makes the hidden folder": "from converter import atomic; stop_at(atomic, '_lock_new')",
    "twice": (
        "from converter.write_output import Output\n"
        "from converter import atomic\n"
        "import shutil\n"
        "stop_at(Output, 'write')\n"
        "stop_at(shutil, 'rmtree')\n"
        "stop_at(os, 'close')"
    ),
}


@pytest.fixture
def run(sandbox):
    """A function that runs `facenet-port`, stopped at a place by a signal."""

    def run_stopped(place: str, number: int, *arguments: str | Path, folder: Path):
        return sandbox.run_program(PROGRAM.format(place=place), str(int(number)), *arguments, folder=folder)

    return run_stopped


@pytest.mark.parametrize(
    ("place", "number"),
    [
        *((place, signal.SIGTERM) for place in PLACES),
        ("twice", signal.SIGINT),
        ("while it writes", signal.SIGHUP),
    ],
)
def test_a_stopped_converter_leaves_nothing(run, place, number, small_source, tmp_path):
    done = run(PLACES[place], number, "convert", small_source, "-o", "w.pt", folder=tmp_path)
    assert done.err == f"facenet-port convert: error: {MESSAGES[number]}\n"
    assert done.code == CODES[number]
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_converter_keeps_the_file_that_it_was_to_replace(run, small_source, tmp_path):
    (tmp_path / "w.pt").write_text("old")
    arguments = ["convert", small_source, "-o", "w.pt", "--overwrite"]
    done = run(PLACES["while it reads back"], signal.SIGTERM, *arguments, folder=tmp_path)
    assert done.code == 143
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("w.pt", "old")]


CHILD = """
from converter import child_process
started = child_process.ChildProcess.__init__
def start(self, *arguments, **options):
    started(self, *arguments, **options)
    print(self.pid, flush=True)
child_process.ChildProcess.__init__ = start
stop_at(child_process.ChildProcess, {method!r})
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("method", ["__init__", "_wait_until_ready", "ask"])
def test_the_process_that_reads_hdf5_ends_too(run, method, single_files, tmp_path):
    arguments = ["convert", single_files / "weights.h5", "-o", "w.pt"]
    done = run(CHILD.format(method=method), signal.SIGTERM, *arguments, folder=tmp_path)
    assert done.code == 143, done.err
    assert done.err == f"facenet-port convert: error: {MESSAGES[signal.SIGTERM]}\n"
    for _ in range(50):  # a child that was not ended ends by itself, as soon as it sees the closed socket
        if not is_alive(int(done.out)):
            break
        time.sleep(0.1)
    assert not is_alive(int(done.out))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_stopped_comparison_leaves_no_converted_file(run, checkpoint, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    place = (
        f"import tempfile; tempfile.tempdir = {str(temporary)!r}\n"
        "import checks.core.models as models; stop_at(models, 'convert_file')"
    )
    done = run(place, signal.SIGTERM, "compare", checkpoint.frozen, folder=tmp_path)
    assert done.err == f"facenet-port compare: error: {MESSAGES[signal.SIGTERM]}\n"
    assert done.code == 143
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_while_tensorflow_is_imported_its_own_lines_are_not_shown(run, checkpoint, tmp_path):
    place = (
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tensorflow.python.platform':\n"
        "            os.write(2, b'oneDNN custom operations are on\\n')\n"
        "            stop()\n"
        "sys.meta_path.insert(0, Finder())"
    )
    done = run(place, signal.SIGTERM, "gradients", checkpoint.prefix, folder=tmp_path)
    assert done.err == f"facenet-port gradients: error: {MESSAGES[signal.SIGTERM]}\n"
    assert done.code == 143


@pytest.mark.slow
def test_a_stopped_audit_is_one_line(run, checkpoint, single_files, tmp_path):
    place = "import checks.audit.run as run; stop_at(run, 'compare_tensors')"
    arguments = ["audit", single_files / "weights.pt", "--against", checkpoint.prefix, "--json", "a.json"]
    done = run(place, signal.SIGHUP, *arguments, folder=tmp_path)
    assert done.err == f"facenet-port audit: error: {MESSAGES[signal.SIGHUP]}\n"
    assert done.code == 129
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_stopped_controls_end_between_two_faults(run, checkpoint, tmp_path):
    """The signal arrives while two threads plant faults."""
    place = (
        "from checks.controls import plant_faults\n"
        "stop_at(plant_faults.FaultPlanter, 'plant')\n"
        "from checks.controls.tensorflow_reference import ControlInput, ControlSource\n"
        "from checks.core.inputs import InputBatch, seeded_inputs\n"
        "def inputs(self, seed):  # one small image\n"
        "    image = seeded_inputs(seed)[0].images[:1, :107, :107]\n"
        "    return (ControlInput(self._run(InputBatch('noise', image))),)\n"
        "ControlSource.inputs = inputs"
    )
    arguments = ["controls", checkpoint.prefix, "--only", "one-ulp", "--json", "controls.json"]
    done = run(place, signal.SIGTERM, *arguments, folder=tmp_path)
    assert done.err == f"facenet-port controls: error: {MESSAGES[signal.SIGTERM]}\n"
    assert done.code == 143
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


def test_under_nohup_a_closed_terminal_does_not_stop_it(run, small_source, tmp_path):
    ignore = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    arguments = ["convert", small_source, "-o", "w.pt", "--quiet"]
    done = run(ignore + PLACES["while it writes"], signal.SIGHUP, *arguments, folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pt", "w.pt.json"]


def test_a_closed_terminal_stops_it_though_nobody_reads_the_line(checkpoint, tmp_path):
    terminal, theirs = os.openpty()
    place = "import time; from converter.write_output import Output\nOutput.write = lambda *_: time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(place=place), "1", "convert", checkpoint.prefix, "-o", "w.pt"],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    while not list(tmp_path.iterdir()):
        time.sleep(0.05)
    time.sleep(0.5)
    os.close(terminal)
    assert process.wait(30) == 129
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def drive(tmp_path, tmp_path_factory, monkeypatch):
    """A server that has one model, which the catalog calls `faces`, and empty caches."""
    with google_drive_server.running_server(tmp_path_factory.mktemp("authority")) as server:
        lines = ['["20990101-000000"]', 'dataset = "faces"', 'aliases = ["faces"]', f'drive_id = "{ID}"']
        lines.append(f'sha256 = "{hashlib.sha256(ARCHIVE).hexdigest()}"')
        (tmp_path / "catalog.toml").write_text("\n".join(lines))
        own = {"FACENET_PORT_CATALOG": tmp_path / "catalog.toml", "FACENET_PORT_CACHE": tmp_path / "cache"}
        for variable, value in {**server.environment, **own}.items():
            monkeypatch.setenv(variable, str(value))
        (tmp_path / "work").mkdir()
        yield server


ID = "1FacesFacesFacesFacesFacesFaces02"
ARCHIVE = bytes(range(256)) * 8192  # 2 MB


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("received", [0, 1 << 20])
def test_a_stopped_download_leaves_only_what_the_next_run_continues(drive, tmp_path, received, number):
    release = threading.Event()
    drive.answers[ID] = [held_file(ARCHIVE, received, release)]
    cache = tmp_path / "cache"
    process = subprocess.Popen(
        [sys.executable, "-m", "facenet_port", "convert", "faces"], cwd=tmp_path / "work", text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

    def kept() -> list[Path]:
        return [file for file in cache.rglob("*") if file.is_file() and file.parent.name != "locks"]

    end = time.monotonic() + 60
    while not drive.requests or sum(file.stat().st_size for file in kept()) < received:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    release.set()
    assert process.returncode == CODES[number]
    assert err.splitlines()[-1].endswith(f"facenet-port convert: error: {MESSAGES[number]}")
    assert out == ""
    assert list((tmp_path / "work").iterdir()) == []
    assert {file.relative_to(cache).parts[0] for file in kept()} <= {"incomplete"}
    assert [file.read_bytes() for file in kept()] == ([ARCHIVE[:received]] if received else [])


# The handlers


def handlers():
    return [signal.getsignal(number) for number in CODES]


def test_the_first_signal_raises_and_the_second_does_not():
    before = handlers()
    with StopSignals(for_good=False) as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        for number in CODES:
            os.kill(os.getpid(), number)
        assert (stop.received, stop.exit_code, stop.cause) == (signal.SIGTERM, 143, "ended by SIGTERM")
    assert handlers() == before


def test_during_an_import_a_signal_raises_when_the_import_has_ended(tmp_path, monkeypatch):
    lines = ["import os, signal", "os.kill(os.getpid(), signal.SIGTERM)", "IS_WHOLE = True"]
    (tmp_path / "stopped_while_imported.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    with StopSignals(for_good=False) as stop:
        with pytest.raises(KeyboardInterrupt):
            assert importlib.import_module("stopped_while_imported").IS_WHOLE
            assert stop.received is None
            time.sleep(10)
        assert stop.received == signal.SIGTERM


def test_a_signal_long_after_a_swallowed_one_raises(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopSignals(for_good=False) as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        now[0] += 6
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.exit_code == 130


def test_another_handler_and_an_ignored_signal_are_left_alone(monkeypatch):
    own = signal.signal(signal.SIGTERM, lambda *_: None), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before = handlers()
        with StopSignals(for_good=False) as stop:
            assert handlers()[1:] == before[1:]
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGTERM, own[0])
        signal.signal(signal.SIGHUP, own[1])


def test_in_another_thread_nothing_is_changed():
    before, seen = handlers(), []

    def work():
        with StopSignals(for_good=True):
            seen.extend(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before
