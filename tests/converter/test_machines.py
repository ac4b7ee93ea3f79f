"""Odd machines: no home folder, a user id without a name, caches and temporary folders that are read-only."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from checks.audit.__main__ import main as audit
from checks.compare.__main__ import main as compare
from converter.__main__ import main
from converter.home_folder import from_home
from converter.hub import cache
from converter.hub.catalog import BUILT_IN, all_entries, find_entry
from converter.hub.download import model_folder
from tests.fuzz.sandbox import ROOT

VARIABLES = (
    "HOME",
    "FACENET_PORT_CACHE",
    "XDG_CACHE_HOME",
    "TORCH_HOME",
    "XDG_CONFIG_HOME",
    "FACENET_PORT_CATALOG",
)


def no_name(_):
    raise KeyError("getpwuid(): uid not found: 12345")


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A process as in a container that runs as any user: no HOME, and no entry in the list of users."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_name)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(RuntimeError):
        Path.home()
    return folder


@pytest.mark.slow
def test_what_needs_no_cache_works_without_a_home(homeless, checkpoint, capsys):
    assert main([str(checkpoint.prefix), "-o", "w.pt"]) == 0
    assert audit(["w.pt", "--against", str(checkpoint.prefix), "--json", "a.json", "--report", "a.html"]) == 0
    assert main(["list"]) == 0
    run = capsys.readouterr()
    assert "Nothing is kept: there is no folder for the cache" in run.out
    assert run.err == ""
    assert {path.name for path in homeless.iterdir()} == {"w.pt", "w.pt.json", "a.json", "a.html"}
    assert main(["no-such-model"]) == 3
    assert "no such file" in capsys.readouterr().err


PROGRAM = """
import os, pwd, sys

def no_name(_):
    raise KeyError("getpwuid(): uid not found: 12345")

pwd.getpwuid = no_name
from checks.audit import run
from checks.core.inputs import InputBatch
batches = run.audited_batches
run.audited_batches = lambda seed: [InputBatch(batch.name, batch.images[:1]) for batch in batches(seed)[:1]]
from facenet_port import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_tensorflow_and_matplotlib_work_without_a_home_and_leave_no_folder(checkpoint, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, "audit", checkpoint.frozen, "--against", checkpoint.prefix,
         "--report", "r.html"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert "TensorFlow 2." in (tmp_path / "r.html").read_text()


NEEDS_A_CACHE = [
    (main, ["vggface2", "--offline"]),
    (compare, []),
    (compare, ["vggface2", "--offline"]),
    (audit, ["vggface2"]),
]


@pytest.mark.parametrize(("command", "arguments"), NEEDS_A_CACHE)
def test_what_needs_a_cache_names_the_variables(command, arguments, homeless, capsys):
    assert command(arguments) == 4
    err = capsys.readouterr().err
    assert "there is no folder for the cache: HOME is not set" in err
    for variable in ("FACENET_PORT_CACHE", "XDG_CACHE_HOME", "TORCH_HOME", "HOME"):
        assert variable in err
    assert list(homeless.iterdir()) == []


@pytest.mark.parametrize("variable", ["FACENET_PORT_CACHE", "XDG_CACHE_HOME", "TORCH_HOME", "HOME"])
def test_one_of_the_variables_is_enough(variable, homeless, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(variable, str(tmp_path / "set"))
    assert cache.cache_folder().is_relative_to(tmp_path / "set")
    assert cache.hub_checkpoints().is_relative_to(tmp_path / "set")
    assert main(["vggface2", "--offline"]) == 4
    assert "20180402-114759 is not in the cache, and offline mode is on" in capsys.readouterr().err
    assert audit(["vggface2"]) == 4
    assert "is not in the cache of torch.hub" in capsys.readouterr().err


@pytest.mark.slow
def test_one_variable_is_enough_for_weights_by_name(homeless, monkeypatch, archive, archive_digest, tmp_path):
    from reference import InceptionResnetV1

    (tmp_path / "catalog.toml").write_text(
        f'[mine]\ndataset = "faces"\nurl = "https://example.org/a.zip"\nsha256 = "{archive_digest}"\n'
    )
    monkeypatch.setenv("FACENET_PORT_CATALOG", str(tmp_path / "catalog.toml"))
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path / "set"))
    model_folder(find_entry("mine"), archive=archive)
    model = InceptionResnetV1(pretrained="mine", offline=True)
    assert model.logits.out_features == 7
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"locks", "models", "torch"}


@pytest.mark.parametrize("variable", ["FACENET_PORT_CACHE", "FACENET_PORT_CATALOG"])
def test_a_tilde_without_a_home_is_named(variable, homeless, monkeypatch, capsys):
    monkeypatch.setenv(variable, "~/mine")
    assert main(["my-model"] if variable == "FACENET_PORT_CATALOG" else ["vggface2", "--offline"]) == 4
    assert f"{variable}=~/mine: there is no home folder for the ~" in capsys.readouterr().err


@pytest.mark.parametrize("home", ["/", "", "relative"])
def test_odd_homes(home, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", home)
    monkeypatch.chdir(tmp_path)
    assert from_home("/data/model") == "/data/model"
    assert from_home("model") == "model"
    monkeypatch.setenv("FACENET_PORT_CATALOG", "")
    assert all_entries() == BUILT_IN


# What this user may not read or write

NOBODYS = """
import contextlib, io, os, sys
from converter.__main__ import main

for name in ("FACENET_PORT_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "FACENET_PORT_CATALOG", "TORCH_HOME"):
    os.environ.pop(name, None)

def run_all():
    return main(["vggface2"]), main(["list", "--quiet"]), main(["no-such-model"])

home, writable = sys.argv[1:]
os.environ["HOME"] = writable
with contextlib.redirect_stderr(io.StringIO()):
    run_all()  # imports everything, since another user may not be able to read the modules
os.environ["HOME"] = home
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(*run_all())
"""


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_read_only_cache_is_a_permission_not_a_full_disk(mode, tmp_path):
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    (tmp_path / "writable").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", NOBODYS, home, tmp_path / "writable"],
        capture_output=True,
        text=True,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "https_proxy": "http://127.0.0.1:9"},  # nothing is downloaded
    )
    home.chmod(0o755)
    assert run.stdout == "4 0 3\n", run.stderr
    message = run.stderr.splitlines()[0]
    assert f"{home}/.cache" in message
    assert "the cache cannot be used (Permission denied)" in message
    assert "set FACENET_PORT_CACHE to a folder that can be written to" in message
    assert "room" not in message
    assert "Traceback" not in run.stderr


def test_no_folder_for_temporary_files(checkpoint, monkeypatch, capsys):
    import tempfile

    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert compare([str(checkpoint.frozen)]) == 4
    assert "no folder for temporary files can be written to. Set TMPDIR" in capsys.readouterr().err


def test_a_full_folder_for_temporary_files(checkpoint, monkeypatch, capsys):
    from checks.core import models
    from converter.errors import RequirementError

    def full(*arguments, **options):
        raise RequirementError("w.pt: cannot be written") from OSError(28, "No space left on device")

    monkeypatch.setattr(models, "convert_file", full)
    assert compare([str(checkpoint.frozen)]) == 4
    err = capsys.readouterr().err
    assert "the converted file does not fit on the disk" in err
    assert "set TMPDIR" in err


def test_a_full_cache_is_a_full_disk(monkeypatch, tmp_path, capsys):
    import facenet_tf.checkpoint as writer
    from checks.core import builtin_checkpoint

    class Saver:
        def save(self, *_, **__):
            raise writer.tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path))
    monkeypatch.setattr(builtin_checkpoint, "built_in_tensors", dict)
    monkeypatch.setattr(
        writer, "write_checkpoint", lambda folder, *_, **__: writer._save(Saver(), None, folder)
    )
    assert compare([]) == 4
    err = capsys.readouterr().err
    assert f"{tmp_path}: the cache cannot be used (the disk is full). Make room on the disk, or set" in err
    assert list(tmp_path.iterdir()) == []
