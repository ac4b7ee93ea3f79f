# PYTHON_ARGCOMPLETE_OK
"""`facenet-port`: one executable for every command; a command's code is loaded only when it is asked for."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from converter.command_line import Command

_COMMANDS = {
    "convert": ("converter.__main__", "COMMAND"),
    "list": ("converter.__main__", "LIST"),
    "compare": ("checks.compare.__main__", "COMMAND"),
    "audit": ("checks.audit.__main__", "COMMAND"),
    "gradients": ("checks.gradients.__main__", "COMMAND"),
    "controls": ("checks.controls.__main__", "COMMAND"),
    "benchmark": ("checks.benchmark.__main__", "COMMAND"),
}

_EXAMPLES = """\
examples:
  facenet-port convert 20180402-114759/ -o weights.pt   a checkpoint folder to a PyTorch state_dict
  facenet-port convert vggface2                         the same by its published name, downloaded
  facenet-port compare 20180402-114759/                 prove that the port is exact
  facenet-port audit port.onnx --against vggface2       judge a port that somebody else made

`facenet-port COMMAND --help` lists the options of a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `facenet-port`; returns the exit code of the command.

    Args:
        argv: The arguments; None takes those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(_parser(with_options=True))
    if argv and argv[0] in _COMMANDS:
        return _load(argv[0]).main(argv[1:], program=f"facenet-port {argv[0]}")
    parser = _parser(with_options=False)
    if argv and not argv[0].startswith("-"):
        close = difflib.get_close_matches(argv[0], _COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(_COMMANDS)}"
        parser.error(f"there is no command {argv[0]!r}: {hint}")
    if argv and argv[0] not in ("-h", "--help"):
        parser.error(f"{argv[0]} comes before the command: a command comes first")
    parser.print_help()
    return 0 if argv else 2


def _load(name: str) -> Command:
    module, attribute = _COMMANDS[name]
    command: Command = getattr(importlib.import_module(module), attribute)
    return command


def _parser(*, with_options: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="facenet-port",
        description="Port FaceNet checkpoints from TensorFlow to PyTorch, and prove that the port is exact.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name in _COMMANDS:
        command = _load(name)
        subparser = commands.add_parser(name, help=command.summary)
        if with_options:
            command.set_up(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
