"""`facenet-port match`: the options of `faces.match.run.match`."""

from __future__ import annotations

import argparse
import sys

from converter import command_line
from faces import options

_EPILOG = """\
exit codes: 0 the same person; 1 different people; 2 wrong usage; 3 a file cannot be read as a photograph, or
has no face; 4 no decision, as there is no threshold for the model, or something that is needed is missing"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(
            name,
            metavar=name.upper(),
            type=command_line.path,
            help="a photograph, or a crop of 160x160 or 182x182 pixels",
        )
    options.add_threshold_option(parser, "the one that was measured for the default model")
    options.add_embedder_options(parser)


def _work(arguments: argparse.Namespace) -> int:
    from faces.match.run import match

    result = match(
        arguments.first,
        arguments.second,
        threshold=arguments.threshold,
        embedder=options.make_embedder(arguments),
    )
    command_line.show_result(arguments, result, "faces.match", result.as_json)
    if result.threshold is None:
        options.print_no_threshold(arguments, result.model, result.faces[0].crop)
    return result.exit_code


COMMAND = command_line.Command(
    "faces.match",
    "Decide whether two photographs show the same person.",
    _add_arguments,
    _work,
    _EPILOG,
    "match takes two photographs.",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
