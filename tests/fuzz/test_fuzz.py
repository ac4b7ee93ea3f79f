"""Mutated files of every format, in a small number; `make fuzz` runs the same in a large one."""

from __future__ import annotations

import json

import pytest

from tests.fuzz.command import COMMAND
from tests.fuzz.damaged_networks import FULL_SIZE
from tests.fuzz.targets import TARGETS
from tests.fuzz.workers import EXTRA_MEMORY, FINDINGS, make_mutant

pytestmark = pytest.mark.slow

COUNT = 100
CONVERSIONS = 1


@pytest.fixture(scope="module")
def fuzzed(sandbox, tmp_path_factory):
    """The figures of one small run, as JSON, and what it printed."""
    folder = tmp_path_factory.mktemp("fuzz")
    done = sandbox.run_program(
        COMMAND, "inputs", "conversions", "flips", "--count", str(COUNT), "--conversions", str(CONVERSIONS),
        "--flips", "300", "--stride", "31", "--json", folder / "figures.json", folder=folder,
    )  # fmt: skip
    assert (folder / "figures.json").exists(), done.err
    return json.loads((folder / "figures.json").read_text()), done


@pytest.mark.parametrize("name", TARGETS)
def test_no_mutant_of_a_small_file_does_harm(fuzzed, name):
    figures, done = fuzzed
    result = figures["inputs"][name]
    assert sum(result["counts"].values()) == COUNT
    found = {outcome: result["counts"][outcome] for outcome in FINDINGS if result["counts"][outcome]}
    assert found == {}, done.out
    assert result["worst_growth"] <= EXTRA_MEMORY
    # Where all are refused, or none is, the mutants do not reach what they should.
    assert 0 < result["counts"]["refused"] < COUNT


@pytest.mark.parametrize("name", FULL_SIZE)
def test_no_damaged_network_is_converted_unreported(fuzzed, name):
    figures, done = fuzzed
    report = figures["conversions"][name]
    assert sum(report["counts"].values()) == CONVERSIONS
    assert report["counts"]["findings"] == 0, done.out


@pytest.mark.parametrize("ending", [".index", ".data"])
def test_every_flipped_bit_of_a_checkpoint_is_detected(fuzzed, ending):
    figures, _ = fuzzed
    assert figures["flips"][ending]["flipped"] >= 300
    assert figures["flips"][ending]["missed"] == []


def test_the_command_says_whether_anything_was_found(fuzzed):
    figures, done = fuzzed
    found = sum(part["found"] for part in figures.values())
    assert done.code == (1 if found else 0), done.err
    assert "Traceback" not in done.err


BROKEN = """
import ctypes, json, sys, tempfile
from pathlib import Path

from converter.errors import SourceError
from tests.fuzz import workers
from tests.fuzz.seeds import Seed
from tests.fuzz.targets import Target
from tests.fuzz.workers import run_target


def crash():
    ctypes.string_at(0)

def hang():
    while True:
        pass

def leave_a_traceback():
    raise ValueError("not a PortError")

def take_memory():
    bytearray(1 << 30)

def take_memory_and_say_so():
    try:
        bytearray(1 << 40)
    except MemoryError as error:
        raise SourceError("x", "damaged") from error

def read_something_else():
    return False

workers.CPU_SECONDS = 0.5
counts = {}
for fault in (crash, hang, leave_a_traceback, take_memory, take_memory_and_say_so, read_something_else):
    def seeds(folder):
        (folder / fault.__name__).write_bytes(b"sound")
        return [Seed(folder / fault.__name__, {})]

    def read(path, tensors):
        return True if path.read_bytes() == b"sound" else fault()

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        target = Target(fault.__name__, seeds, read, checksummed=True)
        counts[fault.__name__] = run_target(target, 1, folder, folder / "findings", workers=1).counts
print(json.dumps(counts))
"""


def test_a_reader_with_a_fault_is_found(sandbox, tmp_path):
    """The control: readers that crash, hang, and so on, each counted as what it is."""
    done = sandbox.run_program(BROKEN, folder=tmp_path)
    assert done.code == 0, done.err
    counts = json.loads(done.out)
    expected = {
        "crash": "crashes",
        "hang": "hangs",
        "leave_a_traceback": "tracebacks",
        "take_memory": "memory",
        "take_memory_and_say_so": "memory",
        "read_something_else": "undetected",
    }
    for fault, outcome in expected.items():
        assert counts[fault][outcome] == 1, (fault, counts[fault])


def test_a_case_is_made_again_byte_for_byte(sandbox, tmp_path):
    target = TARGETS["safetensors"]
    mutants = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        contents = [seed.path.read_bytes() for seed in target.seeds(tmp_path / folder)]
        mutants.append(make_mutant(target, contents, 5, seed=0))
        assert make_mutant(target, contents, 6, seed=0) != mutants[-1]
    assert mutants[0] == mutants[1]
    options = ("--case", "safetensors:5", "--findings", tmp_path / "kept")
    done = sandbox.run_program(COMMAND, *options, folder=tmp_path)
    assert done.code in (0, 1), done.err
    assert (tmp_path / "kept" / "safetensors-5.safetensors").read_bytes() == mutants[0][1]
