# PYTHON_ARGCOMPLETE_OK
"""`facenet-port`: one executable for every command, which loads the code of the chosen command only."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from converter import __version__
from converter.command_line import Command, console, print_error
from converter.stop_signals import StopSignals

# Name: its module, the Command in it, and a line for the help.
_COMMANDS = {
    "convert": ("converter.__main__", "COMMAND", "convert a TensorFlow checkpoint to PyTorch, or back"),
    "list": ("converter.__main__", "LIST", "list the published models and the cached files"),
    "compare": (
        "checks.compare.__main__",
        "COMMAND",
        "prove that a port computes what the checkpoint does",
    ),
    "audit": (
        "checks.audit.__main__",
        "COMMAND",
        "judge a port by somebody else: weights, ONNX, TFLite",
    ),
    "gradients": ("checks.gradients.__main__", "COMMAND", "prove that a port trains as the checkpoint does"),
    "controls": ("checks.controls.__main__", "COMMAND", "show that compare finds every known fault"),
    "detect": (
        "faces.detect.__main__",
        "COMMAND",
        "find the faces of photographs, as facenet's detector does",
    ),
    "align": (
        "faces.align.__main__",
        "COMMAND",
        "crop the faces of a folder of photographs",
    ),
    "embed": ("faces.embed.__main__", "COMMAND", "compute the embeddings of a folder of photographs"),
    "match": ("faces.match.__main__", "COMMAND", "decide whether two photographs show the same person"),
    "identify": ("faces.identify.__main__", "COMMAND", "find the person of a photograph among known people"),
    "cluster": ("faces.cluster.__main__", "COMMAND", "sort the faces of a folder into people"),
    "evaluate": (
        "faces.evaluate.__main__",
        "COMMAND",
        "measure how well a network tells faces apart",
    ),
    "train": (
        "faces.training.__main__",
        "COMMAND",
        "train a classifier, or embeddings by triplets",
    ),
    "predict": ("faces.predict.__main__", "COMMAND", "name people with a trained classifier"),
    "export": ("faces.export.__main__", "COMMAND", "write ONNX or TFLite for phones and servers, audited"),
    "face-controls": (
        "faces.controls.__main__",
        "COMMAND",
        "show that faults from photograph to decision are found",
    ),
    "benchmark": (
        "checks.benchmark.__main__",
        "COMMAND",
        "measure the time and memory of convert and compare",
    ),
}

_HELP = """\
usage: facenet-port COMMAND ...

Convert David Sandberg's FaceNet models to PyTorch, prove the result, and use it.
`facenet-port COMMAND --help` lists the options of one of these commands:
{commands}

example: `facenet-port compare model/` converts a checkpoint, and proves it exact."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `facenet-port`; returns the exit code of the command.

    Args:
        argv: The arguments; None takes those of the process.
    """
    with StopSignals(for_good=argv is None) as stop:
        try:
            return _run(sys.argv[1:] if argv is None else argv, stop)
        except KeyboardInterrupt:  # while the command is loaded
            print_error(f"facenet-port: error: {stop.cause}")
            return stop.exit_code


def _run(argv: Sequence[str], stop: StopSignals) -> int:
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    if argv and argv[0] in _COMMANDS:
        return _load(argv[0]).run(argv[1:], stop, program=f"facenet-port {argv[0]}")
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, _COMMANDS)) + 2
        lines = (f"  {name:{width}}{summary}" for name, (_, _, summary) in _COMMANDS.items())
        console().print(_HELP.format(commands="\n".join(lines)), markup=False)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"facenet-port {__version__}")
        return 0
    close = difflib.get_close_matches(argv[0], _COMMANDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(_COMMANDS)}"
    print(f"facenet-port: error: there is no command {argv[0]!r}: {hint}", file=sys.stderr)
    return 2


def _load(name: str) -> Command:
    module, attribute, _ = _COMMANDS[name]
    command: Command = getattr(importlib.import_module(module), attribute)
    return command


def _complete() -> None:
    """Complete a half-typed line for the shell, and exit."""
    import argcomplete

    typed = os.environ["COMP_LINE"].split()
    parser = argparse.ArgumentParser(prog="facenet-port")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for name in _COMMANDS:
        command = commands.add_parser(name)
        if name == (typed[1:] or [""])[0]:
            _load(name).set_up(command)
    argcomplete.autocomplete(parser)


if __name__ == "__main__":
    sys.exit(main())
