"""`facenet-port detect`: the options of `faces.detect.run.detect`."""

from __future__ import annotations

import argparse
import sys

from converter import command_line
from converter.progress import ProgressBar
from faces import options

_EPILOG = """\
exit codes: 0 every photograph has a face; 1 a photograph has none; 2 wrong usage; 3 a file
cannot be read as a photograph; 4 something that is needed is missing. A photograph that
cannot be read or has no face is named, and the others are searched all the same."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photographs",
        metavar="PHOTO",
        nargs="+",
        type=command_line.path,
        help="a photograph, or a folder: its photographs and those of its subfolders",
    )
    parser.add_argument(
        "--draw",
        metavar="OUT",
        type=command_line.path,
        help="also write the photographs with boxes and landmarks drawn on them: OUT is a folder, or for one "
        "photograph a file",
    )
    options.add_detector_backend_option(parser)
    options.add_detector_options(parser)


def _work(arguments: argparse.Namespace) -> int:
    from faces.detect.run import detect

    with ProgressBar("detecting faces", quiet=arguments.quiet) as progress:
        result = detect(
            arguments.photographs,
            draw=arguments.draw,
            device=arguments.device,
            smallest_face=arguments.smallest_face,
            thresholds=tuple(arguments.thresholds),
            factor=arguments.factor,
            offline=arguments.offline,
            backend=arguments.backend,
            progress=progress,
        )
    command_line.show_result(arguments, result, "faces.detect", result.as_json)
    for problem in result.problems:
        command_line.print_error(f"{arguments.program}: {problem}")
    return 3 if result.problems else 1 if result.without_face else 0


COMMAND = command_line.Command(
    "faces.detect",
    "Find the faces of photographs as facenet's own detector does: boxes, scores and five landmarks.",
    _add_arguments,
    _work,
    _EPILOG,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
