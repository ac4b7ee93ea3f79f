"""Common behaviour of all commands: the file of `--json`, a closed output, an empty argument."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from checks.compare import __main__ as compare
from converter import command_line
from converter.__main__ import main
from converter.output_names import check_ending
from tests.conftest import MODEL, STEP, random_bits


@pytest.fixture
def source(checkpoint) -> Path:
    return checkpoint.prefix


def test_json_replaces_an_older_result_and_nothing_else(source: Path, tmp_path: Path, capsys) -> None:
    older = tmp_path / "result.json"
    older.write_text("older")
    assert main([str(source), "-o", str(tmp_path / "w.pt"), "--json", str(older), "--quiet"]) == 0
    assert json.loads(older.read_text())["converted"] == 492
    assert main(["list", "--json", str(older), "--quiet"]) == 0  # it is no manifest
    weights = (tmp_path / "w.pt").read_bytes()
    for command in (main, compare.main):
        assert command([str(source), "--json", str(tmp_path / "w.pt")]) == 2
        assert "w.pt: it exists and is not a .json file" in capsys.readouterr().err
        assert command([str(source), "--json", str(tmp_path / "no" / "r.json")]) == 2
        assert "there is no folder" in capsys.readouterr().err
        assert command([str(source), "--json", str(tmp_path / "w.pt.json")]) == 2
        assert "w.pt.json: this is the manifest of a conversion" in capsys.readouterr().err
    assert (tmp_path / "w.pt").read_bytes() == weights


@pytest.mark.parametrize("name", ["result", "result.txt", "result.JSON", "latest.json"])
def test_a_second_run_replaces_the_json_of_the_first(name: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / name
    if name == "latest.json":  # a link to another file, which is the one to replace
        path.symlink_to(tmp_path / "of-today")
    for _ in range(2):
        assert main(["list", "--quiet", "--json", str(path)]) == 0
        assert json.loads(path.read_text())["20180402-114759"]
    assert path.is_symlink() == (name == "latest.json")
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_an_empty_file_for_the_json_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tmp.aX3f").touch()  # as mktemp makes it
    assert main(["list", "--quiet", "--json", str(tmp_path / "tmp.aX3f")]) == 0
    assert json.loads((tmp_path / "tmp.aX3f").read_text())["20180402-114759"]


@pytest.mark.parametrize("name", ["weights.pt", "notes.txt", "graph.pb", "a.h5"])
def test_json_never_replaces_what_is_no_result(name: str, tmp_path: Path, capsys) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4 weights")
    assert main(["list", "--json", str(tmp_path / name)]) == 2
    assert f"{name}: it exists and is not a .json file. Give another name." in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == b"PK\3\4 weights"


def test_json_is_refused_where_no_file_can_be_replaced(tmp_path: Path, capsys) -> None:
    for path, problem in (
        ("/dev/null", "this is not a regular file"),
        (str(tmp_path), "this is a folder"),
        ("/proc/r.json", "cannot be written to"),
    ):
        assert main(["list", "--json", path]) == 2
        assert problem in capsys.readouterr().err


WRITES_ITSELF = "the conversion writes this file itself. Give --json another name."


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("w.pt", [], "--output names the same file. Give another name."),
        ("w.pt.json", [], WRITES_ITSELF),
        ("w-features.pt", ["--parts"], WRITES_ITSELF),
        ("w-logits.pt.json", ["--parts"], WRITES_ITSELF),
        ("w.index", ["--to", "tensorflow"], WRITES_ITSELF),
        (
            "w.data-00000-of-00001",
            ["--to", "tensorflow"],
            "the conversion writes this file itself. Give --json",
        ),
        ("w.json", ["--to", "tensorflow"], WRITES_ITSELF),
    ],
)
def test_json_never_lands_on_an_output(name: str, options: list[str], says: str, tmp_path, capsys) -> None:
    output = tmp_path / ("w" if "--to" in options else "w.pt")
    # The model is not in the cache: the name is refused before the source is looked for.
    arguments = ["vggface2", "--offline", "-o", str(output), "--json", str(tmp_path / name), *options]
    assert main(arguments) == 2
    assert f"{tmp_path / name}: {says}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_json_never_lands_on_an_output_without_a_name(
    source: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (f"{MODEL}.pt", f"{MODEL}.pt.json"):
        assert main([str(source), "--json", name]) == 2
        assert f"{name}: {WRITES_ITSELF}" in capsys.readouterr().err
    assert main([str(source.parent), "--all-steps", "--json", f"{MODEL}-{STEP}.pt"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("w" * 252 + ".pt", "the name is too long. Give a shorter one"),
        ("w" * 248 + ".pt", "the name is too long. Give a shorter one"),  # with its manifest
        ("dangling.pt", "dangling.pt exists. Give another name"),
        ("circle.pt", "circle.pt exists. Give another name"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    name: str, says: str, small_source: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "dangling.pt").symlink_to("nowhere")
    (tmp_path / "circle.pt").symlink_to("circle.pt")
    before = {path.name for path in tmp_path.iterdir()}
    assert main([str(small_source), "-o", f"{tmp_path}/{name}"]) == 2
    assert says in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == before
    if name == "dangling.pt":
        assert main([str(small_source), "-o", f"{tmp_path}/{name}", "--overwrite"]) == 0
        assert (tmp_path / name).is_file() and not (tmp_path / name).is_symlink()


@pytest.mark.parametrize("arguments", [["list", "--json"], ["x.pb", "-o"]])
def test_a_folder_that_is_not_there_becomes_no_file(arguments: list[str], tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, f"{tmp_path}/new/"])
    assert "new/ is no folder. Create it, or leave out the / to name a file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_json_of_a_long_name_is_wrong_usage(tmp_path: Path, capsys) -> None:
    assert main(["list", "--json", f"{tmp_path}/{'w' * 256}"]) == 2
    assert "w: the name is too long. Give a shorter one." in capsys.readouterr().err


def test_json_never_lands_on_the_source(tmp_path: Path, capsys) -> None:
    source = tmp_path / "weights.json"
    source.write_text("{}")
    assert main([str(source), "--json", str(source)]) == 2
    assert f"--json {source}: SOURCE names the same file. Give another name." in capsys.readouterr().err
    assert source.read_text() == "{}"


def test_json_has_no_infinity(tmp_path: Path) -> None:
    command_line.write_json(tmp_path / "r.json", {"a": [1.5, float("inf"), (float("nan"),)], "b": {"c": "x"}})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": [1.5, None, [None]], "b": {"c": "x"}}


@pytest.mark.slow
def test_the_exit_code_is_the_verdict_though_nobody_reads(small_source: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "converter", str(small_source), "-o", str(tmp_path / "w.pt")]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert (tmp_path / "w.pt").is_file()


def test_an_empty_path_is_wrong_usage(capsys) -> None:
    with pytest.raises(SystemExit) as ending:
        main([""])
    assert ending.value.code == 2
    assert "an empty path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("w.pt", ["--format", "safetensors"]),
        ("w.safetensors", ["--format", "pt"]),
        ("w.index", ["--to", "tensorflow"]),
    ],
)
def test_an_ending_that_contradicts_the_format_is_refused(
    name: str, options: list[str], source: Path, tmp_path: Path, capsys
) -> None:
    assert main([str(source), "-o", str(tmp_path / name), *options]) == 2
    assert "the ending says" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["w.onnx", "w.weights.h5", "w.ONNX", "w.pth.tar", "w.txt", "w.csv", "w.pt.bak", "w.safetensor", "w.ckp"],
)
@pytest.mark.parametrize("options", [[], ["--to", "tensorflow"], ["--format", "safetensors"]])
def test_an_ending_that_is_not_written_is_refused(
    name: str, options: list[str], tmp_path: Path, capsys
) -> None:
    # The source does not exist: the name is refused before anything is read or downloaded.
    assert main(["vggface2", "--offline", "-o", str(tmp_path / name), *options]) == 2
    error = capsys.readouterr().err
    assert f"{name}: the converter writes no file that ends in {Path(name).suffix.lower()}." in error
    assert "Give a name that ends in .pt, .pth, .bin or .safetensors, or with --to tensorflow a" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.ckpt", "model-x.ckpt-90", "model.CKPT"])
def test_the_ending_of_a_checkpoint_needs_its_direction(name: str, tmp_path: Path, capsys) -> None:
    assert main(["vggface2", "--offline", "-o", str(tmp_path / name)]) == 2
    assert "Add --to tensorflow, or change the ending." in capsys.readouterr().err
    assert main(["vggface2", "--offline", "-o", str(tmp_path / "m.ckpt-1.data-00000-of-00001")]) == 2
    assert "one file of a checkpoint. Give its prefix, such as m.ckpt-1, with" in capsys.readouterr().err


def test_the_endings_that_are_written_and_names_without_one() -> None:
    for name in ("w", "w.pt", "w.PT", "w.pth", "w.bin", "20180402-114759", "w.v1.2", "facenet-1.2", "w.v2"):
        check_ending(Path(name), "pt")
    check_ending(Path("w.safetensors"), "safetensors")
    for name in ("w", "model-x.ckpt", "model-x.ckpt-90", "model-1.5", "model-1.5-90"):
        check_ending(Path(name), "tensorflow")


def test_the_ending_chooses_the_format_and_the_umask_the_mode(small_source: Path, tmp_path: Path) -> None:
    assert main([str(small_source), "-o", str(tmp_path / "w.safetensors"), "--quiet"]) == 0
    assert (tmp_path / "w.safetensors").read_bytes()[8:9] == b"{"
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_averages_of_only_some_statistics_are_refused(tensors, tmp_path: Path) -> None:
    from converter.convert import to_numpy_state_dict
    from converter.plan import MappingError

    average = "/ExponentialMovingAverage"
    trained = {name for name in tensors if not name.endswith(("/moving_mean", "/moving_variance"))}
    given = {**tensors, **{name + average: tensors[name] for name in trained}}
    assert len(to_numpy_state_dict(given, weights="average")) == 716
    one = "InceptionResnetV1/Conv2d_1a_3x3/BatchNorm/moving_mean"
    with pytest.raises(MappingError) as caught:
        to_numpy_state_dict({**given, one + average: random_bits((32,), 1)}, weights="average")
    assert {problem.kind for problem in caught.value.problems} == {"missing"}
    assert len(caught.value.problems) == 2 * 112 - 1


def test_the_wrapper_around_a_model_is_taken_off(tensors) -> None:
    from converter.convert import to_numpy_state_dict, to_tensorflow

    state_dict = to_numpy_state_dict(tensors)
    wrapped = to_tensorflow({f"module.{key}": array for key, array in state_dict.items()})
    assert wrapped.keys() == tensors.keys()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["numpy._core._multiarray_umath", "numpy.linalg", "torch._C", "torch.nn"])
def test_ctrl_c_while_a_library_is_imported_is_one_line(source: Path, tmp_path: Path, module: str) -> None:
    program = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from facenet_port import main\n"
        "sys.exit(main(['convert', *sys.argv[1:]]))\n"
    )
    command = [sys.executable, "-c", program, str(source), "-o", str(tmp_path / "w.pt")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stderr == "facenet-port convert: error: interrupted; no file was left half written\n"
    assert result.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_shown_by_the_rooms_of_its_command(tmp_path: Path, capsys, monkeypatch) -> None:
    written = []
    table, page = ModuleType("own.table"), ModuleType("own.page")
    table.print_result = lambda result, *, verbose: print(result, verbose)
    page.write_page = lambda path, result, *, command: written.append((path, result, command))
    for module in (table, page):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    report, result = tmp_path / "r.html", tmp_path / "r.json"
    arguments = Namespace(quiet=False, verbose=True, json=result, report=report, command="facenet-port own")
    command_line.show_result(arguments, "faithful", "own", lambda: {"passed": True})
    assert capsys.readouterr().out == "faithful True\n"
    assert json.loads(result.read_text()) == {"passed": True}
    assert written == [(report, "faithful", "facenet-port own")]
    arguments = Namespace(quiet=True, json=None, report=None)
    command_line.show_result(arguments, "faithful", "own", lambda: pytest.fail("nobody asks for it"))
    assert capsys.readouterr().out == ""
