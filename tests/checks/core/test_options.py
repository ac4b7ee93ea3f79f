"""The option --report: everything that it refuses, before the long work starts."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from checks.compare import __main__ as compare
from checks.controls import __main__ as controls
from checks.core.options import add_report_option, check_report
from checks.gradients import __main__ as gradients
from converter.command_line import Command

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

COMMANDS = (compare, gradients, controls)
MODULES = [command.__name__ for command in COMMANDS]
WITHOUT = (
    "import sys; sys.modules['{package}'] = None; from {module} import main; code = main(sys.argv[1:]); "
    "print('torch' in sys.modules); sys.exit(code)"
)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
@pytest.mark.parametrize("module", MODULES)
def test_a_missing_package_is_named_before_the_work_starts(module: str, package: str, tmp_path: Path) -> None:
    program = WITHOUT.format(package=package, module=module)
    command = [sys.executable, "-c", program, "--report", str(tmp_path / "r.html")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 4
    assert f"--report needs {package}, not installed here" in result.stderr
    assert "pip install 'facenet-port[report]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == "False\n"  # PyTorch was not imported
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_hinders_no_command_without_report() -> None:
    program = "import sys; sys.modules['matplotlib'] = sys.modules['jinja2'] = None\n" + "\n".join(
        f"import {name}" for name in MODULES
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def _refused(command: ModuleType, capsys, *options: str) -> str:
    assert command.main(list(options)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_not_a_page_is_refused_and_untouched(
    command: ModuleType, tmp_path: Path, capsys
) -> None:
    (tmp_path / "weights.pt").write_text("mine")
    error = _refused(command, capsys, "--report", str(tmp_path / "weights.pt"))
    assert "it exists and is not an .html file. Give another name." in error
    assert "this is a folder" in _refused(command, capsys, "--report", str(tmp_path))
    assert (tmp_path / "weights.pt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_older_report_is_left_for_the_new_one_to_replace(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("older")
    check_report(argparse.Namespace(report=path))
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["report", "report.xhtml", "report.HTML", "empty"])
def test_a_page_of_any_name_is_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    check_report(argparse.Namespace(report=path))
    path.write_text("" if name == "empty" else "<!DOCTYPE html>\n<html>older</html>")
    check_report(argparse.Namespace(report=path))


def test_a_folder_that_is_missing_or_may_not_be_written_to_is_refused(tmp_path: Path, capsys) -> None:
    assert "there is no folder" in _refused(compare, capsys, "--report", str(tmp_path / "no" / "r.html"))
    assert "cannot be written to" in _refused(compare, capsys, "--report", "/proc/r.html")


@pytest.mark.parametrize("option", ["--json", "--save-activations", "--repair"])
def test_no_two_options_may_name_one_file(option: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = _refused(compare, capsys, "--report", "r.html", option, str(tmp_path / "r.html"))
    assert f"{'--report' if option == '--json' else option} names the same file" in error
    assert list(tmp_path.iterdir()) == []


def test_without_the_option_nothing_is_checked_and_the_command_is_kept_as_typed() -> None:
    parsed = []

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("port")
        add_report_option(parser)

    def work(arguments: argparse.Namespace) -> int:
        check_report(arguments)
        parsed.append(arguments)
        return 0

    assert Command("checks.audit", "audits", add_arguments, work).main(["a b"]) == 0
    assert parsed[0].report is None
    assert parsed[0].command == "python -m checks.audit 'a b'"
