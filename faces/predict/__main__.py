"""`facenet-port predict`: the options of `faces.predict.run.predict`."""

from __future__ import annotations

import argparse
import sys

from converter import command_line
from converter.progress import ProgressBar
from faces import options

_EPILOG = """\
A stranger is given one of the names, too: the classifier knows no others. `facenet-port identify` decides by
distance, and may say nobody.

exit codes: 0 every photograph has a face; 1 a photograph has none; 2 wrong usage; 3 a file cannot be read;
4 something that is needed is missing. A photograph that cannot be read or has no face is listed, and the
others are named all the same."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photographs",
        metavar="PHOTO",
        nargs="+",
        type=command_line.path,
        help="a photograph, a crop of 160x160 or 182x182 pixels, or a folder of them",
    )
    parser.add_argument(
        "--weights",
        metavar="RUN/best",
        type=command_line.path,
        required=True,
        help="the folder best or last of a run of `facenet-port train`",
    )
    parser.add_argument(
        "--top",
        metavar="N",
        type=options.positive_number,
        default=5,
        help="people that are listed of each photograph (default: 5)",
    )
    options.add_standardise_option(parser)
    options.add_crop_option(parser)
    options.add_detector_backend_option(parser)
    options.add_detector_options(parser)


def _work(arguments: argparse.Namespace) -> int:
    from faces.predict.run import predict

    arguments.model = arguments.weights
    with ProgressBar("predicting people", quiet=arguments.quiet) as progress:
        result = predict(
            arguments.photographs,
            arguments.weights,
            top=arguments.top,
            embedder=options.make_embedder(arguments),
            progress=progress,
        )
    command_line.show_result(arguments, result, "faces.predict", result.as_json)
    for problem in result.problems:
        command_line.print_error(f"{arguments.program}: {problem}")
    return result.exit_code


COMMAND = command_line.Command(
    "faces.predict",
    "Name the people of photographs with a classifier that `facenet-port train` has trained.",
    _add_arguments,
    _work,
    _EPILOG,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
