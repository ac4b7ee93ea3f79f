"""`facenet-port cluster`: the options of `faces.cluster.run.cluster`."""

from __future__ import annotations

import argparse
import sys

from checks.core.options import add_report_option, check_report
from converter import command_line
from converter.progress import ProgressBar
from faces import options

_EPILOG = """\
exit codes: 0 every image has a face; 1 a photograph has none; 2 wrong usage; 3 a file cannot be read as a
photograph; 4 no threshold is known for the model, or something that is needed is missing"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="FOLDER",
        type=command_line.path,
        help="photographs or crops; the names of its folders are shown, and not used",
    )
    options.add_threshold_option(parser, "the one that was measured for the default model")
    options.add_embedder_options(parser)
    add_report_option(parser, ": the faces of each cluster")


def _work(arguments: argparse.Namespace) -> int:
    check_report(arguments)
    from faces.cluster.run import cluster

    with ProgressBar("embedding faces", quiet=arguments.quiet) as progress:
        result = cluster(
            arguments.source,
            threshold=arguments.threshold,
            embedder=options.make_embedder(arguments),
            progress=progress,
        )
    command_line.show_result(arguments, result, "faces.cluster", result.as_json)
    for problem in result.embedded.problems:
        command_line.print_error(f"{arguments.program}: {problem}")
    return result.exit_code


COMMAND = command_line.Command(
    "faces.cluster",
    "Sort the faces of a folder of photographs into people.",
    _add_arguments,
    _work,
    _EPILOG,
    "cluster takes one folder.",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
