"""Hidden folders: those of killed processes go with the next run; those of living ones stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from converter import atomic
from converter.__main__ import main
from converter.atomic import AtomicFiles, HiddenFolder
from tests.fuzz.sandbox import ROOT

OWNER = """
import sys
from pathlib import Path
from converter.atomic import HiddenFolder
with HiddenFolder(Path(sys.argv[1])) as hidden:
    (hidden / "w.pt").write_bytes(bytes(1000))
    print(hidden, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def owner(folder: Path):
    """A process that has a hidden folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


def test_the_next_run_removes_what_a_killed_process_left(checkpoint, tmp_path):
    with owner(tmp_path) as (process, hidden):
        process.kill()
        process.wait()
        assert (hidden / "w.pt").exists()
        assert main([str(checkpoint.prefix), "-o", str(tmp_path / "w.pt"), "--quiet"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pt", "w.pt.json"]


@pytest.mark.parametrize("stopped", [False, True])
def test_the_folder_of_a_living_process_stays(stopped, tmp_path):
    with owner(tmp_path) as (process, hidden):
        if stopped:
            os.kill(process.pid, signal.SIGSTOP)
        os.utime(hidden, (0, 0))
        with HiddenFolder(tmp_path):
            assert (hidden / "w.pt").stat().st_size == 1000
        if stopped:
            os.kill(process.pid, signal.SIGCONT)
        process.communicate("\n")
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_of_this_tool_stays(tmp_path):
    others = tmp_path / ".facenet-port-notes"
    others.mkdir()
    (others / "text").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".lock").touch()
    (tmp_path / ".facenet-port-link").symlink_to(elsewhere)
    (tmp_path / ".facenet-port-file").touch()
    linked = tmp_path / ".facenet-port-linked"
    linked.mkdir()
    (linked / ".lock").symlink_to(elsewhere / ".lock")
    (tmp_path / ".facenet-port-empty").mkdir()  # of a process that was killed before it made its lock
    with HiddenFolder(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {
        "elsewhere", ".facenet-port-notes", ".facenet-port-link", ".facenet-port-file",
        ".facenet-port-linked",
    }  # fmt: skip
    assert (elsewhere / ".lock").exists()


def test_without_locks_files_appear_and_nothing_of_others_is_removed(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    left = tmp_path / ".facenet-port-left"
    left.mkdir()
    (left / ".lock").touch()
    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    with AtomicFiles(tmp_path, overwrite=False) as files:
        files.stage("one").write_text("1")
        files.commit()
    assert {path.name for path in tmp_path.iterdir()} == {"one", ".facenet-port-left"}
    monkeypatch.undo()
    with HiddenFolder(tmp_path):
        assert not left.exists()


def test_a_folder_that_vanishes_before_its_lock_is_made_again(tmp_path, monkeypatch):
    """Another process may take a folder without a lock for one that was left behind."""
    made = []
    real = atomic.tempfile.mkdtemp

    def vanishing(**options):
        made.append(real(**options))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(atomic.tempfile, "mkdtemp", vanishing)
    with HiddenFolder(tmp_path) as hidden:
        assert str(hidden) == made[1]
    assert list(tmp_path.iterdir()) == []


def test_many_processes_in_one_folder_lose_nothing(tmp_path):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from converter.atomic import AtomicFiles\n"
        "for number in range(60):\n"
        "    with AtomicFiles(Path(sys.argv[1]), overwrite=False) as files:\n"
        "        files.stage(f'{sys.argv[2]}-{number}').write_text('whole')\n"
        "        files.commit()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path, str(number)], env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        for number in range(3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{number}-{file}" for number in range(3) for file in range(60)
    )
