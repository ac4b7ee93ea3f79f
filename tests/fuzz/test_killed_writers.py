"""Writers that are killed, interrupted, out of disk or not allowed: a whole file under its name, or none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from tests.fuzz.command import COMMAND
from tests.fuzz.killed_writers import JOBS
from tests.fuzz.sandbox import ROOT

pytestmark = pytest.mark.slow

KILLS = 10
NOBODY = 65534
FORMATS = {
    "pt": (["-o", "w.pt"], ["w.pt"]),
    "parts": (["-o", "w.pt", "--parts"], ["w.pt", "w-features.pt", "w-logits.pt"]),
    "safetensors": (["-o", "w.safetensors"], ["w.safetensors"]),
    "tensorflow": (["-o", "w", "--to", "tensorflow"], ["w.index", "w.data-00000-of-00001"]),
}


@pytest.fixture(scope="module")
def source(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    index, _ = write_tensor_bundle(folder / "model.ckpt-1", tensors)
    for path in (*folder.parents, folder):  # for another user
        if path.is_relative_to(tmp_path_factory.getbasetemp().parent):
            path.chmod(0o755)
    return index


# Kills


@pytest.fixture(scope="module")
def killed(sandbox, tmp_path_factory):
    figures = tmp_path_factory.mktemp("kills") / "figures.json"
    options = ("kills", "--kills", str(KILLS), "--json", figures)
    done = sandbox.run_program(COMMAND, *options, folder=figures.parent)
    assert figures.exists(), done.err
    return json.loads(figures.read_text())["kills"]


@pytest.mark.parametrize("job", JOBS)
def test_a_killed_writer_leaves_no_partial_file(killed, job):
    assert killed[job]["partial"] == []
    assert sum(killed[job]["moments"].values()) == KILLS // len(JOBS)


def test_kills_land_while_files_are_written(killed):
    assert sum(killed[job]["moments"]["during"] for job in JOBS) >= KILLS // 4


CARELESS = """
import json, sys, time
from pathlib import Path

from tests.fuzz import killed_writers


def convert_file(source, output):
    with output.open("wb") as file:
        for _ in range(50):
            file.write(bytes(1000))
            file.flush()
            time.sleep(0.01)


killed_writers.convert_file = convert_file
done = killed_writers.run_kills(Path("any"), 5, Path(sys.argv[1]), jobs=["pt"])
print(json.dumps(done["pt"].partial))
"""


def test_a_careless_writer_is_found(sandbox, tmp_path):
    """The control: one that writes under the final name leaves partial files, and they are seen."""
    done = sandbox.run_program(CARELESS, tmp_path / "kills", folder=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)


# Ctrl-C and the like


@pytest.fixture(scope="module")
def command(source):
    """The command as a process of its own, and how long it takes."""
    arguments = [sys.executable, "-m", "converter", source, "--quiet", "-o"]
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stderr": subprocess.PIPE, "text": True}
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        subprocess.run([*arguments, "w.pt"], check=True, cwd=folder, **options)
        return [*arguments, "w.pt"], options, time.monotonic() - started


@pytest.mark.parametrize(
    ("share", "number"),
    [
        (0.15, signal.SIGINT),
        (0.4, signal.SIGTERM),
        (0.65, signal.SIGHUP),
        (0.75, signal.SIGTERM),
        (0.9, signal.SIGINT),
    ],
)
def test_a_signal_ends_with_one_message_and_leaves_nothing(command, tmp_path, share, number):
    """At several moments, of which the first ones fall into the imports."""
    arguments, options, duration = command
    process = subprocess.Popen(arguments, cwd=tmp_path, **options)
    time.sleep(share * duration)
    process.send_signal(number)
    process.send_signal(signal.SIGTERM)  # the second does not disturb the first
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    files = sorted(path.name for path in tmp_path.iterdir())
    if process.returncode in (0, -number, -signal.SIGTERM):  # it was done, or had not yet begun
        assert files in ([], ["w.pt", "w.pt.json"])
        return
    assert process.returncode in (128 + number, 128 + signal.SIGTERM), err
    assert err.startswith("python -m converter: error: "), err
    assert err.count("\n") == 1
    assert files == []


# No room, no permission


def refused_to_write(run, codes, *names):
    assert run.died_of == "", run
    assert run.code in codes, run
    assert run.out == ""
    assert run.err.startswith("python -m converter: error: "), run.err
    assert run.err.count("\n") == 1, run.err
    assert "Traceback" not in run.err
    assert "unexpected" not in run.err
    assert any(name in run.err for name in names), run.err


@pytest.mark.parametrize("name", FORMATS)
def test_a_limit_on_the_size_of_files_loses_nothing(sandbox, source, tmp_path, name):
    arguments, outputs = FORMATS[name]
    for output in outputs:
        (tmp_path / output).write_text("old")
    run = sandbox.run(
        source, *arguments, "--overwrite",
        folder=tmp_path, input_size=94 << 20, largest_file=60 << 20, cpu_seconds=20,
    )  # fmt: skip
    refused_to_write(run, [4], *outputs, arguments[1])
    assert "cannot be written (" in run.err
    assert "File too large" in run.err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(outputs, "old")


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of 20 MB in memory."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_loses_nothing(sandbox, source, small_disk, name):
    arguments, outputs = FORMATS[name]
    for output in outputs:
        (small_disk / output).write_text("old")
    run = sandbox.run(
        source, *arguments, "--overwrite", folder=small_disk, input_size=94 << 20, cpu_seconds=20
    )
    refused_to_write(run, [4], *outputs, arguments[1])
    assert {path.name: path.read_text() for path in small_disk.iterdir()} == dict.fromkeys(outputs, "old")
    for output in outputs:
        (small_disk / output).unlink()


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_that_may_not_be_written_to(sandbox, source, tmp_path, name):
    if os.geteuid() != 0:
        user = None
    else:
        user = NOBODY  # root may write anywhere
        for path in (tmp_path, *tmp_path.parents[:3]):
            path.chmod(path.stat().st_mode | 0o055)
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    run = sandbox.run(
        source, *FORMATS[name][0], folder=folder, input_size=94 << 20, user=user, cpu_seconds=20
    )
    refused_to_write(run, [2], "cannot be written to (Permission denied)")
    assert list(folder.iterdir()) == []
