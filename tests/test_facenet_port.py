"""The executable: its help, messages, shell completion and imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import facenet_port
from converter import __version__
from facenet_port import _COMMANDS, _load, main

ENTRY = [sys.executable, "-c", "import sys; from facenet_port import main; sys.exit(main())"]


def test_the_help_is_one_screen_with_every_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 88
    for name in _COMMANDS:
        assert any(line.split()[:1] == [name] for line in lines), name


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in _COMMANDS)


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"facenet-port {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comparre", "x"], "there is no command 'comparre': did you mean compare?"),
        (["xyzzy"], "the commands are convert, list, compare"),
        (["--quiet", "convert"], "there is no command '--quiet': the commands are"),
        (["convert", "model", "weights.pt"], "unexpected weights.pt: convert takes one SOURCE; -o OUT names"),
        (["convert", "model", "--overwite"], "--overwite: did you mean --overwrite? `facenet-port convert -"),
        (["convert", "m", "--ouput=w.pt"], "unexpected --ouput=w.pt: did you mean --output? `facenet-port"),
        (["convert", "m", "--ovewrite", "--strct"], "did you mean --overwrite and --strict?"),
        (["convert", "m", "--xyzzy"], "unexpected --xyzzy. `facenet-port convert --help` lists the options."),
        (["compare", "--every-leyer"], "unexpected --every-leyer: did you mean --every-layer?"),
        (["audit", "w.pt", "--agianst", "m"], "unexpected --agianst m: did you mean --against?"),
        (["gradients", "--sed", "1"], "unexpected --sed: did you mean --seed?"),
        (["controls", "--onyl", "1"], "did you mean --only?"),
        (["list", "--jsn", "x"], "unexpected --jsn x: did you mean --json?"),
        (["compare", "model", "w.pt"], "w.pt: compare takes one checkpoint. To judge a PyTorch file"),
        (["list", "vggface2"], "unexpected vggface2: list takes no arguments"),
    ],
)
def test_a_slip_gets_a_hint(capsys, arguments, message):
    try:
        code = main(arguments)
    except SystemExit as ending:
        code = ending.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_misspelt_model_gets_its_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "catalog.toml").touch()
    monkeypatch.setenv("FACENET_PORT_CATALOG", str(tmp_path / "catalog.toml"))
    assert main(["convert", "vgface2"]) == 3
    assert "vgface2: no such file, folder, checkpoint prefix or published model. Did you mean vggface2?" in (
        capsys.readouterr().err
    )
    assert main(["convert", "weights.pb"]) == 3
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_a_help(capsys, name):
    with pytest.raises(SystemExit) as ending:
        main([name, "--help"])
    assert ending.value.code == 0
    assert f"usage: facenet-port {name}" in capsys.readouterr().out


def completions(line):
    """Ask for completions as the shell function of `register-python-argcomplete facenet-port` does."""
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    reading, writing = os.pipe()
    # The answer goes to descriptor 8.
    command = ["bash", "-c", f'exec 8>&{writing} && exec "$@"', "bash", *ENTRY]
    process = subprocess.Popen(command, env=environment, pass_fds=[writing], stderr=subprocess.PIPE)
    os.close(writing)
    with os.fdopen(reading) as answer:
        words = answer.read().split("\n")
    assert process.communicate(timeout=60)[1] == b""
    return {word.strip() for word in words}


def test_a_shell_completes_commands_and_options():
    assert completions("facenet-port ") >= {*_COMMANDS, "--help", "--version"}
    assert completions("facenet-port co") == {"convert", "compare", "controls"}
    assert completions("facenet-port convert --over") == {"--overwrite"}
    assert completions("facenet-port compare --state") == {"--state-dict"}
    assert completions("facenet-port convert --to ") == {"pytorch", "tensorflow"}


def test_the_installed_script_says_that_it_completes():
    assert "PYTHON_ARGCOMPLETE_OK" in Path(facenet_port.__file__).read_text()[:1024]


@pytest.mark.parametrize("arguments", [["--help"], ["convert", "--help"], ["list", "--help"], ["comparre"]])
def test_a_command_is_not_loaded_before_it_runs(arguments):
    program = (
        "import sys\nfrom facenet_port import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print(sorted({'checks', 'torch', 'numpy', 'tensorflow'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr


def test_ctrl_c_while_a_command_is_loaded_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(facenet_port, "_load", interrupted)
    assert main(["compare", "x"]) == 130
    assert capsys.readouterr().err == "facenet-port: error: interrupted\n"


def test_every_command_is_the_one_of_its_module():
    for name in _COMMANDS:
        assert _load(name).summary


WITHOUT_EXTRAS = """
import json, sys
for name in ("tensorflow", "onnx", "onnxruntime", "onnxscript", "ai_edge_litert", "matplotlib", "jinja2"):
    sys.modules[name] = None  # importing it raises ImportError
from facenet_port import main
sys.exit(any([main(arguments) for arguments in json.loads(sys.argv[1])]))
"""


@pytest.mark.slow
def test_converting_and_auditing_weights_need_no_extra(checkpoint, tmp_path):
    output = str(tmp_path / "weights.safetensors")
    commands = [
        ["convert", str(checkpoint.prefix), "-o", output],
        ["audit", output, "--against", str(checkpoint.prefix)],
        ["list"],
    ]
    command = [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps(commands)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
