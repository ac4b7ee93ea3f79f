"""`align` and `embed` in several processes: what one process gives, also after a process was killed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from converter.errors import RequirementError, SourceError, UsageError
from facenet_port import main
from faces.align.run import take_share
from faces.embeddings import check_output, is_embeddings, read_embeddings
from faces.processes import Processes, join_processes
from tests.faces.align.conftest import write
from tests.faces.conftest import LIMIT, torchrun
from tests.support.shared_files import shared_folder

TORCH = ("--backend", "torch")  # which several processes take by default, whatever is in the cache


def start_two(*command):
    """Start a command in two processes as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, "-m", "facenet_port", *command],
            env={**os.environ, **shared, "RANK": number},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]


def kill_one(until, *command):
    """Run a command in two processes, and kill the second at a moment; the first names it and ends."""
    first, second = start_two(*command)
    end = time.monotonic() + LIMIT
    while not until() and second.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    second.kill()
    second.communicate()
    _, message = first.communicate(timeout=LIMIT)
    assert second.returncode == -9
    assert first.returncode == 4, message
    assert "another process has ended before its work was done. Start the same command again" in message


@pytest.fixture(scope="session")
def faces(photographs, tmp_path_factory):
    """Ten photographs of five people and a broken file; and in `many` four times, and two of one name."""

    def write(folder):
        for part, copies in (("few", 1), ("many", 4)):
            for copy in range(copies):
                for number, file in enumerate(sorted(photographs.rglob("*.jpg"))):
                    (folder / part / f"p{number % 5}").mkdir(exist_ok=True, parents=True)
                    shutil.copy(file, folder / part / f"p{number % 5}/{copy}{number}.jpg")
            (folder / part / "p3/broken.jpg").write_bytes(b"nothing")
        for name in ("00.png", "00-2.jpg"):  # beside 00.jpg
            shutil.copy(file, folder / "many/p0" / name)

    return shared_folder(tmp_path_factory, "faces-of-processes", write)


@pytest.mark.slow
def test_align_gives_the_table_of_one_process_also_after_a_process_was_killed(faces, tmp_path, capsys):
    command = ("align", str(faces / "many"), "--smallest-face", "60")
    assert main([*command, str(tmp_path / "one"), "--quiet", *TORCH]) == 3
    expected = (tmp_path / "one/faces.csv").read_bytes()
    crops = {file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*.png")}
    assert len(crops) == expected.count(b"\n") - 1 == 42
    out = tmp_path / "killed"
    journal = out / "align-1.jsonl"
    kill_one(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 1, *command, str(out))
    assert 1 < journal.read_bytes().count(b"\n") < 20  # 16 of 21 photographs are done
    assert not (out / "faces.csv").exists()
    shutil.copytree(out, tmp_path / "again")
    capsys.readouterr()
    assert main([*command, str(out)]) == 3
    assert "of the photographs were done before" in capsys.readouterr().out
    done = torchrun("faces.align", *command[1:], tmp_path / "again")
    assert "42 crops of 160x160 from 43 photographs of 5 people" in done.stdout
    assert done.stderr.count("p3/broken.jpg: cannot be decoded as a photograph") == 1
    for folder in (out, tmp_path / "again"):
        assert (folder / "faces.csv").read_bytes() == expected
        for crop in crops:
            assert (folder / crop).read_bytes() == (tmp_path / "one" / crop).read_bytes()


@pytest.mark.slow
def test_embed_gives_the_rows_of_one_process_also_after_a_process_was_killed(
    faces, network, tmp_path, capsys
):
    command = ("embed", str(faces / "few"), "--model", str(network), "--standardise", "fixed")
    command += ("--smallest-face", "60", "-o")
    assert main([*command, str(tmp_path / "one.parquet"), "--quiet", *TORCH]) == 3
    expected = read_embeddings(tmp_path / "one.parquet")
    out = tmp_path / "two.parquet"
    kill_one(out.exists, *command, str(out))
    first, second = (out / f"part-0000{number}-of-00002.parquet" for number in range(2))
    assert (first.exists(), second.exists()) == (True, False)
    with pytest.raises(SourceError, match=rf"has no {second.name}\. `facenet-port embed FOLDER -o {out}`"):
        read_embeddings(out)
    before = first.stat()
    capsys.readouterr()
    assert main([*command, str(out)]) == 3
    assert os.path.samestat(before, first.stat())
    captured = capsys.readouterr()
    assert f"10 faces of 5 people, 512 numbers each in {out}" in captured.out
    assert captured.err.count("p3/broken.jpg: cannot be decoded as a photograph") == 1
    first.unlink()
    speaks, is_quiet = [process.communicate(timeout=LIMIT) for process in start_two(*command, str(out))]
    assert "10 faces of 5 people" in speaks[0]
    assert is_quiet == ("", "")
    actual = read_embeddings(out)
    for name in ("people", "boxes", "files", "origin"):
        assert getattr(actual, name) == getattr(expected, name)
    assert np.abs(actual.values - expected.values).max() < 1e-6
    whole = pyarrow.parquet.read_table(out)  # the folder is a dataset
    one = pyarrow.parquet.read_table(tmp_path / "one.parquet")
    assert whole.schema.equals(one.schema)
    for name in ("image_path", "person_name", "bbox"):
        assert whole[name].equals(one[name])


def test_photographs_whose_crops_may_want_one_path_go_to_one_process():
    groups = ["a/1.jpg", "a/1.png", "a/1-2.jpg", "a/1-2-3.jpg"], ["a/2.jpg"], ["b/1.jpg"], ["b/7-2.jpg"]
    names = sorted(name for group in groups for name in group)
    shares = [take_share(names, Processes(number, 3)) for number in range(3)]
    assert sorted(name for share in shares for name in share) == names
    assert all(share == sorted(share) for share in shares)
    assert [set(groups[0]) <= set(share) for share in shares].count(True) == 1
    assert sorted(map(len, shares)) == [1, 1, 5]


def test_embed_in_parts_refuses_what_it_would_replace_or_mix(colour_detector, network, tmp_path):
    write(tmp_path / "photos", "Ana/1.png", "Bo/1.png")
    command = ["embed", str(tmp_path / "photos"), "-o", str(tmp_path / "e.parquet")]
    command += ["--model", str(network), "--quiet", "--standardise"]
    (tmp_path / "e.parquet").mkdir()
    (tmp_path / "e.parquet/part-00001-of-00002.parquet").write_bytes(b"not whole")
    assert main([*command, "fixed"]) == 0  # two parts, by one process
    embeddings = read_embeddings(tmp_path / "e.parquet")
    assert embeddings.people == ("Ana", "Bo")
    assert is_embeddings(tmp_path / "e.parquet")
    mixed = (tmp_path / "e.parquet/part-00001-of-00002.parquet").read_bytes()
    assert main([*command, "per-image"]) == 0  # both are made anew
    assert read_embeddings(tmp_path / "e.parquet").origin.standardisation == "per-image"
    (tmp_path / "e.parquet/part-00001-of-00002.parquet").write_bytes(mixed)
    with pytest.raises(SourceError, match="its parts are of different images, models or options"):
        read_embeddings(tmp_path / "e.parquet")
    (tmp_path / "e.parquet/part-00002-of-00003.parquet").touch()
    with pytest.raises(SourceError, match="it has parts of 2 and of 3"):
        read_embeddings(tmp_path / "e.parquet")
    (tmp_path / "e.parquet/mine.txt").touch()
    with pytest.raises(UsageError, match=r"it has mine\.txt, which is no part of embeddings"):
        check_output(tmp_path / "e.parquet", in_parts=True)
    main([*command[:3], str(tmp_path / "one.parquet"), *command[4:], "fixed"])
    with pytest.raises(UsageError, match="it is one file, and several processes write parts"):
        check_output(tmp_path / "one.parquet", in_parts=True)


def test_parts_have_the_crop_of_the_first_image(colour_detector, network, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (182, 182)).save(tmp_path / "photos/1.png")
    write(tmp_path / "photos", "2.png")
    (tmp_path / "e.parquet").mkdir()
    (tmp_path / "e.parquet/part-00001-of-00002.parquet").touch()
    command = ["embed", str(tmp_path / "photos"), "-o", str(tmp_path / "e.parquet"), "--quiet"]
    assert main([*command, "--model", str(network), "--standardise", "fixed"]) == 2
    assert "2.png" in capsys.readouterr().err


@pytest.mark.parametrize("environment", [("2", "2"), ("-1", "2"), ("0", "two"), ("0", "0")])
def test_an_odd_environment_is_refused(environment, monkeypatch):
    monkeypatch.setenv("RANK", environment[0])
    monkeypatch.setenv("WORLD_SIZE", environment[1])
    message = "RANK={} and WORLD_SIZE={} in the environment name no process".format(*environment)
    with pytest.raises(UsageError, match=message), join_processes("cpu"):
        pass


def test_processes_that_no_launcher_has_started_are_refused(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    message = "process 0 of 2 cannot reach the others .*MASTER_ADDR.* Start all of them with torchrun"
    with pytest.raises(RequirementError, match=message), join_processes("cpu"):
        pass


LOSES_ONE = """
import os, sys, torch
from faces.processes import read_processes
number = 0 if os.fork() else 1
os.environ |= {"RANK": str(number), "WORLD_SIZE": "2"}
torch.distributed.init_process_group("gloo", f"file://{sys.argv[1]}", rank=number, world_size=2)
torch.distributed.barrier()
if number == 0:
    with read_processes().explain_lost("Give --resume."):
        while True:
            torch.distributed.all_reduce(torch.ones(1))
"""


def test_a_process_that_loses_another_in_its_work_says_so(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", LOSES_ONE, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    message = "RequirementError: process 0 of 2: another process has ended before its work was done."
    assert ended.stderr.splitlines()[-1].endswith(f"{message} Give --resume.")


@pytest.mark.parametrize(
    ("processes", "problem"),
    [
        (Processes(), "pair.cc in third_party/gloo/gloo/transport/tcp"),
        (Processes(0, 2), "/home/gloor/x.png cannot be read"),
    ],
)
def test_another_error_is_not_taken_for_the_loss_of_a_process(processes, problem):
    with pytest.raises(RuntimeError, match=problem), processes.explain_lost("Give --resume."):
        raise RuntimeError(problem)
