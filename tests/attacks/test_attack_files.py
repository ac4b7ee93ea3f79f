"""Harmful files: each is refused with one message, and nothing is written or run."""

from __future__ import annotations

import shutil

import pytest

from tests.attacks.attack import ATTACKS, FOLDER, MARK
from tests.attacks.make import readme
from tests.fuzz.workers import CPU_SECONDS, EXTRA_MEMORY

pytestmark = pytest.mark.slow

FUNCTIONS = {
    ".zip": "unpack",
    ".json": "read_manifest",
    ".checkpoint": "read_latest",
    ".toml": "read_catalog",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_refused(sandbox, tmp_path, attack):
    harm, current = tmp_path / "harm", tmp_path / "current"
    for folder in (harm, current):
        folder.mkdir()
    for name in attack.files:
        shutil.copy(FOLDER / name, harm)
    path = harm / attack.name
    size = sum(file.stat().st_size for file in harm.iterdir())
    run = sandbox.run(path, folder=current, input_size=size, function=FUNCTIONS.get(path.suffix, ""))
    assert run.died_of == "", run
    assert run.code in (2, 3), run
    assert run.out == ""
    lines = run.err.rstrip("\n").split("\n")
    assert lines[0].startswith("python -m converter: error: "), run.err
    assert str(harm / path.stem) in run.err
    for forbidden in (
        "Traceback",
        "unexpected ",
        "Please report",
        "Warning",
        MARK if path.suffix == ".pt" else "\0",
    ):
        assert forbidden not in run.err.replace("unexpected (", ""), run.err
    assert run.cpu < CPU_SECONDS, run
    assert run.growth <= 2 * size + EXTRA_MEMORY, run
    assert list(current.iterdir()) == []
    assert sorted(file.name for file in harm.iterdir()) == sorted(attack.files)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["current", "harm"]


def test_the_attacks_are_what_their_maker_makes():
    for attack in ATTACKS.values():
        for name, content in attack.files.items():
            committed = (FOLDER / name).read_bytes()
            if attack.exact:
                assert committed == content, name
    names = {name for attack in ATTACKS.values() for name in attack.files}
    kept = {path.name for path in FOLDER.iterdir() if path.suffix != ".py" and path.is_file()}
    assert kept - {"README.md"} == names
    assert (FOLDER / "README.md").read_text() == readme()


def test_what_runs_code_would_run_it(tmp_path, monkeypatch):
    """The control: without the reader's checks the same bytes do harm."""
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads((FOLDER / "bare-pickle.pt").read_bytes())
    assert (tmp_path / MARK).exists()


def test_a_sound_file_passes(sandbox, tensors, tmp_path):
    """The control of the attacks: under the same limits a network of 94 MB is converted."""
    from converter.formats.tensorflow.bundle_writer import write_tensor_bundle

    _, data = write_tensor_bundle(tmp_path / "model.ckpt-1", tensors)
    run = sandbox.run(
        tmp_path / "model.ckpt-1.index", folder=tmp_path, input_size=data.stat().st_size, cpu_seconds=20
    )
    assert run.code == 0, run
    assert (tmp_path / "model.ckpt-1.pt").is_file()
