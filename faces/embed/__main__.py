"""`facenet-port embed`: the options of `faces.embed.run.embed`."""

from __future__ import annotations

import argparse
import sys

from converter import command_line
from converter.progress import ProgressBar
from faces import options
from faces.processes import join_processes

_EPILOG = """\
exit codes: 0 every image has an embedding; 1 a photograph has no face; 2 wrong usage; 3 a file cannot be
read as a photograph; 4 something that is needed is missing. What has no embedding is listed, and the others
are embedded all the same."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="FOLDER",
        type=command_line.path,
        help="photographs or crops, or a folder of them for each person; or the table of align",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE.parquet",
        type=command_line.output,
        required=True,
        help="the file of embeddings; older ones are replaced. Of several processes a folder of their parts",
    )
    options.add_threshold_option(parser, "the one that was measured for the default model")
    options.add_embedder_options(parser)


def _work(arguments: argparse.Namespace) -> int:
    from faces.embed.run import embed

    with join_processes(arguments.device) as processes:
        quiet = arguments.quiet or not processes.is_first
        with ProgressBar("embedding faces", quiet=quiet) as progress:
            result = embed(
                arguments.source,
                arguments.output,
                threshold=arguments.threshold,
                embedder=options.make_embedder(arguments),
                processes=processes,
                progress=progress,
            )
        if not processes.is_first:
            return 0  # the first process tells the result of all
        command_line.show_result(arguments, result, "faces.embed", result.as_json)
        for problem in result.problems:
            command_line.print_error(f"{arguments.program}: {problem}")
        return result.exit_code


COMMAND = command_line.Command(
    "faces.embed",
    "Embed the faces of a folder of photographs, and write them to a Parquet file.",
    _add_arguments,
    _work,
    _EPILOG,
    "embed takes one folder; the file of embeddings goes with -o.",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
